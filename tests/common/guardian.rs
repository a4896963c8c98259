//! Sees to it that nothing of an instance outlives its test.
//!
//! Containers are made to survive the program that asked for them, so a test that is interrupted or killed would leave
//! them, and its server, running for ever.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
};

use podspawn::names::InstanceTag;

/// Waits for the word that all is well, or for the end of its input, which comes when the test process is gone, however
/// it went. Then it tells the server to end everything, kills what is left of the instance's processes, all of which
/// have its root or its tag among their arguments, and removes the table, the cgroups and the directory.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r tag && read -r root && read -r directory || exit
read -r _ && exit
signal() {
    found=
    for process in /proc/[0-9]*; do
        case $(tr '\0' ' ' 2>/dev/null <"$process/cmdline") in
            $2) kill "$1" "${process#/proc/}" && found=yes ;;
        esac
    done
    [ "$found" ]
}
signal -INT "*/podspawn --root $root serve*"
for _ in $(seq 300); do
    signal -0 "*/podspawn --root $root serve*" || break
    sleep 0.1
done
while signal -KILL "*/podspawn --root $root *" || signal -KILL "podspawn *$root*" || signal -KILL "podspawn spawner $tag *"; do sleep 0.1; done
nft delete table inet "podspawn-$tag"
for cgroup in $(find /sys/fs/cgroup -depth -type d -path "*/podspawn-$tag*"); do
    for _ in $(seq 100); do
        rmdir "$cgroup" && break
        sleep 0.05
    done
done
rm -rf "$directory"
"#;

/// A process in a session of its own, so that Ctrl-C and a time limit that end the test do not reach it.
#[derive(Debug)]
pub struct Guardian(Child);

impl Guardian {
    /// Watches over the instance at `root`, and `directory`, in which the test keeps its files.
    pub fn watch(root: &Path, directory: &Path) -> Self {
        let tag = InstanceTag::of_root(root);
        let mut setsid = Command::new("setsid");
        setsid.args(["sh", "-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = setsid.spawn().expect("setsid(1)");
        // Not as arguments, by which it would itself look like one of the instance's processes.
        let what = format!("{}\n{}\n{}\n", tag.as_str(), root.display(), directory.display());
        shell.stdin.as_mut().expect("a pipe").write_all(what.as_bytes()).expect("the guardian listens");
        Self(shell)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let mut word = self.0.stdin.take().expect("a pipe");
        if !std::thread::panicking() {
            word.write_all(b"done\n").expect("the guardian listens");
        }
        drop(word);
        self.0.wait().expect("the guardian is our child");
    }
}
