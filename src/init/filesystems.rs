//! The mounts of a container, made from the inside. Targets are opened first and mounted on by descriptor, so nothing of
//! the image is followed out of its place; `/proc`, `/sys` and `/dev` must be plain directories.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, fstat},
    unistd::{chdir, fchdir, pivot_root},
};

use super::{
    files::{self, Ownership},
    nested,
};
use crate::{
    protocol::{CgroupJoin, ContainerSpec, Volume, VolumeKind},
    sys::mount_api::{
        attr, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_setattr, move_mount,
        open_tree_clone,
    },
};

pub const INERT: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

/// Hidden: files show as empty, directories too (reference: security.md, 3.5).
const MASKED: [&str; 18] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Writable by nobody.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A mount of a new file system of type `name`, attached nowhere.
pub(super) fn new_mount(
    name: &CStr,
    options: &[(&CStr, &CStr)],
    flags: &[&CStr],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(name)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    for flag in flags {
        fsconfig_set_flag(context.as_fd(), flag)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), attributes)
}

/// A procfs of this pid namespace.
pub(super) fn new_proc() -> io::Result<OwnedFd> {
    new_mount(c"proc", &[], &[], INERT)
}

/// Makes the detached mount `rootfs` the root of everything and detaches the host's tree.
///
/// It is attached on top of `/`: the host's directories belong to an id that we are not any more.
pub(super) fn pivot(rootfs: &OwnedFd) -> io::Result<()> {
    let here = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    move_mount(rootfs.as_fd(), here.as_fd())?;
    drop(here);
    fchdir(rootfs)?;
    // The old root goes on top of the new one, where "." still is below it (pivot_root(2), NOTES).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let inside = nix::unistd::getcwd()?;
    if inside.as_os_str() != "/" {
        return Err(io::Error::other(format!("the working directory is {}", inside.display()))); // CVE-2024-21626
    }
    Ok(())
}

/// A file system that a container makes for itself.
pub struct OwnFileSystem {
    pub path: &'static str,
    pub kind: &'static CStr,
    pub options: Vec<(&'static CStr, CString)>,
    pub flags: &'static [&'static CStr],
    /// `MOUNT_ATTR_*` (mount_setattr(2)).
    pub attributes: u64,
}

/// Those beside `/proc`, `/dev` and `/sys`, in the order in which they are mounted.
pub fn own_file_systems(spec: &ContainerSpec) -> Vec<OwnFileSystem> {
    let option = |name: &'static CStr, value: &CStr| (name, value.to_owned());
    let size = CString::new(spec.shm_bytes.to_string()).unwrap_or_default();
    let mut all = vec![
        OwnFileSystem {
            path: "/dev/pts",
            kind: c"devpts",
            // 5 is the group tty of every distribution. The maximum is on terminals, each of which costs kernel memory.
            options: vec![
                option(c"ptmxmode", c"0666"),
                option(c"mode", c"620"),
                option(c"gid", c"5"),
                option(c"max", c"64"),
            ],
            flags: &[c"newinstance"],
            attributes: attr::NOSUID | attr::NOEXEC,
        },
        OwnFileSystem {
            path: "/dev/shm",
            kind: c"tmpfs",
            options: vec![option(c"size", &size), option(c"mode", c"1777")],
            flags: &[],
            attributes: INERT,
        },
        OwnFileSystem { path: "/dev/mqueue", kind: c"mqueue", options: Vec::new(), flags: &[], attributes: INERT },
    ];
    if spec.cgroup == CgroupJoin::V2 {
        let (path, attributes) = ("/sys/fs/cgroup", INERT | attr::RDONLY);
        all.push(OwnFileSystem { path, kind: c"cgroup2", options: Vec::new(), flags: &[], attributes });
    }
    all
}

/// Mounts everything that every container has, and `unmasked_proc` for those that may have sandboxes inside. Returns its
/// devpts, opened.
///
/// # Errors
/// With the step that failed.
pub(super) fn mount_all(
    spec: &ContainerSpec,
    proc: &OwnedFd,
    dev: &OwnedFd,
    sys: &OwnedFd,
    unmasked_proc: Option<&OwnedFd>,
) -> Result<OwnedFd, (String, io::Error)> {
    let attach = |mount: &OwnedFd, path: &str| {
        let attach = || move_mount(mount.as_fd(), files::mount_point(path)?.as_fd());
        attach().map_err(|error| (format!("mount {path}"), error))
    };
    attach(proc, "/proc")?;
    attach(dev, "/dev")?;
    attach(sys, "/sys")?;
    // Before `/dev/shm`, which covers it.
    if let Some(proc) = unmasked_proc {
        nested::mount_unmasked(proc).map_err(|error| ("mount /proc for sandboxes".to_owned(), error))?;
    }
    let mut devpts = None;
    for OwnFileSystem { path, kind, options, flags, attributes } in own_file_systems(spec) {
        let options: Vec<(&CStr, &CStr)> = options.iter().map(|(name, value)| (*name, value.as_c_str())).collect();
        let mount = new_mount(kind, &options, flags, attributes).map_err(|error| (format!("mount {path}"), error))?;
        attach(&mount, path)?;
        if kind == c"devpts" {
            devpts = Some(mount);
        }
    }
    devpts.ok_or_else(|| ("mount /dev/pts".to_owned(), io::ErrorKind::NotFound.into()))
}

/// The paths that are hidden, as far as this kernel has them.
pub fn masked_paths() -> io::Result<Vec<String>> {
    Ok(MASKED.into_iter().map(str::to_owned).chain(thermal_throttles()?).collect())
}

/// Hides and write-protects what `/proc` and `/sys` tell about or do to the host.
pub(super) fn mask(dev: &OwnedFd) -> io::Result<()> {
    // One empty read-only tmpfs serves all directories: attached once, and cloned from there.
    let mut empty: Option<OwnedFd> = None;
    for path in masked_paths()? {
        let Some((target, is_directory)) = existing(&path)? else { continue };
        if !is_directory {
            // Our own node by descriptor, never a path of the image (CVE-2025-31133).
            move_mount(open_tree_clone(dev.as_fd(), c"null")?.as_fd(), target.as_fd())?;
        } else if let Some(attached) = &empty {
            move_mount(open_tree_clone(attached.as_fd(), c"")?.as_fd(), target.as_fd())?;
        } else {
            let new = new_mount(c"tmpfs", &[(c"size", c"4k"), (c"mode", c"555")], &[], INERT | attr::RDONLY)?;
            move_mount(new.as_fd(), target.as_fd())?;
            empty = Some(new);
        }
    }
    for path in READ_ONLY {
        let Some((target, _)) = existing(path)? else { continue };
        let clone = open_tree_clone(target.as_fd(), c"")?;
        mount_setattr(clone.as_fd(), attr::RDONLY)?;
        move_mount(clone.as_fd(), target.as_fd())?;
    }
    Ok(())
}

/// Opens `path` of /proc or /sys if this kernel has it; whether it is a directory.
fn existing(path: &str) -> io::Result<Option<(OwnedFd, bool)>> {
    let opened = match open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        other => other?,
    };
    let is_directory = files::is_directory(opened.as_fd())?;
    Ok(Some((opened, is_directory)))
}

/// `/sys/devices/system/cpu/cpuN/thermal_throttle`, a side channel, of each processor that has it.
fn thermal_throttles() -> io::Result<Vec<String>> {
    let cpus = match std::fs::read_dir("/sys/devices/system/cpu") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for cpu in cpus {
        let path = cpu?.path().join("thermal_throttle");
        if path.is_dir()
            && let Some(path) = path.to_str()
        {
            paths.push(path.to_owned());
        }
    }
    Ok(paths)
}

/// Mounts a tmpfs on `path`, which is made if it is missing. `options` are those of mount(8), comma-separated.
///
/// # Errors
/// `InvalidInput` for an option that has no place here.
pub(super) fn extra_tmpfs(path: &str, options: &str) -> io::Result<()> {
    let mut attributes = attr::NOSUID | attr::NODEV;
    let mut settings = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key @ ("size" | "mode" | "uid" | "gid" | "nr_inodes"), value)) => {
                settings.push((c_string(key)?, c_string(value)?));
            }
            None if option == "noexec" => attributes |= attr::NOEXEC,
            None if option == "ro" => attributes |= attr::RDONLY,
            None if option == "suid" => attributes &= !attr::NOSUID,
            // The defaults; a device node could not be opened anyway.
            None if matches!(option, "rw" | "exec" | "nosuid" | "nodev") => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("unknown option {option:?}"))),
        }
    }
    let settings: Vec<(&CStr, &CStr)> =
        settings.iter().map(|(key, value)| (key.as_c_str(), value.as_c_str())).collect();
    let mount = new_mount(c"tmpfs", &settings, &[], attributes)?;
    move_mount(mount.as_fd(), files::make_directories(path)?.as_fd())
}

/// Mounts a volume where it belongs.
pub(super) fn mount_volume(volume: &Volume, mount: &OwnedFd) -> io::Result<()> {
    let target = files::volume_point(&volume.path)?;
    let beneath = Ownership::of(&fstat(&target)?);
    move_mount(mount.as_fd(), target.as_fd())?;
    if volume.kind == VolumeKind::Named && !volume.read_only {
        let top = openat(mount, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        if files::is_empty(&top)? {
            beneath.apply(top.as_fd())?;
        }
    }
    Ok(())
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Makes `/` read-only, but not what is mounted below it.
pub(super) fn make_root_read_only() -> io::Result<()> {
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let root: BorrowedFd<'_> = root.as_fd();
    mount_setattr(root, attr::RDONLY)
}
