//! The shape of `config.yaml`: every field optional, unknown ones are errors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml::Value;

/// Declares a section; fields after `later:` are known to the product but not to this version, and setting one is an error
/// rather than a promise that is not kept. What is written above a field is its line in docs/configuration.md.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $meaning:literal])* $field:ident: $type:ty,)* } later { $($later:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[doc = $meaning])* pub(super) $field: Option<$type>,)*
            $($later: Option<Value>,)*
        }

        impl $name {
            /// Each field with its type and meaning; a section has no meaning of its own.
            #[cfg(test)]
            pub(super) fn described() -> Vec<(&'static str, &'static str, &'static str)> {
                vec![$((stringify!($field), stringify!($type), concat!($($meaning),*).trim()),)*]
            }

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
        /// Addresses and ports to listen on, one or a list
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
        /// The list of projects
        projects_file: String,
        metrics: Metrics,
    } later { }
}

section! {
    Auth {
        /// Each user's public keys, in a file of the user's name
        key_dir: String,
        /// The server's own keys; an Ed25519 key is made if there is none
        host_key_dir: String,
        /// Connections that have not logged in, as sshd: from START on RATE percent are refused, from FULL on all
        max_startups: String,
        /// The same for each source, a number, or `none`
        per_source_max_startups: Limit,
        /// Leading bits of IPv4 and IPv6 addresses that make a source
        per_source_net_block_size: String,
        per_source_penalties: Penalties,
        /// How long a login may take
        login_grace_time: String,
        /// Keys that one connection may offer
        max_auth_tries: u32,
        /// Shells, commands and subsystems that one connection may have open
        max_sessions: u32,
        /// Variables that clients may set, beside `LANG`, `LC_*`, `TERM` and `COLORTERM`; `*` stands for any characters
        accept_env: Vec<String>,
        /// A file of certificate authorities whose certificates log in
        trusted_user_ca_keys: String,
        /// A KRL or a list of public keys that do not log in
        revoked_keys: String,
        /// `post-quantum`, `strong` or `compatible`
        algorithms: String,
        /// Where `add-user --github` fetches keys
        github_url: String,
    } later { }
}

section! {
    Penalties {
        /// Whether misbehaving sources are refused for a while
        enabled: bool,
        /// For a connection process that crashed
        crash: String,
        /// For having been asked about a key and not logged in
        authfail: String,
        /// For leaving without a login
        noauth: String,
        /// For not having logged in within `login_grace_time`
        grace_exceeded: String,
        /// The sum from which on a source is refused
        min: String,
        /// The longest time a source is refused
        max: String,
        /// IPv4 sources that are remembered
        max_sources4: u32,
        /// IPv6 sources that are remembered
        max_sources6: u32,
        /// With more of them: `permissive` forgets the penalty that ends first, `deny-all` refuses everybody
        overflow: String,
        /// The same for IPv6
        overflow6: String,
        /// Addresses and networks that are never refused
        exempt: Vec<String>,
    } later { }
}

section! {
    Defaults {
        /// The image of sessions without a project
        image: String,
        /// The login shell; `/bin/sh` where the image lacks it
        shell: String,
        /// CPUs of a session with its services, 0 for no limit
        cpus: f64,
        /// Memory of a session with its services, 0 for no limit
        memory: Size,
        /// `root`, or nothing for the session's own user, uid 1000
        user: String,
        /// Whether the user may become root inside
        sudo: bool,
        /// What a session may have written at one time, 0 for no limit
        disk: Size,
    } later { }
}

section! {
    Session {
        /// `destroy-on-disconnect`, `grace-period` or `persistent`
        mode: String,
        /// How long a session waits for its user after the last connection
        grace_period: String,
        /// How long a session lives at most, 0 for no end; not persistent ones
        max_lifetime: String,
        /// How long a session may be unused, 0 for no end
        idle_timeout: String,
        /// How long it is known what a session did, 0 for no records
        keep_records: String,
        /// After how much silence a client is asked whether it is there, 0 for never
        client_alive_interval: String,
        /// How many of those questions may stay without an answer
        client_alive_count_max: u32,
    } later { warm, }
}

section! {
    State {
        /// The database of sessions
        db_path: String,
        /// Home directories of persistent sessions
        homes_dir: String,
    } later { lock_dir, }
}

section! {
    Log {
        /// The server's log; standard error otherwise
        file: String,
        /// The audit log; none otherwise
        audit_log: String,
    } later { }
}

section! {
    Metrics {
        /// Address and port of `/metrics` for Prometheus; none otherwise
        listen: String,
    } later { }
}

section! {
    Security {
        /// Capabilities that containers do not get, or `ALL`
        cap_drop: Vec<String>,
        /// Capabilities that containers get: `AUDIT_WRITE`, `MKNOD`, `SYS_NICE`, `SYS_PTRACE`, or one that `cap_drop` has dropped
        cap_add: Vec<String>,
        /// Whether set-user-id programs have no effect; decided by `defaults.sudo` unless set
        no_new_privileges: bool,
        /// Processes and threads of a session with its services
        pids_limit: u64,
        /// Whether a container's root file system can be read only
        readonly_rootfs: bool,
        /// File systems in memory: a map from path to mount options
        tmpfs: BTreeMap<String, String>,
        /// Whether sandboxes that need namespaces work inside
        nested: bool,
        /// A filter of one's own for system calls, in Docker's or the OCI's format
        seccomp_profile: String,
        userns: Userns,
    } later { runtime, }
}

section! {
    Userns {
        /// The first uid and gid on the host that containers get
        first: u32,
        /// How many ranges of 65,536 ids there are; as many as fit unless set
        count: u32,
    } later { }
}

section! {
    Resources {
        /// Sessions of one user
        max_per_user: u32,
        /// Sessions of all users, 0 for no limit
        max_containers: u32,
        /// The most CPUs a Podfile gets, 0 for no limit
        max_cpus: f64,
        /// The most memory a Podfile gets, 0 for no limit
        max_memory: Size,
        /// The most processes a Podfile gets, 0 for no limit
        max_pids: u64,
        /// The most disk a Podfile gets, 0 for no limit
        max_disk: Size,
    } later { }
}

section! {
    Volumes {
        /// Directories of the host that services may mount
        allow: Vec<String>,
    } later { }
}

section! {
    Network {
        /// The network that sessions have their addresses from; one that is free unless set
        pool: String,
        /// Where sessions may connect to: `public`, `none`, `open`, or a list of networks
        egress: super::egress::Written,
        /// DNS servers that are asked for sessions; the host's unless set
        dns: Vec<String>,
        /// Whether ports that Podfiles expose can be reached at the host's loopback address
        expose_ports: bool,
    } later { }
}

section! {
    Images {
        /// The registry of names without one
        default_registry: String,
        /// From a registry to a list of others that are asked first
        mirrors: BTreeMap<String, Vec<String>>,
        /// Registries that speak HTTP
        insecure: Vec<String>,
        /// The most bytes that an image may unpack to
        max_size: Size,
        /// The most files that an image may have
        max_entries: u64,
        /// Bytes of the file system of the image store that pulls and builds leave free
        keep_free: Size,
    } later { registries, }
}

section! {
    Builds {
        /// How long a command of a build may take
        step_timeout: String,
        /// From `go`, `nodejs`, `python` or `rust` to an address to fetch it from
        mirrors: BTreeMap<String, String>,
        /// The most bytes of downloaded packages that are kept, 0 for none
        package_cache: Size,
    } later { }
}

section! {
    Mirrors {
        /// The most bytes of public repositories that are kept, 0 for none
        size: Size,
        /// After how long without use one is removed
        max_age: String,
    } later { }
}

section! {
    Podfile {
        /// Hosts of private addresses that Podfiles may be fetched from
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
