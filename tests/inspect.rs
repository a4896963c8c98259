//! What is told about a session, and that another runtime makes the same container of it.

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use common::{GitServer, Host, Image, Run, Stream};
use serde_json::{Value, json};

/// The lines of `/proc/self/status` that say what a process may do.
const RIGHTS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";

fn oci(host: &Host, session: &str) -> Value {
    host.json_of(["inspect", session, "--oci"])
}

fn words(list: &Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Which bits of the mask each capability of the list is (linux/capability.h).
fn mask(names: &Value) -> String {
    let known = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
                 NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT \
                 SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
                 AUDIT_WRITE AUDIT_CONTROL SETFCAP";
    let bit = |name: &str| known.split(' ').position(|known| format!("CAP_{known}") == name).unwrap();
    format!("{:016x}", words(names).into_iter().map(|name| 1_u64 << bit(name)).sum::<u64>())
}

#[test]
fn a_session_is_described_as_it_is() {
    let host = Host::new().user("ada").config("resources:\n  max_per_user: 2\ndefaults:\n  memory: 512m").start();
    host.podspawn(["inspect", "ada"]).run().status(1).stderr_has("there is no session of ada");
    let stay = Stream::start(&host, "ada");
    let shown = host.json_of(["inspect", "ada"]);
    let listed = host.sessions().remove(0);
    for field in ["user", "project", "id", "image", "pid", "connections", "status"] {
        assert_eq!(shown[field], listed[field], "{field}");
    }
    let inside = host.ssh("ada", "hostname; hostname -i; id -un; echo $SHELL; env | sort").run().ok().text();
    let mut lines = inside.lines();
    for field in ["hostname", "address", "account"] {
        assert_eq!(shown[field], lines.next().unwrap(), "{field}");
    }
    assert_eq!(shown["egress"], "public");
    assert_eq!(shown["mode"], "destroy-on-disconnect");
    assert_eq!(shown["limits"], json!({"cpus": 2.0, "memory_bytes": 512 << 20, "pids": 512}));
    assert_eq!((&shown["security"]["seccomp"], &shown["security"]["nested"]), (&json!("default"), &json!(false)));
    let map = fs::read_to_string(format!("/proc/{}/uid_map", host.init("ada"))).unwrap();
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &shown["first_id"].to_string(), "65536"]);
    host.podspawn(["inspect", "ada", "--service", "x"]).run().status(2);
    host.podspawn(["inspect", "ada", "--oci", "--service", "x"]).run().status(1).stderr_has("it has no service x");
    stay.finish();
    host.assert_no_session_left();
}

/// Compares what is printed with what the session's own processes find.
fn assert_agrees(host: &Host, user: &str, config: &Value) {
    let inside = |command: &str| host.ssh(user, command).run().ok().text();
    let process = &config["process"];
    let status = inside("cat /proc/self/status; cat /proc/self/oom_score_adj; umask");
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let sets = &process["capabilities"];
    for (line, set) in [
        ("CapBnd", "bounding"),
        ("CapEff", "effective"),
        ("CapPrm", "permitted"),
        ("CapInh", "inheritable"),
        ("CapAmb", "ambient"),
    ] {
        assert_eq!(value(line), mask(&sets[set]), "{line}");
    }
    assert_eq!(value("NoNewPrivs"), u8::from(process["noNewPrivileges"].as_bool().unwrap()).to_string());
    assert_eq!(value("Seccomp"), if config["linux"]["seccomp"].is_null() { "0" } else { "2" });
    assert_eq!(value("Uid"), process["user"]["uid"].to_string());
    assert!(status.ends_with(&format!("{}\n0022\n", process["oomScoreAdj"])), "{status}");
    let limits = inside("cat /proc/self/limits");
    for (line, name) in [
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
    ] {
        let limit = process["rlimits"].as_array().unwrap().iter().find(|limit| limit["type"] == name).unwrap();
        let line = limits.lines().find_map(|found| found.strip_prefix(line)).unwrap();
        let found: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(found, [limit["soft"].to_string(), limit["hard"].to_string()], "{name}");
    }
    // As the kernel has them: a place that is mounted on more than once is as the last one says.
    let mounted = inside("cat /proc/self/mountinfo");
    let options = |path: &str| {
        let line = mounted.lines().rev().find(|line| line.split(' ').nth(4) == Some(path));
        let fields: Vec<&str> = line.unwrap_or_else(|| panic!("{path}: {mounted}")).split(' ').collect();
        let kind = fields[fields.iter().position(|field| *field == "-").unwrap() + 1].to_owned();
        (kind, [fields[5], fields.last().unwrap()].join(","))
    };
    let list = config["mounts"].as_array().unwrap();
    for mount in list {
        let path = mount["destination"].as_str().unwrap();
        let (kind, found) = options(path);
        assert_eq!(mount["type"], kind.as_str(), "{path}");
        let found: BTreeSet<&str> = found.split(',').collect();
        for word in words(&mount["options"]).into_iter().filter(|word| !word.contains('=') && *word != "newinstance") {
            assert!(found.contains(word), "{path}: {word} in {found:?}");
        }
    }
    let (_, root) = options("/");
    assert_eq!(root.split(',').any(|word| word == "ro") && root.starts_with("ro"), config["root"]["readonly"] == true);
    for path in words(&config["linux"]["maskedPaths"]) {
        // Nothing, or not there at all.
        host.ssh(user, &format!("test -e {path} || exit 0; test -d {path} && ls -A {path} || cat {path}"))
            .run()
            .ok()
            .stdout("");
    }
    for path in words(&config["linux"]["readonlyPaths"]) {
        // Not every kernel has all of them.
        if host.ssh(user, &format!("test -e {path}")).run().status == Some(0) {
            let (_, found) = options(path);
            assert!(found.starts_with("ro,"), "{path}: {found}");
        }
    }
    // Every mount is there for one of these reasons.
    let nested = config["annotations"]["podspawn.nested"] == "true";
    let known: BTreeSet<String> = list.iter().map(|mount| mount["destination"].as_str().unwrap().to_owned()).collect();
    let hidden: BTreeSet<&str> =
        words(&config["linux"]["maskedPaths"]).union(&words(&config["linux"]["readonlyPaths"])).copied().collect();
    for path in mounted.lines().map(|line| line.split(' ').nth(4).unwrap()) {
        let of_dev =
            ["null", "zero", "full", "random", "urandom", "tty"].iter().any(|node| path == format!("/dev/{node}"));
        assert!(
            path == "/"
                || (nested && path == "/dev/shm/proc")
                || of_dev
                || known.contains(path)
                || hidden.contains(path),
            "{path} is not told"
        );
    }
    let init = config["root"]["path"].as_str().unwrap().split('/').nth(2).unwrap();
    for namespace in config["linux"]["namespaces"].as_array().unwrap() {
        let name = match namespace["type"].as_str().unwrap() {
            "mount" => "mnt",
            "network" => "net",
            same => same,
        };
        let own = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(own(init), own("self"), "{name}");
    }
    let map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    let mapping = &config["linux"]["uidMappings"][0];
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        [mapping["containerID"].to_string(), mapping["hostID"].to_string(), mapping["size"].to_string()]
    );
}

/// Runs a command in a container that crun makes of the configuration, with busybox as its root file system.
fn in_crun(host: &Host, config: &Value, command: &str) -> String {
    let bundle = host.scratch().join("bundle");
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let make = "cd \"$1/rootfs\"; mkdir -p bin proc dev sys mnt; cp \"$(command -v busybox)\" bin/
                for name in sh grep unshare mount; do ln -s busybox bin/$name; done
                chmod 755 .. ../..; chown -hR \"$2:$2\" .";
    let first = config["linux"]["uidMappings"][0]["hostID"].to_string();
    Run::new("sh").args(["-ec", make, "sh", bundle.to_str().unwrap(), &first]).run().ok();
    let mut config = config.clone();
    config["root"]["path"] = json!("rootfs");
    config["process"]["args"] = json!(["/bin/sh", "-c", command]);
    config["process"]["cwd"] = json!("/");
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let id = format!("podspawn-test-{}", std::process::id());
    let state = host.scratch().join("crun");
    // It makes no cgroup, and looks at none: crun refuses to start where there are hierarchies of both versions.
    let crun = "mount -t tmpfs none /sys/fs/cgroup
                exec crun --root \"$1\" --cgroup-manager disabled run --bundle \"$2\" \"$3\"";
    let output = Run::new("unshare").args(["-m", "sh", "-ec", crun, "sh"]).arg(&state).arg(&bundle).arg(&id).run();
    let text = output.ok().text();
    assert!(!Path::new(&state).join(&id).exists(), "crun has cleaned up");
    text
}

#[test]
fn another_runtime_makes_the_same_container_of_what_is_printed() {
    for (settings, image) in [
        ("defaults:\n  sudo: true", Image::Busybox),
        (
            "defaults:\n  user: root\nsecurity:\n  readonly_rootfs: true\n  tmpfs: {/scratch: \"size=1m,noexec\"}\n  cap_drop: [CHOWN]",
            Image::Busybox,
        ),
        ("security:\n  nested: true\n  no_new_privileges: true", Image::Busybox),
    ] {
        let host = Host::new().image(image).user("ada").config(settings).start();
        let stay = Stream::start(&host, "ada");
        let config = oci(&host, "ada");
        assert_agrees(&host, "ada", &config);
        // The filter is the same if the same is refused.
        let refused = "unshare -U true 2>/dev/null && echo made; mount -t tmpfs x /mnt 2>/dev/null || echo refused";
        let probe = format!("{RIGHTS}; {refused}");
        let ours = host.ssh("ada", &probe).run().ok().text();
        assert_eq!(in_crun(&host, &config, &probe), ours, "{settings}");
        stay.finish();
        host.assert_no_session_left();
    }
}

#[test]
fn a_services_container_and_its_limits_are_told_as_they_are_and_also_after_a_restart() {
    let mut host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\nservices:\n  - name: side\n    image: localhost/busybox:test\n    \
                   command: [sleep, '1000']\n    volumes: ['data:/data']\n    resources: {memory: 64m, pids: 40, cpus: 0.5}\n";
    let repository = git.repository("web", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "web", "--repo", &repository.url]).run().ok();
    host.ssh("ada+web", "true").run().ok();
    let service = ["inspect", "ada@web", "--oci", "--service", "side"];
    let config = host.json_of(service);
    let resources = &config["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(resources["pids"]["limit"], 40);
    assert_eq!((&resources["cpu"]["quota"], &resources["cpu"]["period"]), (&json!(50_000), &json!(100_000)));
    let volume = config["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/data").unwrap();
    assert!(Path::new(volume["source"].as_str().unwrap()).is_dir(), "{volume}");
    assert_eq!(config["process"]["noNewPrivileges"], true);
    host.end(nix::sys::signal::Signal::SIGKILL);
    host.serve();
    assert_eq!(host.json_of(service), config);
    // Variables may be secrets.
    let files = format!("find {}/run/podspawn/sessions -name '*.json' -perm /077", host.root.display());
    Run::new("sh").args(["-c", &files]).run().ok().stdout("");
    host.podspawn(["stop", "ada@web"]).run().ok();
    host.assert_no_session_left();
}
