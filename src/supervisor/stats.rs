//! What sessions use: counters of the kernel, read when somebody asks, and the disk, measured now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Supervisor;
use crate::{
    api::types,
    cgroup::{Cgroup, Usage},
    errors::chain,
    names::ContainerId,
    network::Traffic,
    runtime::disk::DiskUse,
    session::View,
    state::SessionRecord,
};

/// How old a measurement of the disk may be. Each is a walk over what the session has written.
const DISK_AGE: Duration = Duration::from_secs(15);

/// How long somebody who asks waits for measurements. Those that take longer are there for the next one.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Measurements of the disk, and the turn to make them: one walk at a time, whoever asks.
#[derive(Default)]
pub(super) struct Sampler {
    /// Of containers that are there; others are dropped when new ones are measured.
    disk: Arc<Mutex<HashMap<ContainerId, (Instant, DiskUse)>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Sampler {
    /// One sample of every session that has a record, in the order of their users and projects.
    pub(super) async fn sample(&self, supervisor: &Arc<Supervisor>) -> Vec<types::Stats> {
        let views = supervisor.sessions.views().await;
        let ids = views.iter().filter_map(|view| view.record.as_ref()).flat_map(containers).collect();
        self.measure_disks(supervisor, ids).await;
        let (supervisor, disk) = (supervisor.clone(), self.disk.clone());
        let sampled = tokio::task::spawn_blocking(move || {
            let disk = disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
            read(&supervisor, views, &disk)
        });
        sampled.await.unwrap_or_else(|error| {
            tracing::error!("reading what sessions use: {error}");
            Vec::new()
        })
    }

    /// Measures the disks whose last measurement is too old, and waits for that a little. Whoever comes while it is being
    /// done waits for it, and then finds nothing left to do.
    async fn measure_disks(&self, supervisor: &Arc<Supervisor>, ids: Vec<ContainerId>) {
        let (supervisor, disk, turn) = (supervisor.clone(), self.disk.clone(), self.turn.clone());
        let measuring = tokio::spawn(async move {
            let _turn = turn.lock().await;
            let measured = tokio::task::spawn_blocking(move || measure(&supervisor, &disk, &ids)).await;
            if let Err(error) = measured {
                tracing::error!("measuring what sessions have written: {error}");
            }
        });
        // Whether it was in time shows in what is known afterwards.
        let _ = tokio::time::timeout(DISK_PATIENCE, measuring).await;
    }
}

fn measure(supervisor: &Supervisor, disk: &Mutex<HashMap<ContainerId, (Instant, DiskUse)>>, ids: &[ContainerId]) {
    let lock = || disk.lock().unwrap_or_else(PoisonError::into_inner);
    lock().retain(|id, _| ids.contains(id));
    for id in ids {
        if lock().get(id).is_some_and(|(when, _)| when.elapsed() < DISK_AGE) {
            continue;
        }
        match supervisor.sessions.context().disk_usage(id) {
            Ok(found) => {
                lock().insert(id.clone(), (Instant::now(), found));
            }
            Err(error) => tracing::warn!(container = %id, "what it has written cannot be measured: {error}"),
        }
    }
}

/// The containers of a session, its user's first.
fn containers(record: &SessionRecord) -> Vec<ContainerId> {
    let services = record.services.iter().map(|service| ContainerId::of_service(&record.id, service.place));
    std::iter::once(record.id.clone().into()).chain(services).collect()
}

/// What was measured, of every container.
struct Measured<'a> {
    disk: &'a HashMap<ContainerId, (Instant, DiskUse)>,
    traffic: HashMap<ContainerId, Traffic>,
}

fn read(
    supervisor: &Supervisor,
    views: Vec<View>,
    disk: &HashMap<ContainerId, (Instant, DiskUse)>,
) -> Vec<types::Stats> {
    let context = supervisor.sessions.context();
    let traffic = context.network.traffic().unwrap_or_else(|error| {
        tracing::warn!("{}", chain(error));
        HashMap::new()
    });
    let measured = Measured { disk, traffic };
    let shown = views.into_iter().filter_map(|view| {
        let record = view.record?;
        let whole = context.cgroups.adopt(&record.id);
        let services = record.services.iter().map(|service| {
            let id = ContainerId::of_service(&record.id, service.place);
            let usage = measured.usage(&whole.below(&id), &[id]);
            types::ServiceStats { name: service.name.clone(), usage }
        });
        Some(types::Stats {
            user: view.key.user.to_string(),
            project: view.key.project.as_ref().map(ToString::to_string),
            id: record.id.to_string(),
            services: services.collect(),
            usage: measured.usage(&whole, &containers(&record)),
        })
    });
    shown.collect()
}

impl Measured<'_> {
    /// What `containers` use, whose cgroup this is.
    fn usage(&self, cgroup: &Cgroup, containers: &[ContainerId]) -> types::Usage {
        let counted = cgroup.usage().unwrap_or_else(|error| {
            tracing::warn!("{}", chain(error));
            Usage::default()
        });
        // Where the disk is limited, what was measured of the first is of all of them.
        let limited = containers.first().and_then(|id| self.disk.get(id)).is_some_and(|(_, disk)| disk.limit.is_some());
        let measured = if limited { &containers[..1] } else { containers };
        let disks: Vec<_> = measured.iter().filter_map(|id| self.disk.get(id)).map(|(_, disk)| disk).collect();
        let traffic: Vec<_> = containers.iter().filter_map(|id| self.traffic.get(id)).collect();
        let sum = |numbers: Vec<u64>| (!numbers.is_empty()).then(|| numbers.iter().sum());
        types::Usage {
            cpu_us: counted.cpu.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            memory_bytes: counted.memory,
            memory_limit_bytes: counted.memory_max,
            pids: counted.pids,
            pids_limit: counted.pids_max,
            oom_kills: counted.oom_kills,
            disk_bytes: sum(disks.iter().map(|disk| disk.bytes).collect()),
            disk_limit_bytes: disks.first().and_then(|disk| disk.limit),
            disk_complete: disks.len() == measured.len() && disks.iter().all(|disk| disk.complete),
            rx_bytes: sum(traffic.iter().map(|traffic| traffic.rx_bytes).collect()),
            tx_bytes: sum(traffic.iter().map(|traffic| traffic.tx_bytes).collect()),
        }
    }
}
