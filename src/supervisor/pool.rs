//! Connection processes: started ahead, so that no client waits for an exec.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{self, OFlag},
    sys::stat::Mode,
};
use tokio::{
    process::{Child, Command},
    sync::{Mutex, Notify},
};

use crate::{
    protocol::wire::AsyncSocket,
    session::state::ConnectionId,
    sys::{find_process, pidfd::Held, seqpacket},
};

/// How many processes wait for a client. A burst beyond it pays for the exec itself.
const READY: usize = 4;

/// A supervisor that wants to adopt the connection is one at a time.
const ADOPTION_BACKLOG: i32 = 4;

/// Why no connection process could be started.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("cannot make the connection's socket {}", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    #[error("cannot make a spool file in {}", .0.display())]
    Spool(PathBuf, #[source] io::Error),
    #[error("cannot start a connection process")]
    Start(#[source] io::Error),
}

/// A connection process that has no client yet, or whose supervisor we are.
pub struct Process {
    pub id: ConnectionId,
    pub child: Child,
    /// Its pid and start time, by which a later supervisor knows it.
    pub name: (i32, u64),
    pub control: AsyncSocket,
    /// Where a later supervisor finds it. Removed when the process has ended.
    pub socket: PathBuf,
    /// For what its client sends faster than it can be passed on; handed over with the client.
    pub spool: OwnedFd,
}

/// What is needed to start one.
pub struct Pool {
    /// `RUN/connections`
    sockets: PathBuf,
    /// `STATE/spool`
    spool: PathBuf,
    /// An empty directory: all of the file system that a connection process sees.
    empty: PathBuf,
    uid: u32,
    next: AtomicU64,
    ready: Mutex<Vec<Process>>,
    wanted: Notify,
}

impl Pool {
    pub fn new(sockets: PathBuf, spool: PathBuf, empty: PathBuf, uid: u32) -> Self {
        // Ids have to differ from those of processes that an earlier supervisor started and that are still there.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since_epoch.as_micros()).unwrap_or_default();
        Self { sockets, spool, empty, uid, next: AtomicU64::new(first), ready: Mutex::default(), wanted: Notify::new() }
    }

    /// The socket of connection `id`.
    pub fn socket(&self, id: ConnectionId) -> PathBuf {
        self.sockets.join(format!("{id}.sock"))
    }

    /// A process for a client that is there.
    pub async fn take(&self) -> Result<Process, PoolError> {
        let waiting = self.ready.lock().await.pop();
        self.wanted.notify_one();
        match waiting {
            Some(process) => Ok(process),
            None => self.start(),
        }
    }

    /// Keeps [`READY`] processes waiting, until the task is dropped.
    pub async fn refill(&self) {
        loop {
            while self.ready.lock().await.len() < READY {
                match self.start() {
                    Ok(process) => self.ready.lock().await.push(process),
                    Err(error) => {
                        tracing::error!("{}", crate::errors::chain(error));
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                }
            }
            self.wanted.notified().await;
        }
    }

    /// Ends the processes that still wait.
    pub async fn drain(&self) {
        for mut process in self.ready.lock().await.drain(..) {
            // It would end by itself when its socket closes, unless somebody has stopped it. It holds nothing of anybody.
            if let Err(error) = process.child.kill().await {
                tracing::error!(connection = process.id, "ending a connection process: {error}");
            }
            remove_socket(&process.socket);
        }
    }

    /// Kills the connection processes that earlier supervisors have left, but for those in `kept`, and removes their
    /// sockets. Processes without a session end by themselves when their supervisor does, and those with one are told when
    /// they are not wanted any more; whoever is still there is stopped, stuck, or does not want to.
    pub fn remove_leftovers(&self, kept: &HashMap<ConnectionId, (i32, u64)>) -> io::Result<()> {
        let kept_processes: HashSet<i32> = kept.values().map(|(pid, _)| *pid).collect();
        let root = self.empty.canonicalize()?;
        for pid in find_process::pids()?.filter(|pid| find_process::has_root(*pid, &root)) {
            let Ok(held) = Held::open(pid) else { continue };
            if !kept_processes.contains(&pid) && find_process::has_root(pid, &root) {
                tracing::info!(pid, "ending a connection process of an earlier server");
                held.kill()?;
            }
        }
        for entry in std::fs::read_dir(&self.sockets)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|id| id.to_str()?.parse().ok());
            if id.is_none_or(|id| !kept.contains_key(&id)) {
                remove_socket(&path);
            }
        }
        Ok(())
    }

    fn start(&self) -> Result<Process, PoolError> {
        let spool = spool_file(&self.spool).map_err(|error| PoolError::Spool(self.spool.clone(), error))?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = self.socket(id);
        let listener =
            seqpacket::listen(&socket, ADOPTION_BACKLOG).map_err(|error| PoolError::Socket(socket.clone(), error))?;
        let started = self.start_with(listener);
        if started.is_err() {
            remove_socket(&socket);
        }
        let (child, name, control) = started?;
        Ok(Process { id, child, name, control, socket, spool })
    }

    fn start_with(&self, listener: OwnedFd) -> Result<(Child, (i32, u64), AsyncSocket), PoolError> {
        let (ours, theirs) = seqpacket::pair().map_err(PoolError::Start)?;
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .arg0("podspawn")
            .arg("connection")
            .arg(&self.empty)
            .arg(self.uid.to_string())
            .env_clear()
            // Out of the terminal's foreground group: Ctrl-C is for the supervisor, which tells clients why they have to go.
            .process_group(0)
            // Descriptors that can be passed without code between fork and exec: so no copy is made of this process's
            // memory, which takes milliseconds.
            .stdin(theirs)
            .stdout(listener);
        let control = AsyncSocket::new(ours).map_err(PoolError::Start)?;
        let child = Command::from(command).spawn().map_err(PoolError::Start)?;
        // Not reaped yet, so the pid is its own.
        let pid = child.id().map_or(0, u32::cast_signed);
        let starttime = Held::open(pid).and_then(|held| held.starttime()).map_err(PoolError::Start)?;
        Ok((child, (pid, starttime), control))
    }
}

/// Removes the socket file of a process that is gone.
pub fn remove_socket(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// A file without a name: what a client sends faster than its command reads goes there.
fn spool_file(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(fcntl::open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}
