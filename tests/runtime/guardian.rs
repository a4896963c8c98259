//! Sees to it that no container outlives its test.
//!
//! Containers are made to survive the program that asked for them, so a test that panics, is interrupted, or is killed
//! would leave them running for ever.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use podspawn::names::InstanceTag;

/// Waits for the end of its input, which comes when the test process is gone, however it went. Then: kills the inits of
/// the instance, which are named after it and run our copy in memory, and removes its cgroups and its directory.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for process in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$process/comm" || continue
    case $name in "ps$1"*) ;; *) continue ;; esac
    case $(readlink "$process/exe") in /memfd:podspawn*) kill -9 "${process#/proc/}" ;; esac
done
for cgroup in $(find /sys/fs/cgroup -depth -type d -path "*/podspawn-$1*"); do
    for _ in $(seq 100); do
        rmdir "$cgroup" 2>/dev/null && break
        sleep 0.05
    done
done
rm -rf "$2"
"#;

/// A process in a session of its own, so that Ctrl-C and a time limit that end the test do not reach it.
#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    pub(crate) fn watch(tag: &InstanceTag, root: &Path) -> Self {
        let mut setsid = Command::new("setsid");
        setsid.args(["sh", "-c", SCRIPT, "guardian", tag.as_str()]).arg(root);
        Self(setsid.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid(1)"))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("the guardian is our child");
    }
}
