//! What a container looks like from the inside, and what may not be done there.

use std::{fs, os::unix::fs::MetadataExt};

use podspawn::protocol::ExitStatus;

use crate::host::{Host, command};

#[test]
fn a_user_s_container_is_what_the_user_expects() {
    let host = Host::new();
    let guest = host.ada();
    assert_eq!(guest.out("id -u; id -g; id -un; id -gn"), "1000\n1000\nada\nada\n");
    let groups = guest.out("id -Gn");
    let mut groups: Vec<_> = groups.split_ascii_whitespace().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["ada", "adm"]);
    assert_eq!(guest.out("hostname; cat /etc/hostname"), "greenhouse\ngreenhouse\n");
    assert_eq!(guest.out("pwd; echo $HOME $USER $LOGNAME $SHELL"), "/home/ada\n/home/ada ada ada /bin/sh\n");
    assert_eq!(guest.out("cat /etc/resolv.conf; [ -L /etc/resolv.conf ] || echo file"), "nameserver 10.1.2.3\nfile\n");
    assert_eq!(guest.out("grep -c ubuntu /etc/passwd || true; umask; cat /proc/1/comm").lines().next(), Some("0"));
    assert_eq!(
        guest.out("echo hi > /tmp/x; cat /tmp/x; touch ~/y; stat -c %U:%G:%a ~ ~/y"),
        "hi\nada:ada:755\nada:ada:644\n"
    );
    assert_eq!(guest.out("echo a >/dev/shm/a; cat /dev/shm/a; head -c 4 /dev/zero | wc -c"), "a\n4\n");
    assert_eq!(guest.out("echo again > /dev/stdout; echo x > /proc/self/fd/1"), "again\nx\n");
    let env = guest.run_with(
        command("echo $FROM_IMAGE-$FROM_CLIENT-$PODSPAWN_USER-$PODSPAWN_SESSION-$PATH"),
        b"",
        &[("FROM_CLIENT", "hello"), ("HOME", "/elsewhere"), ("", "x")],
    );
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env.stdout, format!("yes-hello-ada-{}-{path}\n", guest.session));
    guest.end();
    host.assert_clean();
}

#[test]
fn root_s_container_has_a_root_that_is_nobody_outside() {
    let host = Host::new();
    let spec = host.spec(None);
    let guest = host.create(&spec);
    assert_eq!(guest.out("id -u; echo $HOME $USER"), "0\n/root root\n");
    let map: Vec<String> = guest.out("cat /proc/self/uid_map").split_ascii_whitespace().map(str::to_owned).collect();
    assert_eq!(map, ["0", &spec.id_base.to_string(), "65536"]);
    guest.out("touch /mine; chown 33:33 /mine; chmod 4755 /bin/busybox; rm /bin/vi; mkdir /bin/vi");
    let upper = fs::metadata(spec.upperdir.join("mine")).unwrap();
    assert_eq!(upper.uid(), spec.id_base + 33);
    assert_eq!(
        fs::metadata(spec.upperdir.join("bin/busybox")).unwrap().uid(),
        spec.id_base,
        "no host-root setuid file"
    );
    assert_eq!(fs::metadata(host.layer("busybox").join("bin/busybox")).unwrap().mode() & 0o7777, 0o755);
    guest.end();
    host.assert_clean();
}

#[test]
fn privileges_are_the_profile_s() {
    let host = Host::new();
    let mut spec = host.spec(None);
    spec.security.no_new_privileges = true;
    let (plain, locked) = (host.ada(), host.create(&spec));
    for (guest, effective, no_new_privs) in [(&plain, "0000000000000000", "0"), (&locked, "00000000800405fb", "1")] {
        let status = guest.out("cat /proc/self/status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(field("CapBnd"), "00000000800405fb");
        assert_eq!((field("CapEff").as_str(), field("CapPrm").as_str()), (effective, effective));
        assert_eq!((field("CapInh").as_str(), field("CapAmb").as_str()), ("0000000000000000", "0000000000000000"));
        assert_eq!(field("NoNewPrivs"), no_new_privs);
        assert_eq!(field("Seccomp"), "2");
        let ignored = u64::from_str_radix(&field("SigIgn"), 16).unwrap();
        assert_eq!(ignored & !(1 << (libc::SIGQUIT - 1)), 0, "busybox's shell ignores SIGQUIT itself");
        assert_eq!(field("SigBlk"), "0000000000000000");
        assert_eq!(guest.out("ulimit -n; ulimit -Hn; ulimit -c").lines().next(), Some("1024"));
        assert_eq!(
            guest.out("ls -l /proc/self/fd | wc -l").trim(),
            "5",
            "0 to 2, the listing itself, and a total line"
        );
        assert_eq!(guest.out("cat /proc/self/oom_score_adj"), "200\n");
    }
    for denied in [
        "unshare -m true",
        "unshare -r true",
        "mount -t tmpfs none /tmp",
        "umount /proc/kcore",
        "mknod /tmp/null c 1 3",
        "chroot /tmp /x",
        "hostname other",
        "readlink /proc/1/exe",
        "cat /proc/1/environ",
        "ls /proc/1/fd/",
        "ls /proc/1/root/",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo x > /proc/sysrq-trigger",
        "echo x > /proc/1/oom_score_adj",
        "touch /sys/x",
        "kill -9 1 && sleep 1 && false",
        "dmesg",
        "ip link set lo up",
    ] {
        let output = locked.run(denied);
        assert_ne!(output.status, ExitStatus::Code(0), "{denied}: {output:?}");
    }
    assert_eq!(locked.out("cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l"), "0\n0\n");
    let mounts = locked.out("cat /proc/self/mountinfo");
    assert!(!mounts.contains(host.root().to_str().unwrap()), "host paths show: {mounts}");
    assert!(mounts.lines().any(|line| line.contains(" / / rw,nodev")), "{mounts}");
    locked.out("kill -TERM 1; kill -HUP 1; kill -CHLD 1; true");
    assert_eq!(locked.out("echo alive"), "alive\n");
    plain.end();
    locked.end();
    host.assert_clean();
}

#[test]
fn a_read_only_root_and_extra_tmpfs() {
    let host = Host::new();
    let mut spec = host.spec(Some("ada"));
    spec.security.readonly_rootfs = true;
    spec.security.tmpfs.insert("/tmp".to_owned(), "size=1m,mode=1777,noexec".to_owned());
    spec.security.tmpfs.insert("/var/cache/deep".to_owned(), String::new());
    let guest = host.create(&spec);
    assert_ne!(guest.run("touch ~/x").status, ExitStatus::Code(0));
    assert_eq!(guest.out("touch /tmp/x; grep -c ' /var/cache/deep tmpfs ' /proc/mounts; echo x > /dev/shm/x"), "1\n");
    guest.end();
    let mut spec = host.spec(Some("ada"));
    spec.security.tmpfs.insert("/tmp".to_owned(), "evil=1".to_owned());
    assert!(host.try_create(&spec, &[]).err().unwrap().to_string().contains("evil"));
    host.assert_clean();
}

#[test]
fn a_hundred_layers_and_an_image_without_etc() {
    let host = Host::new();
    let bare = host.layer("bare");
    fs::create_dir_all(bare.join("bin")).unwrap();
    fs::copy("/bin/busybox", bare.join("bin/sh")).unwrap();
    let mut spec = host.spec(Some("ada"));
    spec.layers = (0..99).map(|n| format!("sha256-0123456789abcdef-{n}")).collect();
    for (n, layer) in spec.layers.iter().enumerate() {
        fs::write(host.layer(layer).join(format!("from-{n}")), n.to_string()).unwrap();
    }
    spec.layers.push("bare".to_owned());
    let guest = host.create(&spec);
    assert_eq!(guest.out("cat /from-0 /from-57 /from-98"), "05798");
    assert_eq!(
        guest.out("id -u; cat /etc/passwd"),
        "1000\nroot:*:0:0:root:/root:/bin/sh\nada:*:1000:1000::/home/ada:/bin/sh\n"
    );
    guest.end();
    host.assert_clean();
}
