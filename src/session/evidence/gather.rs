//! Reads what a session leaves, between the steps that remove it. Nothing of it may keep a session from being removed: what
//! cannot be read is missing in the record, and logged.

use std::{collections::HashMap, fmt::Display, path::PathBuf, time::SystemTime};

use super::{Gone, Record, Service, Used, journal};
use crate::{
    cgroup::Cgroup,
    errors::chain,
    names::{ContainerId, SessionId},
    network::Traffic,
    runtime::changes::{Changes, changes},
    session::{log, steps::Context},
    state::SessionRecord,
    time::unix_millis,
};

/// Bytes of what the hooks have said, as the log has it, and of what each service has.
const OUTPUT: u64 = 64 << 10;
const OUTPUT_OF_SERVICE: u64 = 8 << 10;

/// A record in the making.
pub(in crate::session) struct Gathering<'a> {
    context: &'a Context,
    session: &'a SessionRecord,
    reason: &'static str,
    traffic: HashMap<ContainerId, Traffic>,
    used: Used,
    services: Vec<Service>,
}

impl<'a> Gathering<'a> {
    /// Begins while the containers still run, as their network goes with them. `None` if no record is to be kept.
    pub(in crate::session) fn begin(
        context: &'a Context,
        session: &'a SessionRecord,
        reason: &'static str,
    ) -> Option<Self> {
        if !context.records.wants(&session.id) {
            return None;
        }
        let traffic = or_default(&session.id, "its traffic", context.network.traffic().map_err(chain));
        Some(Self { context, session, reason, traffic, used: Used::default(), services: Vec::new() })
    }

    /// Reads the counters, when no process is left to change them.
    pub(in crate::session) fn count(&mut self, cgroup: &Cgroup) {
        let of_services: Vec<_> = self
            .session
            .services
            .iter()
            .map(|service| (service, ContainerId::of_service(&self.session.id, service.place)))
            .collect();
        let all: Vec<_> =
            of_services.iter().map(|(_, id)| id.clone()).chain([self.session.id.clone().into()]).collect();
        self.used = self.used(cgroup, &all);
        for (service, id) in of_services {
            let used = self.used(&cgroup.below(&id), &[id]);
            let (name, image) = (service.name.clone(), service.image_reference.clone());
            self.services.push(Service { name, image, used });
        }
    }

    /// What `containers` have used, whose cgroup this is.
    fn used(&self, cgroup: &Cgroup, containers: &[ContainerId]) -> Used {
        let counted = or_default(&self.session.id, "what it has used", cgroup.usage().map_err(chain));
        let peaks = or_default(&self.session.id, "its peaks", cgroup.peaks().map_err(chain));
        let traffic: Vec<_> = containers.iter().filter_map(|id| self.traffic.get(id)).collect();
        let sum = |count: fn(&Traffic) -> u64| {
            (!traffic.is_empty()).then(|| traffic.iter().map(|traffic| count(traffic)).sum())
        };
        Used {
            cpu_us: counted.cpu.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            memory_peak_bytes: peaks.memory,
            memory_limit_bytes: counted.memory_max,
            pids_peak: peaks.pids,
            pids_limit: counted.pids_max,
            oom_kills: counted.oom_kills,
            rx_bytes: sum(|traffic| traffic.rx_bytes),
            tx_bytes: sum(|traffic| traffic.tx_bytes),
        }
    }

    /// Reads the directories, before they are removed, and writes the record.
    pub(in crate::session) fn finish(self) {
        let Self { context, session, reason, used, services, traffic: _ } = self;
        let id = &session.id;
        let directory = context.directory(id);
        let (commands, commands_complete) =
            or_default(id, "its commands", journal::read(&directory).map_err(|error| error.to_string()));
        let mut output = log::tail(&directory, OUTPUT);
        for service in &session.services {
            let container = ContainerId::of_service(id, service.place);
            output.extend(log::tail(&context.container_directory(&container), OUTPUT_OF_SERVICE));
        }
        output.sort_by_key(|entry| entry.time_ms);
        let gone = Gone {
            user: session.user.to_string(),
            project: session.project.as_ref().map(ToString::to_string),
            id: id.to_string(),
            image: session.image_reference.clone(),
            created_ms: unix_millis(session.created_at),
            ended_ms: unix_millis(SystemTime::now()),
            reason: reason.to_owned(),
        };
        let record = Record {
            session: gone,
            used,
            services,
            commands,
            commands_complete,
            changes: or_default(id, "its changes", context.changes(session)),
            output,
        };
        if let Err(error) = context.records.write(id, &record) {
            tracing::error!(session = %id, "no record of it is kept: {error}");
        }
    }
}

impl Context {
    /// Which files of the user's container are not as in its image. Blocks, for up to a quarter of a second.
    pub fn changes(&self, session: &SessionRecord) -> Result<Changes, String> {
        let layers = self.store.layers(&session.image).map_err(chain)?;
        let layers: Vec<PathBuf> = layers.iter().map(|layer| self.store.layers_root().join(layer)).collect();
        let directory = self.container_directory(&session.id.clone().into());
        changes(&directory, &layers).map_err(|error| format!("{}: {error}", directory.display()))
    }
}

fn or_default<T: Default>(session: &SessionId, what: &str, read: Result<T, impl Display>) -> T {
    read.unwrap_or_else(|error| {
        tracing::warn!(%session, "{what} cannot be read for its record: {error}");
        T::default()
    })
}
