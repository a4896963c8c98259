//! Processes that the supervisor runs inside, and whom they run as.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use podspawn::{
    protocol::{Bytes, Exec, ExitStatus, FromInit, Identity, Program, ToInit, Variables, wire},
    session::inside::{self, InsideError, Line, MAX_LINE, Process, Run, Source},
};

use crate::host::{Client, Guest, Host, command, eventually, receive};

const LIMIT: Duration = Duration::from_secs(30);

/// What a process has said so far, one line each, with a mark before those of stderr.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn hear(&self) -> impl FnMut(Line<'_>) + Send + 'static {
        let said = self.0.clone();
        move |line| {
            let mark = if line.source == Source::Stderr { "!" } else { "" };
            said.lock().unwrap().push(format!("{mark}{}", String::from_utf8_lossy(line.text)));
        }
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn run(guest: &Guest<'_>, run: Run) -> (Result<ExitStatus, InsideError>, Vec<String>) {
    let said = Said::default();
    let ended = block_on(inside::run(&guest.socket, run, LIMIT, said.hear()));
    (ended, said.lines())
}

fn out(guest: &Guest<'_>, what: Run) -> Vec<String> {
    let (ended, lines) = run(guest, what);
    assert_eq!(ended.unwrap(), ExitStatus::Code(0), "{lines:?}");
    lines
}

#[test]
fn a_process_runs_as_whom_it_is_told() {
    let host = Host::new();
    let mut spec = host.spec(Some("ada"));
    spec.env.push(("HOME".to_owned(), "/of-the-image".to_owned()));
    let guest = host.create(&spec);
    guest.out("true");
    let passwd = "postgres:x:70:71::/var/lib/pg:/bin/false";
    let add = format!("echo {passwd} >> /etc/passwd; echo ssl:x:101:postgres >> /etc/group; pwd");
    assert_eq!(out(&guest, Run { identity: Identity::Root, ..sh(&add) }), ["/root"]);

    let script = "echo $(id -u):$(id -G) $HOME ${USER-none} ${PODSPAWN_USER-none} $FROM_IMAGE $GIVEN";
    for (identity, variables, expected) in [
        (Identity::Session, Variables::Session, "1000:1000 4 /home/ada ada ada yes given"),
        (Identity::Root, Variables::Session, "0:0 /root root ada yes given"),
        (Identity::Root, Variables::Bare, "0:0 /of-the-image none none yes given"),
        (named("postgres"), Variables::Bare, "70:71 101 /of-the-image none none yes given"),
        (named("70:4"), Variables::Session, "70:4 /var/lib/pg postgres ada yes given"),
        (named("1234"), Variables::Bare, "1234:0 /of-the-image none none yes given"),
    ] {
        let env = vec![("GIVEN".to_owned(), "given".to_owned())];
        let what = Run { identity: identity.clone(), variables, env, cwd: Some("/".to_owned()), ..sh(script) };
        assert_eq!(out(&guest, what), [expected], "{identity:?} {variables:?}");
    }
    let (refused, _) = run(&guest, Run { identity: named("nobody-here"), ..sh("true") });
    assert!(matches!(refused, Err(InsideError::Refused { status: 125, message }) if message.contains("nobody-here")));
    guest.end();
    host.assert_clean();
}

fn named(user: &str) -> Identity {
    Identity::Named { user: user.to_owned() }
}

#[test]
fn a_program_is_found_as_execvp_finds_it() {
    let host = Host::new();
    let guest = host.ada();
    guest.out("mkdir -p bin none; mkdir -m 0 shut; echo '#!/bin/sh\necho mine \"$@\"' > bin/mine; chmod +x bin/mine; echo > none/mine");
    let path = |path: &str| vec![("PATH".to_owned(), path.to_owned())];
    let mine = || Run { env: path("/absent:/home/ada/none:/home/ada/bin:/bin"), ..Run::argv(["mine", "a b", ""]) };
    assert_eq!(out(&guest, mine()), ["mine a b "]);
    assert_eq!(out(&guest, Run { env: path(":/bin"), cwd: Some("/home/ada/bin".to_owned()), ..mine() }), ["mine a b "]);
    assert_eq!(out(&guest, Run { cwd: Some("/home/ada".to_owned()), ..Run::argv(["bin/mine"]) }), ["mine"]);
    for (what, status, part) in [
        (Run { env: path("/absent"), ..mine() }, 127, "mine: No such file"),
        (Run { env: path("/home/ada/none"), ..mine() }, 126, "mine: Permission denied"),
        (Run::argv(["/absent/program"]), 127, "/absent/program: No such file"),
        (Run::argv([]), 127, "No such file"),
        (Run { cwd: Some("/absent".to_owned()), ..Run::argv(["true"]) }, 125, "cannot change to directory /absent"),
        (
            Run { cwd: Some("/home/ada/shut".to_owned()), ..Run::argv(["true"]) },
            125,
            "/home/ada/shut: Permission denied",
        ),
    ] {
        match run(&guest, what).0 {
            Err(InsideError::Refused { status: told, message }) => {
                assert_eq!(told, status, "{message}");
                assert!(message.contains(part), "{message}");
            }
            other => panic!("{part}: {other:?}"),
        }
    }
    guest.end();
}

#[test]
fn output_comes_in_lines_and_is_bounded() {
    let host = Host::new();
    let guest = host.ada();
    let (ended, lines) = run(&guest, sh("echo one; printf 'two\\n\\nthree'; exit 3"));
    assert_eq!(ended.unwrap(), ExitStatus::Code(3));
    assert_eq!(lines, ["one", "two", "", "three"]);
    assert_eq!(out(&guest, sh("echo oops >&2")), ["!oops"]);
    let long = out(&guest, sh(&format!("head -c {} /dev/zero | tr '\\0' x; echo; echo end", 2 * MAX_LINE + 5)));
    assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 5, 3]);
    let limited = Run { output_limit: 30, ..sh("echo 123456789; echo 123456789; echo 1234567890; echo 1") };
    assert_eq!(out(&guest, limited), ["123456789", "123456789"]);
    assert_eq!(out(&guest, sh("yes | head -c 5000000 | wc -c; cat")), ["5000000"], "input is empty");
    guest.end();
}

#[test]
fn a_process_is_ended_by_its_time_limit_and_by_being_dropped() {
    let host = Host::new();
    let guest = host.ada();
    let alive = || guest.out("ps -o args | grep -c '^sleep 12[345]' || true").trim().to_owned();
    let hangs = sh("trap '' HUP; echo up; sleep 123");
    let said = Said::default();
    let ended = block_on(inside::run(&guest.socket, hangs, Duration::from_millis(300), said.hear()));
    assert!(matches!(ended, Err(InsideError::TimedOut(_))), "{ended:?}");
    eventually("it is gone", || alive() == "0");

    block_on(async {
        let process = Process::start(&guest.socket, Run::argv(["sleep", "124"])).await.unwrap();
        assert_eq!(alive(), "1");
        drop(process);
    });
    eventually("what was dropped is gone", || alive() == "0");

    // What a script leaves behind lives on, and is heard.
    let said = Said::default();
    block_on(async {
        let script = sh("(while [ ! -e go ]; do sleep 0.05; done; echo later; exec sleep 125) & echo first");
        let ended = inside::run(&guest.socket, script, LIMIT, said.hear()).await;
        assert_eq!(ended.unwrap(), ExitStatus::Code(0));
        assert_eq!(said.lines(), ["first"]);
        guest.out("touch go");
        let later = async {
            while said.lines().len() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, later).await.unwrap();
    });
    assert_eq!(said.lines(), ["first", "later"]);
    assert_eq!(alive(), "1");
    guest.end();
}

#[test]
fn the_end_of_a_container_is_the_end_of_waiting() {
    let host = Host::new();
    let guest = host.ada();
    let ended = block_on(async {
        let mut process = Process::start(&guest.socket, Run::argv(["sleep", "100"])).await.unwrap();
        guest.container.kill().unwrap();
        process.wait(|_| {}).await
    });
    assert!(matches!(ended, Err(InsideError::Gone)), "{ended:?}");
    guest.end();
}

#[test]
fn a_restricted_socket_starts_the_session_s_user_only() {
    let host = Host::new();
    let guest = host.ada();
    let client = Client::connect(&guest.socket);
    let ask = |identity: Identity| {
        let exec = Exec { identity, ..Exec::new(7, command("id -u")) };
        wire::send(client.init.as_fd(), &ToInit::Exec(Box::new(exec)), &[]).unwrap();
        receive(&client.init).unwrap().0
    };
    let ended = || receive(&client.init).unwrap().0;
    assert!(matches!(ask(Identity::Root), FromInit::Started { .. }));
    assert!(matches!(ended(), FromInit::Exited { .. }));
    wire::send(client.init.as_fd(), &ToInit::Restrict, &[]).unwrap();
    for identity in [Identity::Root, named("root"), named("1000")] {
        assert!(matches!(ask(identity), FromInit::Refused { status: 125, .. }));
    }
    let make = |init: &OwnedFd| {
        wire::send(init.as_fd(), &ToInit::MakeDirectory { id: 8, path: "/opt/new/place".to_owned() }, &[]).unwrap();
        receive(init).unwrap().0
    };
    assert!(matches!(make(&client.init), FromInit::Failed { id: 8, .. }));
    assert!(matches!(ask(Identity::Session), FromInit::Started { .. }));
    assert!(matches!(ended(), FromInit::Exited { .. }));
    // Another client is none the worse.
    let program = Program::Argv(["id", "-u"].into_iter().map(|word| Bytes::from(word.as_bytes())).collect());
    assert_eq!(guest.run_with(program, b"", &[]).stdout, "1000\n");
    assert_eq!(out(&guest, Run { identity: Identity::Root, ..Run::argv(["id", "-u"]) }), ["0"]);
    assert!(matches!(make(&guest.init), FromInit::Done { id: 8 }));
    assert_eq!(guest.out("stat -c '%U %a' /opt/new /opt/new/place"), "ada 755\nada 755\n");
    guest.end();
}

/// A script for `sh`, as the session's user.
fn sh(text: &str) -> Run {
    Run::argv(["sh", "-c", text])
}
