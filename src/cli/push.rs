//! `push`.

use std::io::Write;

use anyhow::Context as _;
use clap::Args;

use super::{
    Session,
    interrupt::interruptible,
    pull::{self, Shown},
};
use crate::image::Reference;

#[derive(Debug, Args)]
pub struct PushArgs {
    /// Name of the image
    #[arg(value_name = "REF")]
    reference: String,
    /// Where to, such as localhost:5000/name:tag; without it to where the name says
    #[arg(value_name = "DEST")]
    destination: Option<String>,
}

impl PushArgs {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let reference: Reference = self.reference.parse()?;
        let destination: Reference = self.destination.as_ref().unwrap_or(&self.reference).parse()?;
        let store = pull::open(session)?;
        let found = store.lookup(&reference)?;
        let image = found
            .with_context(|| format!("there is no image {reference}; podspawn image ls lists those that there are"))?;
        let progress = Shown::new(session.quiet);
        let digest = interruptible(&store, || {
            let pushed = store.push(&image, &destination, &progress);
            progress.clear();
            pushed
        })?;
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(())
    }
}
