//! `config check`.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::{Session, table};
use crate::{
    access::users,
    config::{Config, Egress, overrides, per_source::Penalties},
    protocol::Algorithms,
};

/// Validate the configuration, the users' files and the list of projects, and print what is in force and where it comes
/// from.
#[derive(Debug, Args)]
pub struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        // Loading has validated the file; what follows are the files that it points to.
        let rules = session.config.access();
        rules.check_revoked()?;
        let (_, mut warnings) = users::list(&rules)?;
        rules.check_user_cas(&mut warnings);
        overrides::check(&session.config.paths.users_dir)?;
        session.config.projects().read()?;
        for warning in warnings {
            writeln!(io::stderr(), "podspawn: warning: {warning}")?;
        }
        let origin = |field: &str| if session.config.sets(field) { "file" } else { "default" };
        let fields = effective(session.config);
        if self.json {
            let all =
                fields.iter().map(|(field, value)| json!({"field": field, "value": value, "origin": origin(field)}));
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&all.collect::<Vec<_>>())?)?;
        } else {
            let rows: Vec<_> = fields
                .iter()
                .map(|(field, value)| [(*field).to_owned(), plain(value), origin(field).to_owned()])
                .collect();
            table::print(["FIELD", "VALUE", "ORIGIN"], &rows)?;
            writeln!(io::stderr(), "{}: valid", session.config.paths.config_file.display())?;
        }
        Ok(())
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
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

/// Every field with the value in force, in the form that the file would have it.
#[expect(clippy::too_many_lines, reason = "a list of all fields")]
fn effective(config: &Config) -> Vec<(&'static str, Value)> {
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
        ("builds.step_timeout", duration(builds.step_timeout)),
        ("builds.mirrors", json!(builds.mirrors)),
        ("builds.package_cache", json!(builds.package_cache)),
        ("mirrors.size", json!(mirrors.size)),
        ("mirrors.max_age", duration(mirrors.max_age)),
        ("podfile.private_hosts", json!(podfile.private_hosts)),
    ]
}
