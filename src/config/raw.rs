//! The shape of `config.yaml`: every field optional, unknown ones are errors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml::Value;

/// Declares a section; fields after `later:` are known to the product but not to this version, and setting one is an error
/// rather than a promise that is not kept.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* } later { $($later:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $field: Option<$type>,)*
            $($later: Option<Value>,)*
        }

        impl $name {
            /// The fields that this version does not support and that the file sets.
            pub(super) fn unsupported(&self) -> Vec<&'static str> {
                let set: &[(&'static str, bool)] = &[$((stringify!($later), self.$later.is_some()),)*];
                set.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect()
            }
        }
    };
}

section! {
    /// The whole file.
    File {
        listen: Listen,
        auth: Auth,
        defaults: Defaults,
        session: Session,
        state: State,
        log: Log,
        security: Security,
        resources: Resources,
        network: Network,
        volumes: Volumes,
        images: Images,
        builds: Builds,
        mirrors: Mirrors,
        podfile: Podfile,
        projects_file: String,
        metrics: Metrics,
    } later { }
}

section! {
    Auth {
        key_dir: String,
        host_key_dir: String,
        max_startups: String,
        per_source_max_startups: Limit,
        per_source_net_block_size: String,
        per_source_penalties: Penalties,
        login_grace_time: String,
        max_auth_tries: u32,
        max_sessions: u32,
        accept_env: Vec<String>,
        trusted_user_ca_keys: String,
        revoked_keys: String,
        algorithms: String,
        github_url: String,
    } later { }
}

section! {
    Penalties {
        enabled: bool,
        crash: String,
        authfail: String,
        noauth: String,
        grace_exceeded: String,
        min: String,
        max: String,
        max_sources4: u32,
        max_sources6: u32,
        overflow: String,
        overflow6: String,
        exempt: Vec<String>,
    } later { }
}

section! {
    Defaults {
        image: String,
        shell: String,
        cpus: f64,
        memory: Size,
        user: String,
        sudo: bool,
        disk: Size,
    } later { }
}

section! {
    Session {
        mode: String,
        grace_period: String,
        max_lifetime: String,
        idle_timeout: String,
        keep_records: String,
        client_alive_interval: String,
        client_alive_count_max: u32,
    } later { warm, }
}

section! {
    State {
        db_path: String,
        homes_dir: String,
    } later { lock_dir, }
}

section! {
    Log {
        file: String,
        audit_log: String,
    } later { }
}

section! {
    Metrics {
        listen: String,
    } later { }
}

section! {
    Security {
        cap_drop: Vec<String>,
        cap_add: Vec<String>,
        no_new_privileges: bool,
        pids_limit: u64,
        readonly_rootfs: bool,
        tmpfs: BTreeMap<String, String>,
        nested: bool,
        seccomp_profile: String,
        userns: Userns,
    } later { runtime, }
}

section! {
    Userns {
        first: u32,
        count: u32,
    } later { }
}

section! {
    Resources {
        max_per_user: u32,
        max_containers: u32,
        max_cpus: f64,
        max_memory: Size,
        max_pids: u64,
        max_disk: Size,
    } later { }
}

section! {
    Volumes {
        allow: Vec<String>,
    } later { }
}

section! {
    Network {
        pool: String,
        egress: super::egress::Written,
        dns: Vec<String>,
        expose_ports: bool,
    } later { }
}

section! {
    Images {
        default_registry: String,
        mirrors: BTreeMap<String, Vec<String>>,
        insecure: Vec<String>,
        max_size: Size,
        max_entries: u64,
        keep_free: Size,
    } later { registries, }
}

section! {
    Builds {
        step_timeout: String,
        mirrors: BTreeMap<String, String>,
        package_cache: Size,
    } later { }
}

section! {
    Mirrors {
        size: Size,
        max_age: String,
    } later { }
}

section! {
    Podfile {
        private_hosts: Vec<String>,
    } later { }
}

/// One address or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Listen {
    One(String),
    Many(Vec<String>),
}

/// A number, or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Limit {
    Number(u32),
    Word(String),
}

/// A number of bytes, or a text with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl File {
    /// Every field of the file that this version does not support, with its section.
    pub(super) fn all_unsupported(&self) -> Vec<String> {
        let mut all: Vec<String> = self.unsupported().into_iter().map(str::to_owned).collect();
        let mut add = |section: &str, fields: Option<Vec<&'static str>>| {
            all.extend(fields.into_iter().flatten().map(|field| format!("{section}.{field}")));
        };
        add("auth", self.auth.as_ref().map(Auth::unsupported));
        let penalties = self.auth.as_ref().and_then(|auth| auth.per_source_penalties.as_ref());
        add("auth.per_source_penalties", penalties.map(Penalties::unsupported));
        add("defaults", self.defaults.as_ref().map(Defaults::unsupported));
        add("session", self.session.as_ref().map(Session::unsupported));
        add("state", self.state.as_ref().map(State::unsupported));
        add("log", self.log.as_ref().map(Log::unsupported));
        add("security", self.security.as_ref().map(Security::unsupported));
        add("resources", self.resources.as_ref().map(Resources::unsupported));
        let userns = self.security.as_ref().and_then(|security| security.userns.as_ref());
        add("security.userns", userns.map(Userns::unsupported));
        add("metrics", self.metrics.as_ref().map(Metrics::unsupported));
        add("volumes", self.volumes.as_ref().map(Volumes::unsupported));
        add("network", self.network.as_ref().map(Network::unsupported));
        add("podfile", self.podfile.as_ref().map(Podfile::unsupported));
        add("images", self.images.as_ref().map(Images::unsupported));
        add("builds", self.builds.as_ref().map(Builds::unsupported));
        add("mirrors", self.mirrors.as_ref().map(Mirrors::unsupported));
        all
    }
}
