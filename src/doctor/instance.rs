//! What this configuration needs.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::Path,
};

use nix::sys::{
    statfs::{self, FsType},
    statvfs::statvfs,
};

use super::{Check, host};
use crate::{
    access::users,
    config::{Config, units},
    errors::chain,
    image::{Reference, Store},
    state::State,
};

/// Bytes that have to be free where images and sessions are.
const LEAST: u64 = 1 << 30;
const ENOUGH: u64 = 5 << 30;

pub(super) fn checks(config: &Config, server_runs: bool) -> Vec<Check> {
    let mut checks = vec![Check::pass("configuration", format!("{} is valid", config.paths.config_file.display()))];
    if config.security.nested {
        checks.push(host::nested());
    }
    // What is not there yet is made where its nearest parent is.
    let state = existing(&config.paths.state_dir);
    checks.push(state_file_system(state));
    checks.push(match statvfs(state) {
        Ok(found) => free(found.blocks_available().saturating_mul(found.fragment_size()), state),
        Err(error) => Check::fail("disk space", format!("{}: {error}", state.display()), "sessions are written there"),
    });
    checks.push(host::disk_limits(config.defaults.disk.is_some()));
    checks.push(database(config));
    checks.push(host_keys(&config.paths.host_key_dir));
    checks.push(key_directory(&config.paths.key_dir));
    checks.extend(keys(config));
    checks.extend(config.listen.iter().map(|address| port("listen", *address, server_runs)));
    checks.extend(config.metrics.listen.map(|address| port("metrics.listen", address, server_runs)));
    checks.push(resolvers(config));
    checks.push(default_image(config));
    checks
}

fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn state_file_system(path: &Path) -> Check {
    let name = "file system";
    let kind = match statfs::statfs(path) {
        Ok(found) => found.filesystem_type(),
        Err(error) => return Check::fail(name, format!("{}: {error}", path.display()), "sessions are written there"),
    };
    judge_file_system(kind, path)
}

fn judge_file_system(kind: FsType, path: &Path) -> Check {
    let name = "file system";
    let at = |what: &str| format!("{} is on {what}", path.display());
    match kind {
        statfs::NFS_SUPER_MAGIC | statfs::SMB_SUPER_MAGIC | statfs::FUSE_SUPER_MAGIC => {
            let why = "overlayfs needs extended attributes and idmapped mounts below it, which it does not have";
            Check::fail(name, at("a network or user file system"), why)
        }
        statfs::OVERLAYFS_SUPER_MAGIC => {
            Check::fail(name, at("overlayfs"), "overlayfs cannot write to another overlayfs; use a disk or a volume")
        }
        statfs::TMPFS_MAGIC => {
            Check::warn(name, at("tmpfs"), "images and sessions take memory, and are gone after a boot")
        }
        _ => Check::pass(name, at("a local file system")),
    }
}

fn free(bytes: u64, path: &Path) -> Check {
    let found = format!("{} free in {}", units::shown(bytes), path.display());
    let why = "images are unpacked there, and sessions write there";
    match bytes {
        0..LEAST => Check::fail("disk space", found, why).mend("podspawn image prune"),
        LEAST..ENOUGH => Check::warn("disk space", found, why).mend("podspawn image prune"),
        _ => Check::pass("disk space", found),
    }
}

fn database(config: &Config) -> Check {
    let (name, db) = ("database", &config.paths.db);
    if !db.exists() {
        return Check::pass(name, "none yet; the first start makes it");
    }
    let why = "sessions are found by it after a restart";
    match State::open(db).and_then(|state| state.check()) {
        Ok(None) => Check::pass(name, format!("{} is consistent", db.display())),
        Ok(Some(complaint)) => Check::fail(name, format!("{}: {complaint}", db.display()), why),
        Err(error) => Check::fail(name, chain(error), why),
    }
}

/// Private keys must be root's alone; the server does not start otherwise.
fn host_keys(directory: &Path) -> Check {
    let name = "host keys";
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::pass(name, "none yet; the first start makes one");
        }
        Err(error) => {
            return Check::fail(name, format!("{}: {error}", directory.display()), "the server does not start");
        }
    };
    let mut count = 0;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some() || !path.is_file() {
            continue;
        }
        count += 1;
        let open = fs::symlink_metadata(&path).map(|meta| meta.mode() & 0o077 != 0 || meta.uid() != 0);
        if open.unwrap_or(true) {
            let found = format!("{} is not root's alone", path.display());
            let mend = format!("chown root {0}; chmod 600 {0}", path.display());
            return Check::fail(name, found, "who reads it can pose as this server, which does not start so")
                .mend(mend);
        }
    }
    Check::pass(name, format!("{count} in {}", directory.display()))
}

/// Who can write to it can let anybody in.
fn key_directory(directory: &Path) -> Check {
    let name = "users' keys";
    match fs::metadata(directory) {
        Ok(meta) if meta.mode() & 0o022 != 0 || meta.uid() != 0 => {
            let found =
                format!("{} can be written by others than root (mode {:o})", directory.display(), meta.mode() & 0o7777);
            let mend = format!("chown root {0}; chmod go-w {0}", directory.display());
            Check::fail(name, found, "who can write there can log in as anybody").mend(mend)
        }
        Ok(_) => Check::pass(name, directory.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::warn(name, "there are no users", "nobody can log in").mend("podspawn add-user NAME --key-file FILE")
        }
        Err(error) => Check::fail(name, format!("{}: {error}", directory.display()), "nobody can log in"),
    }
}

/// Lines of key files that let nobody in.
fn keys(config: &Config) -> Vec<Check> {
    let name = "users' keys";
    let why = "the line lets nobody in";
    match users::list(&config.access()) {
        Ok((_, warnings)) => warnings.iter().map(|warning| Check::warn(name, warning.to_string(), why)).collect(),
        Err(error) => vec![Check::fail(name, chain(error), why)],
    }
}

fn port(name: &'static str, address: SocketAddr, server_runs: bool) -> Check {
    if server_runs {
        return Check::pass(name, format!("{address}, which the server has"));
    }
    match TcpListener::bind(address) {
        Ok(_) => Check::pass(name, format!("{address} is free")),
        Err(error) => {
            let mend = format!("ss -ltnp 'sport = :{}'   # says who has it", address.port());
            Check::fail(name, format!("{address}: {error}"), "the server cannot listen there").mend(mend)
        }
    }
}

fn resolvers(config: &Config) -> Check {
    let name = "name servers";
    if !config.network.dns.is_empty() {
        return Check::pass(name, "those of network.dns");
    }
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let is_one = |line: &&str| line.split_whitespace().next() == Some("nameserver");
    match text.lines().filter(is_one).count() {
        0 => Check::warn(name, "/etc/resolv.conf has none", "no name resolves inside sessions")
            .mend("podspawn config check   # set network.dns"),
        count => Check::pass(name, format!("{count} in /etc/resolv.conf")),
    }
}

fn default_image(config: &Config) -> Check {
    let (name, image) = ("default image", &config.defaults.image);
    let reference = match image.parse::<Reference>() {
        Ok(reference) => reference,
        Err(error) => {
            return Check::fail(name, format!("{image}: {error}"), "sessions without a project are made from it");
        }
    };
    let store = Store::look(&config.paths.state_dir.join("images"), (&config.images).into());
    match store.lookup(&reference) {
        Ok(Some(_)) => Check::pass(name, format!("{image} is here")),
        Ok(None) => {
            let why = "the first session waits until it is fetched";
            Check::warn(name, format!("{image} is not here"), why).mend(format!("podspawn pull {image}"))
        }
        Err(error) => {
            let why = "sessions without a project are made from it";
            Check::fail(name, chain(error), why).mend(format!("podspawn pull {image}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{super::Verdict, *};

    #[test]
    fn disks_and_file_systems_are_judged() {
        let here = Path::new("/x");
        let verdicts = [LEAST - 1, LEAST, ENOUGH].map(|bytes| free(bytes, here).verdict);
        assert_eq!(verdicts, [Verdict::Fail, Verdict::Warn, Verdict::Pass]);
        let table = [
            (statfs::NFS_SUPER_MAGIC, Verdict::Fail),
            (statfs::OVERLAYFS_SUPER_MAGIC, Verdict::Fail),
            (statfs::TMPFS_MAGIC, Verdict::Warn),
            (statfs::BTRFS_SUPER_MAGIC, Verdict::Pass),
        ];
        for (kind, verdict) in table {
            assert_eq!(judge_file_system(kind, here).verdict, verdict);
        }
    }

    #[test]
    fn keys_that_others_can_read_or_write_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssh_host_ed25519_key");
        assert_eq!(host_keys(&directory.path().join("none")).verdict, Verdict::Pass);
        fs::write(&path, "").unwrap();
        fs::write(path.with_extension("pub"), "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&path, 0o600);
        assert_eq!(host_keys(directory.path()).found, format!("1 in {}", directory.path().display()));
        mode(&path, 0o640);
        let found = host_keys(directory.path());
        assert!(found.verdict == Verdict::Fail && found.mend.unwrap().contains("chmod 600"));

        mode(directory.path(), 0o755);
        assert_eq!(key_directory(directory.path()).verdict, Verdict::Pass);
        mode(directory.path(), 0o775);
        assert_eq!(key_directory(directory.path()).verdict, Verdict::Fail);
    }

    #[test]
    fn a_port_that_somebody_has_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(port("listen", address, true).verdict, Verdict::Pass);
        let found = port("listen", address, false);
        assert_eq!(found.verdict, Verdict::Fail, "{}", found.found);
    }
}
