//! Calls by which a process gives something up for good: seccomp(2), keyctl(2).
#![allow(unsafe_code)]

use std::{io, ptr};

/// One instruction of a classic BPF program.
pub type Instruction = libc::sock_filter;

/// Puts `program` in front of every later system call of this process and its children.
///
/// Needs `no_new_privs`, or CAP_SYS_ADMIN in the user namespace.
pub fn seccomp_set_filter(program: &[Instruction]) -> io::Result<()> {
    let Ok(len) = u16::try_from(program.len()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure points to `len` instructions, which outlive the call; the kernel copies and never writes them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves the inherited session keyring for a new, empty one without a name.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let name: *const libc::c_char = ptr::null();
    // SAFETY: a null name is allowed and means an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
