//! A disk that is full or cannot be written when a session is to be made: whoever wants it is told, and there is nothing of it.

mod common;

use std::{fs, path::PathBuf};

use common::{Host, Run};

/// A small file system where the host has its state.
struct Small(PathBuf);

impl Small {
    fn mount(host: &Host) -> Self {
        let state = host.root.join("var/lib/podspawn");
        let (image, aside) = (host.scratch().join("disk"), host.scratch().join("state"));
        fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
        Run::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).run().ok();
        Run::new("cp").arg("-a").arg(&state).arg(&aside).run().ok();
        Run::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(&image).arg(&state).run().ok();
        let small = Self(state);
        Run::new("cp").arg("-aT").arg(&aside).arg(&small.0).run().ok();
        small
    }

    /// Leaves no block: what was removed before is free only when the journal has it, after a sync(2).
    fn fill(&self) {
        let script = "for size in 128k 4k 1k 1k; do sync; dd if=/dev/zero bs=$size >>\"$1\"; done 2>/dev/null";
        Run::new("sh").args(["-c", script, "sh"]).arg(self.0.join("filler")).run();
    }

    /// Has the kernel find an error on it, upon which it can be read only.
    fn fail(&self) {
        let device = Run::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.0).run();
        let device = device.ok().text().trim().trim_start_matches("/dev/").to_owned();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "an error that a test wants").unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The test may have failed with something in it.
        Run::new("umount").arg("-l").arg(&self.0).run();
    }
}

/// Both users are refused a session; what each is told.
fn refused(host: &Host) -> [String; 2] {
    ["ada", "bob"].map(|user| {
        let refused = host.ssh(user, "true").run();
        refused.status(125).stdout("").stderr_has("podspawn: ");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
        refused.stderr.clone()
    })
}

#[test]
fn a_session_that_finds_no_room_or_a_broken_disk_is_refused_and_leaves_nothing() {
    let mut host = Host::new().user("ada").user("bob").prepare();
    let small = Small::mount(&host);
    host.serve();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");
    host.assert_no_session_left();

    small.fill();
    for said in refused(&host) {
        assert!(said.contains("No space left on device") || said.contains("disk is full"), "{said}");
    }
    fs::remove_file(small.0.join("filler")).unwrap();
    host.assert_no_session_left();
    host.ssh("ada", "hostname").run().ok().stdout("ada\n");

    host.assert_no_session_left();
    small.fail();
    refused(&host);
    host.assert_no_session_left();
    host.end(nix::sys::signal::Signal::SIGINT);
}
