//! The client's SSH agent, as a socket inside. There is one for a connection, like with sshd, from the first channel that
//! runs something after the client has asked for it.

use std::sync::{Arc, atomic::Ordering};

use russh::server::Handle;

use super::{
    super::init_link::AskError,
    ForwardError, Forwards,
    listen::{Listener, Origin},
};
use crate::protocol::{ForwardKind, Listen, ListeningAt};

pub(super) struct Agent {
    path: String,
    /// Goes with the connection.
    _listener: Listener,
}

impl Forwards {
    /// The client has asked for it.
    pub(in super::super) fn want_agent(&self) {
        self.agent_wanted.store(true, Ordering::Relaxed);
    }

    /// The path for SSH_AUTH_SOCK, if the client wants that. Without one if it cannot be made.
    pub(in super::super) async fn agent_path(self: &Arc<Self>, handle: &Handle) -> Option<String> {
        if !self.agent_wanted.load(Ordering::Relaxed) {
            return None;
        }
        let make = || async {
            match self.make_agent(handle.clone()).await {
                Ok(agent) => Some(agent),
                Err(error) => {
                    tracing::warn!("no socket for the client's agent: {error}");
                    None
                }
            }
        };
        Some(self.agent.get_or_init(make).await.as_ref()?.path.clone())
    }

    async fn make_agent(self: &Arc<Self>, handle: Handle) -> Result<Agent, ForwardError> {
        let made = self.make(Listen::Agent).await?;
        let ListeningAt::Path(path) = &made.at else { return Err(AskError::Nonsense.into()) };
        let path = path.clone();
        let listener = self.accept_from(made, Origin::Agent, handle)?;
        self.audit(ForwardKind::AuthAgent, path.clone());
        Ok(Agent { path, _listener: listener })
    }
}
