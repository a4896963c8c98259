//! The mounts that only the host's root can make, each handed over detached: the overlay, `/dev`, `/sys`.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, makedev, mkdirat, mknodat},
    unistd::{Gid, Uid, chdir, fchdir, fchown, fchownat, mkdir, symlinkat},
};

use crate::{
    protocol::{ContainerSpec, Volume, VolumeKind},
    sys::mount_api::{
        attr, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_setattr, mount_setattr_idmap, move_mount,
        open_tree_clone,
    },
};

/// The kernel takes one page of options; names of this length at most leave room for [`MAX_LAYERS`].
const MAX_LAYERS: usize = 128;

/// File systems of the kernel itself, which no session's directory is on.
const KERNEL_FILE_SYSTEMS: [&str; 24] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// Detaches what no container needs from this mount namespace, which must be private: each container starts with a copy
/// of the rest, and copies cost (reference: runtime.md, 2). `/proc` itself stays: it proves to the kernel that a
/// container may mount its own.
pub(super) fn make_lean() -> io::Result<()> {
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    let of_kernel = |line: &[u8]| {
        // ... the type is the first field after " - " (proc_pid_mountinfo(5)).
        let line = String::from_utf8_lossy(line).into_owned();
        let fs_type = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next().map(str::to_owned));
        fs_type.is_some_and(|fs_type| KERNEL_FILE_SYSTEMS.contains(&fs_type.as_str()))
    };
    let lines = mountinfo.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    for (line, point) in lines.clone().zip(super::listing::mount_points(&mountinfo)) {
        let needed = point == Path::new("/proc") || point == Path::new("/");
        if !needed && of_kernel(line) {
            match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Gone with the one it was on, or hidden below another one: then it does not matter either.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The private directory in which the overlay is put together, on a tmpfs that only the spawner sees.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Mount points.
    lower: PathBuf,
    disk: PathBuf,
    merged: PathBuf,
}

impl Scratch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        mount(
            Some("podspawn"),
            dir,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Some("mode=700,size=64k"),
        )?;
        let scratch = Self { lower: dir.join("lower"), disk: dir.join("disk"), merged: dir.join("merged") };
        mkdir(&scratch.lower, Mode::S_IRWXU)?;
        mkdir(&scratch.disk, Mode::S_IRWXU)?;
        mkdir(&scratch.merged, Mode::S_IRWXU)?;
        Ok(scratch)
    }

    /// Mounts the root file system of `spec`, whose container has the user namespace `userns`, and returns it detached.
    ///
    /// The lower layers keep the image's ids on disk and are shifted by one idmapped clone of the whole layer store; the
    /// upper directory is not idmapped and holds the container's ids as they are. It is on `disk`, a detached mount, if the
    /// container has one of its own.
    pub(super) fn overlay(
        &self,
        spec: &ContainerSpec,
        disk: Option<BorrowedFd<'_>>,
        userns: BorrowedFd<'_>,
    ) -> io::Result<OwnedFd> {
        let Some(disk) = disk else { return self.overlay_on(spec, Path::new("/"), userns) };
        // Before Linux 6.15 overlayfs takes no directory of a mount that is not in this namespace.
        move_mount(disk, open_directory(&self.disk)?.as_fd())?;
        let merged = self.overlay_on(spec, &self.disk, userns);
        // The overlay keeps the file system.
        let disk_gone = umount2(&self.disk, MntFlags::MNT_DETACH);
        let merged = merged?;
        disk_gone?;
        Ok(merged)
    }

    fn overlay_on(&self, spec: &ContainerSpec, disk: &Path, userns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let options = |upper: &OwnedFd, work: &OwnedFd| {
            // Through descriptors the paths are short, free of commas, and do not show inside the container.
            CString::new(format!(
                "lowerdir={},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{},\
                 redirect_dir=nofollow,metacopy=off,index=off,volatile",
                spec.layers.join(":"),
                upper.as_raw_fd(),
                work.as_raw_fd()
            ))
            .map_err(|_| invalid("a layer's name has a NUL byte"))
        };
        check_layers(&spec.layers)?;
        let layers = open_directory(&spec.layers_root)?;
        let upper = open_directory(&disk.join(&spec.upperdir))?;
        let work = open_directory(&disk.join(&spec.workdir))?;
        for dir in [&upper, &work] {
            let owner = fstat(dir)?.st_uid;
            if owner != spec.id_base {
                return Err(invalid(&format!("upper and work directory must belong to {}, not {owner}", spec.id_base)));
            }
        }
        let options = options(&upper, &work)?;

        let layers = open_tree_clone(layers.as_fd(), c"")?;
        mount_setattr_idmap(layers.as_fd(), attr::RDONLY | attr::NODEV | attr::NOSUID | attr::NOEXEC, userns)?;
        move_mount(layers.as_fd(), open_directory(&self.lower)?.as_fd())?;
        let merged = fchdir(&layers).map_err(Into::into).and_then(|()| self.attach_overlay(&options));
        // The overlay has clones of its own of what it needs.
        let lower_gone = chdir("/").and_then(|()| umount2(&self.lower, MntFlags::MNT_DETACH));
        let merged = merged?;
        lower_gone?;
        Ok(merged)
    }

    /// Mounts the overlay, clones it, and takes the mounted one away again.
    fn attach_overlay(&self, options: &CStr) -> io::Result<OwnedFd> {
        // mount(2), because fsconfig(2) takes at most 256 bytes of `lowerdir` before Linux 6.5; relative names, because
        // mount(2) takes one page of options.
        mount(Some("overlay"), &self.merged, Some("overlay"), MsFlags::MS_NODEV, Some(options))?;
        let merged = open_directory(&self.merged).and_then(|top| open_tree_clone(top.as_fd(), c""));
        let mounted_gone = umount2(&self.merged, MntFlags::MNT_DETACH);
        let merged = merged?;
        mounted_gone?;
        Ok(merged)
    }
}

/// Makes the detached mount of a volume what a container may have: with its ids, or with nothing of it its own.
pub(super) fn volume(mount: &OwnedFd, volume: &Volume, userns: BorrowedFd<'_>) -> io::Result<()> {
    let read_only = if volume.read_only { attr::RDONLY } else { 0 };
    if volume.kind == VolumeKind::Foreign {
        // Whoever in the container got the right to mount again what is read-only would still be nobody to these files.
        return mount_setattr(mount.as_fd(), attr::NODEV | attr::NOSUID | attr::NOEXEC | read_only);
    }
    mount_setattr_idmap(mount.as_fd(), attr::NODEV | attr::NOSUID | read_only, userns)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Layers are named in an option string in which `:`, `,` and `\` mean something.
fn check_layers(layers: &[String]) -> io::Result<()> {
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(invalid(&format!("an image has 1 to {MAX_LAYERS} layers, not {}", layers.len())));
    }
    for layer in layers {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        let inside = Path::new(layer).components().all(|part| matches!(part, Component::Normal(_)));
        if layer.is_empty() || !inside || !layer.bytes().all(plain) {
            return Err(invalid(&format!("{layer:?} is not the relative name of a layer")));
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", path.display())))
}

/// A small tmpfs with the usual nodes, links and mount points, owned by the container's ids. Only the host's root may
/// make device nodes.
pub(super) fn dev(id_base: u32) -> io::Result<OwnedFd> {
    const TTY: u32 = 5;
    let context = fsopen(c"tmpfs")?;
    for (key, value) in [(c"size", c"64k"), (c"nr_inodes", c"256"), (c"mode", c"755")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let dev = fsmount(context.as_fd(), attr::NOSUID | attr::NOEXEC)?;
    let (root, tty) = (Uid::from_raw(id_base), Gid::from_raw(id_base + TTY));
    let root_group = Gid::from_raw(id_base);
    let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;

    let nodes = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        let all = Mode::from_bits_truncate(0o666);
        mknodat(&dev, name, SFlag::S_IFCHR, all, makedev(major, minor))?;
        let group = if name == "tty" { tty } else { root_group };
        fchownat(&dev, name, Some(root), Some(group), no_follow)?;
        // The umask has cut the mode; fchmodat through the directory does not open the device.
        fchmodat(&dev, name, all, FchmodatFlags::FollowSymlink)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(&dev, name, Mode::from_bits_truncate(0o755))?;
        fchownat(&dev, name, Some(root), Some(root_group), no_follow)?;
    }
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlinkat(target, &dev, name)?;
        fchownat(&dev, name, Some(root), Some(root_group), no_follow)?;
    }
    let top = openat(&dev, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchown(&top, Some(root), Some(root_group))?;
    fchmod(&top, Mode::from_bits_truncate(0o755))?;
    Ok(dev)
}

/// A read-only sysfs that shows the network namespace which the caller is in.
pub(super) fn sysfs() -> io::Result<OwnedFd> {
    let context = fsopen(c"sysfs")?;
    fsconfig_create(context.as_fd())?;
    let sys = fsmount(context.as_fd(), attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    mount_setattr(sys.as_fd(), attr::RDONLY)?;
    Ok(sys)
}
