//! The configuration as it is shown: every field with the value in force, and where that comes from.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Config, Egress, per_source::Penalties};
use crate::protocol::Algorithms;

/// A field of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// `section.field`
    pub field: String,
    /// In the form that the file would have it.
    pub value: Value,
    /// `file` or `default`.
    pub origin: String,
}

/// All fields, in the order of the file's sections.
pub fn settings(config: &Config) -> Vec<Setting> {
    let origin = |field: &str| if config.sets(field) { "file" } else { "default" };
    let setting =
        |(field, value): (&str, Value)| Setting { field: field.to_owned(), value, origin: origin(field).to_owned() };
    fields(config).into_iter().map(setting).collect()
}

fn duration(value: std::time::Duration) -> Value {
    json!(humantime::format_duration(value).to_string())
}

/// The section `auth.per_source_penalties`.
fn penalties(penalties: Option<&Penalties>) -> Value {
    let Some(rules) = penalties else { return json!({"enabled": false}) };
    json!({
        "crash": duration(rules.crash),
        "authfail": duration(rules.authfail),
        "noauth": duration(rules.noauth),
        "grace_exceeded": duration(rules.grace_exceeded),
        "min": duration(rules.min),
        "max": duration(rules.max),
        "max_sources4": rules.v4.max,
        "max_sources6": rules.v6.max,
        "overflow": rules.v4.overflow.name(),
        "overflow6": rules.v6.overflow.name(),
        "exempt": rules.exempt.as_ref().map(ToString::to_string),
    })
}

/// Every field with its value, in the form that the file would have it.
#[expect(clippy::too_many_lines, reason = "a list of all fields")]
fn fields(config: &Config) -> Vec<(&'static str, Value)> {
    let network = |(address, prefix): &(std::net::Ipv4Addr, u8)| json!(format!("{address}/{prefix}"));
    let Config {
        paths,
        instance: _,
        listen,
        auth,
        defaults,
        session,
        security,
        resources,
        network: net,
        volumes,
        images,
        builds,
        mirrors,
        podfile,
        log,
        metrics,
        source: _,
    } = config;
    let startups = auth.max_startups;
    let block = auth.per_source.net_block_size;
    vec![
        ("listen", json!(listen)),
        ("auth.key_dir", json!(paths.key_dir)),
        ("auth.host_key_dir", json!(paths.host_key_dir)),
        ("auth.max_startups", json!(format!("{}:{}:{}", startups.start, startups.rate, startups.full))),
        ("auth.per_source_max_startups", auth.per_source.max_startups.map_or(json!("none"), |max| json!(max))),
        ("auth.per_source_net_block_size", json!(format!("{}:{}", block.v4, block.v6))),
        ("auth.per_source_penalties", penalties(auth.per_source.penalties.as_ref())),
        ("auth.login_grace_time", duration(auth.login_grace_time)),
        ("auth.max_auth_tries", json!(auth.max_auth_tries)),
        ("auth.max_sessions", json!(auth.max_sessions)),
        ("auth.accept_env", json!(auth.accept_env)),
        ("auth.trusted_user_ca_keys", json!(auth.trusted_user_ca_keys)),
        ("auth.revoked_keys", json!(auth.revoked_keys)),
        (
            "auth.algorithms",
            json!(match auth.algorithms {
                Algorithms::PostQuantum => "post-quantum",
                Algorithms::Strong => "strong",
                Algorithms::Compatible => "compatible",
            }),
        ),
        ("auth.github_url", json!(auth.github_url)),
        ("defaults.image", json!(defaults.image)),
        ("defaults.shell", json!(defaults.shell)),
        ("defaults.cpus", json!(defaults.cpus.unwrap_or(0.0))),
        ("defaults.memory", json!(defaults.memory.unwrap_or(0))),
        ("defaults.user", json!(defaults.user_is_root.then_some("root"))),
        ("defaults.sudo", json!(defaults.sudo)),
        ("defaults.disk", json!(defaults.disk.unwrap_or(0))),
        ("session.mode", json!(session.mode.as_str())),
        ("session.grace_period", duration(session.grace_period)),
        ("session.max_lifetime", duration(session.max_lifetime)),
        ("session.keep_records", duration(session.keep_records)),
        ("session.idle_timeout", duration(session.idle_timeout.unwrap_or_default())),
        ("session.client_alive_interval", duration(session.client_alive_interval)),
        ("session.client_alive_count_max", json!(session.client_alive_count_max)),
        ("projects_file", json!(paths.projects_file)),
        ("state.db_path", json!(paths.db)),
        ("state.homes_dir", json!(paths.homes)),
        ("log.file", json!(log.file)),
        ("log.audit_log", json!(log.audit_log)),
        ("metrics.listen", json!(metrics.listen)),
        ("security.capabilities", json!(security.capabilities)),
        ("security.no_new_privileges", json!(security.no_new_privileges)),
        ("security.pids_limit", json!(security.pids_limit)),
        ("security.readonly_rootfs", json!(security.readonly_rootfs)),
        ("security.tmpfs", json!(security.tmpfs)),
        ("security.seccomp_profile", json!(security.seccomp_profile.as_ref().map(|file| &file.path))),
        ("security.nested", json!(security.nested)),
        ("security.userns.first", json!(security.userns_first)),
        ("security.userns.count", json!(security.userns_count)),
        ("resources.max_per_user", json!(resources.max_per_user)),
        ("resources.max_containers", json!(resources.max_containers)),
        ("resources.max_cpus", json!(resources.max_cpus.unwrap_or(0.0))),
        ("resources.max_memory", json!(resources.max_memory.unwrap_or(0))),
        ("resources.max_pids", json!(resources.max_pids.unwrap_or(0))),
        ("resources.max_disk", json!(resources.max_disk.unwrap_or(0))),
        ("network.pool", net.pool.as_ref().map(network).unwrap_or_default()),
        (
            "network.egress",
            match &net.egress {
                Egress::Public => json!("public"),
                Egress::None => json!("none"),
                Egress::Open => json!("open"),
                Egress::Only(networks) => networks.iter().map(network).collect(),
            },
        ),
        ("network.dns", json!(net.dns)),
        ("network.expose_ports", json!(net.expose_ports)),
        ("volumes.allow", json!(volumes.allow)),
        ("images.default_registry", json!(images.default_registry)),
        ("images.mirrors", json!(images.mirrors)),
        ("images.insecure", json!(images.insecure)),
        ("images.max_size", json!(images.max_bytes)),
        ("images.max_entries", json!(images.max_entries)),
        ("images.keep_free", json!(images.keep_free)),
        ("builds.step_timeout", duration(builds.step_timeout)),
        ("builds.mirrors", json!(builds.mirrors)),
        ("builds.package_cache", json!(builds.package_cache)),
        ("mirrors.size", json!(mirrors.size)),
        ("mirrors.max_age", duration(mirrors.max_age)),
        ("podfile.private_hosts", json!(podfile.private_hosts)),
    ]
}
