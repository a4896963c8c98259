//! What a connection process is told of its session.

use std::os::fd::AsFd;

use super::{ClientError, Connection};
use crate::{protocol::ToConnection, session::ToClient, state::ConnectionRecord, transcript::Reader};

impl Connection {
    /// Tells the process what its session says. Returns whether that was the last word.
    pub(super) async fn pass_on(&mut self, message: ToClient) -> Result<bool, ClientError> {
        // What has been said comes before what it has led to.
        while let Some(text) = self.output.iter_mut().find_map(Reader::try_next) {
            self.tell(&ToConnection::Output { text: text.to_vec() }, &[]).await?;
        }
        match message {
            ToClient::Output(reader) => {
                self.output.push_back(reader);
                Ok(false)
            }
            ToClient::Ready => {
                self.tell(&ToConnection::Ready, &[]).await?;
                self.pending = None;
                Ok(false)
            }
            ToClient::Attached { session, init } => {
                // Recorded before the process knows, so that a later supervisor finds every connection that has a session.
                if let Some(login) = &self.login {
                    let record = ConnectionRecord {
                        id: self.id,
                        session: session.clone(),
                        peer: self.peer,
                        fingerprint: login.fingerprint.clone(),
                        process: self.process,
                        credential: login.credential.clone(),
                        logged_in: login.at,
                    };
                    self.supervisor.remember_connection(record).await;
                    self.trail.connected(login, &session, self.began.elapsed());
                }
                self.tell(&ToConnection::Attached { session }, &[init.as_fd()]).await?;
                Ok(false)
            }
            ToClient::Progress(line) => {
                self.tell(&ToConnection::Progress { line }, &[]).await?;
                Ok(false)
            }
            ToClient::Notice(message) => {
                // An older process does not know such messages, and its user can still read the log.
                if self.version >= 5 {
                    self.tell(&ToConnection::Notice { message }, &[]).await?;
                }
                Ok(false)
            }
            ToClient::Warning(message) => {
                if self.version >= 6 {
                    self.tell(&ToConnection::Warning { message }, &[]).await?;
                }
                Ok(false)
            }
            ToClient::Refused(message) => {
                if let Some(login) = &self.login {
                    self.trail.refused(login, &message);
                }
                self.tell(&ToConnection::Refused { message }, &[]).await?;
                self.wait_for_end().await;
                Ok(true)
            }
            ToClient::Terminate(message) => {
                self.trail.told(&message);
                self.tell(&ToConnection::Terminate { message }, &[]).await?;
                self.wait_for_end().await;
                Ok(true)
            }
        }
    }
}
