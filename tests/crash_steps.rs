//! The server dies, or a step fails, at each point of making and of removing a session with services: there is a working
//! session afterwards or none, and nothing is left of it. The points are those of `podspawn::faults`.

mod common;

use std::{fs, path::PathBuf, process::Child};

use common::{GitServer, Host, Stream, command::finish, eventually, within};
use podspawn::faults::Point;

const PODFILE: &str = "base: localhost/busybox:test
services:
  - {name: one, image: localhost/busybox:test, command: [sleep, '1000']}
  - {name: two, image: localhost/busybox:test, command: [sleep, '1000']}
";

/// A user with such a project, another one who is not to notice, and the file that says what is to happen.
struct Case {
    host: Host,
    _git: GitServer,
    fault: PathBuf,
}

impl Case {
    fn new() -> Self {
        let mut host = Host::new().user("ada").user("bob").prepare();
        let fault = host.scratch().join("fault");
        let git = GitServer::start();
        host.serve_with(|command| {
            command.env("PODSPAWN_FAULT", &fault);
        });
        let repository = git.repository("shop", &[("podfile.yaml", PODFILE)]);
        host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();
        Self { host, _git: git, fault }
    }

    fn arm(&self, what: &str, point: Point, times: u32) {
        // At once: the server may be looking.
        let beside = self.fault.with_extension("new");
        fs::write(&beside, format!("{what} {point} {times}")).unwrap();
        fs::rename(beside, &self.fault).unwrap();
    }

    /// Several steps fail, one after the other.
    fn fail_all(&self, points: &[Point]) {
        let lines: Vec<_> = points.iter().map(|point| format!("fail {point} 1")).collect();
        let beside = self.fault.with_extension("new");
        fs::write(&beside, lines.join("\n")).unwrap();
        fs::rename(beside, &self.fault).unwrap();
    }

    fn disarm(&self) {
        // It is gone if it has happened.
        let _ = fs::remove_file(&self.fault);
    }

    fn client(&self) -> Child {
        self.host.ssh("ada+shop", "hostname").spawn()
    }

    /// A session can be had, and goes away as it should.
    #[track_caller]
    fn works(&self, after: &str) {
        let output = self.host.ssh("ada+shop", "hostname").run();
        assert!(output.status == Some(0) && output.text() == "shop\n", "after {after}: {output}");
        self.host.assert_only_left(&["bob"]);
    }
}

/// Points with how often each is to be reached: more than once where there are several containers, the last one among them.
fn moments() -> impl Iterator<Item = (Point, u32)> {
    let times = |point: &Point| match point {
        Point::Address | Point::CgroupPart | Point::NetworkEnd => vec![1, 3],
        Point::Directories | Point::InitSocket | Point::CgroupJoin | Point::DirectoriesEnd => vec![1, 2],
        Point::Network | Point::Description | Point::Init | Point::InitRecord => vec![1, 2, 3],
        _ => vec![1],
    };
    let of_sessions = Point::ALL.iter().filter(|point| **point != Point::Start);
    of_sessions.flat_map(move |point| times(point).into_iter().map(move |times| (*point, times)))
}

#[test]
fn a_server_killed_at_any_step_leaves_a_working_session_or_none() {
    let mut case = Case::new();
    let bob = Stream::start(&case.host, "bob");
    for (point, times) in moments() {
        let moment = format!("the server's death at {point} {times}");
        case.arm("kill", point, times);
        let ada = case.client();
        eventually(&format!("it comes to {moment}"), || case.host.has_ended());
        assert!(!case.fault.exists());
        bob.flows();
        let fault = case.fault.clone();
        case.host.serve_with(|command| {
            command.env("PODSPAWN_FAULT", fault);
        });
        let output = finish(&format!("a client that saw {moment}"), ada);
        // Either it was too early for it, or it did not notice.
        let (status, text) = (output.status, output.text());
        assert!(matches!((status, text.as_str()), (Some(0), "shop\n") | (Some(125 | 255), "")), "{output}");
        case.works(&moment);
        bob.flows();
    }
    bob.finish();
    case.host.assert_no_session_left();
}

#[test]
fn a_step_that_fails_is_told_in_one_line_and_leaves_nothing() {
    let case = Case::new();
    let bob = Stream::start(&case.host, "bob");
    for (point, times) in moments() {
        case.arm("fail", point, times);
        let output = finish(&format!("a client whose step {point} failed"), case.client());
        let happened = within(common::DEADLINE, || !case.fault.exists());
        assert!(happened, "{point} {times} is reached: {output}");
        if output.status == Some(0) {
            output.stdout("shop\n");
        } else {
            output.status(125).stdout("").stderr(&format!("podspawn: a test makes {point} fail\n"));
        }
        case.host.assert_only_left(&["bob"]);
        bob.flows();
    }
    case.disarm();
    case.works("all failures");
    bob.finish();
    case.host.assert_no_session_left();
}

#[test]
fn what_cannot_be_undone_at_once_is_undone_later() {
    let case = Case::new();
    let bob = Stream::start(&case.host, "bob");
    for undoing in [Point::StoppingRecord, Point::CgroupEnd, Point::NetworkEnd, Point::DirectoriesEnd, Point::RecordEnd]
    {
        for making in [Point::Init, Point::Services] {
            // The first two attempts to undo it fail as well.
            case.fail_all(&[making, undoing, undoing]);
            let output = finish(&format!("a client whose step {making} failed"), case.client());
            output.status(125).stdout("").stderr(&format!("podspawn: a test makes {making} fail\n"));
            eventually("both attempts were made", || !case.fault.exists());
            case.host.assert_only_left(&["bob"]);
            bob.flows();
        }
    }
    case.works("all failures");
    bob.finish();
    case.host.assert_no_session_left();
}

#[test]
fn who_is_back_while_services_still_end_has_a_new_session() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    // It is asked to end, and killed some seconds later.
    let podfile = "base: localhost/busybox:test
services:
  - {name: slow, image: localhost/busybox:test, command: [sh, -c, \"trap '' TERM; while :; do sleep 1; done\"]}
";
    let repository = git.repository("slow", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "slow", "--repo", &repository.url]).run().ok();
    for _ in 0..2 {
        host.ssh("ada+slow", "hostname").run().ok().stdout("slow\n");
    }
    host.assert_no_session_left();
}

#[test]
fn a_pool_without_an_address_left_is_told_and_leaves_nothing() {
    // Two addresses: the gateway's and one more.
    let host = Host::new().user("ada").user("bob").config("network: {pool: 10.213.77.0/30}").start();
    let bob = Stream::start(&host, "bob");
    for _ in 0..2 {
        let output = host.ssh("ada", "true").run();
        output.status(125).stdout("").stderr_has("podspawn: ");
        assert!(output.stderr.contains("network.pool") || output.stderr.contains("network pool"), "{output}");
        host.assert_only_left(&["bob"]);
    }
    bob.flows();
    bob.finish();
    host.assert_no_session_left();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
}

#[test]
fn a_layer_that_cannot_be_mounted_is_told_and_leaves_nothing() {
    let host = Host::new().user("ada").start();
    let layers = host.images().join("layers");
    let aside = layers.with_extension("aside");
    fs::rename(&layers, &aside).unwrap();
    for _ in 0..2 {
        host.ssh("ada", "true").run().status(125).stdout("").stderr_has("podspawn: ");
        host.assert_no_session_left();
    }
    fs::rename(&aside, &layers).unwrap();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    host.assert_no_session_left();
}
