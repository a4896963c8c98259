//! Packets in and out of the stream: one buffer each way, of fixed size.
//!
//! Answers are collected while more requests are at hand, and sent before the server waits for the client: many small
//! ones share a write, and nobody waits for an answer that lies here.

use std::{
    fs::File,
    io::{self, Read, Write},
    ops::Range,
};

use super::{
    SftpError,
    reply::Status,
    request::{MAX_DATA, MAX_PACKET},
};

const LENGTH: usize = size_of::<u32>();

/// Room for two packets, so that the part of one that is at the end seldom has to be moved.
const IN: usize = 2 * (LENGTH + MAX_PACKET);

/// Answers are sent when there are this many bytes of them.
const ENOUGH: usize = 128 * 1024;

/// Room for the largest answer on top of almost enough.
const OUT: usize = ENOUGH + LENGTH + MAX_PACKET;

/// What the client sends.
#[derive(Debug)]
pub(super) struct Input<'s> {
    stream: &'s File,
    buffer: Box<[u8]>,
    /// Of the bytes that have not been taken.
    held: Range<usize>,
}

impl<'s> Input<'s> {
    pub(super) fn new(stream: &'s File) -> Self {
        Self { stream, buffer: vec![0; IN].into(), held: 0..0 }
    }

    /// Takes the next packet if all of it is here.
    ///
    /// # Errors
    /// [`SftpError::TooLong`] as soon as its length is known.
    pub(super) fn take(&mut self) -> Result<Option<Range<usize>>, SftpError> {
        let Some((length, rest)) = self.buffer[self.held.clone()].split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_PACKET {
            return Err(SftpError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.held.start + LENGTH;
        self.held.start = start + length;
        Ok(Some(start..self.held.start))
    }

    /// The bytes of a packet that was taken.
    pub(super) fn bytes(&self, packet: Range<usize>) -> &[u8] {
        &self.buffer[packet]
    }

    /// Waits for more bytes; `false` if there will be none.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        if self.held.is_empty() {
            self.held = 0..0;
        } else if IN - self.held.start < LENGTH + MAX_PACKET {
            let held = self.held.len();
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..held;
        }
        // There is room: what is held is less than a packet, and a whole one fits from where it starts.
        let read = loop {
            match self.stream.read(&mut self.buffer[self.held.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.held.end += read;
        Ok(read > 0)
    }
}

/// What the client gets.
#[derive(Debug)]
pub(super) struct Output<'s> {
    stream: &'s File,
    buffer: Box<[u8]>,
    used: usize,
}

impl<'s> Output<'s> {
    pub(super) fn new(stream: &'s File) -> Self {
        Self { stream, buffer: vec![0; OUT].into(), used: 0 }
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// [`SftpError::TooLong`] for one that the client would not accept; see [`fits`].
    pub(super) fn packet(&mut self, packet: &[u8]) -> Result<(), SftpError> {
        if !fits(packet) {
            return Err(SftpError::TooLong(packet.len()));
        }
        self.put(&(packet.len() as u32).to_be_bytes());
        self.put(packet);
        self.sent_enough()
    }

    /// Adds a packet with data of up to `length` bytes, which `read` puts in their place. Adds nothing if that fails.
    pub(super) fn data(
        &mut self,
        id: u32,
        length: u32,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Status>,
    ) -> Result<Result<(), Status>, SftpError> {
        const DATA: u8 = 103;
        const HEAD: usize = LENGTH + 1 + 4 + 4;
        let length = (length as usize).min(MAX_DATA);
        let place = &mut self.buffer[self.used + HEAD..][..length];
        let length = match read(place) {
            Ok(length) => length,
            Err(status) => return Ok(Err(status)),
        };
        self.put(&((HEAD - LENGTH + length) as u32).to_be_bytes());
        self.put(&[DATA]);
        self.put(&id.to_be_bytes());
        self.put(&(length as u32).to_be_bytes());
        self.used += length;
        self.sent_enough().map(Ok)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    /// Afterwards there is room for another packet.
    fn sent_enough(&mut self) -> Result<(), SftpError> {
        if self.used >= ENOUGH { self.flush() } else { Ok(()) }
    }

    /// Sends what there is.
    pub(super) fn flush(&mut self) -> Result<(), SftpError> {
        let used = std::mem::take(&mut self.used);
        self.stream.write_all(&self.buffer[..used]).map_err(SftpError::Stream)
    }
}

/// Whether a packet is not larger than clients accept.
pub(super) fn fits(packet: &[u8]) -> bool {
    packet.len() <= MAX_PACKET
}
