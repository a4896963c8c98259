//! `ssh` and `open`: other programs, with a project's host name.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory, error::ErrorKind};

use super::Cli;
use crate::client::config::SUFFIX;

/// Options of ssh that another word may belong to (ssh(1)).
const WITH_VALUE: &str = "BbcDEeFIiJLlmOopPQRSWw";

/// Run ssh, with .pod added to a host name without a dot.
///
/// Everything else is ssh's: all of its options before the destination, the command after it, and the exit status.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, override_usage = "podspawn ssh [SSH-OPTION]... [USER@]PROJECT [--] [COMMAND]...")]
pub struct Ssh {
    /// What ssh is given
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

impl Ssh {
    pub fn run(&self, quiet: bool) -> anyhow::Result<()> {
        let mut arguments = self.arguments.clone();
        let Some(at) = destination_at(&arguments) else { no_destination() };
        arguments[at] = full_name(&arguments[at])?;
        // It is ours and ssh's; when it comes first we are who hears it.
        let quiet = quiet.then_some(OsString::from("-q"));
        let options: Vec<_> = quiet.into_iter().chain(arguments[..at].iter().cloned()).collect();
        assert_routed(&options, &arguments[at])?;
        Err(run("ssh", options.iter().chain(&arguments[at..])))
    }
}

/// Open a project in an editor.
#[derive(Debug, Args)]
pub struct Open {
    /// Whose session, and of which project
    #[arg(value_name = "[USER@]PROJECT")]
    destination: OsString,
    /// The directory to open
    #[arg(default_value = "/workspace")]
    path: String,
    /// Use Cursor instead of Visual Studio Code
    #[arg(long)]
    cursor: bool,
}

impl Open {
    pub fn run(&self) -> anyhow::Result<()> {
        if !self.path.starts_with('/') {
            bail!("{:?} is not an absolute path", self.path);
        }
        let destination = full_name(&self.destination)?;
        assert_routed(&[], &destination)?;
        let mut remote = OsString::from("ssh-remote+");
        remote.push(&destination);
        let arguments = [OsString::from("--remote"), remote, OsString::from(&self.path)];
        Err(run(if self.cursor { "cursor" } else { "code" }, &arguments))
    }
}

/// Ends with the status of a usage error.
fn no_destination() -> ! {
    let message = "there is no destination: podspawn ssh [SSH-OPTION]... [USER@]PROJECT [COMMAND]...";
    Cli::command().error(ErrorKind::MissingRequiredArgument, message).exit()
}

/// Becomes another program; returns only if that fails.
fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Error {
    let error = Command::new(program).args(arguments).exec();
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow::anyhow!("{program} is not installed, or not in PATH");
    }
    anyhow::Error::new(error).context(format!("cannot run {program}"))
}

/// Whether ssh will go through `podspawn connect`, by its own account. Otherwise it would only say that the host is unknown.
/// What it finds wrong it will tell again.
fn assert_routed(options: &[OsString], destination: &OsStr) -> anyhow::Result<()> {
    let mut ssh = Command::new("ssh");
    ssh.args(options).arg("-G").arg("--").arg(destination).stdin(Stdio::null());
    let output = match ssh.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("ssh is not installed, or not in PATH"),
        other => other.context("cannot run ssh")?,
    };
    let config = String::from_utf8_lossy(&output.stdout);
    let pod = destination.as_encoded_bytes().ends_with(SUFFIX.as_bytes());
    if pod && output.status.success() && !config.lines().any(|line| line.starts_with("proxycommand ")) {
        bail!("ssh does not know hosts that end in {SUFFIX} yet: podspawn setup");
    }
    Ok(())
}

/// Where the destination is among ssh's arguments: the first that is neither an option nor the value of one.
fn destination_at(arguments: &[OsString]) -> Option<usize> {
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        let bytes = argument.as_encoded_bytes();
        match bytes.strip_prefix(b"-") {
            None | Some([]) => return Some(at),
            Some(b"-") => return (at + 1 < arguments.len()).then_some(at + 1),
            Some(letters) => {
                // The value is the rest of the word, or the next one.
                let with_value = letters.iter().position(|letter| WITH_VALUE.as_bytes().contains(letter));
                at += if with_value.is_some_and(|position| position + 1 == letters.len()) { 2 } else { 1 };
            }
        }
    }
    None
}

/// `user@project` with the ending that makes it a host. Names with a dot are complete.
fn full_name(destination: &OsStr) -> anyhow::Result<OsString> {
    let text = destination.to_str().with_context(|| format!("{} is no host name", destination.display()))?;
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    if host.is_empty() || user == Some("") || text.starts_with('-') {
        bail!("{text:?} is not [USER@]PROJECT");
    }
    let complete = host.contains(['.', ':', '/']);
    Ok(if complete { text.to_owned() } else { format!("{text}{SUFFIX}") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_found_behind_sshs_options() {
        let table = [
            ("ada@web", Some("ada@web")),
            ("-v -N ada@web -- ls -l", Some("ada@web")),
            ("-L 8080:localhost:80 ada@web", Some("ada@web")),
            ("-L8080:localhost:80 ada@web", Some("ada@web")),
            ("-vNL 8080:localhost:80 ada@web", Some("ada@web")),
            ("-o User=x -oPort=1 -p 22 web ls", Some("web")),
            ("-4A -i key -- web -v", Some("web")),
            ("-p", None),
            ("-v", None),
            ("--", None),
        ];
        for (line, expected) in table {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let found = destination_at(&arguments).and_then(|at| arguments.get(at)).and_then(|found| found.to_str());
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_bare_name_is_completed() {
        for (name, full) in [
            ("web", "web.pod"),
            ("ada@web", "ada@web.pod"),
            ("agent-run-4829@web.pod", "agent-run-4829@web.pod"),
            ("a@b@web", "a@b@web.pod"),
            ("ada@server.example", "ada@server.example"),
            ("ssh://ada@web.pod", "ssh://ada@web.pod"),
        ] {
            assert_eq!(full_name(OsStr::new(name)).unwrap(), full);
        }
        for bad in ["", "ada@", "@web", "-web"] {
            assert!(full_name(OsStr::new(bad)).is_err(), "{bad}");
        }
    }
}
