//! `podspawn man`: manual pages, made from the command line itself.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory};

use super::Cli;

#[derive(Debug, Args)]
pub struct Man {
    /// Write podspawn.1, podspawn-add-user.1 and so on into DIR, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    pub fn run(&self) -> anyhow::Result<()> {
        let command = Cli::command().disable_help_subcommand(true);
        match &self.output {
            Some(directory) => {
                let cannot = || format!("cannot write manual pages to {}", directory.display());
                fs::create_dir_all(directory).with_context(cannot)?;
                clap_mangen::generate_to(command, directory).with_context(cannot)
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                Ok(io::stdout().write_all(&page)?)
            }
        }
    }
}
