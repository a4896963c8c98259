//! Our server and OpenSSH's, each in a directory of its own.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::JoinHandle,
    time::{Duration, UNIX_EPOCH},
};

use nix::sched::{CloneFlags, unshare};
use podspawn::init::sftp::{SftpError, serve};

use super::protocol::{Answer, Request, answer};

const OPENSSH: &str = "/usr/lib/openssh/sftp-server";

/// Longer than any answer takes; reached only if there is none.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) enum Server {
    Ours(JoinHandle<Result<(), SftpError>>),
    OpenSsh(Reaped),
}

/// A process that does not outlive its test.
pub(crate) struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// A server in a directory of its own, after the greeting.
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) stream: UnixStream,
    pub(crate) root: PathBuf,
    pub(crate) next_id: u32,
}

impl Peer {
    pub(crate) fn ours(root: PathBuf) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let working_directory = root.clone();
        let thread = std::thread::spawn(move || {
            // So that the working directory is this thread's.
            unshare(CloneFlags::CLONE_FS).unwrap();
            std::env::set_current_dir(&working_directory).unwrap();
            // OpenSSH's server calls the working directory home.
            let theirs = File::from(OwnedFd::from(theirs));
            serve(&theirs, &theirs, &working_directory)
        });
        Self::greeted(Server::Ours(thread), stream, root)
    }

    pub(crate) fn openssh(root: PathBuf) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let child = Command::new(OPENSSH)
            .current_dir(&root)
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs)
            .spawn()
            .unwrap_or_else(|error| panic!("{OPENSSH} (from Debian's openssh-sftp-server): {error}"));
        Self::greeted(Server::OpenSsh(Reaped(child)), stream, root)
    }

    pub(crate) fn greeted(server: Server, stream: UnixStream, root: PathBuf) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Self { server, stream, root, next_id: 0 };
        peer.stream.write_all(b"\0\0\0\x05\x01\0\0\0\x03").unwrap();
        assert_eq!(&peer.packet().unwrap()[..5], b"\x02\0\0\0\x03");
        peer
    }

    /// The next packet; `None` if the server has closed the stream.
    pub(crate) fn packet(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        match self.stream.read(&mut length).expect("an answer") {
            0 => return None,
            read => self.stream.read_exact(&mut length[read..]).unwrap(),
        }
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut packet).unwrap();
        Some(packet)
    }

    /// Sends all requests at once and returns the answers.
    pub(crate) fn ask(&mut self, requests: &[Request]) -> Vec<Answer> {
        let first = self.next_id;
        self.next_id += requests.len() as u32;
        let packets = requests.iter().zip(first..).flat_map(|(request, id)| request.packet(id)).collect::<Vec<_>>();
        let mut writer = self.stream.try_clone().unwrap();
        let parent = self.root.parent().unwrap().as_os_str().as_encoded_bytes().to_owned();
        std::thread::scope(|scope| {
            // Fails if the server has hung up, which the answers show.
            scope.spawn(move || writer.write_all(&packets));
            let ids = first..first + requests.len() as u32;
            ids.map(|id| self.packet().map_or(Answer::Closed, |packet| answer(&packet, id, &parent))).collect()
        })
    }

    /// Sends bytes that end the connection and returns the server's exit status.
    pub(crate) fn end_with(mut self, bytes: &[u8]) -> i32 {
        // A server that has seen enough hangs up, which fails whatever we do next; its status is what counts.
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.shutdown(std::net::Shutdown::Write));
        let _ = std::io::copy(&mut self.stream, &mut std::io::sink());
        match self.server {
            Server::Ours(thread) => thread.join().unwrap().map_or_else(|error| i32::from(error.status()), |()| 0),
            Server::OpenSsh(mut child) => child.0.wait().unwrap().code().unwrap(),
        }
    }
}

/// Both servers, each in a directory of its own with the same things in it.
pub(crate) struct Both {
    pub(crate) ours: Peer,
    pub(crate) openssh: Peer,
    pub(crate) directory: tempfile::TempDir,
}

impl Both {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        let make = |name: &str| {
            let root = root.join(name).join("root");
            furnish(&root);
            root
        };
        Self { ours: Peer::ours(make("a")), openssh: Peer::openssh(make("b")), directory }
    }

    /// Asks both and returns the answers, which are the same.
    pub(crate) fn agree(&mut self, requests: &[Request]) -> Vec<Answer> {
        let (ours, openssh) = (self.ours.ask(requests), self.openssh.ask(requests));
        for ((request, ours), openssh) in requests.iter().zip(&ours).zip(&openssh) {
            assert_eq!(ours, openssh, "the answers (ours first) to {request:?} in {requests:#?}");
        }
        ours
    }
}

/// Files of each kind that have old times.
pub(crate) fn furnish(root: &Path) {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};
    let name = |bytes: &'static [u8]| root.join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::write(root.join("f"), "contents of a file\n").unwrap();
    std::fs::write(root.join("d/big"), (0..200_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
    std::fs::write(name(b"latin-\xe9 and\nnewline"), "").unwrap();
    symlink("f", root.join("to-file")).unwrap();
    symlink("d/e", root.join("to-directory")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let old = UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    let times = std::fs::FileTimes::new().set_accessed(old).set_modified(old);
    for path in ["f", "d/big", "d/e", "d", "."] {
        File::open(root.join(path)).unwrap().set_times(times).unwrap();
    }
}
