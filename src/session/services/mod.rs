//! The services of a session while they run: started in the order of their needs, waited for, started again, ended.
//!
//! ```text
//!   steps        containers of all services, each with its init
//!   start        for each: needs are ready ─▶ keeper starts it ─▶ its ports accept, or its command succeeds ─▶ ready
//!   keeper       hears it, starts it again if that is wanted, ends it
//! ```
//!
//! A service is the one process that stays in its container, so a supervisor that ends leaves it running, and the next one
//! resumes it. What kills it for good is the end of its container, which is for [`steps`](super::steps).

mod keeper;
mod plan;
mod ready;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::keeper::Keeper;
pub use self::plan::{Plan, PlanError};
use super::{inside::InsideError, log::Log, steps::Context};
use crate::{
    errors::{chain, printable},
    names::ContainerId,
    protocol::ExitStatus,
    state::{ServiceRecord, SessionRecord},
};

/// How long a service that is asked to end may take until its container is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How many lines of its output are told of a service that does not get ready.
const TOLD_LINES: usize = 5;

/// Why a session has not all of its services.
#[derive(Debug, thiserror::Error)]
#[error("service {service} {why}")]
pub struct ServiceError {
    pub service: String,
    why: String,
    lines: Vec<String>,
}

impl ServiceError {
    /// For people: one line, and behind it what the service has said last.
    pub fn told(&self) -> String {
        self.lines.iter().fold(self.to_string(), |told, line| format!("{told}\n  | {}", printable(line)))
    }
}

/// Hears of services that have ended and are not started again.
pub type OnEnd = Arc<dyn Fn(ServiceError) + Send + Sync>;

/// One service as its keeper and its readiness see it.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    plan: Plan,
    /// The socket of its container's init.
    init: PathBuf,
    address: std::net::Ipv4Addr,
    /// Where its output is kept.
    directory: PathBuf,
}

/// The running services of a session. Dropping it leaves them running, and unheard.
#[derive(Debug)]
pub struct Services {
    keepers: Vec<Keeper>,
    stopping: CancellationToken,
}

impl Services {
    /// What the services say, one log for each.
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.keepers.iter().map(Keeper::log).collect()
    }

    /// Starts the services of `record`, whose containers are there, and returns when all are ready. `on_end` hears of those
    /// that end before that, too.
    ///
    /// # Errors
    /// The first one that has failed. Those that have been started go on until their containers are killed.
    pub async fn start(
        context: &Context,
        record: &SessionRecord,
        progress: Arc<dyn Fn(&str) + Send + Sync>,
        on_end: OnEnd,
    ) -> Result<Self, ServiceError> {
        let stopping = CancellationToken::new();
        let ready = watch::Sender::new(BTreeSet::new());
        let mut starting = JoinSet::new();
        for service in &record.services {
            let member = member(context, record, service)?;
            let (ready, stopping, progress) = (ready.clone(), stopping.clone(), progress.clone());
            let on_end = on_end.clone();
            starting.spawn(async move {
                let mut is_ready = ready.subscribe();
                let needs: BTreeSet<String> = member.plan.needs.iter().cloned().collect();
                // We hold a sender.
                drop(is_ready.wait_for(|ready: &BTreeSet<String>| needs.is_subset(ready)).await);
                progress(&format!("waiting for service {}", member.name));
                let keeper = Keeper::start(member.clone(), stopping, on_end);
                ready::wait(&member, &keeper).await?;
                ready.send_modify(|ready| {
                    ready.insert(member.name);
                });
                Ok(keeper)
            });
        }
        let mut keepers = Vec::new();
        while let Some(started) = starting.join_next().await {
            match started {
                Ok(Ok(keeper)) => keepers.push(keeper),
                // The others' tasks, and with them their keepers, end with the set.
                Ok(Err(error)) => return Err(error),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        Ok(Self { keepers, stopping })
    }

    /// Takes over the services of `record`, which an earlier supervisor has started.
    pub fn adopt(context: &Context, record: &SessionRecord, on_end: &OnEnd) -> Self {
        let stopping = CancellationToken::new();
        let mut keepers = Vec::new();
        for service in &record.services {
            match member(context, record, service) {
                Ok(member) => keepers.push(Keeper::resume(member, stopping.clone(), on_end.clone())),
                Err(error) => tracing::error!(session = %record.id, "{}", chain(error)),
            }
        }
        Self { keepers, stopping }
    }

    /// Lets those end by themselves that write what outlives the session, and waits until they have, or have had their time.
    pub async fn stop(self) {
        if !self.keepers.iter().any(Keeper::is_outlived) {
            return;
        }
        self.stopping.cancel();
        for keeper in self.keepers {
            keeper.ended().await;
        }
    }
}

fn member(context: &Context, record: &SessionRecord, service: &ServiceRecord) -> Result<Member, ServiceError> {
    let failed = |why: String| ServiceError { service: service.name.clone(), why, lines: Vec::new() };
    let container = ContainerId::of_service(&record.id, service.place);
    Ok(Member {
        name: service.name.clone(),
        plan: service.plan.parse().map_err(|error: PlanError| failed(format!("cannot be started: {error}")))?,
        init: context.socket(&container),
        address: service.address.ok_or_else(|| failed("has no address".to_owned()))?,
        directory: context.container_directory(&container),
    })
}

impl Member {
    fn failed(&self, why: String, lines: Vec<String>) -> ServiceError {
        ServiceError { service: self.name.clone(), why, lines }
    }
}

/// How a service has ended, as the end of a sentence that begins with its name.
fn ending(ended: &Result<ExitStatus, InsideError>) -> String {
    match ended {
        Ok(ExitStatus::Code(code)) => format!("has ended with exit status {code}"),
        Ok(ExitStatus::Signal { signal, .. }) => format!("was ended by signal {signal}"),
        Err(InsideError::Refused { message, .. }) => format!("cannot be started: {message}"),
        Err(error) => format!("is gone: {error}"),
    }
}
