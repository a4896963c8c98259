//! Sandboxes inside a session: `security.nested`.

mod common;

use std::{fs, path::PathBuf};

use common::{
    Host, Image, Output, Run,
    images::{cache, lock},
};

/// Debian's bubblewrap, downloaded once.
fn bubblewrap() -> PathBuf {
    let directory = cache().join("bubblewrap");
    let _lock = lock(&cache().join("bubblewrap.lock"));
    fs::create_dir_all(&directory).unwrap();
    let package = directory.join("bubblewrap.deb");
    if !package.exists() {
        let download =
            format!("cd {} && apt-get -q download bubblewrap && mv bubblewrap_*.deb new", directory.display());
        Run::new("sh").args(["-c", &download]).run().ok();
        fs::rename(directory.join("new"), &package).unwrap();
    }
    package
}

/// A host with a session of ada's that has bubblewrap, and stays.
fn host(nested: bool) -> Host {
    let config = format!("security:\n  nested: {nested}\nsession:\n  mode: grace-period");
    let host = Host::new().image(Image::Debian).user("ada").config(&config).start();
    let package = fs::read(bubblewrap()).unwrap();
    let install = "cat >/tmp/bubblewrap.deb && sudo dpkg -i /tmp/bubblewrap.deb";
    host.ssh("ada", install).input(package).run().ok();
    host
}

fn end(host: &Host) {
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

/// As `@anthropic-ai/sandbox-runtime` 0.0.78 runs a command: everything is seen, the workspace can be written to, and no
/// network is there.
const AS_CLAUDE_CODE: &str = "bwrap --new-session --die-with-parent --unshare-net --ro-bind / / --bind /tmp/work /tmp/work \
     --ro-bind /dev/null /tmp/work/.mcp.json --tmpfs /tmp/secret --dev /dev --unshare-pid --unshare-user --cap-drop ALL \
     --proc /proc -- bash -c";

/// As `@openai/codex` 0.169.0 does.
const AS_CODEX: &str = "bwrap --as-pid-1 --new-session --die-with-parent --ro-bind / / --dev /dev --perms 000 \
     --tmpfs /tmp/secret --remount-ro /tmp/secret --bind /tmp/work /tmp/work --ro-bind /tmp/work/.git /tmp/work/.git \
     --perms 555 --tmpfs /tmp/work/.codex --remount-ro /tmp/work/.codex --unshare-user --unshare-pid --unshare-ipc \
     --unshare-net --proc /proc --cap-drop ALL --chdir /tmp/work -- bash -c";

/// What both have around the command.
const SURROUNDINGS: &str =
    "mkdir -p /tmp/work/.git /tmp/secret && echo hunter2 >/tmp/secret/key && touch /tmp/work/.mcp.json";

fn sandboxed(host: &Host, sandbox: &str, command: &str) -> Output {
    host.ssh("ada", &format!("{SURROUNDINGS} && {sandbox} '{command}'")).run()
}

#[test]
fn the_sandboxes_of_coding_agents_work_inside() {
    let host = host(true);
    for sandbox in [AS_CLAUDE_CODE, AS_CODEX] {
        let run = |command: &str| sandboxed(&host, sandbox, command);
        run("id -u; echo hello >/tmp/work/file; cat /tmp/work/file").ok().stdout("1000\nhello\n");
        // A procfs of its own pid namespace: who asks, and perhaps bubblewrap.
        assert!(run("ls -d /proc/[0-9]*").ok().text().lines().count() < 4);
        run("touch /usr/file").status(1).stderr_has("Read-only file system");
        run("cat </dev/zero | head -c 3 | wc -c").ok().stdout("3\n");
        // The loopback interface is up, and alone.
        run("ip -o link show up | cut -d: -f2; python3 -c \"import socket as s; a = s.create_server((\\\"127.0.0.1\\\", 0)); \
             s.create_connection(a.getsockname())\"")
        .ok()
        .stdout(" lo\n");
    }
    sandboxed(&host, AS_CLAUDE_CODE, "ls -A /tmp/secret").ok().stdout("");
    sandboxed(&host, AS_CODEX, "ls /tmp/secret").status(2).stderr_has("Permission denied");
    sandboxed(&host, AS_CODEX, "touch .git/config").status(1).stderr_has("Read-only file system");
    // In one another, as when an agent is started by an agent.
    let inner = "bwrap --unshare-user --unshare-pid --bind / / --dev /dev --proc /proc -- ls -d /proc/1";
    sandboxed(&host, &AS_CLAUDE_CODE.replace("--cap-drop ALL", ""), inner).ok().stdout("/proc/1\n");
    end(&host);
}

#[test]
fn without_nested_a_sandbox_is_refused() {
    let host = host(false);
    for sandbox in [AS_CLAUDE_CODE, AS_CODEX] {
        // What bubblewrap says to EPERM.
        sandboxed(&host, sandbox, "true").status(1).stderr_has("No permissions to create new namespace");
    }
    for command in
        ["unshare --user true", "sudo unshare --mount true", "unshare --user --map-root-user --pid --fork true"]
    {
        host.ssh("ada", command).run().status(1).stderr_has("Operation not permitted");
    }
    // Also beyond the filter.
    host.ssh("ada", "cat /proc/sys/user/max_user_namespaces").run().ok().stdout("0\n");
    host.ssh("ada", "grep -c ' - proc ' /proc/self/mountinfo | xargs test 10 -gt; ls -A /dev/shm")
        .run()
        .ok()
        .stdout("");
    end(&host);
}

/// Takes from itself the right to open files for writing (Landlock), and to make directories (seccomp); prints what is left.
const CONFINED: &str = "import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
rules = libc.syscall(444, struct.pack('Q', 2), 8, 0)
libc.prctl(38, 1, 0, 0, 0)
assert libc.syscall(446, rules, 0) == 0, os.strerror(ctypes.get_errno())
load, equal, refuse, allow = (0x20, 0, 0, 0), (0x15, 0, 1, 83), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *i) for i in [load, equal, refuse, allow]))
program = struct.pack('HxxxxxxQ', 4, ctypes.addressof(code))
assert libc.syscall(317, 1, 0, program) == 0, os.strerror(ctypes.get_errno())
for attempt in [lambda: open('/tmp/file', 'w'), lambda: os.mkdir('/tmp/directory'), lambda: open('/etc/passwd')]:
    try:
        attempt()
        print('done')
    except OSError as error:
        print(error.strerror)
";

#[test]
#[cfg(target_arch = "x86_64")]
fn landlock_and_filters_work_inside_whatever_is_configured() {
    for nested in [false, true] {
        let config = format!("security:\n  nested: {nested}");
        let host = Host::new().image(Image::Debian).user("ada").config(&config).start();
        let left = "Permission denied\nOperation not permitted\ndone\n";
        host.ssh("ada", "python3 -").input(CONFINED).run().ok().stdout(left);
        host.assert_no_session_left();
    }
}

#[test]
fn a_namespace_inside_uncovers_nothing_and_gains_nothing_outside_it() {
    let host = host(true);
    let as_root_inside =
        |command: &str| host.ssh("ada", &format!("unshare --map-root-user --mount --net --pid --fork {command}")).run();
    as_root_inside("sh -c 'mount -t tmpfs none /mnt && touch /mnt/x && mount -t proc none /proc'").ok();
    // What is masked or covered, or read-only, is locked.
    for command in [
        "umount /dev/shm",
        "umount -l /dev/shm",
        "umount /proc/kcore",
        "umount /proc",
        "mount -o remount,rw /sys",
        "mount -o remount,bind,rw /proc/sys",
        "mount --bind /dev /mnt",
        "sh -c 'mount --rbind /dev /mnt && umount /mnt/shm'",
        "sh -c 'echo x >/proc/sys/kernel/core_pattern'",
        "sh -c 'mount -t proc none /proc && echo x >/proc/sys/kernel/core_pattern'",
        "sh -c 'mount -t proc none /proc && echo b >/proc/sysrq-trigger'",
        "sh -c 'mount -t cgroup2 none /mnt && mkdir /mnt/new'",
        "mount -t cgroup -o memory none /mnt",
        "mknod /tmp/disk b 8 0",
        "mount -t ext4 /dev/vda /mnt",
        "date -s 2020-01-01",
        "ip link set eth0 down",
        "nsenter --target 1 --mount true",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
    ] {
        let output = as_root_inside(command);
        assert_ne!(output.status, Some(0), "{output}");
    }
    // Outside of it, the session's own root has no more than without it.
    for command in ["sudo mount -t tmpfs none /mnt", "sudo umount /dev/shm", "sudo unshare --mount true"] {
        host.ssh("ada", command).run().status(if command.contains("unshare") { 1 } else { 32 });
    }
    host.ssh("ada", "touch /dev/shm/file && ls -A /dev/shm").run().ok().stdout("file\n");
    end(&host);
}

#[test]
fn the_users_own_file_allows_it_or_takes_it_away() {
    let make = "unshare --map-root-user --mount true";
    for (server, of_ada, status) in [(false, true, 0), (true, false, 1)] {
        let config = format!("security:\n  nested: {server}");
        let host = Host::new().image(Image::Debian).user("ada").user("bob").config(&config).start();
        let users = host.root.join("etc/podspawn/users");
        fs::create_dir_all(&users).unwrap();
        fs::write(users.join("ada.yaml"), format!("nested: {of_ada}\n")).unwrap();
        host.ssh("ada", make).run().status(status);
        host.ssh("bob", make).run().status(1 - status);
        host.assert_no_session_left();
    }
}

/// Makes user namespaces that stay, until the kernel says no; prints how many there were. Root does it as many users.
const MANY: &str = "import ctypes, os
libc, count, held = ctypes.CDLL(None, use_errno=True), 0, []
while count < 1000:
    (there, ready), (stay, go) = os.pipe(), os.pipe()
    if os.fork() == 0:
        if os.getuid() == 0:
            os.setuid(2000 + count)
        os.write(ready, b'y' if libc.unshare(0x10000000) == 0 else bytes([ctypes.get_errno()]))
        os.close(go)
        os.read(stay, 1)
        os._exit(0)
    answer = os.read(there, 1)
    if answer != b'y':
        print(count, os.strerror(answer[0]))
        break
    held.append(go)
    count += 1
";

#[test]
fn namespaces_inside_are_counted() {
    let host = host(true);
    host.ssh("ada", "cat >/tmp/many.py; python3 /tmp/many.py")
        .input(MANY)
        .run()
        .ok()
        .stdout("128 No space left on device\n");
    // All of the container's users together have no more.
    host.ssh("ada", "sudo python3 /tmp/many.py").run().ok().stdout("128 No space left on device\n");
    let raise = "echo 100000 >/proc/sys/user/max_user_namespaces";
    assert_ne!(host.ssh("ada", &format!("sudo sh -c '{raise}'")).run().status, Some(0));
    end(&host);
}
