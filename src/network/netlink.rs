//! One blocking netlink socket: requests out, answers in (netlink(7)).
//!
//! Knows framing, acknowledgements and dumps; what the messages mean is left to `link` (rtnetlink) and `nft`
//! (nfnetlink).

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

/// nlmsghdr: length, type, flags, sequence number, port.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Message types below this are the protocol's own (`NLMSG_MIN_TYPE`).
const FIRST_TYPE: u16 = 16;
/// How often a dump is begun anew because what it lists was changing. Each try is one pass over a small table.
const DUMP_TRIES: u32 = 10;
/// Seconds until a request is given up with EAGAIN. The kernel answers at once; an answer that is lost must not stop
/// all.
const ANSWER_TIMEOUT: i64 = 10;

/// One message without its header.
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) payload: Vec<u8>,
}

impl Request {
    /// A message that the kernel must answer with success or an error.
    pub(super) fn acknowledged(kind: u16, flags: u16, payload: Vec<u8>) -> Self {
        Self { kind, flags: flags | NLM_F_ACK, payload }
    }

    /// A message that is answered only if it fails.
    pub(super) fn silent(kind: u16, payload: Vec<u8>) -> Self {
        Self { kind, flags: 0, payload }
    }

    /// Whether the kernel ends its answer with an acknowledgement or an end-of-dump.
    fn is_answered(&self) -> bool {
        self.flags & NLM_F_ACK != 0 || self.flags & NLM_F_DUMP == NLM_F_DUMP
    }
}

/// What the kernel sent back, without its header.
pub(super) struct Answer {
    pub(super) kind: u16,
    pub(super) payload: Vec<u8>,
}

/// A netlink socket of the namespace that the opening thread was in; it stays there whatever that thread does later.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens a socket for `protocol`, one of [`netlink_sys::protocols`].
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Only the kernel (port 0) is heard: without this any local process could send us forged answers.
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all of `requests` in one datagram and waits until every one that asks for an acknowledgement has it.
    ///
    /// Returns what came besides acknowledgements.
    ///
    /// # Errors
    /// The first refusal, in the order the kernel tells them. Messages after it may have been carried out; only an
    /// nfnetlink batch is all or nothing.
    pub(super) fn call(&mut self, requests: &[Request]) -> Result<Vec<Answer>, Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(1024);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, request, self.sequence);
        }
        uninterrupted(|| self.socket.send(&datagram, 0))?;

        let mut waiting: Vec<bool> = requests.iter().map(Request::is_answered).collect();
        let mut answers = Vec::new();
        let mut refused = None;
        let mut interrupted = false;
        while waiting.contains(&true) {
            let (bytes, _) = uninterrupted(|| self.socket.recv_from_full())?;
            for frame in Frames(&bytes) {
                let index = frame.sequence.wrapping_sub(first) as usize;
                // Left over from a call that ended early; its caller has been told.
                let Some(pending) = waiting.get_mut(index) else { continue };
                interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                let errno = match frame.kind {
                    NLMSG_ERROR | NLMSG_DONE => frame.errno(),
                    kind if kind >= FIRST_TYPE => {
                        answers.push(Answer { kind, payload: frame.payload.to_vec() });
                        continue;
                    }
                    _ => continue,
                };
                let expected = std::mem::replace(pending, false);
                if let Some(errno) = errno {
                    refused.get_or_insert(errno);
                    if !expected {
                        // nfnetlink refuses a whole batch (no memory, no permission) through its first message, and
                        // then says nothing about the others.
                        waiting.fill(false);
                    }
                }
            }
        }
        match refused {
            Some(errno) => Err(errno),
            None if interrupted => Err(Errno::EINTR),
            None => Ok(answers),
        }
    }

    /// Lists what `kind` asks for, all of it seen at one moment.
    pub(super) fn dump(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Answer>, Errno> {
        let request = [Request { kind, flags: NLM_F_DUMP, payload: payload.to_vec() }];
        let mut tries = 1;
        loop {
            match self.call(&request) {
                Err(Errno::EINTR) if tries < DUMP_TRIES => tries += 1,
                other => return other,
            }
        }
    }
}

/// Repeats `call` for as long as signals interrupt it: with a time-out on the socket the kernel does not go on by itself
/// (signal(7)), and any thread of the supervisor may be the one to hear that a child has ended.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
}

/// Appends one message with its header, padded to four bytes.
fn append(datagram: &mut Vec<u8>, request: &Request, sequence: u32) {
    let length = u32::try_from(HEADER + request.payload.len()).unwrap_or(u32::MAX);
    datagram.extend(length.to_ne_bytes());
    datagram.extend(request.kind.to_ne_bytes());
    datagram.extend((request.flags | NLM_F_REQUEST).to_ne_bytes());
    datagram.extend(sequence.to_ne_bytes());
    datagram.extend(0u32.to_ne_bytes());
    datagram.extend(&request.payload);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

pub(super) struct Frame<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Frame<'_> {
    /// The errno of an error or end-of-dump message; `None` is success.
    fn errno(&self) -> Option<Errno> {
        let code = self.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        (code != 0).then(|| Errno::from_raw(code.saturating_neg()))
    }
}

/// The messages in a datagram. Ends at the first that does not fit.
pub(super) struct Frames<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let payload = self.0.get(HEADER..length)?;
        let frame = Frame { kind: half(4), flags: half(6), sequence: word(8), payload };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(frame)
    }
}

/// The attributes in a message, as type and value; the flags in the type are cut off. Ends at the first that does not
/// fit.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const TYPE: u16 = 0x3fff;
        let header: &[u8; 4] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A NUL-terminated string as the kernel sends it.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_and_padded() {
        let mut datagram = Vec::new();
        append(&mut datagram, &Request::silent(20, vec![1, 2, 3]), 7);
        append(&mut datagram, &Request::acknowledged(21, 0, vec![]), 8);
        assert_eq!(datagram.len(), 20 + 16);
        let frames: Vec<_> = Frames(&datagram).map(|f| (f.kind, f.flags, f.sequence, f.payload.to_vec())).collect();
        assert_eq!(frames, [(20, 1, 7, vec![1, 2, 3]), (21, 5, 8, vec![])]);
    }

    #[test]
    fn a_short_or_lying_datagram_ends_quietly() {
        for bytes in [&[][..], &[0; 15], &[0; 16], &[255; 32]] {
            assert_eq!(Frames(bytes).count(), 0, "{bytes:?}");
        }
    }
}
