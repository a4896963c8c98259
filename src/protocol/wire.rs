//! How messages travel: one MessagePack value per `SOCK_SEQPACKET` datagram, descriptors attached with `SCM_RIGHTS`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::{async_fd, seqpacket};

/// The largest message. An SSH packet, and so a command line, is at most 256 KiB (RFC 4253, 6.1; russh's bound).
pub const MAX_MESSAGE: usize = 512 * 1024;

/// Turns a message into bytes.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let bytes = rmp_serde::to_vec_named(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message larger than the protocol allows"));
    }
    Ok(bytes)
}

/// Turns bytes into a message; whatever does not parse is `InvalidData`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A message with the descriptors that came along.
pub type Received<T> = (T, Vec<OwnedFd>);

/// Sends one message on a blocking socket.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    seqpacket::send(socket, &encode(message)?, fds)
}

/// Receives one message from a blocking socket; `None` when the peer is gone.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<Received<T>>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, fds) = match seqpacket::recv(socket, &mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        other => other?,
    };
    if length == 0 { Ok(None) } else { Ok(Some((decode(&buffer[..length])?, fds))) }
}

/// A socket for tasks of an async runtime. Sending and receiving may go on at once, from two tasks.
#[derive(Debug)]
pub struct AsyncSocket(AsyncFd<OwnedFd>);

impl AsyncSocket {
    /// Takes over a connected socket and makes it non-blocking. Must be called inside a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self(async_fd::register(socket, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Sends one message, waiting while the peer is slow. Cancelling sends all of it or nothing.
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|socket| seqpacket::send(socket.as_fd(), &bytes, fds)) {
                return result;
            }
        }
    }

    /// Receives one message; `None` when the peer is gone. Cancelling loses nothing.
    pub async fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| seqpacket::recv(socket.as_fd(), &mut buffer)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Ok((length, fds))) => return Ok(Some((decode(&buffer[..length])?, fds))),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsFd for AsyncSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ExitStatus, FromInit};

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = seqpacket::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), &FromInit::Started { id: 7, pid: 42 }, &[write.as_fd()]).unwrap();
        drop(write);
        let (message, fds) = recv::<FromInit>(b.as_fd()).unwrap().unwrap();
        assert!(matches!(message, FromInit::Started { id: 7, pid: 42 }));
        nix::unistd::write(&fds[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&read, &mut byte), Ok(1));
    }

    #[test]
    fn the_end_is_none_and_garbage_is_an_error() {
        let (a, b) = seqpacket::pair().unwrap();
        seqpacket::send(a.as_fd(), b"\xc1garbage", &[]).unwrap();
        drop(a);
        assert_eq!(recv::<FromInit>(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(recv::<FromInit>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn an_added_field_does_not_disturb_an_old_reader() {
        #[derive(serde::Serialize)]
        enum Newer {
            Exited { id: u32, status: ExitStatus, usage: u64 },
        }
        let bytes = encode(&Newer::Exited { id: 1, status: ExitStatus::Code(3), usage: 9 }).unwrap();
        let old: FromInit = decode(&bytes).unwrap();
        assert!(matches!(old, FromInit::Exited { id: 1, status: ExitStatus::Code(3) }));
    }

    #[tokio::test]
    async fn async_sockets_wait_for_a_slow_reader() {
        let (a, b) = seqpacket::pair().unwrap();
        let (a, b) = (AsyncSocket::new(a).unwrap(), AsyncSocket::new(b).unwrap());
        let line = "x".repeat(100_000);
        let sender = async {
            for _ in 0..50 {
                let message = crate::protocol::ToConnection::Progress { line: line.clone() };
                a.send(&message, &[]).await.unwrap();
            }
        };
        let receiver = async {
            for _ in 0..50 {
                assert!(b.recv::<crate::protocol::ToConnection>().await.unwrap().is_some());
            }
        };
        tokio::join!(sender, receiver);
    }
}
