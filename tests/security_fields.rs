//! Each field of `security` does inside what it says.

mod common;

use std::fs;

use common::{Host, Image};

fn host(config: &str) -> Host {
    Host::new().image(Image::Debian).user("ada").config(config).start()
}

/// What runs where another instruction set's system calls begin, and what it returns.
const FOREIGN: &str = "import ctypes, mmap
def run(code):
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(bytes.fromhex(code))
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
# getpid of i386: mov eax, 20; int 0x80. And of x32: mov eax, 0x40000000 + 39; syscall.
for code in ['b814000000cd804898c3', 'b8270000400f05c3']:
    print(run(code), flush=True)
";

#[test]
#[cfg(target_arch = "x86_64")]
fn other_instruction_sets_do_not_get_around_the_filter() {
    // On the host there is at least the first, or this would prove nothing.
    let outside = common::Run::new("python3").arg("-").input(FOREIGN).run().ok().text();
    assert!(outside.lines().next().unwrap().parse::<i64>().unwrap() > 0, "{outside}");
    let host = host("");
    host.ssh("ada", "python3 -").input(FOREIGN).run().ok().stdout("-38\n-38\n");
    host.assert_no_session_left();
}

#[test]
fn a_seccomp_profile_of_dockers_kind_replaces_the_filter() {
    let mut host = Host::new().image(Image::Debian).user("ada").prepare();
    let file = host.scratch().join("profile.json");
    let profile = |errno: u32| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW",
                "archMap": [{{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}},
                            {{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}}],
                "syscalls": [
                {{"names": ["mkdir", "mkdirat", "unheard_of"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}}},
                {{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 93,
                  "args": [{{"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}}]}},
                {{"names": ["chdir"], "action": "SCMP_ACT_ERRNO", "includes": {{"caps": ["CAP_SYS_ADMIN"]}}}}]}}"#
        )
    };
    fs::write(&file, profile(28)).unwrap();
    let mut config = fs::read_to_string(host.config_file()).unwrap();
    config.push_str(&format!("security:\n  seccomp_profile: {}\n", file.display()));
    fs::write(host.config_file(), config).unwrap();
    host.serve();
    let mkdir = || host.ssh("ada", "cd /tmp && mkdir directory").run();
    mkdir().status(1).stderr_has("No space left on device");
    let sockets = "import socket\nsocket.socket(socket.AF_INET)\nsocket.socket(socket.AF_INET6)";
    host.ssh("ada", "python3 -").input(sockets).run().status(1).stderr_has("line 3").stderr_has("Errno 93");
    host.ssh("ada", "grep Seccomp: /proc/self/status").run().ok().stdout("Seccomp:\t2\n");
    // A changed file counts for the next session, unless it makes no sense.
    fs::write(&file, profile(13)).unwrap();
    mkdir().status(1).stderr_has("Permission denied");
    fs::write(&file, profile(5000)).unwrap();
    mkdir().status(1).stderr_has("Permission denied");
    let check = host.podspawn(["config", "check"]).run();
    check.status(1).stderr_has("security.seccomp_profile").stderr_has("syscalls[0]: 5000 is not an error number");
    fs::write(&file, profile(13)).unwrap();
    host.assert_no_session_left();
}

#[test]
fn capabilities_are_added_and_dropped() {
    // Root looks into a process of somebody else.
    let look = "setpriv --reuid 1000 --clear-groups sleep 60 & until grep -q Uid:.1000 /proc/$!/status; do :; done; \
                readlink /proc/$!/exe; status=$?; kill $!; exit $status";
    let chown = "touch /tmp/file && chown daemon /tmp/file";
    let as_root = host("defaults:\n  user: root");
    as_root.ssh("ada", look).run().status(1).stdout("");
    as_root.ssh("ada", chown).run().ok();
    as_root.assert_no_session_left();
    let changed = host("defaults:\n  user: root\nsecurity:\n  cap_add: [CAP_SYS_PTRACE]\n  cap_drop: [chown]");
    changed.ssh("ada", look).run().ok().stdout("/usr/bin/sleep\n");
    changed.ssh("ada", chown).run().status(1).stderr_has("Operation not permitted");
    changed.assert_no_session_left();
    let none = host("defaults:\n  user: root\nsecurity:\n  cap_drop: [ALL]");
    none.ssh("ada", "grep -E 'Cap(Bnd|Eff)' /proc/self/status")
        .run()
        .ok()
        .stdout("CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n");
    none.assert_no_session_left();
}

#[test]
fn no_new_privileges_takes_sudo_away() {
    let plain = host("");
    plain.ssh("ada", "sudo id -u").run().ok().stdout("0\n");
    plain.assert_no_session_left();
    let locked = host("security:\n  no_new_privileges: true");
    locked.ssh("ada", "sudo id -u").run().status(1).stderr_has("no new privileges");
    locked.assert_no_session_left();
}

#[test]
fn a_read_only_root_has_room_where_a_tmpfs_is() {
    let host =
        host("security:\n  readonly_rootfs: true\n  tmpfs:\n    /tmp: size=1m,mode=1777,noexec\n    /cache: uid=1000");
    host.ssh("ada", "touch ~/file").run().status(1).stderr_has("Read-only file system");
    host.ssh("ada", "sudo touch /etc/file").run().status(1).stderr_has("Read-only file system");
    host.ssh("ada", "touch /cache/file && cp /bin/true /tmp/true && ls /cache").run().ok().stdout("file\n");
    host.ssh("ada", "cp /bin/true /tmp/true && /tmp/true").run().status(126).stderr_has("Permission denied");
    host.ssh("ada", "head -c 2M /dev/zero >/tmp/file").run().status(1).stderr_has("No space left on device");
    host.assert_no_session_left();
}
