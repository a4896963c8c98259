//! Layers that are worked on side by side, until all are done or one has failed.

use std::{
    io::{self, Read, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{Digest, Progress, Store};
use crate::http::Interrupted;

/// Layers that are worked on at once: (un)packing needs a core each.
const WORKERS: usize = 4;

/// Does `work` for all items, begun in this order; what comes of them is in the same order. Once one has failed `stop` is
/// set, which tells the others that they are not needed any more, and the error is returned.
pub(super) fn all<T: Sync, R: Send, E: Send>(
    items: &[T],
    stop: &AtomicBool,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let first_error = Mutex::new(None);
    let work_on = || {
        while !stop.load(Ordering::Relaxed) {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(place) else { break };
            match work(item) {
                Ok(result) => done.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(result),
                Err(error) => {
                    // Those that are stopped by it fail too, but later.
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        for _ in 1..items.len().min(WORKERS).min(cores.max(2)) {
            scope.spawn(work_on);
        }
        work_on();
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()),
    }
}

/// A stream that ends with an error once the work is to stop.
pub(super) struct Stoppable<'a, S> {
    pub stream: S,
    pub store: &'a Store,
    pub stop: &'a AtomicBool,
}

impl<S> Stoppable<'_, S> {
    fn check(&self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) || self.store.is_cancelled() {
            return Err(io::Error::other(Interrupted));
        }
        Ok(())
    }
}

impl<S: Read> Read for Stoppable<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(buffer)
    }
}

impl<S: Write> Write for Stoppable<'_, S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Passes on how much of a layer has come by. Ends with an error once nobody waits for it.
pub(super) struct Reporting<'a, R> {
    pub stream: R,
    pub layer: &'a Digest,
    pub progress: &'a dyn Progress,
}

impl<R: Read> Read for Reporting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_unwanted() {
            return Err(io::Error::other(Interrupted));
        }
        let length = self.stream.read(buffer)?;
        self.progress.advance(self.layer, length as u64);
        Ok(length)
    }
}
