//! The descriptor-based mount calls: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{c_char, c_int, c_long, c_uint};

// From linux/mount.h; libc has them for Android only.
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;

/// Attributes of a mount, to be or-ed: `MOUNT_ATTR_*` of mount_setattr(2).
pub mod attr {
    pub const RDONLY: u64 = 0x01;
    pub const NOSUID: u64 = 0x02;
    pub const NODEV: u64 = 0x04;
    pub const NOEXEC: u64 = 0x08;
    pub(super) const IDMAP: u64 = 0x0010_0000;
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: a successful call has just returned this new descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a configuration context for a file system of type `name`.
pub fn fsopen(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string that outlives the call.
    own(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(context: BorrowedFd<'_>, command: c_uint, key: *const c_char, value: *const c_char) -> io::Result<()> {
    let aux: c_int = 0;
    // SAFETY: `key` and `value` are null or C strings that the callers below keep alive during the call, as `command`
    // demands; the kernel only reads them.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, aux) }).map(drop)
}

/// Sets the option `key` to `value`.
pub fn fsconfig_set_string(context: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    fsconfig(context, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())
}

/// Sets the option `key`, which takes no value.
pub fn fsconfig_set_flag(context: BorrowedFd<'_>, key: &CStr) -> io::Result<()> {
    fsconfig(context, FSCONFIG_SET_FLAG, key.as_ptr(), ptr::null())
}

/// Makes the superblock.
pub fn fsconfig_create(context: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(context, FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())
}

/// Makes a mount of the created superblock that is attached nowhere; `attributes` as in [`attr`].
pub fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain integers only.
    own(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
}

/// Clones the one mount that `dir`/`path` is on, as it is seen from there, attached nowhere. An empty `path` means `dir`.
pub fn open_tree_clone(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC.cast_unsigned()
        | (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW).cast_unsigned();
    // SAFETY: `path` is a C string that outlives the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached mount `from` on top of `target`.
pub fn move_mount(from: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let empty = c"".as_ptr();
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the path is a static C string.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), empty, target.as_raw_fd(), empty, flags) })
        .map(drop)
}

/// Adds `attributes` to the one mount that `mount` is the root of.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    setattr(mount, 0, &MountAttr { set: attributes, clear: 0, propagation: 0, userns_fd: 0 })
}

/// Adds `attributes` to the mount that `mount` is the root of and to all that are below it.
pub fn mount_setattr_recursive(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    setattr(mount, libc::AT_RECURSIVE, &MountAttr { set: attributes, clear: 0, propagation: 0, userns_fd: 0 })
}

/// Adds `attributes` to the detached mount `mount`, and maps its ids by the user namespace `userns`.
pub fn mount_setattr_idmap(mount: BorrowedFd<'_>, attributes: u64, userns: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::from(userns.as_raw_fd().cast_unsigned());
    setattr(mount, 0, &MountAttr { set: attributes | attr::IDMAP, clear: 0, propagation: 0, userns_fd })
}

fn setattr(mount: BorrowedFd<'_>, flags: c_int, attributes: &MountAttr) -> io::Result<()> {
    let flags = flags | libc::AT_EMPTY_PATH;
    // SAFETY: path and structure outlive the call, and the structure's size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
