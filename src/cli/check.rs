//! `config check`.

use std::io::{self, Write};

use clap::Args;
use serde_json::Value;

use super::{Session, table};
use crate::config::{self, settings};

/// Validate the configuration, the users' files and the list of projects, and print what is in force and where it comes
/// from.
#[derive(Debug, Args)]
pub struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        // Loading has validated the file; what follows are the files that it points to.
        for warning in config::check(session.config)? {
            writeln!(io::stderr(), "podspawn: warning: {warning}")?;
        }
        let settings = settings(session.config);
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&settings)?)?;
        } else {
            let rows: Vec<_> =
                settings.into_iter().map(|setting| [setting.field, plain(&setting.value), setting.origin]).collect();
            table::print(["FIELD", "VALUE", "ORIGIN"], &rows)?;
            writeln!(io::stderr(), "{}: valid", session.config.paths.config_file.display())?;
        }
        Ok(())
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
