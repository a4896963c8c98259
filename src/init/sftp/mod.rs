//! The SFTP server of a session: version 3 of the protocol as OpenSSH's sftp-server speaks it, answer for answer.
//!
//! It is a child of init that executes nothing and needs nothing in the image, and it has the user's ids, so that whatever
//! it is asked for the kernel decides about. One thread takes one request after the other; those that a client has sent
//! ahead are at hand in the buffer, and their answers leave together and in order.
//!
//! ```text
//! stream ─▶ request ─▶ server ─▶ { files  paths } ─▶ reply ─▶ stream
//! ```
//!
//! Paths are bytes. A packet that does not parse ends the connection; a request that this server does not know is answered
//! so (OpenSSH answers unknown extensions only, and leaves the client of an unknown type waiting).

mod attributes;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handles;
mod listing;
mod names;
mod paths;
mod realpath;
mod reply;
mod request;
mod server;
mod stream;

use std::{fs::File, io, path::Path};

use request::Packet;
use server::Server;
use stream::{Input, Output};

/// Why serving ended before the client wanted it to.
#[derive(Debug, thiserror::Error)]
pub enum SftpError {
    #[error("the stream broke")]
    Stream(#[source] io::Error),
    #[error("a packet of {0} bytes is too long")]
    TooLong(usize),
    #[error("a packet does not parse")]
    Malformed,
    #[error("a request came before the greeting")]
    NoGreeting,
}

impl SftpError {
    /// What OpenSSH's server exits with, which clients show.
    pub fn status(&self) -> u8 {
        match self {
            Self::Stream(_) => 1,
            Self::TooLong(_) => 11,
            Self::Malformed | Self::NoGreeting => 255,
        }
    }
}

/// Serves SFTP until the client closes `input`; the answers go to `output`, which may be the same stream. `~` is `home`;
/// other relative paths start in the working directory of this process.
pub fn serve(input: &File, output: &File, home: &Path) -> Result<(), SftpError> {
    let (mut input, mut output) = (Input::new(input), Output::new(output));
    let mut server = Server::new(home);
    let mut client_version = None;
    let mut encoded = Vec::new();
    loop {
        let Some(packet) = input.take()? else {
            output.flush()?;
            if !input.fill().map_err(SftpError::Stream)? {
                return Ok(());
            }
            continue;
        };
        encoded.clear();
        match Packet::parse(input.bytes(packet)).map_err(|_| SftpError::Malformed)? {
            Packet::Init { version } => {
                client_version = Some(version);
                reply::encode_version(&mut encoded);
            }
            Packet::Request { id, request } => {
                let version = client_version.ok_or(SftpError::NoGreeting)?;
                server.perform(id, request, &mut output)?.encode(id, version, &mut encoded);
            }
        }
        if !encoded.is_empty() {
            output.packet(&encoded)?;
        }
    }
}
