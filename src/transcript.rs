//! Output on its way to readers of which some may be slow or come late.
//!
//! The latest part is kept, and who has not read what was before it is told that something is missing. Nobody waits for a
//! reader.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

/// What a reader gets instead of what is not kept any more.
const GAP: &[u8] = b"[...]\n";

/// Something that is being said. Its end is told by [`Transcript::close`], or when nobody can say anything any more.
#[derive(Debug, Clone)]
pub struct Transcript(Arc<Writer>);

#[derive(Debug)]
struct Writer {
    said: Arc<Mutex<Said>>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Said {
    pieces: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    length: usize,
    /// Of all pieces together.
    limit: usize,
    closed: bool,
}

/// Somebody who follows a transcript from its beginning.
#[derive(Debug)]
pub struct Reader {
    said: Arc<Mutex<Said>>,
    changed: watch::Receiver<()>,
    next: u64,
}

impl Transcript {
    /// Keeps the last `limit` bytes, or one piece if that is longer.
    pub fn new(limit: usize) -> Self {
        let said = Said { pieces: VecDeque::new(), first: 0, length: 0, limit, closed: false };
        Self(Arc::new(Writer { said: Arc::new(Mutex::new(said)), changed: watch::Sender::new(()) }))
    }

    pub fn push(&self, piece: Bytes) {
        let mut said = lock(&self.0.said);
        said.length += piece.len();
        said.pieces.push_back(piece);
        while said.length > said.limit && said.pieces.len() > 1 {
            let dropped = said.pieces.pop_front().map_or(0, |piece| piece.len());
            said.length -= dropped;
            said.first += 1;
        }
        drop(said);
        self.0.changed.send_replace(());
    }

    /// Nothing more will be said.
    pub fn close(&self) {
        lock(&self.0.said).closed = true;
        self.0.changed.send_replace(());
    }

    pub fn reader(&self) -> Reader {
        Reader { said: self.0.said.clone(), changed: self.0.changed.subscribe(), next: 0 }
    }
}

impl Reader {
    /// The next piece, if it is there already.
    pub fn try_next(&mut self) -> Option<Bytes> {
        let said = lock(&self.said);
        if self.next < said.first {
            self.next = said.first;
            return Some(Bytes::from_static(GAP));
        }
        let index = usize::try_from(self.next - said.first).ok()?;
        let piece = said.pieces.get(index)?.clone();
        self.next += 1;
        Some(piece)
    }

    /// Waits for the next piece; `None` at the end. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.mark_unchanged();
            if let Some(piece) = self.try_next() {
                return Some(piece);
            }
            if lock(&self.said).closed || self.changed.changed().await.is_err() {
                // What was said last may have come after the look above.
                return self.try_next();
            }
        }
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    // Consistent after each statement but for the counted length, which only decides how much is kept.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &mut Reader) -> String {
        std::iter::from_fn(|| reader.try_next()).map(|piece| String::from_utf8_lossy(&piece).into_owned()).collect()
    }

    #[test]
    fn readers_get_everything_that_is_kept_and_hear_of_the_rest() {
        let transcript = Transcript::new(10);
        let mut early = transcript.reader();
        transcript.push(Bytes::from_static(b"one\n"));
        transcript.push(Bytes::from_static(b"two\n"));
        assert_eq!(all(&mut early), "one\ntwo\n");
        transcript.push(Bytes::from_static(b"three\n"));
        assert_eq!(all(&mut early), "three\n");
        assert_eq!(all(&mut transcript.reader()), "[...]\ntwo\nthree\n");
        transcript.push(Bytes::from_static(b"longer than the limit\n"));
        transcript.push(Bytes::from_static(b"x\n"));
        assert_eq!(all(&mut early), "[...]\nx\n");
    }

    #[tokio::test]
    async fn a_reader_waits_until_the_end() {
        let transcript = Transcript::new(100);
        let mut reader = transcript.reader();
        let read = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Some(piece) = reader.next().await {
                read.extend_from_slice(&piece);
            }
            read
        });
        tokio::task::yield_now().await;
        transcript.push(Bytes::from_static(b"a"));
        tokio::task::yield_now().await;
        transcript.push(Bytes::from_static(b"b"));
        transcript.close();
        assert_eq!(read.await.unwrap(), b"ab");

        let dropped = Transcript::new(100);
        let mut reader = dropped.reader();
        dropped.push(Bytes::from_static(b"last"));
        drop(dropped);
        assert_eq!(reader.next().await.as_deref(), Some(&b"last"[..]));
        assert_eq!(reader.next().await, None);
    }
}
