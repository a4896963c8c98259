//! Keeping secrets out of swap and of core dumps: mlock(2), madvise(2).
#![allow(unsafe_code)]

use std::io;

/// Locks the pages that `values` are on into memory and leaves them out of core dumps, for as long as the process lives.
///
/// # Errors
/// `ENOMEM` or `EPERM` beyond RLIMIT_MEMLOCK.
pub fn keep_secret<T>(values: &[T]) -> io::Result<()> {
    // SAFETY: sysconf has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let start = values.as_ptr().addr() / page * page;
    let length = (values.as_ptr().addr() + size_of_val(values)).next_multiple_of(page) - start;
    let start = values.as_ptr().with_addr(start).cast::<libc::c_void>().cast_mut();
    // SAFETY: the range covers pages of a live slice and no others, and locking changes no contents.
    if unsafe { libc::mlock(start, length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; MADV_DONTDUMP changes what a core dump has, and no contents.
    if unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
