//! Where the SSH agents of a session's connections are, as far as they have said so.
//!
//! A connection knows that its client forwards an agent when the first channel is opened, which is after the session has
//! begun to be set up; one that opens none never says anything. So whoever wants an agent waits, but not for long.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::state::ConnectionId;

/// How long to wait for a word.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known now; clones see the same.
#[derive(Debug, Clone)]
pub(super) struct Agents(Arc<watch::Sender<Table>>);

/// By connection: nothing yet, or the path of the agent's socket, if it has one.
type Table = BTreeMap<ConnectionId, Option<Option<String>>>;

impl Agents {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Table::new())))
    }

    /// There is a connection, of which nothing is known yet.
    pub(super) fn expect(&self, connection: ConnectionId) {
        self.0.send_modify(|table| {
            table.entry(connection).or_insert(None);
        });
    }

    /// A connection that is expected says where its agent is.
    pub(super) fn said(&self, connection: ConnectionId, path: Option<String>) {
        self.0.send_modify(|table| {
            if let Some(word) = table.get_mut(&connection) {
                *word = Some(path);
            }
        });
    }

    /// A connection is gone, and its agent with it.
    pub(super) fn forget(&self, connection: ConnectionId) {
        self.0.send_modify(|table| {
            table.remove(&connection);
        });
    }

    /// An agent, if one is known.
    pub(super) fn now(&self) -> Option<String> {
        first(&self.0.borrow())
    }

    /// An agent, as soon as one is known; none when all have said that they have none, or say nothing.
    pub(super) async fn any(&self) -> Option<String> {
        self.when(|table| first(table).is_some() || table.values().all(Option::is_some)).await;
        self.now()
    }

    /// The agent of one connection.
    pub(super) async fn of(&self, connection: ConnectionId) -> Option<String> {
        self.when(|table| table.get(&connection).is_none_or(Option::is_some)).await;
        self.0.borrow().get(&connection).cloned().flatten().flatten()
    }

    async fn when(&self, known: impl FnMut(&Table) -> bool) {
        // Without a word there is no agent. We hold a sender, so that the channel is open.
        drop(timeout(PATIENCE, self.0.subscribe().wait_for(known)).await);
    }
}

fn first(table: &Table) -> Option<String> {
    table.values().flatten().flatten().next().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_is_waited_for_until_all_have_spoken() {
        let agents = Agents::new();
        assert_eq!(agents.any().await, None, "nobody is there");
        agents.expect(1);
        agents.expect(2);
        agents.said(1, None);
        assert_eq!((agents.now(), agents.of(1).await), (None, None));
        let waiting = tokio::spawn({
            let agents = agents.clone();
            async move { agents.any().await }
        });
        tokio::task::yield_now().await;
        agents.said(2, Some("/tmp/agent".to_owned()));
        assert_eq!(waiting.await.unwrap().as_deref(), Some("/tmp/agent"));
        assert_eq!(agents.of(2).await.as_deref(), Some("/tmp/agent"));
        agents.forget(2);
        assert_eq!((agents.any().await, agents.of(2).await), (None, None));
        // Who is not expected has nothing to say.
        agents.said(3, Some("/x".to_owned()));
        assert_eq!(agents.now(), None);
    }
}
