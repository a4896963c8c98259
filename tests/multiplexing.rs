//! Many channels on one connection (ControlMaster), one after the other and at once.

mod common;

use std::process::Child;

use common::{Host, Master, eventually};

#[test]
fn a_connection_takes_any_number_of_commands_one_after_the_other() {
    let host = Host::new().user("ada").start();
    let master = Master::start(&host, "ada", &[]);
    for number in 0..100 {
        master.ssh(&format!("echo {number}")).run().ok().stdout(&format!("{number}\n"));
    }
    assert_eq!(host.processes("connection").len(), 1 + 4, "one connection, and four processes that wait for a client");
}

#[test]
fn commands_that_end_before_their_input_make_room_for_others() {
    let host = Host::new().user("ada").config("auth:\n  max_sessions: 2").start();
    let master = Master::start(&host, "ada", &[]);
    for _ in 0..6 {
        let mut child = master.ssh("exit 3").args(["-o", "ProxyCommand=false"]).spawn();
        let stdin = child.stdin.take();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        drop(stdin);
    }
}

#[test]
fn as_many_channels_as_configured_are_open_at_once_and_the_next_is_refused() {
    let host = Host::new().user("ada").config("auth:\n  max_sessions: 10").start();
    let master = Master::start(&host, "ada", &[]);
    let mut open: Vec<Child> = (0..10).map(|_| master.ssh("echo; exec cat").spawn()).collect();
    for child in &mut open {
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    }
    // The client falls back to a connection of its own unless it is told not to.
    let refused = master.ssh("echo").args(["-o", "ProxyCommand=false"]).run();
    refused.status(255).stderr_has("Session open refused by peer");
    for mut child in open {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    master.ssh("echo room again").run().ok().stdout("room again\n");
}

#[test]
fn a_channel_that_the_client_closes_ends_its_command_and_no_other() {
    let host = Host::new().user("ada").start();
    let master = Master::start(&host, "ada", &[]);
    let mut stays = master.ssh("echo; exec cat").spawn();
    let mut goes = master.ssh("echo; exec sleep 1000").spawn();
    for child in [&mut stays, &mut goes] {
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    }
    goes.kill().unwrap();
    goes.wait().unwrap();
    eventually("the command ends with its channel", || master.ssh("pidof sleep").run().status == Some(1));
    drop(stays.stdin.take());
    assert!(stays.wait().unwrap().success());
}
