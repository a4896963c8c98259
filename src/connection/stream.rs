//! The client's TCP stream as russh reads and writes it: with deadlines, a read buffer, a brake, and without what may come
//! before SSH.

use std::{
    future::Future,
    io,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    inbound::Queues,
    preface::{Announced, Preface},
};
use crate::{protocol::SshSettings, sys::tcp};

/// How long a client has to close its side when we have closed ours. russh waits for it without an end, and asks for no more
/// signs of life.
const FAREWELL: Duration = Duration::from_secs(3);

/// russh reads packets in two small pieces each; this makes it one system call for many.
const BUFFER: usize = 64 << 10;

/// Says that the client has logged in: from then on the login deadline does not count.
#[derive(Clone, Default)]
pub(super) struct LoggedIn(Arc<AtomicBool>);

impl LoggedIn {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct Stream {
    tcp: TcpStream,
    queues: Arc<Queues>,
    logged_in: LoggedIn,
    login_deadline: Option<Pin<Box<Sleep>>>,
    buffer: Box<[u8]>,
    /// What of the buffer has been read from the socket and not been given on.
    filled: std::ops::Range<usize>,
    preface: Preface,
    pause: Option<Pin<Box<Sleep>>>,
    /// How long the client may take nothing of what is written, and when that has been too long.
    stall_limit: Option<Duration>,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Once our side is closed: until when the client's must be.
    farewell: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// What the client announces before it speaks SSH goes to `announced`.
    pub(super) fn new(
        tcp: TcpStream,
        queues: Arc<Queues>,
        announced: Announced,
        settings: &SshSettings,
    ) -> (Self, LoggedIn) {
        let logged_in = LoggedIn::default();
        let grace = Duration::from_millis(settings.login_grace_ms);
        let login_deadline = (!grace.is_zero()).then(|| Box::pin(sleep_until(Instant::now() + grace)));
        // A client that does not read cannot answer either: as long as it may leave requests for a sign of life open.
        let interval = Duration::from_millis(settings.client_alive_interval_ms);
        let stall_limit = (!interval.is_zero()).then(|| interval.saturating_mul(settings.client_alive_count_max + 1));
        let stream = Self {
            tcp,
            queues,
            logged_in: logged_in.clone(),
            login_deadline,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            filled: 0..0,
            preface: Preface::new(announced),
            pause: None,
            stall_limit,
            stalled: None,
            farewell: None,
        };
        (stream, logged_in)
    }

    fn fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let mut into = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.tcp).poll_read(context, &mut into))?;
        self.filled = 0..into.filled().len();
        if !self.logged_in.get() {
            // Until then the client waits for us at every step, and its small packets for our acknowledgements (Nagle).
            tcp::set_quickack(self.tcp.as_fd())?;
        }
        self.pause = self.queues.pause().map(|pause| Box::pin(sleep(pause)));
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.logged_in.get() {
            this.login_deadline = None;
        } else if let Some(deadline) = &mut this.login_deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the login took too long")));
        }
        if let Some(farewell) = &mut this.farewell
            && farewell.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stays after the end")));
        }
        while this.filled.is_empty() {
            ready!(this.fill(context))?;
            if this.filled.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let taken = this.preface.take(&this.buffer[this.filled.clone()]).map_err(io::Error::other)?;
            this.filled.start += taken;
        }
        let length = this.filled.len().min(out.remaining());
        out.put_slice(&this.buffer[this.filled.start..this.filled.start + length]);
        this.filled.start += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.tcp).poll_write(context, data) {
            Poll::Ready(result) => {
                this.stalled = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Some(limit) = this.stall_limit else { return Poll::Pending };
                let stalled = this.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(stalled.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client has stopped reading")))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.farewell.get_or_insert_with(|| Box::pin(sleep(FAREWELL)));
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}
