//! Large data through every kind of pipe: nothing hangs, nothing is lost, and the connection process stays small.

mod common;

use std::{
    fs,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Host, command::finish, eventually};

const MB: usize = 1 << 20;

/// The most memory that a connection process may ever have had, in a build without optimisation.
const MEMORY: u64 = 128 << 10;

/// Kilobytes that the process had at most (proc_pid_status(5), VmHWM); `None` if it has ended.
fn peak_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Looks at the user's connections that are there; one whose client has all it wanted may be about to end.
#[track_caller]
fn assert_small(host: &Host, user: &str) {
    for peak in host.connections(user).into_iter().filter_map(peak_memory) {
        assert!(peak < MEMORY, "a connection process has had {peak} kB");
    }
}

/// Starts a program with what `ssh` needs, its input being the output of another.
fn piped(from: &mut Child, mut to: Command) -> Child {
    to.stdin(from.stdout.take().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn zeros(megabytes: usize) -> Child {
    let mut head = Command::new("head");
    head.args(["-c", &format!("{megabytes}M"), "/dev/zero"]).stdout(Stdio::piped()).spawn().unwrap()
}

/// Reads `length` zeros, pausing once in the middle until `pause` returns.
fn read_zeros(stream: &mut impl Read, length: usize, pause: impl FnOnce()) {
    let mut buffer = vec![1; MB];
    let mut pause = Some(pause);
    let mut read = 0;
    while read < length {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the end after {read} of {length} bytes");
        assert!(buffer[..count].iter().all(|byte| *byte == 0), "wrong data before byte {read}");
        read += count;
        if read > length / 2
            && let Some(pause) = pause.take()
        {
            pause();
        }
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0, "more than {length} bytes");
}

#[test]
fn three_hundred_megabytes_go_through_cat_and_back() {
    let host = Host::new().user("ada").start();
    let mut head = zeros(300);
    let mut ssh = piped(&mut head, host.ssh("ada", "cat").command());
    read_zeros(ssh.stdout.as_mut().unwrap(), 300 * MB, || assert_small(&host, "ada"));
    assert!(head.wait().unwrap().success() && ssh.wait().unwrap().success());
    host.assert_no_session_left();
}

#[test]
fn a_reader_that_pauses_loses_nothing_and_keeps_the_connection_process_small() {
    let host = Host::new().user("ada").start();
    let mut head = zeros(200);
    let mut ssh = piped(&mut head, host.ssh("ada", "cat").command());
    read_zeros(ssh.stdout.as_mut().unwrap(), 200 * MB, || {
        // Until nothing moves any more: the counters of what was read from the container's pipe stand still.
        let pid = host.connections("ada")[0];
        let moved = || fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        let mut last = moved();
        eventually("everything is waiting for the reader", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = moved();
            std::mem::replace(&mut last, now) == last
        });
        assert_small(&host, "ada");
    });
    assert_small(&host, "ada");
    assert!(head.wait().unwrap().success() && ssh.wait().unwrap().success());
    host.assert_no_session_left();
}

/// A connection that others share.
struct Master<'a> {
    host: &'a Host,
    child: Child,
}

impl<'a> Master<'a> {
    fn start(host: &'a Host) -> Self {
        let socket = host.scratch().join("master");
        let child = host.ssh("ada", "").args(["-N", "-M", "-S", socket.to_str().unwrap()]).spawn();
        eventually("the master's socket is there", || socket.exists());
        Self { host, child }
    }

    fn command(&self, command: &str) -> Command {
        let socket = self.host.scratch().join("master");
        self.host.ssh("ada", command).args(["-S", socket.to_str().unwrap()]).command()
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_command_that_ignores_its_input_does_not_stop_another_channel() {
    let host = Host::new().user("ada").start();
    let master = Master::start(&host);
    let mut head = zeros(400);
    let mut deaf = piped(&mut head, master.command("sleep 1000"));
    let mut mute = master.command("cat /dev/zero");
    let mut mute = mute.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..10 {
        let child = master.command("hostname").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        finish("a command on the same connection", child).ok().stdout("ada\n");
    }
    assert_small(&host, "ada");
    for child in [&mut deaf, &mut mute, &mut head] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(master);
    host.assert_no_session_left();
}

#[test]
fn data_goes_both_ways_at_once_while_keys_are_exchanged() {
    let host = Host::new().user("ada").start();
    let mut ssh = host.ssh("ada", "cat").args(["-o", "RekeyLimit=20M"]).command();
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let writer = std::thread::spawn(move || {
        let chunk = vec![0; MB];
        (0..300).for_each(|_| to.write_all(&chunk).unwrap());
    });
    read_zeros(&mut from, 300 * MB, || assert_small(&host, "ada"));
    writer.join().unwrap();
    assert!(ssh.wait().unwrap().success());
    host.assert_no_session_left();
}

#[test]
fn eight_uploads_share_a_connection_while_keys_are_exchanged() {
    let host = Host::new().user("ada").start();
    let socket = host.scratch().join("master");
    let options = ["-N", "-M", "-o", "RekeyLimit=20M", "-S", socket.to_str().unwrap()];
    let child = host.ssh("ada", "").args(options).spawn();
    eventually("the master's socket is there", || socket.exists());
    let master = Master { host: &host, child };
    let uploads: Vec<_> = (0..8)
        .map(|_| {
            let mut head = zeros(30);
            let ssh = piped(&mut head, master.command("wc -c"));
            (head, ssh)
        })
        .collect();
    for (mut head, ssh) in uploads {
        finish("an upload", ssh).ok().stdout(&format!("{}\n", 30 * MB));
        assert!(head.wait().unwrap().success());
    }
    assert_small(&host, "ada");
    drop(master);
    host.assert_no_session_left();
}
