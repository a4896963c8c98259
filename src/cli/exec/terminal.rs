//! Our terminal while a program inside has one of its own: keys go there as they are, and the window sizes are kept equal.

use std::{
    io::{self, IsTerminal, Stdin},
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::bail;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    termios::{InputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};

use crate::{protocol::Pty, sys::tty};

/// Signals that end us. They are waited for, so that our terminal is not left as it is now.
const ENDS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The opcode of IUTF8 (RFC 8160): a backspace takes a whole character away.
const IUTF8: u8 = 42;

/// Columns and rows where there is no window to be as large as.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// What a signal has said.
pub(super) enum Heard {
    Resized,
    End(i32),
}

/// Dropped, it leaves our terminal as it was.
pub(super) struct Terminal {
    /// Ours, if what is typed is passed on, and how it was.
    typed_on: Option<(Stdin, Termios)>,
    signals: SignalFd,
    is_raw: bool,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some((stdin, before)) = self.typed_on.as_ref().filter(|_| self.is_raw) {
            // Gone, perhaps, as after SIGHUP.
            let _ = tcsetattr(stdin, SetArg::TCSADRAIN, before);
        }
    }
}

impl Terminal {
    /// From here on this process hears the signals that are named here, and no others of them.
    ///
    /// # Errors
    /// There is nothing to type on.
    pub(super) fn new(interactive: bool) -> anyhow::Result<Self> {
        let stdin = io::stdin();
        if interactive && !stdin.is_terminal() {
            bail!("standard input is not a terminal; leave out --tty to pass it on to the program")
        }
        let typed_on = if interactive { Some((io::stdin(), tcgetattr(&stdin)?)) } else { None };
        let mut set = SigSet::empty();
        ENDS.into_iter().chain([Signal::SIGWINCH]).for_each(|signal| set.add(signal));
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { typed_on, signals, is_raw: false })
    }

    /// The terminal that the program is to have.
    pub(super) fn pty(&self) -> Pty {
        let (columns, rows, width_px, height_px) = size().unwrap_or((DEFAULT_SIZE.0, DEFAULT_SIZE.1, 0, 0));
        let utf8 = self.typed_on.as_ref().is_some_and(|(_, termios)| termios.input_flags.contains(InputFlags::IUTF8));
        let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
        Pty { term, columns, rows, width_px, height_px, modes: vec![(IUTF8, u32::from(utf8))] }
    }

    /// From now on keys are the program's, Ctrl-C among them.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        if let Some((stdin, before)) = &self.typed_on {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(stdin, SetArg::TCSADRAIN, &raw)?;
            self.is_raw = true;
        }
        Ok(())
    }

    /// Readable when there is something to hear.
    pub(super) fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    pub(super) fn hear(&self) -> io::Result<Option<Heard>> {
        let Some(said) = self.signals.read_signal()? else { return Ok(None) };
        let signal = said.ssi_signo.cast_signed();
        Ok(Some(if signal == Signal::SIGWINCH as i32 { Heard::Resized } else { Heard::End(signal) }))
    }
}

/// Makes the window of the program's terminal as large as ours.
pub(super) fn resize(leader: BorrowedFd<'_>) -> io::Result<()> {
    match size() {
        Some((columns, rows, width_px, height_px)) => tty::set_window_size(leader, columns, rows, width_px, height_px),
        None => Ok(()),
    }
}

/// That of our window, wherever it is.
fn size() -> Option<(u16, u16, u16, u16)> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let size = |fd: BorrowedFd<'_>| tty::window_size(fd).ok().filter(|size| size.0 > 0 && size.1 > 0);
    size(stdin.as_fd()).or_else(|| size(stdout.as_fd())).or_else(|| size(stderr.as_fd()))
}
