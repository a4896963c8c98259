//! What a client has sent and its command has not read yet: in memory up to a bound, beyond it in a file.
//!
//! russh grants a client new window as soon as data arrives and must never be kept waiting, so the data has to go
//! somewhere. The file is the supervisor's, has no name, and is shared by the channels of the connection in slots; its
//! bound ends the connection. Before it comes to that, two things keep the client back. [`Queues::window`] makes the windows
//! that are granted small, so that what lets our own output go on, and other channels, are not behind megabytes of data in
//! the same stream. [`Queues::pause`] slows that stream down: to a trickle, never to a stop, for the same reason.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::sync::Notify;

/// What one channel may keep in memory, and all together.
const MEMORY_EACH: usize = 1 << 20;
const MEMORY_ALL: usize = 32 << 20;

/// Data that came in small pieces is put together to pieces of this size, so that what is kept is about what was sent: one
/// byte alone would take sixty.
const PIECE: usize = 16 << 10;

/// The file is used in pieces of this size, up to this many: 1 GiB.
const SLOT: usize = 256 << 10;
const SLOT_LENGTH: i64 = 256 << 10;
const SLOTS: u64 = 4096;

/// From this much on the client is kept back; twice as much slows it down four times as much. At the bound of the file that
/// makes 128 kB/s, so that it takes an hour and more to get there.
const PAUSE_FROM: u64 = 64 << 20;
const PAUSE_UNIT: Duration = Duration::from_millis(2);

/// The window that a client is granted: in general, and when it is kept back. The first is large because russh's limit on
/// what may be pending during a key exchange is twice the window, for the whole connection (docs/russh.md).
pub(super) const WINDOW: u32 = 16 << 20;
const SMALL_WINDOW: u32 = 64 << 10;

/// The client has sent more than is kept for it.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("more data than is kept for commands that do not read")]
    Full,
    #[error("cannot use the spool file")]
    Spool(#[source] io::Error),
}

/// The queues of one connection.
pub(super) struct Queues {
    file: File,
    slots: Mutex<Slots>,
    waiting: AtomicU64,
    in_memory: AtomicUsize,
}

#[derive(Default)]
struct Slots {
    used: u64,
    free: Vec<u64>,
}

impl Queues {
    pub(super) fn new(spool: OwnedFd) -> Self {
        Self { file: spool.into(), slots: Mutex::default(), waiting: AtomicU64::new(0), in_memory: AtomicUsize::new(0) }
    }

    pub(super) fn queue(self: &Arc<Self>) -> Queue {
        Queue { all: self.clone(), inner: Mutex::default(), changed: Notify::new() }
    }

    /// How long to wait before more is read from the client.
    pub(super) fn pause(&self) -> Option<Duration> {
        let units = self.waiting.load(Ordering::Relaxed) / PAUSE_FROM;
        let factor = u32::try_from(units * units).unwrap_or(u32::MAX);
        (factor > 0).then(|| PAUSE_UNIT.saturating_mul(factor))
    }

    /// The window to grant from now on.
    pub(super) fn window(&self) -> u32 {
        if self.pause().is_some() { SMALL_WINDOW } else { WINDOW }
    }

    fn take_slot(&self) -> Result<u64, QueueError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.free.pop() {
            return Ok(slot);
        }
        if slots.used == SLOTS {
            return Err(QueueError::Full);
        }
        slots.used += 1;
        Ok(slots.used - 1)
    }

    fn free_slot(&self, slot: u64) {
        // A file system that cannot give the space back at once does when the file is closed.
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&self.file, flags, (slot * SLOT as u64).cast_signed(), SLOT_LENGTH);
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).free.push(slot);
    }
}

/// What one channel's command has not read.
pub(super) struct Queue {
    all: Arc<Queues>,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// The oldest data.
    memory: VecDeque<BytesMut>,
    memory_bytes: usize,
    /// The newer data: slots and how full each is. Only the last may still grow.
    spooled: VecDeque<(u64, usize)>,
    ended: bool,
    /// Nobody reads any more: what comes is dropped.
    discarding: bool,
}

impl Inner {
    fn keep(&mut self, data: &[u8]) {
        match self.memory.back_mut() {
            Some(last) if last.len() + data.len() <= PIECE => last.extend_from_slice(data),
            _ => self.memory.push_back(data.into()),
        }
    }

    fn bytes(&self) -> usize {
        self.memory_bytes + self.spooled.iter().map(|(_, length)| length).sum::<usize>()
    }
}

impl Queue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends data; never waits.
    pub(super) fn push(&self, data: &[u8]) -> Result<(), QueueError> {
        let mut inner = self.inner();
        if data.is_empty() || inner.discarding || inner.ended {
            return Ok(());
        }
        let all = self.all.in_memory.load(Ordering::Relaxed);
        let fits = inner.memory_bytes + data.len() <= MEMORY_EACH && all + data.len() <= MEMORY_ALL;
        if inner.spooled.is_empty() && fits {
            inner.keep(data);
            inner.memory_bytes += data.len();
            self.all.in_memory.fetch_add(data.len(), Ordering::Relaxed);
        } else {
            self.spool(&mut inner, data)?;
        }
        self.all.waiting.fetch_add(data.len() as u64, Ordering::Relaxed);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    fn spool(&self, inner: &mut Inner, mut data: &[u8]) -> Result<(), QueueError> {
        while !data.is_empty() {
            if inner.spooled.back().is_none_or(|(_, length)| *length == SLOT) {
                inner.spooled.push_back((self.all.take_slot()?, 0));
            }
            let Some((slot, length)) = inner.spooled.back_mut() else { return Err(QueueError::Full) };
            let (now, later) = data.split_at(data.len().min(SLOT - *length));
            let offset = *slot * SLOT as u64 + *length as u64;
            self.all.file.write_all_at(now, offset).map_err(QueueError::Spool)?;
            *length += now.len();
            data = later;
        }
        Ok(())
    }

    /// How many bytes are in it.
    pub(super) fn waiting(&self) -> usize {
        self.inner().bytes()
    }

    /// No more will come.
    pub(super) fn end(&self) {
        self.inner().ended = true;
        self.changed.notify_one();
    }

    /// Drops what is there and what will come.
    pub(super) fn discard(&self) {
        let mut inner = self.inner();
        inner.discarding = true;
        self.clear(&mut inner);
    }

    fn clear(&self, inner: &mut Inner) {
        self.all.waiting.fetch_sub(inner.bytes() as u64, Ordering::Relaxed);
        self.all.in_memory.fetch_sub(inner.memory_bytes, Ordering::Relaxed);
        inner.memory.clear();
        inner.memory_bytes = 0;
        for (slot, _) in inner.spooled.drain(..) {
            self.all.free_slot(slot);
        }
    }

    /// The oldest data, or `None` at the end. Waits for more. Cancelling loses nothing.
    pub(super) async fn pop(&self) -> Result<Option<Bytes>, QueueError> {
        loop {
            {
                let mut inner = self.inner();
                if let Some(data) = self.take(&mut inner)? {
                    return Ok(Some(data));
                }
                if inner.ended {
                    return Ok(None);
                }
            }
            self.changed.notified().await;
        }
    }

    fn take(&self, inner: &mut Inner) -> Result<Option<Bytes>, QueueError> {
        let data = match inner.memory.pop_front() {
            Some(data) => {
                inner.memory_bytes -= data.len();
                self.all.in_memory.fetch_sub(data.len(), Ordering::Relaxed);
                data.freeze()
            }
            None => {
                let Some((slot, length)) = inner.spooled.pop_front() else { return Ok(None) };
                let mut data = vec![0; length];
                let read = self.all.file.read_exact_at(&mut data, slot * SLOT as u64);
                self.all.free_slot(slot);
                read.map_err(QueueError::Spool)?;
                data.into()
            }
        };
        self.all.waiting.fetch_sub(data.len() as u64, Ordering::Relaxed);
        Ok(Some(data))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut inner = std::mem::take(self.inner.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.clear(&mut inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queues() -> Arc<Queues> {
        Arc::new(Queues::new(tempfile::tempfile().unwrap().into()))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn data_beyond_memory_comes_back_in_order_and_its_space_is_used_again() {
        let all = queues();
        let queue = all.queue();
        let pattern: Vec<u8> = (0..5_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        for _ in 0..3 {
            pattern.chunks(30_001).for_each(|chunk| queue.push(chunk).unwrap());
            let mut back = Vec::new();
            while back.len() < pattern.len() {
                back.extend(runtime().block_on(queue.pop()).unwrap().unwrap());
            }
            assert!(back == pattern);
        }
        assert!(all.slots.lock().unwrap().used <= 17);
        assert_eq!(all.waiting.load(Ordering::Relaxed), 0);
        queue.end();
        assert!(runtime().block_on(queue.pop()).unwrap().is_none());
    }

    #[test]
    fn data_in_small_pieces_takes_no_more_memory_than_in_large_ones() {
        let all = queues();
        let queue = all.queue();
        for _ in 0..MEMORY_EACH {
            queue.push(&[]).unwrap();
            queue.push(&[1]).unwrap();
        }
        let inner = queue.inner();
        assert_eq!((inner.memory_bytes, inner.spooled.len()), (MEMORY_EACH, 0));
        assert!(inner.memory.iter().map(BytesMut::capacity).sum::<usize>() <= 2 * MEMORY_EACH);
        assert_eq!(inner.memory.len(), MEMORY_EACH / PIECE);
    }

    #[test]
    fn the_bound_is_an_error_and_a_closed_channel_gives_its_space_back() {
        let all = queues();
        all.slots.lock().unwrap().used = SLOTS - 2;
        let queue = all.queue();
        queue.push(&vec![1; MEMORY_EACH]).unwrap();
        queue.push(&vec![2; 2 * SLOT]).unwrap();
        assert!(matches!(queue.push(&[3]), Err(QueueError::Full)));
        drop(queue);
        assert_eq!(all.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(all.slots.lock().unwrap().free.len(), 2);
    }

    #[test]
    fn many_channels_share_a_bounded_memory() {
        let all = queues();
        let channels: Vec<Queue> = (0..100).map(|_| all.queue()).collect();
        for (number, queue) in channels.iter().enumerate() {
            queue.push(&vec![number as u8; MEMORY_EACH]).unwrap();
        }
        assert!(all.in_memory.load(Ordering::Relaxed) <= MEMORY_ALL);
        for (number, queue) in channels.iter().enumerate() {
            let mut left = MEMORY_EACH;
            while left > 0 {
                let data = runtime().block_on(queue.pop()).unwrap().unwrap();
                assert!(data.iter().all(|byte| usize::from(*byte) == number));
                left -= data.len();
            }
        }
        assert_eq!(all.in_memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_socket_is_slowed_down_more_and_more() {
        let all = queues();
        let pause = |bytes| {
            all.waiting.store(bytes, Ordering::Relaxed);
            all.pause().map(|pause| pause.as_millis())
        };
        assert_eq!(pause(1 << 20), None);
        assert_eq!(pause(PAUSE_FROM), Some(2));
        assert_eq!(pause(PAUSE_FROM * 16), Some(512));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn nothing_is_lost_or_reordered(chunks in proptest::collection::vec((1usize..300_000, any::<bool>()), 1..40)) {
            let queue = queues().queue();
            let runtime = runtime();
            let (mut sent, mut received, mut counter) = (Vec::new(), Vec::new(), 0u8);
            for (length, read) in chunks {
                counter = counter.wrapping_add(1);
                queue.push(&vec![counter; length]).unwrap();
                sent.extend(std::iter::repeat_n(counter, length));
                if read {
                    received.extend(runtime.block_on(queue.pop()).unwrap().unwrap());
                }
            }
            queue.end();
            while let Some(data) = runtime.block_on(queue.pop()).unwrap() {
                received.extend(data);
            }
            prop_assert!(sent == received);
        }
    }
}
