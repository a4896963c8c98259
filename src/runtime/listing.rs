//! What this instance's containers left in the kernel and on disk, found by name.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Container, disk_image, init_name, spawner_name};
use crate::{
    names::{ContainerId, InstanceTag, SessionId},
    sys::{find_process, pidfd::Held},
};

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Everything that `runtime` owns and that exists now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Session directories (`STATE/sessions/*`).
    pub directories: Vec<PathBuf>,
    /// Mount points below the session directories in this mount namespace. There should never be one.
    pub mounts: Vec<PathBuf>,
    /// Loop devices of files in session directories, with the files' names.
    pub loop_devices: Vec<String>,
    /// Containers' inits.
    pub inits: Vec<(i32, ContainerId)>,
}

impl Listing {
    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.mounts.is_empty() && self.loop_devices.is_empty() && self.inits.is_empty()
    }
}

/// Lists what belongs to the instance `tag`, whose session directories are in `sessions_dir`.
pub fn listing(tag: &InstanceTag, sessions_dir: &Path) -> io::Result<Listing> {
    let mut directories: Vec<PathBuf> = match fs::read_dir(sessions_dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    directories.sort();
    let mountinfo = fs::read("/proc/self/mountinfo")?;
    let mounts = mount_points(&mountinfo).filter(|point| point.starts_with(sessions_dir)).collect();
    Ok(Listing { directories, mounts, loop_devices: disk_image::listing(sessions_dir)?, inits: inits(tag)? })
}

/// Kills the inits of all containers of `session` that there are, and waits for their end.
///
/// For the case that the spawner was lost with a container half made, when nobody has its pidfd.
pub fn kill_session(tag: &InstanceTag, session: &SessionId) -> io::Result<()> {
    kill_inits(tag, |container| container.session == *session)
}

/// Kills the init of `container`, likewise.
pub(super) fn kill_container(tag: &InstanceTag, container: &ContainerId) -> io::Result<()> {
    kill_inits(tag, |found| found == container)
}

fn kill_inits(tag: &InstanceTag, chosen: impl Fn(&ContainerId) -> bool) -> io::Result<()> {
    let mut killed = Vec::new();
    for (pid, _) in inits(tag)?.into_iter().filter(|(_, found)| chosen(found)) {
        // Between the look and the opening the pid may have got a new owner, so look again when it is pinned.
        let Ok(held) = Held::open(pid) else { continue };
        if init_of(tag, pid).as_ref().is_some_and(&chosen) {
            let container = Container::held(held);
            container.kill()?;
            killed.push(container);
        }
    }
    for container in killed {
        container.wait(KILL_LIMIT);
    }
    Ok(())
}

/// Kills spawners of the instance that an earlier supervisor has left, and waits for their end. They end by themselves when
/// their supervisor does, unless somebody has stopped them; what they were making ends with them.
pub(super) fn kill_spawners(tag: &InstanceTag) -> io::Result<()> {
    let name = spawner_name(tag.as_str());
    let is_spawner = |pid: i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name) && is_our_copy(pid)
    };
    for pid in find_process::pids()?.filter(|pid| is_spawner(*pid)) {
        let Ok(held) = Held::open(pid) else { continue };
        if is_spawner(pid) {
            held.kill()?;
            held.wait(KILL_LIMIT);
        }
    }
    Ok(())
}

/// Whether the process runs our copy of the program in memory. The kernel says so, whatever the process calls itself.
fn is_our_copy(pid: i32) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    exe.is_ok_and(|exe| exe.as_os_str().as_bytes().starts_with(b"/memfd:podspawn"))
}

fn inits(tag: &InstanceTag) -> io::Result<Vec<(i32, ContainerId)>> {
    let mut found = Vec::new();
    for pid in find_process::pids()? {
        found.extend(init_of(tag, pid).map(|container| (pid, container)));
    }
    found.sort();
    Ok(found)
}

/// The container whose init `pid` is, if it is one. Any process may take the name, so it must also be PID 1 of a pid
/// namespace one level down, and run our copy in memory.
fn init_of(tag: &InstanceTag, pid: i32) -> Option<ContainerId> {
    // Processes come and go while we look; one that is gone is not an init.
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let container = comm.trim_end().strip_prefix(&init_name_prefix(tag))?.parse().ok()?;
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let is_init = pids.split_ascii_whitespace().skip(1).last() == Some("1");
    (is_init && is_our_copy(pid)).then_some(container)
}

fn init_name_prefix(tag: &InstanceTag) -> String {
    init_name(tag.as_str(), "")
}

/// The mount points of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), in which space, tab, newline and backslash are
/// written as `\ooo`.
pub(super) fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4)).map(unescape)
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0_u8, |value, d| d.is_ascii_digit().then(|| value.wrapping_mul(8) | (d & 7)))
        });
        let (byte, used) = octal.map_or((first, 1), |byte| (byte, 4));
        bytes.push(byte);
        rest = &rest[used..];
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let lines = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            30 25 0:27 / /a\\040b\\134c\\0 rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mount_points(lines).collect();
        assert_eq!(points, [PathBuf::from("/proc"), PathBuf::from("/a b\\c\\0")]);
    }

    #[test]
    fn a_process_with_the_name_alone_is_not_an_init() {
        let tag = InstanceTag::of_root(Path::new("/nowhere"));
        let session = SessionId::from_bits(5);
        let name = init_name(tag.as_str(), session.as_str());
        let script = format!("printf {name} > /proc/$$/comm; echo; exec 1>&-; read x");
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(inits(&tag).unwrap(), []);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
