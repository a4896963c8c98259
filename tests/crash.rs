//! Whatever is killed at whatever moment: nothing stays once the server runs again, and nobody else notices.

mod common;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use common::{DEADLINE, Host, Stream, command::finish, eventually, within};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use podspawn::names::InstanceTag;

const GRACE: &str = "session:\n  mode: grace-period\n  grace_period: 10m";

fn kill_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn stop_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
}

/// Whether the process is there, and not only its status for whoever will reap it.
fn exists(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
}

/// Waits for a client whose session was taken away, and whatever it wrote to stderr.
#[track_caller]
fn cut_off(client: Child) -> String {
    let output = finish("a client that was cut off", client);
    assert!(output.status != Some(0), "{output}");
    output.stderr
}

/// Waits for one of many moments in the making of a second session: after its directory has appeared, then its cgroup, then
/// its init, and a few milliseconds more each.
fn wait_for_moment(host: &Host, moment: u64) {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let tag = InstanceTag::of_root(&host.root);
    let cgroups = Path::new("/sys/fs/cgroup/pids").join(tag.object_name());
    let appeared = || match moment % 3 {
        0 => entries(&host.root.join("var/lib/podspawn/sessions")).count() == 2,
        1 => entries(&cgroups).filter(|entry| entry.path().is_dir()).count() == 2,
        _ => common::leaks::inits(&tag).len() == 2,
    };
    let end = Instant::now() + DEADLINE;
    while !appeared() {
        assert!(Instant::now() < end, "no second session is being made");
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_millis(moment / 3 * 4));
}

/// In [`wait_for_moment`].
const MOMENTS: u64 = 12;

#[test]
fn connections_go_on_while_the_server_is_killed_and_started_again() {
    let mut host = Host::new().user("ada").user("bob").start();
    let (ada, bob) = (Stream::start(&host, "ada"), Stream::start(&host, "bob"));
    host.ssh("bob", "echo 1 > kept").run().ok();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        host.end(signal);
        ada.flows();
        host.serve();
        bob.flows();
        host.ssh("bob", "cat kept").run().ok().stdout("1\n");
        let connections: Vec<_> = host.sessions().iter().map(|session| session["connections"].clone()).collect();
        assert_eq!(connections, [1, 1], "both are adopted, and bob's second one is gone");
    }
    ada.finish();
    eventually("ada's session ends with her last connection", || host.sessions().len() == 1);
    bob.flows();
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_server_killed_while_it_makes_a_session_leaves_nothing() {
    let mut host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    for moment in 0..MOMENTS {
        let ada = host.ssh("ada", "sleep 1000").spawn();
        wait_for_moment(&host, moment);
        host.end(Signal::SIGKILL);
        let client = Pid::from_raw(ada.id().cast_signed());
        // Her connection may have been far enough to live on.
        kill(client, Signal::SIGTERM).unwrap();
        cut_off(ada);
        host.serve();
        eventually("only bob's session is left", || host.sessions().len() == 1);
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_server_killed_while_it_removes_a_session_leaves_nothing() {
    let mut host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    for moment in 0..6 {
        host.ssh("ada", "for i in $(seq 3000); do echo > file$i; done").run().ok();
        std::thread::sleep(Duration::from_millis(15) * moment);
        host.end(Signal::SIGKILL);
        host.serve();
        eventually("only bob's session is left", || host.sessions().len() == 1);
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_session_in_grace_is_adopted_and_one_without_anybody_is_removed() {
    let mut host = Host::new().user("ada").user("bob").config(GRACE).start();
    host.ssh("ada", "echo 1 > kept").run().ok();
    host.end(Signal::SIGKILL);
    host.serve();
    let left = host.sessions()[0]["grace_seconds"].as_u64().unwrap();
    assert!((1..600).contains(&left), "its deadline is still the first one: {left}");
    host.ssh("ada", "cat kept").run().ok().stdout("1\n");

    host.podspawn(["stop", "ada"]).run().ok();
    fs::write(host.config_file(), fs::read_to_string(host.config_file()).unwrap().replace("10m", "0s")).unwrap();
    let bob = host.ssh("bob", "sleep 1000").spawn();
    eventually("bob is connected", || host.connections("bob").len() == 1);
    host.end(Signal::SIGKILL);
    kill_process(bob.id().cast_signed());
    cut_off(bob);
    host.serve();
    host.assert_no_session_left();
}

#[test]
fn a_session_whose_container_died_with_the_server_is_removed_and_its_client_told() {
    let mut host = Host::new().user("ada").start();
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    let init = host.init("ada");
    host.end(Signal::SIGKILL);
    kill_process(init);
    assert!(cut_off(ada).contains("podspawn: the session has ended"));
    host.serve();
    host.assert_no_session_left();
}

#[test]
fn a_start_after_a_power_failure_removes_everything_that_was_there() {
    let mut host = Host::new().user("ada").config(GRACE).start();
    host.ssh("ada", "echo 1 > kept").run().ok();
    let init = host.init("ada");
    host.end(Signal::SIGKILL);
    // What another boot would find: directories and records, and processes that are others now.
    kill_process(init);
    host.sql(&format!("update sessions set boot_id = 'of another boot', init_pid = {}", std::process::id()));
    for half_made in ["var/lib/podspawn/sessions/2aaaaaaa/upper/etc", "run/podspawn/sessions/3bbbbbbb"] {
        fs::create_dir_all(host.root.join(half_made)).unwrap();
    }
    fs::write(host.root.join("run/podspawn/connections/12.sock"), "").unwrap();
    host.serve();
    host.ssh("ada", "cat kept").run().status(1);
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn sessions_of_a_lost_database_are_removed() {
    let mut host = Host::new().user("ada").user("bob").config(GRACE).start();
    host.ssh("ada", "true").run().ok();
    let bob = host.ssh("bob", "sleep 1000").spawn();
    eventually("bob is connected", || host.connections("bob").len() == 1);
    host.end(Signal::SIGKILL);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        fs::remove_file(host.root.join("var/lib/podspawn").join(file)).unwrap();
    }
    host.serve();
    cut_off(bob);
    host.assert_no_session_left();
}

#[test]
fn a_killed_spawner_is_replaced_and_costs_nobody_a_session() {
    let host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    eventually("the spawner has its name", || host.spawner().is_some());
    kill_process(host.spawner().unwrap());
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    host.assert_only_left(&["bob"]);
    for moment in 0..MOMENTS {
        // The last one died when it was not needed any more.
        if host.spawner().is_none() {
            host.ssh("ada", "true").run().ok();
            host.assert_only_left(&["bob"]);
        }
        let spawner = host.spawner().unwrap();
        // It ends when its input does.
        let ada = host.ssh("ada", "hostname; read end").spawn();
        wait_for_moment(&host, moment);
        kill_process(spawner);
        finish(&format!("a client whose spawner died at moment {moment}"), ada).stdout("ada\n");
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_spawner_that_was_stopped_does_not_outlive_its_server() {
    let mut host = Host::new().user("ada").start();
    eventually("the spawner has its name", || host.spawner().is_some());
    let spawner = host.spawner().unwrap();
    stop_process(spawner);
    let ada = host.ssh("ada", "true").spawn();
    eventually("a session is being made", || host.sql("select id from sessions").lines().count() == 1);
    host.end(Signal::SIGKILL);
    assert!(exists(spawner));
    host.serve();
    assert!(!exists(spawner));
    cut_off(ada);
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    host.assert_no_session_left();
}

#[test]
fn a_killed_connection_process_ends_its_own_connection_only() {
    let host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let first = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    let process = host.connections("ada")[0];
    let second = Stream::start(&host, "ada");
    kill_process(process);
    cut_off(first);
    bob.flows();
    second.flows();
    second.finish();
    host.assert_only_left(&["bob"]);
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_stopped_connection_process_blocks_neither_its_sessions_end_nor_anybody_else() {
    let host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    let stopped = host.connections("ada")[0];
    stop_process(stopped);
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("her session is removed", || host.sessions().len() == 1);
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    bob.flows();
    cut_off(ada);
    eventually("the stopped process is killed", || !exists(stopped));
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_stopped_connection_process_is_ended_by_the_next_server() {
    let mut host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    stop_process(host.connections("ada")[0]);
    // And one that waits for a client.
    let known = [host.connections("ada"), host.connections("bob")].concat();
    let waiting = *host.processes("connection").iter().find(|pid| !known.contains(pid)).unwrap();
    stop_process(waiting);
    host.end(Signal::SIGKILL);
    host.serve();
    cut_off(ada);
    assert!(!exists(waiting));
    host.assert_only_left(&["bob"]);
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn an_adopted_connection_process_that_does_not_end_is_killed() {
    let mut host = Host::new().user("ada").start();
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    let process = host.connections("ada")[0];
    host.end(Signal::SIGKILL);
    host.serve();
    stop_process(process);
    host.podspawn(["stop", "ada"]).run().ok();
    cut_off(ada);
    eventually("it is killed", || !exists(process));
    host.assert_no_session_left();
}

#[test]
fn a_killed_init_ends_its_session_with_a_reason() {
    let host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    kill_process(host.init("ada"));
    let said = cut_off(ada);
    assert!(said.contains("podspawn: the session's container has died"), "{said}");
    bob.flows();
    host.assert_only_left(&["bob"]);
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn a_stopped_init_can_still_be_ended() {
    let host = Host::new().user("ada").user("bob").config(GRACE).start();
    let bob = Stream::start(&host, "bob");
    host.ssh("ada", "true").run().ok();
    stop_process(host.init("ada"));
    // It waits for an answer that does not come, and nobody else does.
    let ada = host.ssh("ada", "true").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    bob.flows();
    host.podspawn(["stop", "ada"]).run().ok();
    let said = cut_off(ada);
    assert!(said.contains("podspawn: the session was stopped by the administrator"), "{said}");
    host.assert_only_left(&["bob"]);
    bob.finish();
    host.podspawn(["stop", "bob"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn a_killed_client_takes_its_session_with_it() {
    let host = Host::new().user("ada").user("bob").start();
    let bob = Stream::start(&host, "bob");
    // In a login, in a command, and in the middle of a transfer.
    for (command, moment) in [("sleep 1000", 30), ("sleep 1000", 120), ("sleep 1000", 1000), ("cat /dev/zero", 1000)] {
        let mut ada = host.ssh("ada", command).spawn();
        std::thread::sleep(Duration::from_millis(moment));
        ada.kill().unwrap();
        ada.wait().unwrap();
        host.assert_only_left(&["bob"]);
        bob.flows();
    }
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn everything_killed_at_once_leaves_nothing() {
    let mut host = Host::new().user("ada").user("bob").start();
    let clients = ["ada", "bob", "ada"].map(|user| host.ssh(user, "sleep 1000").spawn());
    eventually("all are connected", || host.connections("ada").len() + host.connections("bob").len() == 3);
    let mut pids = [host.processes("connection"), host.processes("spawner")].concat();
    pids.retain(|pid| *pid != host.pid());
    host.end(Signal::SIGKILL);
    for pid in pids {
        // Some have ended with the server.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for client in clients {
        cut_off(client);
    }
    host.serve();
    host.assert_no_session_left();
}

#[test]
fn an_interrupt_typed_at_the_servers_terminal_tells_clients_and_removes_everything() {
    let host = Host::new().user("ada").prepare();
    let mut command = host.server_command();
    command.process_group(0).stderr(Stdio::piped());
    let mut server = command.spawn().unwrap();
    eventually("it serves", || host.podspawn(["status"]).run().status == Some(0));
    host.trust_host_keys();
    let ada = host.ssh("ada", "sleep 1000").spawn();
    eventually("ada is connected", || host.connections("ada").len() == 1);
    // The terminal sends it to everybody in the foreground process group.
    killpg(Pid::from_raw(server.id().cast_signed()), Signal::SIGINT).unwrap();
    let said = cut_off(ada);
    assert!(said.contains("podspawn: the server is shutting down"), "{said}");
    let ended = within(DEADLINE, || server.try_wait().unwrap().is_some());
    assert!(ended && server.wait().unwrap().success());
    host.assert_no_session_left();
}
