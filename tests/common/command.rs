//! Running programs with a deadline, and judging what they did.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::DEADLINE;

/// A program that is about to run.
pub struct Run {
    pub command: Command,
    input: Vec<u8>,
    deadline: Duration,
}

impl Run {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { command: Command::new(program.into()), input: Vec::new(), deadline: DEADLINE }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads from standard input; nothing by default.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// How long it may run, if longer than usual.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it with pipes for all three streams.
    pub fn spawn(&mut self) -> Child {
        let program = self.command.get_program().to_owned();
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
    }

    /// Runs it to its end; one that takes too long is killed and fails the test.
    #[track_caller]
    pub fn run(mut self) -> Output {
        let shown = format!("{:?}", self.command);
        let mut child = self.spawn();
        let (mut stdin, input) = (child.stdin.take().unwrap(), std::mem::take(&mut self.input));
        let writer = std::thread::spawn(move || {
            // A program that does not read all of it is judged by what it does.
            let _ = stdin.write_all(&input);
        });
        let output = finish_within(self.deadline, &shown, child);
        writer.join().unwrap();
        output
    }
}

/// Waits for a program that was started with [`Run::spawn`], and has its standard input closed if it still is there.
#[track_caller]
pub fn finish(shown: &str, child: Child) -> Output {
    finish_within(DEADLINE, shown, child)
}

/// Waits until the program ends; one that takes too long is killed and fails the test.
#[track_caller]
fn finish_within(deadline: Duration, shown: &str, mut child: Child) -> Output {
    drop(child.stdin.take());
    let stdout = child.stdout.take().map(reader);
    let stderr = child.stderr.take().map(reader);
    let end = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() >= end {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let all = |stream: Option<std::thread::JoinHandle<Vec<u8>>>| stream.map_or(Vec::new(), |s| s.join().unwrap());
    let output = Output {
        shown: shown.to_owned(),
        status: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        stdout: all(stdout),
        stderr: String::from_utf8_lossy(&all(stderr)).into_owned(),
    };
    assert!(status.is_some(), "did not end within {deadline:?}: {output}");
    output
}

fn reader(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// What a program did. The methods judge it and fail the test with all that is known.
pub struct Output {
    shown: String,
    /// The exit status, unless a signal ended it.
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    /// It succeeded.
    #[track_caller]
    pub fn ok(&self) -> &Self {
        self.status(0)
    }

    #[track_caller]
    pub fn status(&self, status: i32) -> &Self {
        assert!(self.status == Some(status), "status {status} expected: {self}");
        self
    }

    /// It wrote exactly this.
    #[track_caller]
    pub fn stdout(&self, text: &str) -> &Self {
        assert!(self.stdout == text.as_bytes(), "stdout {text:?} expected: {self}");
        self
    }

    /// What it wrote has this in it.
    #[track_caller]
    pub fn stdout_has(&self, text: &str) -> &Self {
        assert!(self.text().contains(text), "{text:?} expected in stdout: {self}");
        self
    }

    #[track_caller]
    pub fn stderr(&self, text: &str) -> &Self {
        assert!(self.stderr == text, "stderr {text:?} expected: {self}");
        self
    }

    #[track_caller]
    pub fn stderr_has(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} expected in stderr: {self}");
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(4000).collect();
        write!(f, "{}\nstatus: {:?}, signal: {:?}", self.shown, self.status, self.signal)?;
        write!(f, "\nstdout ({} bytes): {shown}\nstderr: {}", self.stdout.len(), self.stderr)
    }
}
