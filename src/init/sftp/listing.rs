//! The line of `ls -l` that clients show to people (and some parse, for want of names in the attributes).

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::FileStat;

use super::names::Names;
use crate::sys::local_time::local_time;

/// OpenSSH's buffer, without its NUL.
const MAX_LINE: usize = 1023;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `drwxr-xr-x    5 markus   markus       1024 Jan 13 18:39 .ssh`, at most [`MAX_LINE`] bytes of it.
pub(super) fn long_name(name: &[u8], stat: &FileStat, names: &Names, now: i64) -> Vec<u8> {
    let mut line = format!("{} {:>3} ", mode_letters(stat.st_mode), stat.st_nlink as u32).into_bytes();
    for (name, id) in [(names.user(stat.st_uid), stat.st_uid), (names.group(stat.st_gid), stat.st_gid)] {
        let start = line.len();
        match name {
            Some(name) => line.extend_from_slice(name),
            None => line.extend(id.to_string().bytes()),
        }
        line.resize(line.len().max(start + 8), b' ');
        line.push(b' ');
    }
    line.extend(format!("{:>8} {} ", stat.st_size, date(stat.st_mtime, now)).bytes());
    line.extend_from_slice(name);
    line.truncate(MAX_LINE);
    line
}

/// Seconds since 1970, now.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// The time of day for the last half year, else the year.
fn date(seconds: i64, now: i64) -> String {
    const HALF_A_YEAR: i64 = 365 * 24 * 60 * 60 / 2;
    let Some(time) = local_time(seconds) else { return String::new() };
    let month = MONTHS[usize::from(time.month) % MONTHS.len()];
    if now - HALF_A_YEAR < seconds && seconds <= now {
        format!("{month} {:>2} {:02}:{:02}", time.day, time.hour, time.minute)
    } else {
        format!("{month} {:>2}  {}", time.day, time.year)
    }
}

/// Type and permissions as ls(1) has them, with the blank that follows (strmode(3)).
fn mode_letters(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFREG => '-',
        libc::S_IFLNK => 'l',
        libc::S_IFSOCK => 's',
        libc::S_IFIFO => 'p',
        _ => '?',
    };
    let mut letters = String::from(kind);
    for (shift, special, letter) in [(6, libc::S_ISUID, 's'), (3, libc::S_ISGID, 's'), (0, libc::S_ISVTX, 't')] {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    letters.push(' ');
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_in_ls() {
        for (mode, letters) in [
            (0o100_644, "-rw-r--r-- "),
            (0o040_755, "drwxr-xr-x "),
            (0o120_777, "lrwxrwxrwx "),
            (0o041_777, "drwxrwxrwt "),
            (0o041_776, "drwxrwxrwT "),
            (0o104_755, "-rwsr-xr-x "),
            (0o106_644, "-rwSr-Sr-- "),
            (0o010_600, "prw------- "),
            (0o140_600, "srw------- "),
            (0o020_666, "crw-rw-rw- "),
            (0o060_660, "brw-rw---- "),
            (0, "?--------- "),
        ] {
            assert_eq!(mode_letters(mode), letters, "{mode:o}");
        }
    }

    #[test]
    fn old_and_future_files_have_their_year() {
        let now = 1_700_000_000;
        for (seconds, has_year) in [(now, false), (now - 15_767_999, false), (now - 15_768_000, true), (now + 1, true)]
        {
            assert_eq!(!date(seconds, now).contains(':'), has_year, "{seconds}: {}", date(seconds, now));
        }
    }
}
