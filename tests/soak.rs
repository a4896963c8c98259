//! Random users connect, work, forward and get killed, while the server is restarted, upgraded and killed at random: no wrong
//! answer, no cross-talk, no leak, and the server's memory stays what it is.
//!
//! `scripts/soak` runs it for as long as is asked. What happens is drawn from a seed, which is printed: with
//! `PODSPAWN_SOAK_SEED` it is drawn again, though the machine's own timing is not.

mod common;

use std::{
    fs,
    net::TcpListener,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{GitServer, Host, Output, binary, command::finish, eventually};
use nix::sys::signal::Signal;
use podspawn::sys::spawn::give_fds;

const USERS: [&str; 6] = ["ada", "bob", "cid", "dan", "eve", "fay"];

/// How long it goes on in the tests: with and then without restarts. Start and end come on top of that.
const SECONDS: u64 = 80;

/// How much more memory the server may have at the end of the quiet time than at its beginning, in KiB.
const GROWTH: u64 = 24 << 10;

const PODFILE: &str = "base: localhost/busybox:test
services:
  - name: front
    image: localhost/busybox:test
    ports: [80]
    command: [sh, -c, 'mkdir /srv; hostname > /srv/index.html; exec httpd -f -p 80 -h /srv']
";

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// What all of them share.
struct Soak {
    host: Host,
    /// When the server was killed, and when another one was there. Logins in between may fail; nothing else may.
    kills: Mutex<Vec<(Instant, Option<Instant>)>>,
    over: AtomicBool,
    done: AtomicUsize,
    excused: AtomicUsize,
}

impl Soak {
    /// Whether the server was killed after `since`, so that a login or a new session may have been lost.
    fn was_killed_since(&self, since: Instant) -> bool {
        self.kills.lock().unwrap().iter().any(|(_, back)| back.is_none_or(|back| back >= since))
    }

    /// Judges what a client got: everything, or by the server's death a part of it.
    #[track_caller]
    fn expect(&self, began: Instant, output: &Output, stdout: &[u8]) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if output.status == Some(0) && output.stdout == stdout {
            return;
        }
        let cut = matches!(output.status, Some(125 | 255)) && stdout.starts_with(&output.stdout);
        assert!(cut && self.was_killed_since(began), "expected {:?}: {output}", String::from_utf8_lossy(stdout));
        self.excused.fetch_add(1, Ordering::Relaxed);
    }

    /// A command with an answer that only this client can have.
    fn run(&self, user: &str, random: &mut Random) {
        let (token, began) = (random.next(), Instant::now());
        let output = self.host.ssh(user, &format!("echo {token:x}; id -un; hostname")).run();
        self.expect(began, &output, format!("{token:x}\n{user}\n{user}\n").as_bytes());
    }

    /// Data there and back.
    fn copy(&self, user: &str, random: &mut Random) {
        let data: Vec<u8> = (0..100_000 + random.below(400_000)).map(|_| random.next() as u8).collect();
        let began = Instant::now();
        let output = self.host.ssh(user, "cat").input(data.clone()).run();
        self.expect(began, &output, &data);
    }

    /// A file that is the user's own, and is there as long as somebody is.
    fn share(&self, user: &str, random: &mut Random) {
        let (token, began) = (random.next(), Instant::now());
        let file = format!("/tmp/{token:x}");
        let command = format!("echo {token:x} > {file}; until [ -e {file}.seen ]; do sleep 0.1; done; cat {file}");
        let first = self.host.ssh(user, &command).spawn();
        let second = format!("until [ -s {file} ]; do sleep 0.1; done; cat {file}; touch {file}.seen");
        // If the first has been lost the second waits in vain: a later server has no such file.
        let second = self.host.ssh(user, &format!("timeout 50 sh -c '{second}'")).run();
        if second.status != Some(0) {
            assert!(self.was_killed_since(began), "{second}");
            self.excused.fetch_add(1, Ordering::Relaxed);
            let mut first = first;
            // It may have ended.
            let _ = first.kill();
            first.wait().unwrap();
            return;
        }
        let answer = format!("{token:x}\n");
        self.expect(began, &second, answer.as_bytes());
        self.expect(began, &finish("the first of two", first), answer.as_bytes());
    }

    /// A way into the container.
    fn forward(&self, user: &str, random: &mut Random) {
        let (token, port, began) = (random.next(), 2000 + random.below(50_000), Instant::now());
        let command = format!("echo {token:x} | timeout 50 nc -l -p {port} > /dev/null; echo served");
        let listener = self.host.ssh(user, &command).spawn();
        let mut heard = None;
        common::within(Duration::from_secs(45), || {
            let output = self.host.ssh(user, "").args(["-W", &format!("127.0.0.1:{port}")]).run();
            let found = output.status == Some(0) && !output.stdout.is_empty();
            heard = Some(output);
            found || self.was_killed_since(began)
        });
        let (heard, served) = (heard.unwrap(), finish("a listener", listener));
        if self.was_killed_since(began) {
            assert!(format!("{token:x}\n").as_bytes().starts_with(&heard.stdout), "somebody else's: {heard}");
            self.excused.fetch_add(1, Ordering::Relaxed);
        } else {
            self.expect(began, &heard, format!("{token:x}\n").as_bytes());
            self.expect(began, &served, b"served\n");
        }
    }

    /// A project with a service of its own.
    fn project(&self, user: &str) {
        let began = Instant::now();
        let output = self.host.ssh(&format!("{user}+shop"), "wget -qO- http://front/; hostname; id -un").run();
        self.expect(began, &output, format!("front\nshop\n{user}\n").as_bytes());
    }

    /// A client that goes without a word, perhaps in the middle of its login.
    fn be_killed(&self, user: &str, random: &mut Random) {
        let command = if random.below(2) == 0 { "sleep 1000" } else { "cat /dev/zero" };
        let mut client = self.host.ssh(user, command).spawn();
        drop(client.stdin.take());
        std::thread::sleep(random.millis(1200));
        client.kill().unwrap();
        client.wait().unwrap();
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn work(&self, user: &str, seed: u64) {
        let mut random = Random::new(seed);
        while !self.over.load(Ordering::Relaxed) {
            match random.below(12) {
                0..3 => self.run(user, &mut random),
                3..5 => self.copy(user, &mut random),
                5..7 => self.share(user, &mut random),
                7 => self.forward(user, &mut random),
                8 => self.project(user),
                9..11 => self.be_killed(user, &mut random),
                _ => std::thread::sleep(random.millis(4000)),
            }
        }
    }
}

/// Ends the work, also if a check has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The server's resident memory in KiB.
fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn random_users_get_right_answers_whatever_happens_to_the_server() {
    let seed = given("PODSPAWN_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 8);
    let seconds = given("PODSPAWN_SOAK_SECONDS").unwrap_or(SECONDS);
    println!("PODSPAWN_SOAK_SEED={seed} PODSPAWN_SOAK_SECONDS={seconds}");

    // Half of the users' sessions end with the last connection, the others' stay a moment.
    let host = USERS.iter().fold(Host::new(), |host, user| host.user(user));
    let mut host = host.config("auth:\n  max_startups: 100\n  per_source_penalties: {enabled: false}").prepare();
    for user in &USERS[..3] {
        let users = host.root.join("etc/podspawn/users");
        fs::create_dir_all(&users).unwrap();
        fs::write(users.join(format!("{user}.yaml")), "mode: grace-period\n").unwrap();
    }
    let config = fs::read_to_string(host.config_file()).unwrap();
    let grace = config.replace("session:\n", "session:\n  grace_period: 2s\n");
    fs::write(host.config_file(), grace).unwrap();
    let git = GitServer::start();
    let program = host.scratch().join("podspawn");
    fs::copy(binary(), &program).unwrap();
    let socket = TcpListener::bind((host.address, Host::PORT)).unwrap();
    // Everybody but this thread only asks things of the host, and they hold it while the server comes and goes.
    let change = |command: &mut Command| {
        let server = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(&program).args(server.get_args());
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "podspawn.socket");
        give_fds(command, vec![socket.try_clone().unwrap().into()]);
    };
    host.serve_with(change);
    let repository = git.repository("shop", &[("podfile.yaml", PODFILE)]);
    host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();

    let server = host.take_server();
    let soak = Soak {
        host,
        kills: Mutex::default(),
        over: AtomicBool::new(false),
        done: AtomicUsize::new(0),
        excused: AtomicUsize::new(0),
    };
    let mut random = Random::new(seed);
    let began = Instant::now();
    let (stormy, all) = (Duration::from_secs(seconds * 6 / 10), Duration::from_secs(seconds));
    let mut events = [0; 3];
    let server = std::thread::scope(|scope| {
        let workers: Vec<_> = USERS
            .iter()
            .enumerate()
            .map(|(index, user)| {
                let (soak, seed) = (&soak, seed.wrapping_add(index as u64 + 1));
                scope.spawn(move || soak.work(user, seed))
            })
            .collect();
        let failed = || workers.iter().any(std::thread::ScopedJoinHandle::is_finished);
        let over = Over(&soak.over);
        let mut server = server;
        while began.elapsed() < stormy && !failed() {
            std::thread::sleep(Duration::from_secs(2) + random.millis(5000));
            match random.below(3) {
                0 => {
                    events[0] += 1;
                    server.end(Signal::SIGTERM, &soak.host);
                    server = soak.host.start_server_with(change);
                }
                1 => {
                    events[1] += 1;
                    let starts = || soak.host.log().matches("listening on ").count();
                    let before = starts();
                    server.signal(Signal::SIGUSR2);
                    eventually("the next program serves", || starts() > before || failed());
                }
                _ => {
                    events[2] += 1;
                    soak.kills.lock().unwrap().push((Instant::now(), None));
                    server.end(Signal::SIGKILL, &soak.host);
                    std::thread::sleep(random.millis(500));
                    server = soak.host.start_server_with(change);
                    soak.kills.lock().unwrap().last_mut().unwrap().1 = Some(Instant::now());
                }
            }
        }
        // What is kept in memory for a while has to be there at the first look too.
        std::thread::sleep(if failed() { Duration::ZERO } else { all.saturating_sub(stormy) / 4 });
        let before = memory(server.pid());
        while began.elapsed() < all && !failed() {
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(over);
        let after = memory(server.pid());
        println!("memory {before} KiB, at the end {after} KiB");
        assert!(after < before + GROWTH, "the server's memory has grown from {before} to {after} KiB");
        server
    });
    let Soak { mut host, done, excused, .. } = soak;
    host.give_server(server);
    let (done, excused) = (done.into_inner(), excused.into_inner());
    let [restarts, upgrades, kills] = events;
    println!("{done} pieces of work, {excused} lost to {kills} kills; {restarts} restarts, {upgrades} upgrades");
    assert!(done as u64 > seconds / 2, "hardly anything has been done");
    assert!(!host.log().contains("panicked"), "the server has panicked");
    host.assert_no_session_left();
}
