//! A session that takes all it can get is held to its limits, and its neighbours do not notice.

mod common;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use common::{Host, Stream, command::finish, eventually};
use podspawn::names::InstanceTag;

/// A control file of the user's session, on a host with v1 controllers or with v2.
fn control(host: &Host, user: &str, controller: &str, v1: &str, v2: &str) -> String {
    let sessions = host.sessions();
    let session = sessions.iter().find(|session| session["user"] == user).expect("the user has a session");
    let below = PathBuf::from(InstanceTag::of_root(&host.root).object_name()).join(session["id"].as_str().unwrap());
    let candidates = [
        PathBuf::from("/sys/fs/cgroup").join(controller).join(&below).join(v1),
        PathBuf::from("/sys/fs/cgroup").join(&below).join(v2),
    ];
    let found = candidates.iter().find_map(|path| fs::read_to_string(path).ok());
    found.unwrap_or_else(|| panic!("none of {candidates:?}"))
}

#[test]
fn a_memory_hog_is_killed_and_its_session_lives_on() {
    let host = Host::new().user("ada").user("bob").config("defaults:\n  memory: 64m").start();
    let (ada, bob) = (Stream::start(&host, "ada"), Stream::start(&host, "bob"));
    host.ssh("ada", "echo 1 > kept").run().ok();
    for _ in 0..3 {
        // tail keeps the last line, which is everything.
        let hog = host.ssh("ada", "head -c 500m /dev/zero | tail").run();
        assert_ne!(hog.status, Some(0), "{hog}");
        host.ssh("bob", "hostname").run().ok().stdout("bob\n");
    }
    // Files in memory count, and are not swapped out.
    host.ssh("ada", "head -c 60m /dev/zero > /dev/shm/big; tail /dev/shm/big").run();
    ada.flows();
    bob.flows();
    host.ssh("ada", "cat kept").run().ok().stdout("1\n");
    let limit = control(&host, "ada", "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit.trim(), (64 << 20).to_string());
    ada.finish();
    bob.finish();
    host.assert_no_session_left();
    let reasons: Vec<_> = host.audit().iter().map(|event| event["reason"].clone()).collect();
    assert!(!reasons.contains(&"container-died".into()), "init was killed");
}

#[test]
fn files_in_memory_have_a_bound_of_their_own() {
    let host = Host::new().user("ada").start();
    let full = host.ssh("ada", "head -c 100m /dev/zero > /dev/shm/big; stat -c %s /dev/shm/big").run();
    full.stderr_has("head: standard output:").stdout_has(&format!("{}\n", 64 << 20));
    host.ssh("ada", "cat /dev/zero > /dev/file").run().status(1);
    host.assert_no_session_left();
}

#[test]
fn a_fork_bomb_stops_at_the_limit() {
    let host = Host::new().user("ada").user("bob").config("security:\n  pids_limit: 60").start();
    // This keeps the session when the bomb's shell gives up.
    let (ada, bob) = (Stream::start(&host, "ada"), Stream::start(&host, "bob"));
    let count = || control(&host, "ada", "pids", "pids.current", "pids.current").trim().parse::<u64>().unwrap();
    let bomb = host.ssh("ada", "while :; do setsid sleep 1000 >/dev/null 2>&1 & done").run();
    bomb.stderr_has("can't fork");
    assert!((58..=60).contains(&count()), "{}", count());
    for _ in 0..10 {
        assert!(count() <= 60);
        host.ssh("bob", "hostname").run().ok().stdout("bob\n");
    }
    ada.flows();
    bob.flows();
    // The shell that failed to fork has made room for a few again. Whoever asks for one process more is told why there is
    // none.
    let fillers: Vec<_> = (0..6).map(|_| host.ssh("ada", "exec sleep 1000").spawn()).collect();
    let mut last = None;
    eventually("a command is refused", || {
        let output = host.ssh("ada", "exit 9").run();
        let refused = output.status == Some(125);
        last = Some(output);
        refused
    });
    last.unwrap().stderr_has("(the session's limit on processes is reached)");
    ada.finish();
    for mut filler in fillers {
        filler.kill().unwrap();
        filler.wait().unwrap();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_cpu_hog_gets_its_share_and_no_more() {
    let host = Host::new().user("ada").user("bob").config("defaults:\n  cpus: 0.5").start();
    let bob = Stream::start(&host, "bob");
    let start = Instant::now();
    // `times` tells the processor time of the shell and of its children, in two lines.
    let hog = "for i in 1 2 3; do (while :; do :; done) & done; sleep 4; kill $(jobs -p); wait; times";
    let hog = host.ssh("ada", hog).spawn();
    for _ in 0..3 {
        host.ssh("bob", "hostname").run().ok().stdout("bob\n");
    }
    bob.flows();
    let output = finish("the hog", hog);
    let elapsed = start.elapsed();
    let used: Duration = output.text().split_whitespace().map(parse_time).sum();
    assert!(used > Duration::ZERO, "{output}");
    // Half of what went by. The kernel deals out quota in slices of 5 ms for each processor; a machine that is busy
    // otherwise only makes it less.
    assert!(used < elapsed.mul_f64(0.65), "{used:?} of {elapsed:?}");
    bob.finish();
    host.assert_no_session_left();
}

/// `0m1.234s`
fn parse_time(text: &str) -> Duration {
    let (minutes, seconds) = text.trim_end_matches('s').split_once('m').unwrap_or_else(|| panic!("{text}"));
    Duration::from_secs(60) * minutes.parse().unwrap() + Duration::from_secs_f64(seconds.parse().unwrap())
}
