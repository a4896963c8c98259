//! Objects that no session accounts for: what `doctor` and the tests look at after everything that can go wrong.

use std::{collections::HashSet, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Cgroups,
    config::Config,
    errors::chain,
    image, mirror,
    names::{ContainerId, SessionId},
    network::Network,
    runtime,
    state::State,
};

/// One object that should not be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// `process`, `mount`, `loop`, `veth`, `nft`, `cgroup`, `directory`, `socket`, `image`, `mirror` or `record`.
    pub kind: String,
    pub name: String,
}

/// Why the listing could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {what}: {why}")]
pub struct LeaksError {
    what: &'static str,
    why: String,
}

/// Lists the objects of this instance, in the kernel and on disk, whose session has no record in the database, and the
/// records whose container does not run.
///
/// Works with and without a running server. Without one, what belongs to the instance as a whole (the nft table, parent
/// cgroups) is listed too unless a record still needs it. Objects that are just being made or removed may show up.
pub fn leaks(config: &Config, server_runs: bool) -> Result<Vec<Leak>, LeaksError> {
    let failed = |what| move |why| LeaksError { what, why };
    let records = if config.paths.db.exists() {
        let state = State::open(&config.paths.db).map_err(chain).map_err(failed("records"))?;
        state.sessions().map_err(chain).map_err(failed("records"))?
    } else {
        Vec::new()
    };
    let known: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
    let shared_objects_needed = server_runs || !records.is_empty();
    let accounted = |name: &str| match session_in(name) {
        Some(id) => known.contains(id.as_str()),
        None => shared_objects_needed,
    };
    let mut leaks = Vec::new();
    let mut add = |kind: &str, names: Vec<String>| {
        let unaccounted = names.into_iter().filter(|name| !accounted(name));
        leaks.extend(unaccounted.map(|name| Leak { kind: kind.to_owned(), name }));
    };

    let tag = &config.instance;
    add("network", Network::listing(tag).map_err(chain).map_err(failed("networks"))?);
    add("cgroup", Cgroups::listing(tag).map_err(chain).map_err(failed("cgroups"))?);
    let containers = runtime::listing(tag, &config.paths.state_dir.join("sessions"));
    let containers = containers.map_err(chain).map_err(failed("containers"))?;
    add("mount", containers.mounts.iter().map(|path| path.display().to_string()).collect());
    add("loop", containers.loop_devices.clone());
    add("directory", containers.directories.iter().map(|path| path.display().to_string()).collect());
    add("process", containers.inits.iter().map(|(pid, session)| format!("init {pid} of {session}")).collect());
    add("directory", session_directories(&config.paths.run_dir.join("sessions")).map_err(failed("directories"))?);
    // What pulls have left is of no session.
    let unfinished = image::listing(&config.paths.state_dir.join("images")).map_err(chain).map_err(failed("images"))?;
    leaks.extend(unfinished.into_iter().map(|name| Leak { kind: "image".to_owned(), name }));
    let unfinished =
        mirror::listing(&config.paths.state_dir.join("mirrors")).map_err(chain).map_err(failed("mirrors"))?;
    leaks.extend(unfinished.into_iter().map(|name| Leak { kind: "mirror".to_owned(), name }));
    for record in &records {
        let alive = record.init.is_some_and(|(pid, starttime)| runtime::Container::adopt(pid, starttime).is_some());
        if !alive && !server_runs {
            leaks.push(Leak { kind: "record".to_owned(), name: record.id.to_string() });
        }
    }
    Ok(leaks)
}

fn session_directories(parent: &Path) -> Result<Vec<String>, String> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| format!("{}: {error}", parent.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", parent.display()))?;
        names.push(entry.path().display().to_string());
    }
    Ok(names)
}

/// The session whose id, or one of whose containers' ids, is a part of an object's name: the last component that has the
/// form of one.
pub(super) fn session_in(name: &str) -> Option<SessionId> {
    // An interface's name has the id at its end (`ps` + tag + id).
    let of_interface = |part: &str| part.strip_prefix("ps")?.get(4..)?.parse::<ContainerId>().ok();
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .rev()
        .find_map(|part| part.parse().ok().or_else(|| of_interface(part)))
        .map(|container| container.session)
}

#[cfg(test)]
mod tests {
    use super::session_in;

    #[test]
    fn the_session_of_an_object_is_found_in_its_name() {
        let id = |name| session_in(name).map(|id| id.to_string());
        assert_eq!(id("/var/lib/podspawn/sessions/2abcdefg"), Some("2abcdefg".to_owned()));
        assert_eq!(id("psqwer2abcdefg"), Some("2abcdefg".to_owned()));
        assert_eq!(id("/sys/fs/cgroup/pids/podspawn-qwer/2abcdefg"), Some("2abcdefg".to_owned()));
        assert_eq!(id("/sys/fs/cgroup/pids/podspawn-qwer/2abcdefg/2abcdefgB"), Some("2abcdefg".to_owned()));
        assert_eq!(id("nft lease psqwer2abcdefgB 10.1.2.3 in podspawn-qwer"), Some("2abcdefg".to_owned()));
        for other in ["podspawn-qwer", "psqwer", "ps", "2abcdefg2", "psqwer2abcdefgaa"] {
            assert_eq!(id(other), None, "{other}");
        }
    }
}
