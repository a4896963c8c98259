//! Starting one process of the session: its ends of pipes or a terminal, its ids and environment, and its exec.
//!
//! Capabilities, seccomp, cgroups and namespaces are init's own and inherited; an unprivileged process loses all
//! capabilities when it takes the user's ids, root's are cut to the bounding set by exec.
//!
//! Without a terminal the ends are pipes, not sockets: programs that open `/dev/stdout` or `/proc/self/fd/1` again can,
//! so the pipes belong to the user.

mod own_program;

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        stat::{Mode, umask},
    },
    unistd::{
        Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, pipe2, setgroups, setresgid,
        setresuid, setsid, write,
    },
};

use super::{
    account::Account,
    files::{self, Ownership},
    home,
    identity::Who,
    stand_in,
    terminal::Terminal,
};
use crate::{
    protocol::{ContainerSpec, Exec, Identity, Program, SecuritySpec, Variables},
    sys::{
        poll::wait_readable,
        process::{self, SingleThreaded},
        tty,
    },
};

/// That of processes whose environment says nothing else.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a child may take from fork to exec. It is ours all that time, so only a stopped one needs longer.
const EXEC_LIMIT: Duration = Duration::from_secs(10);

/// The statuses that shells use.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Our own.
pub(super) const FAILED: u8 = 125;

/// What all processes of the session have in common.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) account: Account,
    security: SecuritySpec,
    env: Vec<(String, String)>,
    workdir: Option<String>,
    session: String,
    /// The directory of the container's devpts.
    devpts: OwnedFd,
    proof: SingleThreaded,
}

/// A process that has been started.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) pid: i32,
    /// The client's ends: the terminal's leader, or stdin, stdout and stderr, or the SFTP stream.
    pub(super) ends: Vec<OwnedFd>,
}

/// Why a process was not started: what a shell would exit with, and one line.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u8,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn failed(what: &str, error: &io::Error) -> Self {
        let hint = match error.raw_os_error() {
            Some(libc::EAGAIN) => " (the session's limit on processes is reached)",
            Some(libc::ENOSPC) => " (the session has as many terminals as it may have)",
            _ => "",
        };
        Self { status: FAILED, message: format!("cannot {what}: {error}{hint}") }
    }
}

/// What a child's descriptors 0, 1 and 2 will be.
enum Stdio {
    Terminal(Terminal),
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
}

/// An exec, ready to be done.
struct Image {
    /// What to execute. Without a slash in it, it is looked for in PATH.
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Surroundings {
    pub(super) fn new(spec: &ContainerSpec, account: Account, devpts: OwnedFd, proof: SingleThreaded) -> Self {
        Self {
            account,
            security: spec.security.clone(),
            env: spec.env.clone(),
            workdir: spec.workdir_inside.clone(),
            session: spec.container.session.to_string(),
            devpts,
            proof,
        }
    }

    /// The descriptors that this holds.
    pub(super) fn devpts(&self) -> i32 {
        self.devpts.as_raw_fd()
    }

    /// Starts what `exec` asks for and returns when it has been executed.
    pub(super) fn launch(&self, exec: &Exec) -> Result<Launched, Refusal> {
        if let Program::Sftp = exec.program {
            return self.launch_sftp(exec);
        }
        let who = Who::find(&exec.identity, &self.account)
            .map_err(|error| Refusal { status: FAILED, message: error.to_string() })?;
        let (stdio, ends) = match &exec.pty {
            Some(pty) => {
                let terminal = Terminal::open(self.devpts.as_fd(), pty, who.uid)
                    .map_err(|error| Refusal::failed("open a terminal", &error))?;
                let leader = terminal.leader.try_clone();
                let leader = leader.map_err(|error| Refusal::failed("open a terminal", &error))?;
                (Stdio::Terminal(terminal), vec![leader])
            }
            None => pipes(&who).map_err(|error| Refusal::failed("make pipes", &error))?,
        };
        let image = self.image(exec, &who, &stdio)?;
        // Readable at its end when exec closes it, or with the error of an exec that failed.
        let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|e| Refusal::failed("make a pipe", &e.into()))?;
        match process::fork(self.proof).map_err(|error| Refusal::failed("start a process", &error))? {
            None => self.become_image(exec, &who, &stdio, &image, &reporter),
            Some(pid) => {
                drop((reporter, stdio));
                wait_for_exec(pid, report, exec, &image.program)?;
                Ok(Launched { pid, ends })
            }
        }
    }

    /// Makes the directory `path` for the session's user.
    pub(super) fn make_directory(&self, path: &str) -> io::Result<()> {
        let ownership = Ownership { uid: self.account.uid, gid: self.account.gid, mode: 0o755 };
        files::make_directories_for(path, ownership).map(drop)
    }

    /// The session's user, with the groups that it has now.
    fn session_user(&self) -> Result<Who, Errno> {
        Who::find(&Identity::Session, &self.account).map_err(|_never_for_the_session| Errno::EINVAL)
    }

    fn image(&self, exec: &Exec, who: &Who, stdio: &Stdio) -> Result<Image, Refusal> {
        let shell = home::shell(&self.account);
        let name = Path::new(shell).file_name().map_or_else(|| shell.into(), |name| name.to_string_lossy());
        let environment = self.environment(exec, who, shell, stdio);
        let arguments = match &exec.program {
            // The dash makes it a login shell (login(1)).
            Program::Shell => vec![format!("-{name}").into_bytes()],
            Program::Command(command) => vec![name.as_bytes().to_vec(), b"-c".to_vec(), command.to_vec()],
            Program::Argv(arguments) => arguments.iter().map(|argument| argument.to_vec()).collect(),
            Program::Sftp => Vec::new(),
        };
        let program = match &exec.program {
            Program::Argv(arguments) => arguments.first().map(|program| program.to_vec()).unwrap_or_default(),
            Program::Shell | Program::Command(_) | Program::Sftp => shell.as_bytes().to_vec(),
        };
        let no_nul = |bytes| {
            CString::new(bytes)
                .map_err(|_| Refusal { status: FAILED, message: "the command has a NUL byte in it".into() })
        };
        Ok(Image {
            program: no_nul(program)?,
            arguments: arguments.into_iter().map(no_nul).collect::<Result<_, _>>()?,
            environment,
        })
    }

    /// Image and podfile, then the client's, then what says who and where one is. Entries that are not `NAME=value`
    /// cannot be expressed and are left out.
    fn environment(&self, exec: &Exec, who: &Who, shell: &str, stdio: &Stdio) -> Vec<CString> {
        let mut variables: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut set = |name: &[u8], value: &[u8]| {
            let valid = !name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0);
            if valid {
                variables.insert(name.to_owned(), value.to_owned());
            }
        };
        set(b"PATH", DEFAULT_PATH.as_bytes());
        if exec.variables == Variables::Bare {
            set(b"HOME", who.home.as_bytes());
        }
        for (name, value) in &self.env {
            set(name.as_bytes(), value.as_bytes());
        }
        for (name, value) in &exec.env {
            set(name, value);
        }
        if let (Some(pty), Stdio::Terminal(terminal)) = (&exec.pty, stdio) {
            set(b"TERM", pty.term.as_bytes());
            set(b"SSH_TTY", terminal.path.as_bytes());
        }
        if exec.variables == Variables::Session {
            for (name, value) in [
                ("USER", who.name.as_str()),
                ("LOGNAME", &who.name),
                ("HOME", &who.home),
                ("SHELL", shell),
                ("PODSPAWN_USER", &self.account.owner),
                ("PODSPAWN_SESSION", &self.session),
            ] {
                set(name.as_bytes(), value.as_bytes());
            }
            if let Some(project) = &self.account.project {
                set(b"PODSPAWN_PROJECT", project.as_bytes());
            }
        }
        let entry = |(name, value): (Vec<u8>, Vec<u8>)| CString::new([name, value].join(&b'=')).ok();
        variables.into_iter().filter_map(entry).collect()
    }

    /// The child's side. Nothing of the container has run in it yet.
    fn become_image(&self, exec: &Exec, who: &Who, stdio: &Stdio, image: &Image, reporter: &OwnedFd) -> ! {
        let prepare = || -> nix::Result<()> {
            setsid()?;
            match stdio {
                Stdio::Terminal(terminal) => {
                    tty::set_controlling(terminal.follower.as_fd()).map_err(errno)?;
                    dup2_stdin(&terminal.follower)?;
                    dup2_stdout(&terminal.follower)?;
                    dup2_stderr(&terminal.follower)?;
                }
                Stdio::Pipes { stdin, stdout, stderr } => {
                    dup2_stdin(stdin)?;
                    dup2_stdout(stdout)?;
                    dup2_stderr(stderr)?;
                }
            }
            process::cloexec_all().map_err(errno)?;
            become_somebody(who)
        };
        let in_place = prepare().map_err(|error| (Stage::Start, error)).and_then(|()| match &exec.cwd {
            Some(directory) => chdir(directory.as_str()).map_err(|error| (Stage::Directory, error)),
            None => self.enter_directory(who).map_err(|error| (Stage::Start, error)),
        });
        if let (Ok(()), Program::Command(command)) = (in_place, &exec.program)
            && let Some(stand_in) = stand_in::for_command(command, &image.environment)
        {
            self.become_stand_in(exec, &stand_in, image);
        }
        let (stage, error) = match in_place {
            Ok(()) => (Stage::Start, image.execute()),
            Err(failed) => failed,
        };
        let mut report = [stage as u8, 0, 0, 0, 0];
        report[1..].copy_from_slice(&(error as i32).to_ne_bytes());
        // If init cannot be told it sees the pipe's end, and then the exit.
        if let Err(_gone) = write(reporter, &report) {}
        process::exit_now(i32::from(CANNOT_EXECUTE))
    }

    /// The session's directory, or the home directory. As the user, who may not be allowed everywhere; sshd too goes on in
    /// `/` and says so.
    fn enter_directory(&self, who: &Who) -> nix::Result<()> {
        let wanted = self.workdir.as_deref().unwrap_or(&who.home);
        if let Err(error) = chdir(wanted) {
            let line = format!("podspawn: cannot change to directory {wanted}: {}\r\n", error.desc());
            if let Err(_nobody_reads) = write(io::stderr(), line.as_bytes()) {}
            chdir(who.home.as_str()).or_else(|_| chdir("/"))?;
        }
        Ok(())
    }
}

impl Image {
    /// Executes the program, or returns with an error. As execvp(3) does: one that may not be executed is passed over, but
    /// told of if there is no other; an empty entry of PATH is the working directory.
    fn execute(&self) -> Errno {
        let program = self.program.to_bytes();
        if program.is_empty() || program.contains(&b'/') {
            return self.execute_at(&self.program);
        }
        let path = self.environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let mut told = Errno::ENOENT;
        for directory in path.unwrap_or_default().split(|&byte| byte == b':') {
            let directory = if directory.is_empty() { b"." } else { directory };
            let Ok(candidate) = CString::new([directory, program].join(&b'/')) else { continue };
            match self.execute_at(&candidate) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => told = Errno::EACCES,
                error => return error,
            }
        }
        told
    }

    fn execute_at(&self, path: &CStr) -> Errno {
        match execve(path, &self.arguments, &self.environment) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

/// Which part of starting a process failed, as the child tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start = 0,
    Directory = 1,
}

/// The three pipes of a process without a terminal, and our ends of them.
fn pipes(who: &Who) -> io::Result<(Stdio, Vec<OwnedFd>)> {
    let make = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        fchown(&read, Some(Uid::from_raw(who.uid)), Some(Gid::from_raw(who.gid)))?;
        Ok((read, write))
    };
    let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (make()?, make()?, make()?);
    Ok((Stdio::Pipes { stdin, stdout, stderr }, vec![our_stdin, our_stdout, our_stderr]))
}

/// Signals, umask, ids: what all kinds of children need.
fn become_somebody(who: &Who) -> nix::Result<()> {
    process::default_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    umask(Mode::from_bits_truncate(0o022));
    setgroups(&who.groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>())?;
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Reads the child's word: nothing if it was executed.
fn wait_for_exec(pid: i32, report: OwnedFd, exec: &Exec, program: &CStr) -> Result<(), Refusal> {
    if wait_readable(report.as_fd(), EXEC_LIMIT).is_err() {
        // It may be stopped or traced; it is still ours, so the pid is its own.
        if let Err(_ended) = kill(Pid::from_raw(pid), Signal::SIGKILL) {}
        return Err(Refusal { status: FAILED, message: "starting the process took too long".into() });
    }
    let mut bytes = Vec::with_capacity(5);
    let read = std::fs::File::from(report).take(5).read_to_end(&mut bytes);
    match <[u8; 5]>::try_from(bytes.as_slice()) {
        Ok([stage, number @ ..]) if read.is_ok() => {
            let error = Errno::from_raw(i32::from_ne_bytes(number));
            Err(match &exec.cwd {
                Some(directory) if stage == Stage::Directory as u8 => Refusal {
                    status: FAILED,
                    message: format!("cannot change to directory {directory}: {}", error.desc()),
                },
                _ => {
                    let status = if error == Errno::ENOENT { NOT_FOUND } else { CANNOT_EXECUTE };
                    Refusal { status, message: format!("{}: {}", program.to_string_lossy(), error.desc()) }
                }
            })
        }
        _ => Ok(()),
    }
}
