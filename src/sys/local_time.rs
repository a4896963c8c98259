//! The time as people here tell it (localtime(3), mktime(3), tzset(3)), from the zone files of whatever root this process has.
#![allow(unsafe_code)]

use std::{ffi::CStr, io, mem::MaybeUninit};

use super::process::SingleThreaded;

/// A point in time in the local zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i64,
    /// January is 0.
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
}

/// `seconds` since 1970 in the local zone; `None` for years that have no number.
pub fn local_time(seconds: i64) -> Option<LocalTime> {
    let mut time = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to live places of the right type. It reads the environment, which only `set_zone` below
    // changes in this program, and that is called where there are no other threads.
    let filled = unsafe { libc::localtime_r(&raw const seconds, time.as_mut_ptr()) };
    if filled.is_null() {
        return None;
    }
    // SAFETY: not null means that all of it has been filled in.
    let time = unsafe { time.assume_init() };
    let small = |number: libc::c_int| u8::try_from(number).ok();
    Some(LocalTime {
        year: i64::from(time.tm_year) + 1900,
        month: small(time.tm_mon)?,
        day: small(time.tm_mday)?,
        hour: small(time.tm_hour)?,
        minute: small(time.tm_min)?,
    })
}

/// A date and a time of day in the local zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    pub year: u16,
    /// January is 1.
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// Seconds since 1970 of `time`, `None` if it was before. A time that a change of the clocks leaves out or repeats is one of
/// those that it may mean; a date that does not exist is the one as many days later.
pub fn mktime(time: WallTime) -> Option<u64> {
    // SAFETY: `tm` consists of integers and one pointer that mktime only writes, for all of which zeroes are valid.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    tm.tm_year = i32::from(time.year) - 1900;
    tm.tm_mon = i32::from(time.month) - 1;
    tm.tm_mday = i32::from(time.day);
    tm.tm_hour = i32::from(time.hour);
    tm.tm_min = i32::from(time.minute);
    tm.tm_sec = i32::from(time.second);
    // Let mktime find out whether it is summer time.
    tm.tm_isdst = -1;
    // SAFETY: `tm` is initialised and lives through the call. It reads the environment, as `local_time` does.
    u64::try_from(unsafe { libc::mktime(&raw mut tm) }).ok()
}

/// Makes `zone` (a value for `TZ`; `None` for what /etc/localtime says) the local one, reading its file anew.
pub fn set_zone(_proof: SingleThreaded, zone: Option<&CStr>) -> io::Result<()> {
    let result = match zone {
        // SAFETY: two C strings that outlive the call, which copies them; `_proof` rules out concurrent readers.
        Some(zone) => unsafe { libc::setenv(c"TZ".as_ptr(), zone.as_ptr(), 1) },
        // SAFETY: a C string; `_proof` rules out concurrent readers.
        None => unsafe { libc::unsetenv(c"TZ".as_ptr()) },
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    unsafe extern "C" {
        fn tzset(); // POSIX's, which the libc crate lacks for Linux
    }
    // SAFETY: takes nothing; the state that it changes is locked by libc, and `_proof` rules out other users anyway.
    unsafe { tzset() };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_time_is_near_utc() {
        let time = |year| WallTime { year, month: 6, day: 15, hour: 12, minute: 0, second: 0 };
        // No zone is further than 14 hours from UTC.
        let seconds = mktime(time(2030)).unwrap();
        assert!(seconds.abs_diff(1_907_755_200) <= 14 * 3600, "{seconds}");
        assert_eq!(mktime(time(1960)), None);
    }
}
