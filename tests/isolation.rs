//! What a session can reach, and what it can see of the host.

mod common;

use std::{fs, os::unix::fs::MetadataExt};

use common::{
    GitServer, Host, Image, Output, Run, Stream, eventually,
    world::{HOST, METADATA, PRIVATE, PUBLIC, World, greeter_on_host, sh},
};
use nix::sys::signal::Signal;

/// What the server at the other end says to a session's TCP connection.
fn greeting(host: &Host, user: &str, address: &str, port: u16) -> Output {
    host.ssh(user, &format!("nc -w 5 {address} {port} </dev/null")).run()
}

#[track_caller]
fn assert_refused(host: &Host, user: &str, address: &str, port: u16) {
    let output = greeting(host, user, address, port);
    assert_ne!(output.status, Some(0), "{address}:{port} is reached: {output}");
    output.stdout("").stderr_has("onnection refused");
}

fn address(host: &Host, user: &str) -> String {
    let output = host.ssh(user, "ip -o -4 addr show dev eth0").run();
    let text = output.ok().text();
    text.split("inet ").nth(1).and_then(|rest| rest.split(['/', ' ']).next()).unwrap().to_owned()
}

#[test]
fn a_session_reaches_the_internet_and_neither_hosts_nor_neighbours_nor_private_networks() {
    let world = World::enter();
    world.greeter(80);
    greeter_on_host(7000);
    let host = Host::new().user("ada").user("bob").start();
    let (stays_ada, stays_bob) = (Stream::start(&host, "ada"), Stream::start(&host, "bob"));
    let bobs = address(&host, "bob");
    let gateway = host.ssh("ada", "cat /etc/resolv.conf").run().ok().text();
    let gateway = gateway.trim().strip_prefix("nameserver ").unwrap().to_owned();
    let open = host.ssh("bob", "nc -l -p 7001 -e echo hello").spawn();

    let check = || {
        greeting(&host, "ada", PUBLIC, 80).ok().stdout(HOST);
        for address in [PRIVATE, METADATA] {
            assert_refused(&host, "ada", address, 80);
        }
        for address in [HOST, &gateway, "127.0.0.1"] {
            assert_refused(&host, "ada", address, 7000);
        }
        assert_refused(&host, "ada", HOST, Host::PORT);
        assert_refused(&host, "ada", &bobs, 7001);
    };
    check();
    // Nobody from outside gets in either.
    let route = format!("nc -w 1 {bobs} 7001 </dev/null || echo refused");
    assert_eq!(world.sh(&route), "refused\n");
    // As many firewall scripts begin.
    for removal in ["flush ruleset", &sh("nft list tables").trim().replace("table", "delete table")] {
        sh(&format!("nft '{removal}'"));
        eventually("the rules are there again", || !sh("nft list ruleset").is_empty());
        check();
    }
    assert!(host.log().contains("making it anew"), "{}", host.log());

    // The port was open all the time.
    host.ssh("bob", "nc -w 5 127.0.0.1 7001").run().ok().stdout("hello\n");
    common::command::finish("bob's server", open);
    stays_ada.finish();
    stays_bob.finish();
    host.assert_no_session_left();
}

#[test]
fn what_sessions_may_reach_is_the_configurations_choice() {
    let world = World::enter();
    world.greeter(80);
    let host = Host::new().user("ada").user("bob").config("network:\n  egress: open").start();
    let bob = Stream::start(&host, "bob");
    greeting(&host, "ada", PRIVATE, 80).ok().stdout(HOST);
    assert_refused(&host, "ada", METADATA, 80);
    let bobs = address(&host, "bob");
    assert_refused(&host, "ada", &bobs, 80);
    let config = fs::read_to_string(host.config_file()).unwrap();
    fs::write(host.config_file(), config.replace("egress: open", "egress: [10.9.9.0/24]")).unwrap();
    greeting(&host, "ada", PRIVATE, 80).ok().stdout(HOST);
    assert_refused(&host, "ada", PUBLIC, 80);
    fs::write(host.config_file(), config.replace("egress: open", "egress: none")).unwrap();
    assert_refused(&host, "ada", PUBLIC, 80);
    // That holds for those who were there before, too.
    assert_refused(&host, "bob", PUBLIC, 80);
    bob.finish();
    host.assert_no_session_left();
}

#[test]
fn projects_and_users_may_have_a_reach_of_their_own_with_their_services_and_builds() {
    let world = World::enter();
    world.greeter(80);
    let mut host = Host::new().user("ada").user("bob").config("session:\n  mode: grace-period").start();
    let git = GitServer::start();
    let podfile = format!(
        "base: localhost/busybox:test\nextra_commands:\n  - nc -w 5 {PRIVATE} 80 </dev/null > /built || true\n\
         services:\n  - {{name: side, image: localhost/busybox:test, command: [sleep, '1000']}}\n"
    );
    let repository = git.repository("web", &[("podfile.yaml", &podfile)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    let list = host.root.join("etc/podspawn/projects.yaml");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, format!("{text}  egress: [10.9.9.0/24, 10.10.0.0/16]\n")).unwrap();
    assert_eq!(host.json(["list-projects"])[0]["egress"], "[10.9.9.0/24, 10.10.0.0/16]");
    // What a command sets stays.
    host.podspawn(["update-project", "web"]).run().ok();
    let directory = host.root.join("etc/podspawn/users");
    fs::create_dir_all(&directory).unwrap();
    let say = |user: &str, text: &str| {
        fs::write(directory.join(format!("{user}.yaml")), text).unwrap();
    };

    let of_project = |host: &Host| {
        greeting(host, "ada+web", PRIVATE, 80).ok().stdout(HOST);
        assert_refused(host, "ada+web", PUBLIC, 80);
        let in_service = |address: &str| {
            let command = format!("nc -w 5 {address} 80 </dev/null");
            host.podspawn(["exec", "ada@web", "--service", "side", "--", "sh", "-c", &command]).run()
        };
        in_service(PRIVATE).ok().stdout(HOST);
        in_service(PUBLIC).status(1).stdout("").stderr_has("refused");
        greeting(host, "ada", PUBLIC, 80).ok().stdout(HOST);
        assert_refused(host, "ada", PRIVATE, 80);
    };
    of_project(&host);
    host.ssh("ada+web", "cat /built").run().ok().stdout(HOST);
    host.end(Signal::SIGKILL);
    host.serve();
    of_project(&host);

    // The user's file has the last word, in both directions, and counts from the next session on.
    let gateway = host.ssh("bob", "cut -d ' ' -f 2 /etc/resolv.conf").run().ok().text();
    say("bob", "egress: none\n");
    greeting(&host, "bob", PUBLIC, 80).ok().stdout(HOST);
    host.podspawn(["stop", "bob"]).run().ok();
    for login in ["bob", "bob+web"] {
        assert_refused(&host, login, PUBLIC, 80);
        assert_refused(&host, login, PRIVATE, 80);
        assert_refused(&host, login, gateway.trim(), 53);
        let session = login.replace('+', "@");
        host.podspawn(["stop", &session]).run().ok();
    }
    say("bob", "egress: open\n");
    greeting(&host, "bob+web", PUBLIC, 80).ok().stdout(HOST);
    greeting(&host, "bob+web", PRIVATE, 80).ok().stdout(HOST);

    // A Podfile cannot say it, and names of hosts are for later.
    say("bob", "egress: [example.test]\n");
    host.podspawn(["config", "check"]).run().status(1).stderr_has("rules for names of hosts are not supported");
    let wider = git.repository("wider", &[("podfile.yaml", "base: localhost/busybox:test\negress: open\n")]);
    let added = host.podspawn(["add-project", "wider", "--repo", &wider.url]).run();
    added.status(1).stderr_has("podfile.yaml:2:1: egress: ");
    host.podspawn(["stop", "--all"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn names_are_resolved_also_when_the_hosts_resolver_is_on_loopback() {
    let _world = World::enter();
    let resolver = "127.0.0.53";
    let mut dnsmasq = Run::new("dnsmasq")
        .args(["--keep-in-foreground", "--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--user=root"])
        .args(["--bind-interfaces", "--pid-file", "--address=/example.test/192.0.2.7"])
        .arg(format!("--listen-address={resolver}"))
        .spawn();
    let host = Host::new().user("ada").config(&format!("network:\n  dns: [{resolver}]")).start();
    eventually("the resolver answers", || {
        host.ssh("ada", "nslookup -type=a example.test").run().text().contains("Address: 192.0.2.7")
    });
    // Over TCP too, and not at the resolver itself.
    host.ssh("ada", &format!("nslookup -type=a example.test {resolver}")).run().status(1);
    dnsmasq.kill().unwrap();
    dnsmasq.wait().unwrap();
    host.assert_no_session_left();
}

#[test]
fn a_root_inside_is_nobody_outside() {
    let host = Host::new().user("ada").config("defaults:\n  user: root\nsession:\n  mode: grace-period").start();
    host.ssh("ada", "id -u; cat /proc/self/uid_map; touch /root/file; chmod 4755 /root/file")
        .run()
        .ok()
        .stdout_has("0\n");
    let id = host.sessions()[0]["id"].as_str().unwrap().to_owned();
    let file = host.root.join("var/lib/podspawn/sessions").join(id).join("upper/root/file");
    assert!(fs::metadata(file).unwrap().uid() >= 1_000_000_000, "a setuid file is nobody's on the host");
    let init = fs::metadata(format!("/proc/{}", host.init("ada"))).unwrap();
    assert!(init.uid() == 0 || init.uid() >= 1_000_000_000);
    let forbidden = [
        "mount -t tmpfs none /mnt",
        "mount -t proc none /tmp",
        "umount /proc/kcore",
        "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/profiling",
        "hostname other",
        "ip link set eth0 down",
        "ip addr add 10.0.0.1/8 dev eth0",
        "ip link add x type veth",
        "unshare -U true",
        "unshare -m true",
        "nice -n -5 true 2>&1 | grep -q denied && exit 1",
        "dmesg",
        "chroot /proc/1/root true",
        "ls /proc/1/root/",
        "swapoff -a && cat /proc/swaps | grep -q /",
    ];
    for command in forbidden {
        let output = host.ssh("ada", command).run();
        assert_ne!(output.status, Some(0), "{output}");
    }
    host.podspawn(["stop", "ada"]).run().ok();
    host.assert_no_session_left();
}

#[test]
fn nothing_of_the_host_is_seen_inside() {
    let mut host = Host::new().user("ada").prepare();
    // What a daemon may have, and hand down by mistake.
    host.serve_with(|command| {
        command.env("SECRET_OF_THE_HOST", "hunter2").env("LD_PRELOAD", "").env("LANG", "xx");
    });
    let stay = Stream::start(&host, "ada");
    let env = host.ssh("ada", "env").run().ok().text();
    let mut names: Vec<_> = env.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    let expected = [
        "HOME",
        "LOGNAME",
        "PATH",
        "PODSPAWN_SESSION",
        "PODSPAWN_USER",
        "PWD",
        "SHELL",
        "SHLVL",
        "SSH_CLIENT",
        "SSH_CONNECTION",
        "USER",
    ];
    assert!(names.iter().all(|name| expected.contains(name)), "{env}");
    // The directory is ls's own.
    let fds = host.ssh("ada", "ls -l /proc/self/fd").run().ok().text();
    let targets: Vec<_> = fds.lines().filter_map(|line| line.split(" -> ").nth(1)).collect();
    assert!(fds.lines().count() == 1 + 4 && targets.len() >= 3, "{fds}");
    assert!(targets.iter().all(|target| target.starts_with("pipe:[") || target.starts_with("/proc/")), "{fds}");
    for file in ["fd", "root", "cwd"] {
        host.ssh("ada", &format!("ls /proc/1/{file}/")).run().status(1).stdout("").stderr_has("ermission denied");
    }
    for file in ["environ", "exe", "maps", "mem"] {
        host.ssh("ada", &format!("cat /proc/1/{file}")).run().status(1).stdout("").stderr_has("ermission denied");
    }
    // Processes and mounts of the host.
    let seen = host
        .ssh("ada", "ps; cat /proc/self/mountinfo; cat /proc/self/cgroup; cat /proc/1/cmdline | tr '\\0' ' '")
        .run();
    let text = seen.ok().text();
    let temporary = host.root.display().to_string();
    assert!(text.contains("podspawn spawner "), "{text}");
    assert!(!text.contains("/sessions/") && !text.contains(&temporary) && !env.contains(&temporary), "{env}{text}");
    // Sockets without a file, by which others have been reached (CVE-2020-15257).
    let name = format!("podspawn-test-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    assert!(fs::read_to_string("/proc/thread-self/net/unix").unwrap().contains(&name));
    let sockets = host.ssh("ada", "cat /proc/net/unix").run().ok().text();
    assert!(sockets.starts_with("Num") && !sockets.contains(&name), "{sockets}");
    for masked in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kallsyms"] {
        host.ssh("ada", &format!("cat {masked} 2>/dev/null | wc -c")).run().ok().stdout("0\n");
    }
    for empty in ["/proc/acpi", "/proc/scsi", "/sys/firmware"] {
        host.ssh("ada", &format!("ls -A {empty} 2>/dev/null | wc -l")).run().ok().stdout("0\n");
    }
    stay.finish();
    host.assert_no_session_left();
}

#[test]
fn host_keys_stay_in_memory_and_out_of_core_dumps() {
    let host = Host::new().user("ada").start();
    let stay = Stream::start(&host, "ada");
    let connection = host.connections("ada")[0];
    for pid in [host.pid(), connection] {
        // proc_pid_smaps(5): locked, and not to be dumped.
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
        let kept = flags.filter(|flags| ["lo", "dd"].iter().all(|flag| flags.split(' ').any(|found| found == *flag)));
        assert_eq!(kept.count(), 1, "{pid}");
        // Its files belong to root, whoever it runs as: it cannot be traced, and leaves no core.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
    }
    let limits = fs::read_to_string(format!("/proc/{connection}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    stay.finish();
    host.assert_no_session_left();
}

#[test]
fn processes_have_the_rights_of_the_profile() {
    let lines = "grep -E '^(Uid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign)|Shd)' /proc/self/status | tr '\\t' ' '; \
                 cat /proc/self/oom_score_adj; umask";
    // Eleven capabilities: see docs/security.md.
    let bounding = "00000000800405fb";
    for (config, image, new_privileges) in [
        ("defaults:\n  sudo: true", Image::Busybox, 0),
        ("defaults:\n  sudo: false", Image::Busybox, 1),
        ("defaults:\n  user: root", Image::Busybox, 1),
        ("security:\n  no_new_privileges: true", Image::Busybox, 1),
    ] {
        let host = Host::new().image(image).user("ada").config(config).start();
        let text = host.ssh("ada", lines).run().ok().text();
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{config}: {line:?} in {text}");
        let effective = if config.contains("root") { bounding } else { "0000000000000000" };
        for set in ["CapInh", "CapAmb"] {
            has(&format!("{set}: 0000000000000000"));
        }
        for set in ["CapPrm", "CapEff"] {
            has(&format!("{set}: {effective}"));
        }
        has(&format!("CapBnd: {bounding}"));
        has(&format!("NoNewPrivs: {new_privileges}"));
        has("Seccomp: 2");
        has("SigBlk: 0000000000000000");
        has("SigIgn: 0000000000000000");
        has("200");
        has("0022");
        host.assert_no_session_left();
    }
}
