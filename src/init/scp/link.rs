//! The two streams to the peer, with the protocol's agreeing and complaining.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

/// The longest line that a peer may send.
const MAX_LINE: u64 = 2047;

/// It is over: the peer is gone, has given up, or was told why we do.
#[derive(Debug)]
pub(super) struct Stop;

/// A write or read that failed: the peer is gone.
impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self
    }
}

pub(super) struct Link<R: Read, W: Write> {
    input: BufReader<R>,
    output: BufWriter<W>,
    verbose: bool,
    failed: bool,
}

impl<R: Read, W: Write> Link<R, W> {
    pub(super) fn new(input: R, output: W, verbose: bool) -> Self {
        Self {
            input: BufReader::with_capacity(64 * 1024, input),
            output: BufWriter::with_capacity(64 * 1024, output),
            verbose,
            failed: false,
        }
    }

    /// Whether anything went wrong on either side.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Sends what must be answered, or more of a file.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        Ok(self.output.write_all(bytes)?)
    }

    pub(super) fn agree(&mut self) -> Result<(), Stop> {
        self.output.write_all(&[0])?;
        Ok(self.output.flush()?)
    }

    /// Tells the peer what went wrong; it goes on.
    pub(super) fn complain(&mut self, message: &[u8]) -> Result<(), Stop> {
        self.failed = true;
        self.output.write_all(&[b"\x01scp: ", message, b"\n"].concat())?;
        Ok(self.output.flush()?)
    }

    /// Waits for the peer's answer: whether it agrees. Its complaints are for its own user.
    pub(super) fn answer(&mut self) -> Result<bool, Stop> {
        self.output.flush()?;
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        if byte == [0] {
            return Ok(true);
        }
        self.failed = true;
        self.line()?;
        if byte == [1] { Ok(false) } else { Err(Stop) }
    }

    /// The next line without its end, or with a missing one if it is longer than lines are; `None` at the end of input.
    pub(super) fn line(&mut self) -> Result<Option<Vec<u8>>, Stop> {
        let mut line = Vec::new();
        self.input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.is_empty() {
            return Ok(None);
        } else if (line.len() as u64) < MAX_LINE {
            self.complain(b"protocol error: lost connection")?;
            return Err(Stop);
        }
        Ok(Some(line))
    }

    /// Reads exactly as much as `buffer` holds.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Stop> {
        if let Err(error) = self.input.read_exact(buffer) {
            self.complain(match error.kind() {
                io::ErrorKind::UnexpectedEof => b"dropped connection",
                _ => b"cannot read",
            })?;
            return Err(Stop);
        }
        Ok(())
    }

    /// Shows the user what is being done, if that was asked for.
    pub(super) fn tell(&self, what: &str, line: &[u8]) {
        if self.verbose {
            // Only remarks; the transfer goes on if nobody can read them.
            if let Err(_unread) = io::stderr().write_all(&[what.as_bytes(), b": ", line, b"\n"].concat()) {}
        }
    }
}
