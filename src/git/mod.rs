//! Running git on the host, for what strangers have put into repositories.
//!
//! git talks to servers and unpacks what they send, so it runs without rights ([`sandbox`]): as a user who owns nothing
//! but the one directory that it works in, in namespaces of its own, where the rest of the file system cannot be written. It
//! reads no configuration but the one given here, runs no hook, no filter and no helper that the repository could choose,
//! follows no submodule, and asks nobody for a password.
//!
//! What it has written stays hostile: whoever reads it opens it with openat2(2), beneath the directory and without links.

mod sandbox;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt, chown},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use self::sandbox::main;
use crate::{
    errors::printable,
    sys::{pidfd::Held, spawn},
};

/// Output of one command that is kept, from its end: what went wrong is in the last lines.
const MAX_OUTPUT: usize = 64 << 10;

/// How often it is asked whether a command is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// How long a killed command may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Settings of every command. `GIT_ALLOW_PROTOCOL` (in [`sandbox`]) is the list of transports.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "credential.helper=",
    "submodule.recurse=false",
    // Both would go on in the background.
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
];

/// Why a git command has not done what it should.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("cannot prepare {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("cannot run git")]
    Start(#[source] io::Error),
    #[error("git is not installed on this host")]
    Missing,
    #[error("git {command} has not ended within {} seconds", .limit.as_secs())]
    TimedOut { command: String, limit: Duration },
    #[error("git {command} was ended: it is not wanted any more")]
    Stopped { command: String },
    #[error("git {command} has failed: {said}")]
    Failed { command: String, said: String },
}

/// Where git runs, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Git<'a> {
    /// The user that it runs as.
    pub uid: u32,
    /// The directory that it starts in, the only one that it can write: made by [`make_directory`].
    pub directory: &'a Path,
    pub network: Network<'a>,
    /// Files that a process gets into a cgroup with by writing `0`: at most 8 of them.
    pub tasks: &'a [OwnedFd],
    /// How long one command may take.
    pub limit: Duration,
}

/// Which network git sees.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    /// The host's: for addresses that the administrator has chosen.
    Host,
    /// That of a namespace, by whose rules it is bound: for addresses that somebody else has chosen. With a text for
    /// `/etc/hosts` no other names are known than those in it.
    Namespace { netns: BorrowedFd<'a>, resolv_conf: &'a str, hosts: Option<&'a str> },
}

/// Makes a directory for git to work in, which only the user `uid` and root can enter.
pub fn make_directory(path: &Path, uid: u32) -> Result<(), GitError> {
    let make = || {
        std::fs::DirBuilder::new().mode(0o700).create(path)?;
        chown(path, Some(uid), Some(uid))
    };
    make().map_err(|error| GitError::Directory(path.to_owned(), error))
}

impl Git<'_> {
    /// Runs `git ARGUMENTS` to its end and returns what it has written to standard output. Blocks.
    pub fn run(&self, arguments: &[&str]) -> Result<String, GitError> {
        self.run_while(arguments, &mut || true)
    }

    /// As [`run`](Self::run), but ends it as soon as `wanted`, which is asked again and again, says that it is not.
    pub fn run_while(&self, arguments: &[&str], wanted: &mut dyn FnMut() -> bool) -> Result<String, GitError> {
        // Its name comes after the settings.
        let words = arguments.chunks(2).find(|words| words[0] != "-c");
        let command = words.and_then(|words| words.first()).copied().unwrap_or_default().to_owned();
        let mut child = self.command(arguments)?.spawn().map_err(GitError::Start)?;
        let outputs = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = (outputs.0.map(keep_end), outputs.1.map(keep_end));
        // Not reaped yet, so the pid is its own.
        let held = Held::open(child.id().cast_signed()).map_err(GitError::Start)?;
        let deadline = Instant::now() + self.limit;
        let ended = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if held.wait(left.min(LOOK)) {
                break true;
            }
            if left.is_zero() || !wanted() {
                break false;
            }
        };
        let late = Instant::now() >= deadline;
        if !ended {
            // With it everything that it has started ends: it is the first process of a namespace.
            held.terminate().map_err(GitError::Start)?;
            if !held.wait(KILL_LIMIT) {
                held.kill().map_err(GitError::Start)?;
                return Err(GitError::TimedOut { command, limit: self.limit });
            }
        }
        let status = child.wait().map_err(GitError::Start)?;
        let text = |output: Option<thread::JoinHandle<Vec<u8>>>| {
            let bytes = output.and_then(|output| output.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        match status.code() {
            _ if !ended && late => Err(GitError::TimedOut { command, limit: self.limit }),
            _ if !ended => Err(GitError::Stopped { command }),
            Some(0) => Ok(stdout),
            Some(sandbox::NOT_FOUND) => Err(GitError::Missing),
            _ => Err(GitError::Failed { command, said: last_words(&stderr) }),
        }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command, GitError> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(self.directory);
        let directory = directory.map_err(|error| GitError::Directory(self.directory.to_owned(), error))?;
        let mut fds = vec![OwnedFd::from(directory)];
        let mut command = Command::new("/proc/self/exe");
        command.arg0("podspawn").arg("git").arg(self.uid.to_string());
        command.args(["parent", &std::process::id().to_string()]);
        if let Network::Namespace { netns, resolv_conf, hosts } = self.network {
            fds.push(netns.try_clone_to_owned().map_err(GitError::Start)?);
            command.args(["resolv-conf", resolv_conf]);
            command.args(hosts.into_iter().flat_map(|hosts| ["hosts", hosts]));
        }
        if !self.tasks.is_empty() {
            command.args(["tasks", &self.tasks.len().to_string()]);
            for file in self.tasks {
                fds.push(file.try_clone().map_err(GitError::Start)?);
            }
        }
        command.arg("--");
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn::give_fds(&mut command, fds);
        Ok(command)
    }
}

/// Reads to the end, so that the writer never waits, and keeps the last [`MAX_OUTPUT`] bytes.
fn keep_end(output: impl AsFd + Into<OwnedFd> + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut output = File::from(output.into());
        let mut kept = Vec::new();
        let mut buffer = [0; 8192];
        // An output that cannot be read has told all that it will.
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..count]);
            if kept.len() > MAX_OUTPUT {
                kept.drain(..kept.len() - MAX_OUTPUT);
            }
        }
        kept
    })
}

/// The lines that say why, as one line: a server's text is among them.
fn last_words(stderr: &str) -> String {
    let said = |line: &&str| !line.is_empty() && !line.starts_with("Cloning into");
    let lines: Vec<&str> = stderr.split(['\n', '\r']).map(str::trim).filter(said).collect();
    let lines = &lines[lines.len().saturating_sub(4)..];
    let text = printable(&lines.join("; "));
    if text.is_empty() { "it does not say why".to_owned() } else { text.chars().take(500).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_said_last_is_one_line_that_does_nothing_to_a_terminal() {
        let stderr = "Cloning into '.'...\nremote: \u{1b}[31mno\rfatal: not\tfound\n\n";
        assert_eq!(last_words(stderr), r"remote: \u{1b}[31mno; fatal: not found");
        assert_eq!(last_words("\n"), "it does not say why");
        assert_eq!(last_words("a\nb\nc\nd\ne"), "b; c; d; e");
    }
}
