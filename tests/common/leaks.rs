//! What is left of an instance, found with other tools than our own: `/proc`, `ip`, `nft`, `find` and sqlite3.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::Path, process::Command};

use podspawn::names::InstanceTag;

/// Everything that is left of the instance at `root` after its server has ended.
pub fn of_instance(root: &Path) -> Vec<String> {
    let tag = InstanceTag::of_root(root).as_str().to_owned();
    let mut found = of_sessions(root);
    found.extend(all_processes(root).into_iter().map(|(pid, args)| format!("process {pid}: {args}")));
    found.extend(interfaces(&format!("ps{tag}")));
    found.extend(interfaces(&format!("podspawn-{tag}")));
    let tables = output("nft", &["list", "tables"]);
    found.extend(tables.lines().filter(|line| line.contains(&format!("podspawn-{tag}"))).map(str::to_owned));
    found.extend(cgroups(&format!("podspawn-{tag}")));
    found.extend(files(&root.join("run/podspawn/connections")));
    found
}

/// What is left of sessions of the instance at `root`, whose server may run.
pub fn of_sessions(root: &Path) -> Vec<String> {
    let tag = InstanceTag::of_root(root);
    let mut found = inits(&tag);
    let tag = tag.as_str().to_owned();
    // Interface names are `ps`, the tag and the session's id.
    found.extend(interfaces(&format!("ps{tag}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let sessions = root.join("var/lib/podspawn/sessions");
    let below = sessions.display().to_string();
    found.extend(mounts.lines().filter(|line| line.contains(&below)).map(|line| format!("mount {line}")));
    found.extend(loop_devices(&below));
    found.extend(files(&sessions));
    found.extend(files(&root.join("run/podspawn/sessions")));
    let tree = format!("podspawn-{tag}");
    found.extend(cgroups("*").into_iter().filter(|path| path.contains(&format!("/{tree}/")) && is_session(path)));
    // Rules of the instance name all its interfaces with `*`; an element of a set names one.
    let table = output("nft", &["list", "table", "inet", &tree]);
    let interface = format!("ps{tag}");
    let of_one = |line: &&str| line.split(interface.as_str()).skip(1).any(|rest| !rest.starts_with('*'));
    found.extend(table.lines().filter(of_one).map(|line| format!("nft: {}", line.trim())));
    let db = root.join("var/lib/podspawn/state.db");
    if db.exists() {
        let query = "select address from sessions union select address from services";
        let recorded = output("sqlite3", &[&db.display().to_string(), query]);
        let of_nobody = addresses(&table).into_iter().filter(|address| !recorded.lines().any(|line| line == address));
        found.extend(of_nobody.map(|address| format!("nft: an element with {address}")));
        for name in ["sessions", "services", "connections"] {
            let rows = output("sqlite3", &[&db.display().to_string(), &format!("select * from {name}")]);
            found.extend(rows.lines().map(|row| format!("row of {name}: {row}")));
        }
    }
    found
}

/// The addresses of containers that sets and maps of the table have elements with.
fn addresses(table: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for set in ["set pairs {", "set leases {", "set resolving {", "map egress {"] {
        let Some((_, rest)) = table.split_once(set) else { continue };
        let elements = rest.split("\tchain ").next().and_then(|rest| rest.split_once("elements = {"));
        // Other sets come behind it.
        let elements = elements.map(|(before, elements)| if before.contains('}') { "" } else { elements });
        let elements = elements.and_then(|elements| elements.split('}').next()).unwrap_or_default();
        let words = elements.split(|c: char| c != '.' && !c.is_ascii_digit());
        found.extend(words.filter(|word| word.parse::<Ipv4Addr>().is_ok()).map(str::to_owned));
    }
    found
}

/// Pids of the instance's processes whose arguments contain `word`.
pub fn processes(root: &Path, word: &str) -> Vec<i32> {
    all_processes(root)
        .into_iter()
        .filter(|(_, args)| args.split(' ').any(|arg| arg == word))
        .map(|(pid, _)| pid)
        .collect()
}

/// The inits of an instance's containers.
pub fn inits(tag: &InstanceTag) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, comm) in commands() {
        let rest = comm.strip_prefix(&format!("ps{}", tag.as_str()));
        if rest.is_some_and(|rest| matches!(rest.len(), 8 | 9)) {
            found.push(format!("init {pid} ({comm})"));
        }
    }
    found
}

/// Pids of processes with this name.
pub fn processes_named(name: &str) -> Vec<i32> {
    commands().into_iter().filter(|(_, comm)| comm == name).map(|(pid, _)| pid).collect()
}

/// Processes whose arguments name the instance's root or its tag: server, spawner, connections, and inits.
fn all_processes(root: &Path) -> Vec<(i32, String)> {
    let of_spawner = format!("podspawn spawner {} ", InstanceTag::of_root(root).as_str());
    let root = root.display().to_string();
    let mut found = Vec::new();
    for (pid, _) in commands() {
        let Ok(args) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let args = String::from_utf8_lossy(&args).replace('\0', " ");
        let ours = pid.cast_unsigned() != std::process::id() && args.starts_with("podspawn ")
            || args.contains("/podspawn --root");
        if ours && args.contains(&root) || args.starts_with(&of_spawner) {
            found.push((pid, args));
        }
    }
    found
}

fn commands() -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok()) else { continue };
        // It may be gone meanwhile.
        let Ok(comm) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombie = state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
        if !zombie {
            found.push((pid, comm.trim_end().to_owned()));
        }
    }
    found
}

/// Loop devices of files below a directory, also of those that were removed.
pub fn loop_devices(below: &str) -> Vec<String> {
    let devices = output("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]);
    devices
        .lines()
        .filter(|line| line.contains(&format!("{below}/")))
        .map(|line| format!("loop device {line}"))
        .collect()
}

fn interfaces(prefix: &str) -> Vec<String> {
    let links = output("ip", &["-o", "link"]);
    let named = |line: &str| line.split(": ").nth(1).is_some_and(|name| name.starts_with(prefix));
    links.lines().filter(|line| named(line)).map(|line| format!("interface {line}")).collect()
}

fn cgroups(name: &str) -> Vec<String> {
    let found = output("find", &["/sys/fs/cgroup", "-type", "d", "-name", name]);
    found.lines().map(str::to_owned).collect()
}

/// Whether a cgroup's directory is named after a session.
fn is_session(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.len() == 8 && name.starts_with(|c: char| c.is_ascii_digit()))
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| format!("file {}", entry.path().display())).collect()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
