//! Broken clients, greedy processes, and images made to get out.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::symlink},
};

use podspawn::{
    cgroup::{Cgroups, Limits},
    protocol::{Exec, ToInit, wire},
    runtime::RuntimeError,
    sys::seqpacket,
};

use crate::host::{Client, Host, command, eventually, receive};

#[test]
fn a_broken_peer_loses_its_socket_and_nothing_else() {
    let host = Host::new();
    let guest = host.ada();
    let broken = seqpacket::connect(&guest.socket).unwrap();
    seqpacket::send(broken.as_fd(), b"\xff\xff nonsense", &[guest.init.as_fd()]).unwrap();
    assert!(receive(&broken).is_none());
    let clients: Vec<_> = (0..63).map(|_| Client::connect(&guest.socket)).collect();
    assert_eq!(guest.out("echo still"), "still\n");
    drop(clients);
    // One that never reads: its processes end, its messages pile up, and it is dropped.
    let deaf = seqpacket::connect(&guest.socket).unwrap();
    for id in 0..2000 {
        let exec = Exec::new(id, command("exit"));
        let message = wire::encode(&ToInit::Exec(Box::new(exec))).unwrap();
        nix::fcntl::fcntl(&deaf, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        if seqpacket::send(deaf.as_fd(), &message, &[]).is_err() {
            break;
        }
    }
    assert_eq!(guest.out("echo still"), "still\n");
    guest.end();
    host.assert_clean();
}

#[test]
fn a_session_at_its_limit_of_processes_is_told_so_and_lives() {
    let host = Host::new();
    let cgroups = Cgroups::open(&host.tag).unwrap();
    let mut spec = host.spec(Some("ada"));
    let limits = Limits { pids_max: Some(20), ..Limits::default() };
    let cgroup = cgroups.create(&spec.container.session, &limits).unwrap();
    let (join, fds) = cgroup.join().unwrap();
    spec.cgroup = join;
    let guest = host.try_create(&spec, &fds).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [guest.container.pid()]);
    let inside = guest.out("cat /proc/self/cgroup");
    assert!(inside.lines().any(|line| line.ends_with(":pids:/") || line == "0::/"), "a cgroup namespace: {inside}");
    // With init and the shell it is 20.
    let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do sleep 1000 & done; wait";
    let (id, ends) = guest.start(command(many), None, &[]);
    eventually("the limit is reached", || cgroup.pids().unwrap().len() == 20);
    let (_, refused) = guest.start(command("true"), None, &[]);
    let (status, message) = refused.unwrap_err();
    assert_eq!(status, 125);
    assert!(message.contains("limit on processes"), "{message}");
    wire::send(guest.init.as_fd(), &ToInit::Signal { id, signal: 9 }, &[]).unwrap();
    guest.exited(id);
    drop(ends);
    eventually("there is room", || cgroup.pids().unwrap().len() == 1);
    assert_eq!(guest.out("echo alive"), "alive\n");
    guest.end();
    cgroup.destroy().unwrap();
    cgroups.close().unwrap();
    host.assert_clean();
}

#[test]
fn hostile_images_are_refused_or_contained() {
    let host = Host::new();
    let canary = host.root().join("canary");
    fs::create_dir(&canary).unwrap();
    for (name, path) in [("proc", "proc"), ("sys", "sys"), ("dev", "dev")] {
        let layer = host.layer(&format!("hostile-{name}"));
        symlink(&canary, layer.join(path)).unwrap();
        let mut spec = host.spec(Some("ada"));
        spec.layers.insert(0, format!("hostile-{name}"));
        let error = host.try_create(&spec, &[]).err().expect("refused");
        assert!(error.to_string().contains(&format!("/{path}")), "{error}");
    }
    let layer = host.layer("hostile-etc");
    fs::create_dir(layer.join("etc")).unwrap();
    for file in ["hosts", "hostname", "passwd", "group", "shadow"] {
        symlink(canary.join(file), layer.join("etc").join(file)).unwrap();
    }
    nix::unistd::mkfifo(&layer.join("etc/gshadow"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(&canary, layer.join("home")).unwrap();
    let mut spec = host.spec(Some("ada"));
    spec.layers.insert(0, "hostile-etc".to_owned());
    match host.try_create(&spec, &[]) {
        Ok(guest) => {
            assert_eq!(guest.out("id -un; cat /etc/hostname"), "ada\ngreenhouse\n");
            guest.end();
        }
        Err(error) => assert!(matches!(error, RuntimeError::Create { .. }), "{error}"),
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "nothing outside is touched");
    for layers in [vec![], vec!["../busybox".to_owned()], vec!["a:b".to_owned()], vec!["/etc".to_owned()]] {
        let mut spec = host.spec(Some("ada"));
        spec.layers = layers;
        assert!(host.try_create(&spec, &[]).is_err());
    }
    host.ada().end();
    host.assert_clean();
}
