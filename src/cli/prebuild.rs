//! `prebuild`.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::bail;
use clap::Args;

use super::{
    Session,
    podfile::{LocalFiles, find, print_problems},
};
use crate::{
    api::types::{BuildRequest, ImageId, Job},
    errors::printable,
    image::Reference,
    podfile::{self, BuildPlan},
};

/// The server builds, so that what is built is there for everybody; a build goes on when this command is interrupted.
#[derive(Debug, Args)]
pub struct Prebuild {
    /// The file, or a directory to look for one in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    podfile: PathBuf,
    /// Give the image a name, under which it is kept until it is removed
    #[arg(long, value_name = "REF")]
    tag: Option<Reference>,
}

impl Prebuild {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        if let Some(tag) = self.tag.as_ref().filter(|tag| !matches!(tag, Reference::Registry(_))) {
            bail!("{tag} says where an image is, and cannot be the name of a new one; write for instance mine:latest");
        }
        let document = find(&self.podfile)?;
        let source = LocalFiles { private_hosts: session.config.podfile.private_hosts.clone() };
        let plan = match podfile::resolve(&document, &source) {
            Ok(resolved) => {
                print_problems("warning: ", &resolved.warnings)?;
                BuildPlan::of(&resolved.podfile)
            }
            Err(invalid) => {
                print_problems("", &invalid.errors)?;
                bail!("{} is not valid", document.name);
            }
        };
        let tag = self.tag.as_ref().map(ToString::to_string);
        let request = BuildRequest { plan: Some(plan), tag, ..BuildRequest::default() };
        let mut shown = Shown { quiet: session.quiet, live: io::stderr().is_terminal(), open: false };
        let mut result = None;
        session.client().build(&request, |event| match event {
            Job::Progress(line) => shown.line(&line),
            last @ (Job::Done(_) | Job::Failed { .. }) => result = Some(last),
        })?;
        shown.end();
        match result {
            Some(Job::Done(ImageId { digest })) => {
                writeln!(io::stdout(), "{digest}")?;
                Ok(())
            }
            Some(Job::Failed { error, output }) => {
                for line in output {
                    writeln!(io::stderr(), "| {}", printable(&line))?;
                }
                bail!("{error}")
            }
            Some(Job::Progress(_)) | None => bail!("the server has ended before the build did"),
        }
    }
}

/// One line that changes on a terminal, lines elsewhere.
struct Shown {
    quiet: bool,
    live: bool,
    /// Whether the cursor is at the end of a line of ours.
    open: bool,
}

impl Shown {
    fn line(&mut self, line: &str) {
        if self.quiet {
            return;
        }
        let line = printable(line);
        self.open = self.live;
        let shape = if self.live { format!("\r\x1b[K{line}") } else { format!("{line}\n") };
        // Whoever has closed standard error does not want to know.
        let _ = io::stderr().write_all(shape.as_bytes());
    }

    fn end(&self) {
        if self.open {
            // As above.
            let _ = writeln!(io::stderr());
        }
    }
}
