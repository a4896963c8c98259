//! Loop devices: files as block devices (loop(4), linux/loop.h).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses, made if there is none. Somebody else may be faster to use it. `control` is
/// `/dev/loop-control`.
pub fn get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches the file `backing` to the loop device `device`, with blocks of `block_size` bytes and past the page cache where
/// its file system can that. It is detached when nobody has the device open or mounted.
///
/// # Errors
/// `EBUSY` if somebody else has the device meanwhile. Needs Linux 5.8.
pub fn configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, block_size: u32) -> io::Result<()> {
    let config = LoopConfig {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size,
        info: LoopInfo { flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, ..LoopInfo::EMPTY },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config`, whose layout this has and which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Device and inode number of the file that is attached to `device`, as stat(2) tells them.
///
/// # Errors
/// `ENXIO` if none is, or not any more.
pub fn backing(device: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: the kernel writes one `struct loop_info64`, whose layout this has; any bytes are valid for its fields.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((info.device, info.inode)) }
}
