//! Pseudo-terminals of the container's own devpts, set up as the client's is (RFC 4254, 6.2 and 8).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use libc::tcflag_t;
use nix::{
    fcntl::{OFlag, openat},
    sys::{
        stat::{Mode, fchmod},
        termios::{SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr},
    },
    unistd::{Gid, Uid, fchown},
};

use crate::{protocol::Pty, sys::tty};

/// The group of terminals, as devpts is mounted with.
const TTY_GROUP: u32 = 5;

/// A value that means "no such character" in RFC 4254; the kernel says 0.
const NO_CHARACTER: u32 = 255;

/// A terminal: the leader is the client's, the follower the process's.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) leader: OwnedFd,
    pub(super) follower: OwnedFd,
    /// As seen inside the container.
    pub(super) path: String,
}

impl Terminal {
    /// Opens a terminal as `pty` describes it, owned by `uid`.
    ///
    /// # Errors
    /// `ENOSPC` if the container has as many as it may have.
    pub(super) fn open(devpts: BorrowedFd<'_>, pty: &Pty, uid: u32) -> io::Result<Self> {
        // The multiplexer of our own devpts by descriptor: what /dev/ptmx is, is the container's to say.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let leader = openat(devpts, "ptmx", flags, Mode::empty())?;
        let follower = tty::open_follower(leader.as_fd())?;
        fchown(&follower, Some(Uid::from_raw(uid)), Some(Gid::from_raw(TTY_GROUP)))?;
        fchmod(&follower, Mode::from_bits_truncate(0o620))?;
        tty::set_window_size(follower.as_fd(), pty.columns, pty.rows, pty.width_px, pty.height_px)?;
        let mut termios = tcgetattr(&follower)?;
        for &(opcode, value) in &pty.modes {
            apply(&mut termios, opcode, value);
        }
        tcsetattr(&follower, SetArg::TCSANOW, &termios)?;
        let path = format!("/dev/pts/{}", tty::number(leader.as_fd())?);
        Ok(Self { leader, follower, path })
    }
}

/// Applies one encoded terminal mode. Opcodes that we or Linux do not know are ignored, as the RFC demands.
fn apply(termios: &mut Termios, opcode: u8, value: u32) {
    let set = |flags: tcflag_t, flag: tcflag_t| if value == 0 { flags & !flag } else { flags | flag };
    if let Some(character) = character(opcode) {
        let value = if value == NO_CHARACTER { 0 } else { (value & 0xff) as u8 };
        termios.control_chars[character as usize] = value;
    } else if let Some(flag) = input_flag(opcode) {
        termios.input_flags = retain(set(termios.input_flags.bits(), flag));
    } else if let Some(flag) = local_flag(opcode) {
        termios.local_flags = retain(set(termios.local_flags.bits(), flag));
    } else if let Some(flag) = output_flag(opcode) {
        termios.output_flags = retain(set(termios.output_flags.bits(), flag));
    } else {
        match opcode {
            // Two bits that are one number: the flags say which of its values is meant.
            90 | 91 if value != 0 => {
                let size = if opcode == 90 { libc::CS7 } else { libc::CS8 };
                termios.control_flags = retain((termios.control_flags.bits() & !libc::CSIZE) | size);
            }
            92 => termios.control_flags = retain(set(termios.control_flags.bits(), libc::PARENB)),
            93 => termios.control_flags = retain(set(termios.control_flags.bits(), libc::PARODD)),
            // The input speed (128) is the output speed on Linux. Not by cfsetospeed(3), which the libc crate binds to a
            // symbol version that a static glibc does not have.
            129 => termios.control_flags = retain((termios.control_flags.bits() & !libc::CBAUD) | speed(value)),
            _ => {}
        }
    }
}

/// Flags of termios(3) that nix has no name for are flags all the same.
fn retain<F: nix_flags::Flags>(bits: tcflag_t) -> F {
    F::retain(bits)
}

mod nix_flags {
    use libc::tcflag_t;
    use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags};

    pub(super) trait Flags {
        fn retain(bits: tcflag_t) -> Self;
    }

    macro_rules! flags {
        ($($type:ty),*) => {$(
            impl Flags for $type {
                fn retain(bits: tcflag_t) -> Self {
                    Self::from_bits_retain(bits)
                }
            }
        )*};
    }
    flags!(ControlFlags, InputFlags, LocalFlags, OutputFlags);
}

fn character(opcode: u8) -> Option<SpecialCharacterIndices> {
    Some(match opcode {
        1 => SpecialCharacterIndices::VINTR,
        2 => SpecialCharacterIndices::VQUIT,
        3 => SpecialCharacterIndices::VERASE,
        4 => SpecialCharacterIndices::VKILL,
        5 => SpecialCharacterIndices::VEOF,
        6 => SpecialCharacterIndices::VEOL,
        7 => SpecialCharacterIndices::VEOL2,
        8 => SpecialCharacterIndices::VSTART,
        9 => SpecialCharacterIndices::VSTOP,
        10 => SpecialCharacterIndices::VSUSP,
        12 => SpecialCharacterIndices::VREPRINT,
        13 => SpecialCharacterIndices::VWERASE,
        14 => SpecialCharacterIndices::VLNEXT,
        16 => SpecialCharacterIndices::VSWTC,
        18 => SpecialCharacterIndices::VDISCARD,
        _ => return None,
    })
}

fn input_flag(opcode: u8) -> Option<tcflag_t> {
    Some(match opcode {
        30 => libc::IGNPAR,
        31 => libc::PARMRK,
        32 => libc::INPCK,
        33 => libc::ISTRIP,
        34 => libc::INLCR,
        35 => libc::IGNCR,
        36 => libc::ICRNL,
        37 => libc::IUCLC,
        38 => libc::IXON,
        39 => libc::IXANY,
        40 => libc::IXOFF,
        41 => libc::IMAXBEL,
        42 => libc::IUTF8,
        _ => return None,
    })
}

fn local_flag(opcode: u8) -> Option<tcflag_t> {
    Some(match opcode {
        50 => libc::ISIG,
        51 => libc::ICANON,
        52 => libc::XCASE,
        53 => libc::ECHO,
        54 => libc::ECHOE,
        55 => libc::ECHOK,
        56 => libc::ECHONL,
        57 => libc::NOFLSH,
        58 => libc::TOSTOP,
        59 => libc::IEXTEN,
        60 => libc::ECHOCTL,
        61 => libc::ECHOKE,
        62 => libc::PENDIN,
        _ => return None,
    })
}

fn output_flag(opcode: u8) -> Option<tcflag_t> {
    Some(match opcode {
        70 => libc::OPOST,
        71 => libc::OLCUC,
        72 => libc::ONLCR,
        73 => libc::OCRNL,
        74 => libc::ONOCR,
        75 => libc::ONLRET,
        _ => return None,
    })
}

/// The next speed that a terminal can be told, for bits per second. Nothing is slowed down by it.
fn speed(bits_per_second: u32) -> tcflag_t {
    match bits_per_second {
        0..1200 => libc::B300,
        1200..2400 => libc::B1200,
        2400..4800 => libc::B2400,
        4800..9600 => libc::B4800,
        9600..19_200 => libc::B9600,
        19_200..38_400 => libc::B19200,
        38_400..57_600 => libc::B38400,
        57_600..115_200 => libc::B57600,
        115_200..230_400 => libc::B115200,
        _ => libc::B230400,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::termios::{InputFlags, LocalFlags};

    use super::*;

    #[test]
    fn modes_reach_the_terminal() {
        let leader = std::fs::OpenOptions::new().read(true).write(true).open("/dev/pts/ptmx");
        let leader = leader.or_else(|_| std::fs::File::options().read(true).write(true).open("/dev/ptmx")).unwrap();
        let mut termios = tcgetattr(&leader).unwrap();
        for (opcode, value) in [(3, 8), (1, NO_CHARACTER), (53, 0), (42, 1), (36, 0), (129, 115_200), (250, 7), (0, 0)]
        {
            apply(&mut termios, opcode, value);
        }
        tcsetattr(&leader, SetArg::TCSANOW, &termios).unwrap();
        let termios = tcgetattr(&leader).unwrap();
        assert_eq!(termios.control_chars[SpecialCharacterIndices::VERASE as usize], 8);
        assert_eq!(termios.control_chars[SpecialCharacterIndices::VINTR as usize], 0);
        assert!(!termios.local_flags.contains(LocalFlags::ECHO));
        assert!(termios.input_flags.contains(InputFlags::IUTF8) && !termios.input_flags.contains(InputFlags::ICRNL));
    }
}
