//! What a connection process asks and tells.

use super::{ClientError, Connection, Question, login};
use crate::{
    protocol::{FromConnection, KeyVerdict, ToConnection},
    session::Client,
};

/// Words about the client's agent: one for each of its first channels.
const MAX_AGENT_WORDS: u32 = 16;

/// What fits into a socket's address (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

impl Connection {
    /// Does what a message asks for, if it is allowed at this point.
    pub(super) async fn handle(&mut self, message: FromConnection) -> Result<(), ClientError> {
        match message {
            FromConnection::Key { request, login, key, verified } => {
                if self.startup.is_none() {
                    return Err(ClientError::Protocol("a key after the login"));
                }
                self.questions += 1;
                if self.questions > login::MAX_QUESTIONS {
                    return Err(ClientError::Protocol("more keys than anybody has"));
                }
                let question = Question { login, blob: key, proved: verified, peer: self.peer };
                self.login = None;
                let verdict = match login::judge(&self.supervisor, question).await {
                    Some((login, options)) => {
                        self.login = verified.then_some(login);
                        KeyVerdict::Accept(options)
                    }
                    None => KeyVerdict::Reject,
                };
                self.tell(&ToConnection::Key { request, verdict }, &[]).await?;
            }
            FromConnection::LoggedIn => {
                if self.login.is_none() || self.startup.is_none() {
                    return Err(ClientError::Protocol("a login without a key"));
                }
                self.startup = None;
            }
            FromConnection::Attach { project } => {
                let Some(login) = &mut self.login else { return Err(ClientError::Protocol("an attach without login")) };
                if self.attached {
                    return Err(ClientError::Protocol("a second attach"));
                }
                self.attached = true;
                self.startup = None;
                self.pending = Some(self.supervisor.unsettled.session());
                // Of the user's own sessions, which one is the client's to say.
                login.key.project = login.key.project.take().or(project);
                self.trail.identify(login);
                let (origin, outgoing) = (self.trail.origin(), self.to_client.clone());
                let activity = self.activity.clone();
                let client = Client { id: self.id, origin, outgoing, waiting: false, activity };
                self.supervisor.sessions.attach(&login.key, client, self.supervisor.config());
            }
            FromConnection::Active => self.activity.seen(),
            FromConnection::Begun { run, command } => {
                if !self.attached {
                    return Err(ClientError::Protocol("a command without session"));
                }
                self.trail.begun(run, command);
            }
            FromConnection::Command { command, status, run } => {
                let Some(login) = &self.login else { return Err(ClientError::Protocol("a command without login")) };
                self.trail.ended(login, run, command.as_deref(), status);
            }
            FromConnection::Forward { kind, target } => {
                let Some(login) = &self.login else { return Err(ClientError::Protocol("a forward without login")) };
                self.trail.forwarded(login, kind, &target);
            }
            FromConnection::Agent { path } => {
                if !self.attached {
                    return Err(ClientError::Protocol("an agent without a session"));
                }
                self.agent_words += 1;
                // Nobody has so many; further ones change nothing.
                if self.agent_words <= MAX_AGENT_WORDS {
                    let path = path.filter(|path| path.len() <= MAX_SOCKET_PATH && !path.contains('\0'));
                    self.supervisor.sessions.agent(self.id, path);
                }
            }
            FromConnection::Adopted { .. } => return Err(ClientError::Protocol("an unexpected greeting")),
        }
        Ok(())
    }
}
