//! What a session does before a connection may work in it: once for itself, and once for each of them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Driver, Event, ToClient, making::Progress};
use crate::{
    image::Progress as _,
    session::{mirrors::SessionMirrors, set_up::Stage, state::ConnectionId},
    transcript::Transcript,
};

/// What is kept for a connection that is slow to show it.
const MAX_OUTPUT: usize = 256 << 10;

impl Driver {
    /// Begins with what is to be done once.
    pub(super) fn start_set_up(&mut self) {
        let set_up = std::mem::take(&mut self.set_up);
        let mirrors = set_up.mirrors;
        let transcript = Transcript::new(MAX_OUTPUT);
        let mailbox = self.mailbox.clone();
        let stage = if set_up.is_empty() { None } else { self.stage(&transcript) };
        let Some(mut stage) = stage else {
            // We hold the other end.
            let _ = mailbox.send(Event::SetUp(Ok(())));
            return;
        };
        self.clients.values().for_each(|client| client.tell(ToClient::Output(transcript.reader())));
        self.transcript = Some(transcript);
        let record = self.record.clone();
        stage.mirrors = mirrors.zip(record).map(|(limits, record)| SessionMirrors::new(&self.inner, record, limits));
        tokio::spawn(async move {
            let result = set_up.run(&stage).await;
            stage.transcript.close();
            // The driver may have gone with its session.
            let _ = mailbox.send(Event::SetUp(result));
        });
    }

    /// Does what is to be done for the connection, and lets it start programs then.
    pub(super) fn welcome(&mut self, id: ConnectionId) {
        let Some(client) = self.clients.get(&id) else { return };
        let transcript = Transcript::new(MAX_OUTPUT);
        let on_start = self.record.as_ref().and_then(|record| record.on_start.clone());
        let (Some(script), Some(stage)) = (on_start, self.stage(&transcript)) else {
            client.tell(ToClient::Ready);
            return;
        };
        client.tell(ToClient::Output(transcript.reader()));
        let (mailbox, left) = (self.mailbox.clone(), CancellationToken::new());
        self.welcomes.insert(id, left.clone().drop_guard());
        tokio::spawn(left.run_until_cancelled_owned(async move {
            let agent = stage.agents.of(id).await;
            stage.on_start(&script, agent).await;
            transcript.close();
            // As above.
            let _ = mailbox.send(Event::Welcomed(id));
        }));
    }

    fn stage(&self, transcript: &Transcript) -> Option<Stage> {
        let (record, log) = (self.record.as_ref()?, self.log.as_ref()?);
        let progress = Progress { mailbox: self.mailbox.clone(), line: self.progress.clone() };
        Some(Stage {
            init: self.inner.context.init_socket(&record.id),
            transcript: transcript.clone(),
            log: Arc::clone(log),
            agents: self.agents.clone(),
            mirrors: None,
            progress: Box::new(move |line| progress.line(line)),
        })
    }
}
