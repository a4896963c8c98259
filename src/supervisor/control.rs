//! What the control socket can ask of the supervisor.

use std::{io, sync::Arc, time::SystemTime};

use tokio::sync::mpsc;

use super::{Supervisor, cleanup, inspect};
use crate::{
    api::{self, types},
    audit::Listener,
    errors::chain,
    image::ImageError,
    metrics::{Disk, Now},
    names::{ContainerId, SessionId},
    session::{Context, Plan, SessionKey, View, log, state::Reason},
    state::{Phase, ServiceRecord, SessionRecord},
    sys::free_space::free_bytes,
};

/// Lines of a log that wait for a client to read them.
const LOG_LINES: usize = 256;

/// The supervisor behind the control API.
#[derive(Clone)]
pub(super) struct Control(pub(super) Arc<Supervisor>);

impl api::Backend for Control {
    async fn sessions(&self) -> Vec<types::Session> {
        let now = SystemTime::now();
        self.0.sessions.views().await.into_iter().map(|view| shown(view, now)).collect()
    }

    async fn stats(&self) -> Vec<types::Stats> {
        self.0.stats.sample(&self.0).await
    }

    fn events(&self) -> Option<Listener> {
        self.0.audit.listen()
    }

    async fn metrics(&self) -> String {
        let status = types::Status::of(&self.sessions().await);
        let written = self.0.stats.sample(&self.0).await;
        let disk = self.with_context(move |context| {
            let known = |bytes: Result<u64, ImageError>| bytes.map_err(|error| tracing::warn!("{}", chain(error))).ok();
            Disk {
                store: known(context.store.layer_bytes()),
                store_free: known(context.store.free_bytes()),
                sessions_free: free_bytes(&context.state_dir)
                    .map_err(|error| tracing::warn!("{}: {error}", context.state_dir.display()))
                    .ok(),
                sessions: written.iter().filter_map(|stats| stats.usage.disk_bytes).sum(),
            }
        });
        let disk = disk.await;
        let now = Now {
            sessions: status.sessions,
            running: status.running,
            grace: status.grace,
            containers: status.containers,
            connections: status.connections,
            oldest_session_seconds: status.oldest_session_seconds,
            startups: self.0.admission.waiting(),
            dropped: self.0.admission.dropped(),
            pulled_bytes: self.0.sessions.context().store.fetched_bytes(),
            disk,
        };
        self.0.audit.metrics().render(&now)
    }

    async fn clean_up(&self) -> types::Cleaned {
        let cleaned = self.with_context(Context::clean_up).await;
        cleanup::record(&self.0.audit, &cleaned);
        cleaned.into()
    }

    async fn logs(
        &self,
        key: SessionKey,
        source: Option<String>,
        follow: bool,
    ) -> Option<io::Result<mpsc::Receiver<types::LogLine>>> {
        let logs = self.0.sessions.logs(&key).await?;
        let (to, said) = mpsc::channel(LOG_LINES);
        Some(log::send(&logs, follow, source, to).map(|sending| {
            tokio::spawn(sending);
            said
        }))
    }

    async fn inspect(&self, key: SessionKey) -> Option<Result<types::Inspection, String>> {
        let view = self.view(&key).await?;
        let session = shown(view.clone(), SystemTime::now());
        let supervisor = self.0.clone();
        let inspected = tokio::task::spawn_blocking(move || inspect::inspect(&supervisor, &view, session)).await;
        Some(inspected.unwrap_or_else(|error| Err(error.to_string())))
    }

    async fn oci(&self, key: SessionKey, service: Option<String>) -> Option<Result<serde_json::Value, String>> {
        let view = self.view(&key).await?;
        let supervisor = self.0.clone();
        let config = tokio::task::spawn_blocking(move || inspect::oci(&supervisor, &view, service.as_deref())).await;
        Some(config.unwrap_or_else(|error| Err(error.to_string())))
    }

    async fn changes(&self, key: SessionKey) -> Option<Result<types::Changes, String>> {
        let record = self.view(&key).await?.record?;
        Some(self.with_context(move |context| context.changes(&record)).await)
    }

    async fn records(&self) -> io::Result<Vec<types::RecordSummary>> {
        let records = self.with_context(|context| context.records.list()).await?;
        Ok(records.into_iter().map(Into::into).collect())
    }

    async fn record(&self, id: SessionId) -> io::Result<Option<types::Record>> {
        self.with_context(move |context| context.records.read(&id)).await
    }

    async fn stop(&self, key: SessionKey) -> bool {
        self.0.sessions.stop(&key, Reason::Stop)
    }

    async fn down(&self, key: SessionKey, clean: bool) -> Result<types::Down, String> {
        let down = self.0.sessions.down(&key, clean).await.map_err(chain)?;
        Ok(types::Down { stopped: down.stopped, volumes: down.volumes })
    }

    async fn stop_all(&self) {
        self.0.sessions.stop_all(&Reason::Stop);
    }
}

impl Control {
    /// The session of `key` that takes connections.
    pub(super) async fn view(&self, key: &SessionKey) -> Option<View> {
        let views = self.0.sessions.views().await;
        views.into_iter().find(|view| view.key == *key && view.phase != Phase::Stopping)
    }

    /// Does what blocks on a thread that may.
    pub(super) async fn with_context<T: Send + 'static>(&self, work: impl FnOnce(&Context) -> T + Send + 'static) -> T {
        let supervisor = self.0.clone();
        match tokio::task::spawn_blocking(move || work(supervisor.sessions.context())).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is ending: nobody waits for the answer.
                Err(_cancelled) => std::future::pending().await,
            },
        }
    }
}

fn shown(view: View, now: SystemTime) -> types::Session {
    let until = |time: SystemTime| time.duration_since(now).unwrap_or_default().as_secs();
    let record = view.record.as_ref();
    let age = record.and_then(|record| now.duration_since(record.created_at).ok()).unwrap_or_default();
    types::Session {
        user: view.key.user.to_string(),
        project: view.key.project.as_ref().map(ToString::to_string),
        id: record.map(|record| record.id.to_string()),
        image: record.map(|record| record.image_reference.clone()),
        status: view.phase.as_str().to_owned(),
        mode: record.map(|record| record.mode.as_str().to_owned()),
        connections: view.connections,
        age_seconds: age.as_secs(),
        lifetime_seconds: view.ends_at.map(until),
        grace_seconds: view.grace_until.map(until),
        pid: record.and_then(|record| record.init).map(|(pid, _)| pid),
        services: record.map(services).unwrap_or_default(),
        ports: view.ports.clone(),
    }
}

fn services(record: &SessionRecord) -> Vec<types::Service> {
    let shown = |service: &ServiceRecord| {
        // Whoever has written it could read it.
        let plan: Plan = service.plan.parse().ok()?;
        Some(types::Service {
            name: service.name.clone(),
            image: service.image_reference.clone(),
            container: ContainerId::of_service(&record.id, service.place).to_string(),
            user: plan.user,
            workdir: plan.cwd,
            pid: service.init.map(|(pid, _)| pid),
        })
    };
    record.services.iter().filter_map(shown).collect()
}
