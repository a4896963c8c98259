//! Bodies that go on for as long as it takes, between the async side and threads that may block.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use serde::Serialize;
use tokio::sync::mpsc;

/// Pieces of a body that wait for the other side.
const PIECES: usize = 8;

/// How much of a body that nobody wants to read is read nevertheless, and for how long.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// An answer of JSON values, each on a line, until all senders are gone.
pub(super) fn lines(values: impl Values) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(values))).into_response()
}

/// Where they come from.
pub(super) trait Values: Send + Unpin + 'static {
    type Value: Serialize;
    fn poll_value(&mut self, context: &mut task::Context<'_>) -> Poll<Option<Self::Value>>;
}

impl<T: Serialize + Send + 'static> Values for mpsc::Receiver<T> {
    type Value = T;

    fn poll_value(&mut self, context: &mut task::Context<'_>) -> Poll<Option<T>> {
        self.poll_recv(context)
    }
}

impl<T: Serialize + Send + 'static> Values for mpsc::UnboundedReceiver<T> {
    type Value = T;

    fn poll_value(&mut self, context: &mut task::Context<'_>) -> Poll<Option<T>> {
        self.poll_recv(context)
    }
}

struct Lines<V>(V);

impl<V: Values> hyper::body::Body for Lines<V> {
    type Data = Bytes;
    type Error = serde_json::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, serde_json::Error>>> {
        let line = |value: V::Value| {
            let mut line = serde_json::to_vec(&value)?;
            line.push(b'\n');
            Ok(Frame::data(Bytes::from(line)))
        };
        self.0.poll_value(context).map(|value| value.map(line))
    }
}

/// Where a thread writes an answer's body to. Writing fails when the client has gone.
pub struct BodyWriter(mpsc::Sender<io::Result<Bytes>>);

/// The body that is written; an error cuts it off, which the client notices.
pub struct Written(mpsc::Receiver<io::Result<Bytes>>);

/// Both ends of a body.
pub fn written() -> (BodyWriter, Written) {
    let (to, pieces) = mpsc::channel(PIECES);
    (BodyWriter(to), Written(pieces))
}

impl BodyWriter {
    /// Lets the body end as what is cut off.
    pub fn fail(self, error: io::Error) {
        // The client may have gone.
        let _ = self.0.blocking_send(Err(error));
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl hyper::body::Body for Written {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Where a thread reads a request's body from. One that was cut off ends with an error.
pub struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
}

enum Piece {
    Data(Bytes),
    End,
}

/// What fills a [`BodyReader`].
pub(super) struct Pump {
    body: Body,
    to: mpsc::Sender<Piece>,
}

/// A reader of `body`, and what has to run for it.
pub(super) fn read(body: Body) -> (BodyReader, Pump) {
    let (to, pieces) = mpsc::channel(PIECES);
    (BodyReader { pieces, rest: Bytes::new(), ended: false }, Pump { body, to })
}

impl Pump {
    /// Runs until the body is at its end or cut off. Dropped, it cuts the body off. What is left when nobody wants to read more
    /// is thrown away, as far as that is not too much: a client that is still sending might not see the answer.
    pub(super) async fn run(mut self) {
        while let Some(frame) = self.body.frame().await {
            let Ok(frame) = frame else { return };
            if let Ok(data) = frame.into_data()
                && self.to.send(Piece::Data(data)).await.is_err()
            {
                // A client that takes longer has waited long enough.
                let _ = tokio::time::timeout(DRAIN_LIMIT, drain(self.body)).await;
                return;
            }
        }
        // A reader that is gone needs no end.
        let _ = self.to.send(Piece::End).await;
    }
}

async fn drain(mut body: Body) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(less) => left = less,
            None => return,
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.rest = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client has gone")),
            }
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_to_its_end_and_one_that_is_cut_off_is_an_error() {
        let (mut reader, pump) = read(Body::from("some bytes"));
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        pump.run().await;
        assert_eq!(reading.await.unwrap().unwrap(), "some bytes");

        let (mut reader, pump) = read(Body::from("more"));
        drop(pump);
        let reading = tokio::task::spawn_blocking(move || reader.read(&mut [0; 4]));
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn who_writes_to_a_client_that_has_gone_is_told() {
        let (mut writer, body) = written();
        let writing = tokio::task::spawn_blocking(move || writer.write_all(b"one").map(|()| writer));
        let mut writer = writing.await.unwrap().unwrap();
        drop(body);
        let writing = tokio::task::spawn_blocking(move || writer.write(b"two"));
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_fails_while_it_is_written_does_not_look_complete() {
        let (mut writer, body) = written();
        let writing = tokio::task::spawn_blocking(move || {
            writer.write_all(b"one").unwrap();
            writer.fail(io::Error::other("no more"));
        });
        let collected = Body::new(body).collect().await;
        writing.await.unwrap();
        assert!(collected.is_err());
    }
}
