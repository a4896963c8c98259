//! A blob that is being downloaded. When the connection breaks, it goes on where it was, perhaps from another server: the
//! digest says that it is the same everywhere.

use std::{
    io::{self, Read},
    thread,
    time::{Duration, Instant},
};

use ureq::http::{StatusCode, header};

use super::{
    Registry,
    host::{ATTEMPTS, Host},
};
use crate::{
    http::Answer,
    image::{Digest, ImageError},
};

/// How often a blob is asked for in all, so that a server that sends a little each time does not keep us for ever.
const MAX_CONNECTIONS: u32 = 100;

/// Bytes per second below which a server is as good as gone.
const MIN_RATE: u64 = 1024;

/// What a connection has to bring to be more than another failure.
const MIN_PROGRESS: u64 = 64 << 10;

pub(super) struct Blob<'a> {
    registry: &'a Registry,
    /// The server that is asked.
    pub place: usize,
    digest: Digest,
    size: u64,
    offset: u64,
    stream: Option<Box<dyn Read + Send>>,
    /// What comes again from a server that does not know ranges.
    known: u64,
    /// What this connection has brought.
    brought: u64,
    /// In a row, without much in between.
    failures: u32,
    connections: u32,
    /// What has come in the last while, and how long that was waited for.
    pace: (u64, Duration),
}

impl<'a> Blob<'a> {
    pub(super) fn new(registry: &'a Registry, place: usize, digest: Digest, size: u64) -> Self {
        Self {
            registry,
            place,
            digest,
            size,
            offset: 0,
            stream: None,
            known: 0,
            brought: 0,
            failures: 0,
            connections: 0,
            pace: (0, Duration::ZERO),
        }
    }

    fn host(&self) -> &'a Host {
        &self.registry.hosts[self.place]
    }

    /// Asks for what is missing.
    pub(super) fn connect(&mut self) -> Result<(), ImageError> {
        self.connections += 1;
        (self.pace, self.known, self.brought) = ((0, Duration::ZERO), 0, 0);
        let host = self.host();
        let url = format!("{}/blobs/{}", host.base, self.digest);
        let range = format!("bytes={}-", self.offset);
        let headers: &[(&str, &str)] = if self.offset > 0 { &[("Range", &range)] } else { &[] };
        let what = format!("layer {}", self.digest);
        let answer = host.get(&url, Answer::Blob, headers, &what)?;
        let status = answer.status();
        let resumed = answer.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let resumed = resumed.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.offset)));
        match status {
            StatusCode::OK => self.known = self.offset,
            StatusCode::PARTIAL_CONTENT if resumed => {}
            StatusCode::PARTIAL_CONTENT => {
                return Err(ImageError::Source(
                    what,
                    io::Error::other("the server sends another part than was asked for"),
                ));
            }
            StatusCode::NOT_FOUND => return Err(ImageError::NotFound(format!("{what} of {}", self.registry.name))),
            status => return Err(host.unexpected(status, &what)),
        }
        self.stream = Some(Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader()));
        Ok(())
    }

    /// Reads on; what is known already is dropped.
    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let dropped = usize::try_from(self.known).unwrap_or(usize::MAX);
            let wanted = if dropped == 0 { buffer.len() } else { dropped.min(buffer.len()) };
            let length = self.read_paced(&mut buffer[..wanted])?;
            if self.known == 0 {
                self.brought += length as u64;
                if self.brought >= MIN_PROGRESS {
                    self.failures = 0;
                }
                return Ok(length);
            }
            self.known -= length as u64;
        }
    }

    fn read_paced(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let start = Instant::now();
        let length = stream.read(buffer)?;
        if length == 0 && (self.offset < self.size || self.known > 0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (bytes, waited) = &mut self.pace;
        *bytes += length as u64;
        *waited += start.elapsed();
        let limit = self.registry.stall;
        if *waited > limit {
            if u128::from(*bytes) * 1000 < u128::from(MIN_RATE) * limit.as_millis() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server hardly sends anything"));
            }
            self.pace = (0, Duration::ZERO);
        }
        Ok(length)
    }

    /// Gets ready for another attempt. Returns the error if there is to be none.
    fn recover(&mut self, error: io::Error, again: bool) -> io::Result<()> {
        self.stream = None;
        self.failures += 1;
        if self.connections >= MAX_CONNECTIONS {
            return Err(error);
        }
        if again && self.failures < ATTEMPTS {
            thread::sleep(self.host().pause(self.failures));
            return Ok(());
        }
        if self.place + 1 == self.registry.hosts.len() {
            // Whoever asks again gets the same answer.
            self.connections = MAX_CONNECTIONS;
            return Err(error);
        }
        self.place += 1;
        self.failures = 0;
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || (self.offset == self.size && self.stream.is_none()) {
            return Ok(0);
        }
        loop {
            if self.stream.is_none() {
                if self.connections >= MAX_CONNECTIONS {
                    return Err(io::Error::other("the server has failed too often"));
                }
                if let Err(error) = self.connect() {
                    // Asking has its own attempts. Unless it was answered badly, another server is next.
                    let again = matches!(error, ImageError::Source(..));
                    self.recover(io::Error::other(error), again)?;
                    continue;
                }
            }
            match self.read_some(buffer) {
                Ok(length) => {
                    self.offset += length as u64;
                    return Ok(length);
                }
                // All is there; whether there is more does not matter then.
                Err(_) if self.offset == self.size => {
                    self.stream = None;
                    return Ok(0);
                }
                Err(error) => self.recover(error, true)?,
            }
        }
    }
}
