//! How processes and containers begin and end, and who is told.

use std::{
    fs,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, poll};
use podspawn::{
    protocol::{ExitStatus, Program, ToInit, wire},
    runtime::Container,
};

use crate::host::{Client, Host, Output, command, eventually, terminal};

/// The leader of a terminal, and all that has appeared on it.
struct Screen {
    leader: fs::File,
    said: String,
    /// How much of it has been waited for.
    seen: usize,
}

impl Screen {
    fn new(leader: OwnedFd) -> Self {
        Self { leader: leader.into(), said: String::new(), seen: 0 }
    }

    fn write(&mut self, text: &str) {
        self.leader.write_all(text.as_bytes()).unwrap();
    }

    fn enter(&mut self, line: &str) {
        self.write(line);
        self.write("\n");
    }

    /// Reads what is there next; false at the end, when the last follower is closed (EIO).
    fn read(&mut self) -> bool {
        let ready = poll(&mut [PollFd::new(self.leader.as_fd(), PollFlags::POLLIN)], 30_000_u16);
        assert_eq!(ready, Ok(1), "nothing more after {}", self.said);
        let mut buffer = [0; 4096];
        let Ok(length) = self.leader.read(&mut buffer) else { return false };
        self.said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        length > 0
    }

    fn until(&mut self, part: &str) {
        loop {
            if let Some(at) = self.said[self.seen..].find(part) {
                self.seen += at + part.len();
                return;
            }
            assert!(self.read(), "{part:?} is not in {}", self.said);
        }
    }

    fn read_to_end(mut self) -> String {
        while self.read() {}
        self.said
    }
}

#[test]
fn ends_are_told_exactly() {
    let host = Host::new();
    let guest = host.ada();
    for (text, status) in [
        ("exit 42", ExitStatus::Code(42)),
        ("kill -TERM $$", ExitStatus::Signal { signal: 15, core_dumped: false }),
        ("kill -KILL $$", ExitStatus::Signal { signal: 9, core_dumped: false }),
        ("kill -40 $$", ExitStatus::Signal { signal: 40, core_dumped: false }),
        ("absent-command", ExitStatus::Code(127)),
        ("/etc/passwd", ExitStatus::Code(126)),
        ("sleep 0 & exec true", ExitStatus::Code(0)),
    ] {
        assert_eq!(guest.run(text).status, status, "{text}");
    }
    let both = guest.run("echo out; echo err >&2; exit 3");
    assert_eq!(both, Output { stdout: "out\n".into(), stderr: "err\n".into(), status: ExitStatus::Code(3) });
    let script = guest.run_with(Program::Shell, b"echo $0; exit 7\n", &[]);
    assert_eq!((script.stdout.as_str(), script.status), ("-sh\n", ExitStatus::Code(7)));
    assert_eq!(guest.run_with(command("cat; cat"), b"to the end", &[]).stdout, "to the end");
    let (_, refused) = guest.start(command("a\0b"), None, &[]);
    assert_eq!(refused.unwrap_err().0, 125);
    guest.end();
    host.assert_clean();
}

#[test]
fn a_terminal_works() {
    let host = Host::new();
    let guest = host.ada();
    let (id, started) = guest.start(Program::Shell, Some(terminal()), &[]);
    let mut screen = Screen::new(started.unwrap().pop().unwrap());
    screen.enter(
        "echo $TERM $SSH_TTY; tty; stat -c %U:%a $(tty); stty size; stty -a | grep -o 'erase = ^.'; sleep 100 &",
    );
    screen.enter("jobs; kill -9 %1; echo all''done; cat");
    screen.until("alldone");
    screen.enter("echoed");
    screen.until("echoed\r\nechoed");
    // What was typed before it and not yet read would be lost (termios(3), NOFLSH), hence the waiting.
    screen.write("\x03");
    screen.until("$ ");
    screen.enter("exit 5");
    let said = screen.read_to_end();
    for part in ["vt220 /dev/pts/0", "\n/dev/pts/0", "ada:620", "17 91", "erase = ^H", "Running"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("job control turned off"), "{said}");
    assert_eq!(guest.exited(id), ExitStatus::Code(5));
    guest.end();
    host.assert_clean();
}

#[test]
fn a_closed_socket_hangs_up_what_runs_and_spares_what_was_left() {
    let host = Host::new();
    let guest = host.ada();
    guest.out("sleep 1000 >/dev/null 2>&1 </dev/null & true");
    let second = Client::connect(&guest.socket);
    let (_, polite) =
        second.start(command("trap 'echo hup > /tmp/hup; exit' HUP; while :; do sleep 0.1; done"), None, &[]);
    let (_, stubborn) = second.start(command("trap '' HUP; exec sleep 2000"), None, &[]);
    let (_, terminal) = second.start(command("exec sleep 3000"), Some(terminal()), &[]);
    let ends = (polite.unwrap(), stubborn.unwrap(), terminal.unwrap());
    let run = |all: &[&str]| all.iter().all(|command| guest.out("ps").contains(command));
    eventually("all run", || run(&["sleep 0.1", "sleep 1000", "sleep 2000", "sleep 3000"]));
    drop(second);
    eventually("the polite one was told", || guest.run("cat /tmp/hup").stdout == "hup\n");
    eventually("the terminal's is gone", || !guest.out("ps").contains("sleep 3000"));
    assert!(guest.out("ps").contains("sleep 2000"), "not before its time");
    eventually("the stubborn one is killed", || !guest.out("ps").contains("sleep 2000"));
    assert!(guest.out("ps").contains("sleep 1000"), "what a finished command left stays");
    drop(ends);
    guest.end();
    host.assert_clean();
}

#[test]
fn signals_and_releases_reach_their_process_only() {
    let host = Host::new();
    let guest = host.ada();
    let (first, a) = guest.start(command("exec sleep 1000"), None, &[]);
    let (second, b) = guest.start(command("exec sleep 1000"), None, &[]);
    wire::send(guest.init.as_fd(), &ToInit::Signal { id: first, signal: 12 }, &[]).unwrap();
    assert_eq!(guest.exited(first), ExitStatus::Signal { signal: 12, core_dumped: false });
    wire::send(guest.init.as_fd(), &ToInit::Signal { id: second, signal: 999 }, &[]).unwrap();
    wire::send(guest.init.as_fd(), &ToInit::Release { id: second }, &[]).unwrap();
    assert_eq!(guest.exited(second), ExitStatus::Signal { signal: 1, core_dumped: false });
    drop((a, b));
    guest.end();
    host.assert_clean();
}

#[test]
fn a_killed_init_takes_everything_along() {
    let host = Host::new();
    let guest = host.ada();
    let (_, ends) = guest.start(command("sleep 1000 & exec sleep 1000"), None, &[]);
    let adopted = Container::adopt(guest.container.pid(), guest.container.starttime().unwrap()).unwrap();
    let status = Command::new("/bin/kill").args(["-9", &guest.container.pid().to_string()]).status().unwrap();
    assert!(status.success());
    assert!(adopted.wait(Duration::from_secs(10)) && guest.container.has_ended());
    drop(ends);
    guest.end();
    host.assert_clean();
}

#[test]
fn a_killed_spawner_is_replaced_and_containers_stay() {
    let host = Host::new();
    let guest = host.ada();
    let before = host.spawner.pid().unwrap();
    assert!(Command::new("/bin/kill").args(["-9", &before.to_string()]).status().unwrap().success());
    eventually("it is gone", || {
        fs::read_to_string(format!("/proc/{before}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    let next = host.ada();
    assert_ne!(host.spawner.pid().unwrap(), before);
    assert_eq!(guest.out("echo alive"), "alive\n");
    next.end();
    guest.end();
    host.assert_clean();
}
