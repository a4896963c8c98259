//! What one image may take, counted while its layers are unpacked side by side.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicU64, Ordering},
};

/// The configured limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_bytes: u64,
    pub max_entries: u64,
}

/// What of it an image has taken so far.
#[derive(Debug)]
pub struct Budget {
    pub(super) limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
}

/// There is no more.
#[derive(Debug, thiserror::Error)]
#[error("the image is larger than it may be")]
pub struct Exceeded;

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Self { limits, bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts bytes: of archives as they are read, and holes of files, which an export would fill.
    pub fn take_bytes(&self, bytes: u64) -> Result<(), Exceeded> {
        take(&self.bytes, bytes, self.limits.max_bytes)
    }

    /// Counts files, directories and whatever else is in a file system.
    pub fn take_entries(&self, entries: u64) -> Result<(), Exceeded> {
        take(&self.entries, entries, self.limits.max_entries)
    }

    /// Whether so many bytes more would be too many.
    pub fn has_bytes(&self, bytes: u64) -> Result<(), Exceeded> {
        let taken = self.bytes.load(Ordering::Relaxed);
        if taken.saturating_add(bytes) > self.limits.max_bytes { Err(Exceeded) } else { Ok(()) }
    }
}

fn take(counter: &AtomicU64, amount: u64, limit: u64) -> Result<(), Exceeded> {
    // Amounts come from honest counting or are checked before: a sum of 2^64 is out of reach.
    let before = counter.fetch_add(amount, Ordering::Relaxed);
    if before.saturating_add(amount) > limit { Err(Exceeded) } else { Ok(()) }
}

/// Counts what is read.
pub(super) struct Metered<'a, R> {
    pub stream: R,
    pub budget: &'a Budget,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.budget.take_bytes(length as u64).map_err(io::Error::other)?;
        Ok(length)
    }
}
