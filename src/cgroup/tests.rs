//! Limits on real processes, in whatever kind of cgroup this host has.

use std::{
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    process::{Child, Command, Stdio},
};

use super::*;

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
    let stat = fs::read_to_string(format!("/proc/{}/stat", hog.id())).unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    let ticks: f64 = stat.split(' ').skip(13).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    let share = ticks / 100.0 / elapsed;
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
