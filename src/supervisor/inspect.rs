//! What `podspawn inspect` shows of a session.

use serde_json::Value;

use super::Supervisor;
use crate::{
    api::types::{Inspection, Limits, Security, Session},
    errors::chain,
    names::ContainerId,
    protocol::SecuritySpec,
    session::{Description, View},
};

/// Adds to what a listing shows of a session that has a container.
pub(super) fn inspect(supervisor: &Supervisor, view: &View, session: Session) -> Result<Inspection, String> {
    let record = view.record.as_ref().ok_or("it has no container yet")?;
    let description = read(supervisor, &record.id.clone().into())?;
    let Description { spec, limits, .. } = description;
    let egress = record.egress.clone().unwrap_or_else(|| supervisor.config().network.egress.to_string());
    Ok(Inspection {
        session,
        created: humantime::format_rfc3339_seconds(record.created_at).to_string(),
        image_id: record.image.clone(),
        mode: record.mode.as_str().to_owned(),
        hostname: spec.hostname,
        address: record.address.map(|address| address.to_string()),
        egress,
        first_id: record.id_base,
        account: spec.account.user.map_or_else(|| "root".to_owned(), |user| user.to_string()),
        sudo: spec.account.sudo,
        shell: spec.account.shell,
        workdir: spec.workdir_inside,
        env: spec.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        limits: Limits { cpus: limits.cpus, memory_bytes: limits.memory_max, pids: limits.pids_max },
        security: security(spec.security),
    })
}

/// A container of the session for another runtime: the user's, or that of the service with this name.
pub(super) fn oci(supervisor: &Supervisor, view: &View, service: Option<&str>) -> Result<Value, String> {
    let record = view.record.as_ref().ok_or("it has no container yet")?;
    let (container, init) = match service {
        None => (record.id.clone().into(), record.init),
        Some(name) => {
            let service = record.services.iter().find(|service| service.name == name);
            let service = service.ok_or_else(|| format!("it has no service {name}"))?;
            (ContainerId::of_service(&record.id, service.place), service.init)
        }
    };
    let (pid, _) = init.ok_or("it has no container yet")?;
    let tag = &supervisor.sessions.context().tag;
    let config = read(supervisor, &container)?.oci(tag, pid).map_err(chain)?;
    let mut config = serde_json::to_value(&config).map_err(|error| error.to_string())?;
    // Sets, which have another order each time.
    for set in config["process"]["capabilities"].as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let names = set.as_array_mut().into_iter();
        names.for_each(|names| names.sort_by(|one, other| one.as_str().cmp(&other.as_str())));
    }
    Ok(config)
}

fn read(supervisor: &Supervisor, container: &ContainerId) -> Result<Description, String> {
    Description::read(&supervisor.sessions.context().run_dir, container).map_err(chain)
}

fn security(spec: SecuritySpec) -> Security {
    let seccomp = match (&spec.seccomp_profile, spec.nested) {
        _ if !spec.seccomp => "none",
        (Some(_), _) => "profile",
        (None, true) => "nested",
        (None, false) => "default",
    };
    Security {
        capabilities: spec.capabilities,
        no_new_privileges: spec.no_new_privileges,
        readonly_rootfs: spec.readonly_rootfs,
        seccomp: seccomp.to_owned(),
        nested: spec.nested,
        tmpfs: spec.tmpfs,
    }
}
