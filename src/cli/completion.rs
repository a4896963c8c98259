//! `podspawn completion`: made from the command line itself.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Debug, Args)]
pub struct Completion {
    /// Which shell: for bash, for example, `podspawn completion bash > /etc/bash_completion.d/podspawn`
    shell: Shell,
}

impl Completion {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "podspawn", &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}
