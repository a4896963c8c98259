//! What a driver does about its session's limits in time: clients are warned before the session's lifetime is over, and leave
//! when nobody has used the session for too long.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{Driver, Event, making::blocking};
use crate::{
    errors::chain,
    names::SessionId,
    session::{
        client::ToClient,
        idle::{Cpu, Idle, Verdict, WARNING},
        state::{Next, State},
        steps::Context,
    },
};

impl Driver {
    /// When clients are to be warned that the session's lifetime is nearly over: a minute before, or halfway.
    pub(super) fn warning_due(&self) -> Option<SystemTime> {
        let (record, end) = (self.record.as_ref()?, self.policy.ends_at?);
        let lifetime = end.duration_since(record.created_at).unwrap_or_default();
        (!self.warned).then(|| end - WARNING.min(lifetime / 2))
    }

    /// Warns everybody, and from now on whoever comes.
    pub(super) fn warn(&mut self) {
        self.warned = true;
        self.clients.values().for_each(|client| client.tell(self.last_warning()));
    }

    pub(super) fn last_warning(&self) -> ToClient {
        let end = self.policy.ends_at.unwrap_or_else(SystemTime::now);
        let left = end.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
        ToClient::Warning(format!(
            "the session reaches its maximum lifetime in {left} s and is removed then, with everything in it"
        ))
    }

    /// When to look next whether anybody uses the session; `None` while that does not matter.
    pub(super) fn look_due(&mut self, state: &State) -> Option<Instant> {
        let watched = matches!(state, State::Running(running) if !running.connections().is_empty());
        let Some(timeout) = self.policy.idle.filter(|_| watched) else {
            self.idle = None;
            return None;
        };
        let idle = self.idle.get_or_insert_with(|| Idle::new(timeout, Instant::now()));
        (!self.looking).then(|| idle.next())
    }

    /// Reads what the session's processes have used; the answer is [`Event::Looked`].
    pub(super) fn look(&mut self) {
        let Some(record) = &self.record else { return };
        let (inner, mailbox) = (self.inner.clone(), self.mailbox.clone());
        let (id, has_services) = (record.id.clone(), !record.services.is_empty());
        self.looking = true;
        tokio::spawn(async move {
            let cpu = blocking(&inner, move |context| used(context, &id, has_services)).await;
            // The driver may have gone with its session.
            let _ = mailbox.send(Event::Looked(cpu));
        });
    }

    pub(super) fn looked(&mut self, state: State, cpu: Option<Cpu>) -> Next {
        self.looking = false;
        let (State::Running(running), Some(idle), Some(timeout)) = (&state, &mut self.idle, self.policy.idle) else {
            return (state, vec![]);
        };
        if running.connections().is_empty() {
            return (state, vec![]);
        }
        self.clients.values().for_each(|client| idle.used_at(client.activity.last()));
        let shown = humantime::format_duration(timeout);
        match idle.look(Instant::now(), cpu) {
            Verdict::Used => (state, vec![]),
            Verdict::Warn(left) => {
                let message = format!(
                    "nobody uses the session; its connections are closed in {} s, {shown} after it was used last",
                    left.as_secs()
                );
                self.clients.values().for_each(|client| client.tell(ToClient::Warning(message.clone())));
                (state, vec![])
            }
            Verdict::Over => match state {
                State::Running(running) => {
                    let message = format!("disconnected: nobody has used the session for {shown}");
                    running.idle(&message, SystemTime::now(), &self.policy)
                }
                other => (other, vec![]),
            },
        }
    }
}

/// The CPU time that a session has used so far, where it is counted.
fn used(context: &Context, id: &SessionId, has_services: bool) -> Option<Cpu> {
    let whole = context.cgroups.adopt(id);
    let counted = || -> Result<Option<Cpu>, crate::cgroup::CgroupError> {
        let Some(all) = whole.cpu()? else { return Ok(None) };
        let container = if has_services { whole.below(&id.clone().into()).cpu()?.unwrap_or(all) } else { all };
        Ok(Some(Cpu { container, services: all.saturating_sub(container) }))
    };
    counted().unwrap_or_else(|error| {
        tracing::warn!(session = %id, "whether it is used cannot be told by its processes: {}", chain(error));
        None
    })
}
