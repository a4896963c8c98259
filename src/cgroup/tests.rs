//! Limits on real processes, in whatever kind of cgroup this host has.

use std::{
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    process::{Child, Command, Stdio},
};

use super::*;
use crate::names::ServicePlace;

fn tag(name: &str) -> InstanceTag {
    InstanceTag::of_root(std::path::Path::new(&format!("/test/{}/{name}", std::process::id())))
}

fn id(n: u64) -> SessionId {
    SessionId::from_bits(n)
}

/// Starts a shell that joins `cgroup` as an init would, by the descriptors alone, and then runs `script`.
fn run(cgroup: &Cgroup, script: &str) -> Child {
    let (join, fds) = cgroup.join().unwrap();
    let fds: Vec<_> = fds.iter().map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())).collect();
    let join: String = match join {
        CgroupJoin::V1 { count } => {
            assert_eq!(count as usize, fds.len());
            fds.iter().map(|fd| format!("echo 0 > {fd}; ")).collect()
        }
        CgroupJoin::V2 => format!("echo 0 > {}/cgroup.procs; ", fds[0]),
    };
    let mut shell = Command::new("sh");
    let child = shell.args(["-ec", &format!("{join} echo in; {script}")]).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    // Our descriptors must stay open until the shell has used them.
    let mut ready = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(&ready, b"in\n");
    child
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_session_is_held_to_its_limits() {
    let tag = tag("limits");
    let cgroups = Cgroups::open(&tag).unwrap();
    let limits = Limits { cpus: Some(0.2), memory_max: Some(32 << 20), pids_max: Some(20) };

    let cgroup = cgroups.create(&id(1), &limits).unwrap();
    let mut forker = run(&cgroup, "for n in $(seq 50); do sleep 60 & done; wait");
    // dash gives up at the first fork that fails; the sleeps stay.
    assert!(!forker.wait().unwrap().success());
    assert_eq!(cgroup.pids().unwrap().len(), 19, "20 with the shell");
    cgroup.kill().unwrap();
    cgroup.destroy().unwrap();

    let cgroup = cgroups.create(&id(2), &limits).unwrap();
    let mut hog = run(&cgroup, "exec tail /dev/zero");
    assert_eq!(hog.wait().unwrap().signal(), Some(libc::SIGKILL), "out of memory");
    cgroup.destroy().unwrap();

    let cgroup = cgroups.create(&id(3), &limits).unwrap();
    let start = Instant::now();
    let mut hog = run(&cgroup, "while :; do :; done");
    thread::sleep(Duration::from_secs(1));
    let share = seconds(hog.id()) / start.elapsed().as_secs_f64();
    assert!(share < 0.35, "used {share} CPUs");
    cgroup.kill().unwrap();
    assert_eq!(hog.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.destroy().unwrap();
    cgroup.destroy().unwrap();
    cgroup.kill().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());

    cgroups.close().unwrap();
    cgroups.close().unwrap();
    assert_eq!(Cgroups::listing(&tag).unwrap(), Vec::<String>::new());
}

#[test]
fn the_containers_of_a_session_share_its_limits() {
    let tag = tag("shared");
    let cgroups = Cgroups::open(&tag).unwrap();
    let whole = Limits { cpus: Some(0.2), memory_max: Some(64 << 20), pids_max: Some(30) };
    let session = cgroups.create(&id(1), &whole).unwrap();
    let main = session.child(&id(1).into(), &Limits::default()).unwrap();
    let part = Limits { cpus: Some(4.0), memory_max: Some(16 << 20), pids_max: Some(10) }.within(&whole);
    let service = |index, limits: &Limits| {
        session.child(&ContainerId::of_service(&id(1), ServicePlace::new(index).unwrap()), limits).unwrap()
    };
    let (database, cache) = (service(0, &part), service(1, &Limits::default()));
    let forks = "for n in $(seq 50); do sleep 60 & done; wait";

    // A part of its own, and then the rest of the whole.
    assert!(!run(&database, forks).wait().unwrap().success());
    assert_eq!(database.pids().unwrap().len(), 9, "10 with the shell");
    assert!(!run(&main, forks).wait().unwrap().success());
    assert_eq!(main.pids().unwrap().len(), 20, "21 with the shell: 30 are the session's");
    assert_eq!(session.pids().unwrap().len(), 29);
    assert!(!run(&cache, "sleep 60 & sleep 60 & wait").wait().unwrap().success(), "all are used");
    main.kill().unwrap();
    assert_eq!(database.pids().unwrap().len(), 9);
    database.kill().unwrap();
    let count = session.path("pids").unwrap().join("pids.current");
    eventually("those who were killed are reaped and no longer counted", || {
        fs::read_to_string(&count).unwrap().trim() == "0"
    });

    // 16 MiB are its own limit, 64 that of all.
    let hold = |bytes: &str| format!("exec sh -c 'head -c {bytes} /dev/zero | tail | sleep 60'");
    assert_eq!(run(&service(2, &part), "exec tail /dev/zero").wait().unwrap().signal(), Some(libc::SIGKILL));
    let (mut one, two) = (run(&cache, &hold("40m")), service(3, &Limits::default()));
    eventually("one holds what it wants", || cache.pids().unwrap().iter().any(|pid| resident(*pid) > 40 << 20));
    let mut two_runs = run(&two, "exec tail /dev/zero");
    assert_eq!(two_runs.wait().unwrap().signal(), Some(libc::SIGKILL), "24 MiB are left");

    let start = Instant::now();
    let mut hogs = [run(&two, "while :; do :; done"), run(&cache, "while :; do :; done")];
    thread::sleep(Duration::from_secs(1));
    let share = hogs.iter().map(|hog| seconds(hog.id())).sum::<f64>() / start.elapsed().as_secs_f64();
    assert!(share < 0.35, "used {share} CPUs");

    // A supervisor that starts after a crash knows nothing but the session's id.
    let adopted = Cgroups::open(&tag).unwrap().adopt(&id(1));
    adopted.kill().unwrap();
    assert!(adopted.pids().unwrap().is_empty());
    for hog in &mut hogs {
        assert_eq!(hog.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    one.wait().unwrap();
    adopted.destroy().unwrap();
    adopted.destroy().unwrap();
    cgroups.close().unwrap();
    assert_eq!(Cgroups::listing(&tag).unwrap(), Vec::<String>::new());
}

/// The memory that a process has.
fn resident(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split(' ').nth(1).map_or(0, |pages| pages.parse::<u64>().unwrap() * 4096)
}

/// The processor time that a process has used.
fn seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.split(' ').skip(13).take(2).map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[test]
fn a_fork_bomb_is_ended() {
    let cgroups = Cgroups::open(&tag("bomb")).unwrap();
    let cgroup = cgroups.create(&id(7), &Limits { pids_max: Some(64), ..Limits::default() }).unwrap();
    // A shell whose fork fails gives up; this one then begins anew, for which it needs no fork.
    let bomb = r#"exec 2>/dev/null; BOMB='trap "exec sh -c \"\$BOMB\"" EXIT; while :; do sh -c "$BOMB" & done'
        export BOMB; trap '' TERM HUP INT; eval "$BOMB""#;
    let mut bomb = run(&cgroup, bomb);
    eventually("it goes off", || cgroup.pids().unwrap().len() > 30);
    let start = Instant::now();
    cgroup.kill().unwrap();
    println!("ended in {:?}", start.elapsed());
    bomb.wait().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
    cgroup.destroy().unwrap();
    cgroups.close().unwrap();
}

#[test]
fn a_listing_names_the_sessions_and_an_id_is_used_once() {
    let tag = tag("listing");
    assert_eq!(Cgroups::listing(&tag).unwrap(), Vec::<String>::new());
    let cgroups = Cgroups::open(&tag).unwrap();
    let cgroup = cgroups.create(&id(9), &Limits::default()).unwrap();
    let listing = Cgroups::listing(&tag).unwrap();
    let ours = listing.iter().filter(|line| line.ends_with(id(9).as_str())).count();
    assert_eq!((ours, listing.len()), (cgroup.paths.len(), 2 * cgroup.paths.len()), "{listing:?}");

    let error = cgroups.create(&id(9), &Limits::default()).unwrap_err();
    assert!(matches!(&error, CgroupError::Create { source, .. } if source.kind() == io::ErrorKind::AlreadyExists));
    assert_eq!(Cgroups::listing(&tag).unwrap(), listing, "the first is untouched");
    assert!(cgroups.close().is_err(), "there is a session");

    // A supervisor that starts after a crash finds it by its id.
    let mut child = run(&cgroup, "exec sleep 60");
    let adopted = Cgroups::open(&tag).unwrap().adopt(&id(9));
    assert_eq!(adopted.pids().unwrap(), [i32::try_from(child.id()).unwrap()]);
    adopted.kill().unwrap();
    child.wait().unwrap();
    adopted.destroy().unwrap();
    cgroups.close().unwrap();
    assert_eq!(Cgroups::listing(&tag).unwrap(), Vec::<String>::new());
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing_behind() {
    let tag = tag("refused");
    let cgroups = Cgroups::open(&tag).unwrap();
    let error = cgroups.create(&id(4), &Limits { cpus: Some(f64::MAX), ..Limits::default() }).unwrap_err();
    assert!(matches!(error, CgroupError::Limit { .. }), "{error}");
    cgroups.close().unwrap();
    assert_eq!(Cgroups::listing(&tag).unwrap(), Vec::<String>::new());
}

/// Also where the controllers are v1: a v2 hierarchy without controllers is enough to kill in.
#[test]
fn v2_kills_all_at_once() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 mount");
    let base = PathBuf::from(mount.split(' ').nth(4).unwrap());
    let parent = base.join(tag("v2").object_name());
    fs::create_dir(&parent).unwrap();
    let cgroups = Cgroups { layout: Layout::V2 { base, parent } };
    let cgroup = cgroups.create(&id(5), &Limits::default()).unwrap();
    let mut shell = run(&cgroup, "sleep 60 & sleep 60 & sleep 60");
    eventually("all are in", || cgroup.pids().unwrap().len() == 4);
    assert!(cgroup.destroy().is_err(), "it is busy");
    cgroup.kill().unwrap();
    assert_eq!(shell.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.destroy().unwrap();
    cgroups.close().unwrap();
}
