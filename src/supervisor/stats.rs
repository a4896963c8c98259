//! What sessions use: counters of the kernel, read when somebody asks, and the disk, measured now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Supervisor;
use crate::{
    api::types, cgroup::Usage, errors::chain, names::SessionId, runtime::disk::DiskUse, session::View,
    state::SessionRecord,
};

/// How old a measurement of the disk may be. Each is a walk over what the session has written.
const DISK_AGE: Duration = Duration::from_secs(15);

/// How long somebody who asks waits for measurements. Those that take longer are there for the next one.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Measurements of the disk, and the turn to make them: one walk at a time, whoever asks.
#[derive(Default)]
pub(super) struct Sampler {
    /// Of sessions that are there; others are dropped when new ones are measured.
    disk: Arc<Mutex<HashMap<SessionId, (Instant, DiskUse)>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Sampler {
    /// One sample of every session that has a record, in the order of their users and projects.
    pub(super) async fn sample(&self, supervisor: &Arc<Supervisor>) -> Vec<types::Stats> {
        let views = supervisor.sessions.views().await;
        let ids = views.iter().filter_map(|view| Some(view.record.as_ref()?.id.clone())).collect();
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
    async fn measure_disks(&self, supervisor: &Arc<Supervisor>, ids: Vec<SessionId>) {
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

fn measure(supervisor: &Supervisor, disk: &Mutex<HashMap<SessionId, (Instant, DiskUse)>>, ids: &[SessionId]) {
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
            Err(error) => tracing::warn!(session = %id, "what it has written cannot be measured: {error}"),
        }
    }
}

fn read(supervisor: &Supervisor, views: Vec<View>, disk: &HashMap<SessionId, (Instant, DiskUse)>) -> Vec<types::Stats> {
    let context = supervisor.sessions.context();
    let traffic = context.network.traffic().unwrap_or_else(|error| {
        tracing::warn!("{}", chain(error));
        HashMap::new()
    });
    let shown = views.into_iter().filter_map(|view| {
        let SessionRecord { id, .. } = view.record?;
        let usage = context.cgroups.adopt(&id).usage().unwrap_or_else(|error| {
            tracing::warn!(session = %id, "{}", chain(error));
            Usage::default()
        });
        let (disk, traffic) = (disk.get(&id).map(|(_, disk)| disk), traffic.get(&id.clone().into()));
        Some(types::Stats {
            user: view.key.user.to_string(),
            project: view.key.project.as_ref().map(ToString::to_string),
            id: id.to_string(),
            cpu_us: usage.cpu.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            memory_bytes: usage.memory,
            memory_limit_bytes: usage.memory_max,
            pids: usage.pids,
            pids_limit: usage.pids_max,
            oom_kills: usage.oom_kills,
            disk_bytes: disk.map(|disk| disk.bytes),
            disk_complete: disk.is_some_and(|disk| disk.complete),
            rx_bytes: traffic.map(|traffic| traffic.rx_bytes),
            tx_bytes: traffic.map(|traffic| traffic.tx_bytes),
        })
    });
    shown.collect()
}
