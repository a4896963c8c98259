//! A hundred connections with running transfers do not notice that the server is restarted, killed and replaced: none is
//! dropped, nothing is corrupted, and nobody who comes meanwhile is refused.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use common::{DEADLINE, Host, Stream, binary, eventually};
use nix::sys::signal::Signal;
use podspawn::sys::spawn::give_fds;

const USERS: [&str; 10] = ["ada", "bob", "cid", "dan", "eve", "fay", "gil", "hal", "ida", "jim"];
const EACH: usize = 10;

/// `tests/clients/many.py`, which speaks for all of them.
struct Crowd {
    child: Child,
    commands: ChildStdin,
    answers: mpsc::Receiver<String>,
}

fn lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // The test may have ended.
            let _ = sender.send(line);
        }
    });
    receiver
}

impl Crowd {
    fn connect(host: &Host) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = directory.join("target/clients/python/bin/python");
        assert!(python.exists(), "{} is not there; run scripts/test-deps", python.display());
        let keys = host.key("ada");
        let mut child = Command::new(python)
            .arg(directory.join("tests/clients/many.py"))
            .args([host.address.to_string(), Host::PORT.to_string()])
            .arg(keys.parent().unwrap())
            .arg(EACH.to_string())
            .args(USERS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), lines(child.stdout.take().unwrap()));
        let crowd = Self { child, commands, answers };
        crowd.hears("ready");
        crowd
    }

    #[track_caller]
    fn hears(&self, word: &str) {
        let answer = self.answers.recv_timeout(DEADLINE * 4);
        assert_eq!(answer.as_deref(), Ok(word), "what went wrong is on stderr");
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    #[track_caller]
    fn does(&mut self, command: &str) {
        self.tell(command);
        self.hears(command.split(' ').next().unwrap());
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_hundred_connections_with_transfers_notice_neither_restarts_nor_an_upgrade() {
    let builder = USERS.iter().fold(Host::new(), |host, user| host.user(user));
    let mut host = builder.config("auth:\n  max_startups: 200\n  per_source_penalties: {enabled: false}").prepare();
    let program = host.scratch().join("podspawn");
    fs::copy(binary(), &program).unwrap();
    let socket = TcpListener::bind((host.address, Host::PORT)).unwrap();
    // As systemd would.
    let serve = |host: &mut Host| {
        let socket = socket.try_clone().unwrap().into();
        host.serve_with(|command| {
            let server = std::mem::replace(command, Command::new("sh"));
            command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(&program).args(server.get_args());
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "podspawn.socket");
            give_fds(command, vec![socket]);
        });
    };
    serve(&mut host);
    let mut crowd = Crowd::connect(&host);
    let ada = Stream::start(&host, "ada");
    assert_eq!(host.sql("select count(*) from connections").trim(), (USERS.len() * EACH + 1).to_string());

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if signal == Signal::SIGTERM {
            // Some of them are in the middle of their logins then.
            crowd.does("new 10");
            std::thread::sleep(Duration::from_millis(300));
        }
        host.end(signal);
        crowd.does("new 10");
        crowd.does("flow");
        serve(&mut host);
        crowd.does("flow");
        crowd.does("joined");
        ada.flows();
    }

    let beside = program.with_extension("new");
    fs::copy(binary(), &beside).unwrap();
    fs::rename(beside, &program).unwrap();
    crowd.does("new 10");
    let starts = |host: &Host| host.log().matches("listening on ").count();
    let before = starts(&host);
    host.signal(Signal::SIGUSR2);
    crowd.does("flow");
    eventually("the new program serves", || starts(&host) > before);
    crowd.does("joined");
    crowd.does("flow");
    assert_eq!(host.sql("select count(*) from connections").trim(), (USERS.len() * EACH + 1).to_string());
    crowd.does("finish");
    ada.finish();
    host.assert_no_session_left();
}
