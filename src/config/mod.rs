//! The server's configuration: trusted input, written by the administrator.
//!
//! `raw` is the shape of the file (unknown fields are errors), [`Config`] the validated result with every default filled
//! in. Values stop at `session`: leaves are given only what they
//! need.

mod check;
mod effective;
mod egress;
pub mod host_keys;
mod load;
pub mod overrides;
pub mod per_source;
pub mod projects;
mod raw;
#[cfg(test)]
mod reference;
pub mod seccomp_profile;
pub mod service_user;
mod settings;
mod stamp;
pub mod units;

pub(crate) use self::load::explain;
pub use self::{
    check::{CheckError, check},
    egress::Egress,
    load::{ConfigError, Options, ValueError},
    settings::{Setting, settings},
    stamp::Stamp,
};

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{access, names::InstanceTag, protocol::Algorithms};

/// Where everything is, after `--root` and the configuration have been applied. All absolute.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `--root`, canonical; `/` by default.
    pub root: PathBuf,
    /// `/etc/podspawn/config.yaml`
    pub config_file: PathBuf,
    /// `/etc/podspawn/keys`
    pub key_dir: PathBuf,
    /// `/etc/podspawn/host_keys`
    pub host_key_dir: PathBuf,
    /// `/etc/podspawn/users`
    pub users_dir: PathBuf,
    /// `/etc/podspawn/projects.yaml`
    pub projects_file: PathBuf,
    /// `/var/lib/podspawn`
    pub state_dir: PathBuf,
    /// `/var/lib/podspawn/state.db`
    pub db: PathBuf,
    /// `/var/lib/podspawn/homes`: a directory for each user who has a home that outlives sessions.
    pub homes: PathBuf,
    /// `/run/podspawn`
    pub run_dir: PathBuf,
    /// `/run/podspawn/podspawn.sock`
    pub control_socket: PathBuf,
}

/// The whole effective configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub paths: Paths,
    pub instance: InstanceTag,
    pub listen: Vec<SocketAddr>,
    pub auth: Auth,
    pub defaults: Defaults,
    pub session: Session,
    pub security: Security,
    pub resources: Resources,
    pub network: Network,
    pub volumes: Volumes,
    pub images: Images,
    pub builds: Builds,
    pub mirrors: Mirrors,
    pub podfile: Podfile,
    pub log: Log,
    pub metrics: Metrics,
    /// Where values came from, for [`Config::reload_if_changed`] and `config check`.
    pub source: load::Source,
}

impl Config {
    /// Where projects are.
    pub fn projects(&self) -> projects::Places {
        projects::Places { file: self.paths.projects_file.clone(), directory: self.paths.state_dir.join("projects") }
    }

    /// Where it is written who may log in.
    pub fn access(&self) -> access::Rules {
        access::Rules {
            key_dir: self.paths.key_dir.clone(),
            user_cas: self.auth.trusted_user_ca_keys.clone(),
            revoked: self.auth.revoked_keys.clone(),
        }
    }

    /// Whether there is a file of projects, which clients may name.
    pub fn knows_projects(&self) -> bool {
        self.paths.projects_file.exists()
    }
}

#[derive(Debug, Clone)]
pub struct Auth {
    /// `start:rate:full` (sshd_config(5), MaxStartups).
    pub max_startups: MaxStartups,
    pub per_source: per_source::PerSource,
    pub login_grace_time: Duration,
    pub max_auth_tries: u32,
    /// Session channels per connection (sshd_config(5), MaxSessions).
    pub max_sessions: u32,
    pub accept_env: Vec<String>,
    pub trusted_user_ca_keys: Option<PathBuf>,
    pub revoked_keys: Option<PathBuf>,
    pub algorithms: Algorithms,
    /// Where `add-user --github` gets keys.
    pub github_url: String,
}

/// From `start` unauthenticated connections on, refuse with probability `rate` percent, growing to certainty at `full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxStartups {
    pub start: u32,
    pub rate: u32,
    pub full: u32,
}

/// What a session gets unless something more specific says otherwise.
#[derive(Debug, Clone)]
pub struct Defaults {
    pub image: String,
    pub shell: String,
    /// CPUs, e.g. 2.0. `None` = no limit.
    pub cpus: Option<f64>,
    /// Bytes. `None` = no limit.
    pub memory: Option<u64>,
    /// `root`, or `None` for the user's own name.
    pub user_is_root: bool,
    pub sudo: bool,
    /// Bytes that a session may write to root file systems, its own and those of its services. `None` = no limit.
    pub disk: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Session {
    pub mode: Mode,
    pub grace_period: Duration,
    pub max_lifetime: Duration,
    /// How long a record of a session stays when it is gone; zero = not at all.
    pub keep_records: Duration,
    /// How long nobody may use a session before its connections are closed; `None` = for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a client may be silent before it is asked for a sign of life, and how often it may fail to answer
    /// (sshd_config(5), ClientAliveInterval and ClientAliveCountMax).
    pub client_alive_interval: Duration,
    pub client_alive_count_max: u32,
}

/// What happens when a session's last connection closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    DestroyOnDisconnect,
    GracePeriod,
    /// Nothing: it lives until it is stopped, and its user's home directory outlives it.
    Persistent,
}

impl Mode {
    /// Reads the word that files have for it.
    pub fn parse(word: &str) -> Result<Self, ValueError> {
        match word {
            "grace-period" => Ok(Self::GracePeriod),
            "destroy-on-disconnect" => Ok(Self::DestroyOnDisconnect),
            "persistent" => Ok(Self::Persistent),
            other => {
                let known = &["destroy-on-disconnect", "grace-period", "persistent"];
                Err(ValueError::Word { value: other.to_owned(), known })
            }
        }
    }

    /// The word that files have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DestroyOnDisconnect => "destroy-on-disconnect",
            Self::GracePeriod => "grace-period",
            Self::Persistent => "persistent",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Security {
    /// The capability bounding set: names without `CAP_`, upper case, sorted.
    pub capabilities: Vec<String>,
    /// `None`: off where the session's user has sudo, else on.
    pub no_new_privileges: Option<bool>,
    pub pids_limit: u64,
    pub readonly_rootfs: bool,
    pub tmpfs: std::collections::BTreeMap<String, String>,
    /// `None`: one of the built-in filters.
    pub seccomp_profile: Option<seccomp_profile::ProfileFile>,
    /// Whether sandboxes and rootless tools work inside (docs/security.md).
    pub nested: bool,
    /// The first host id for containers, and how many containers' worth (65,536 ids each) there are.
    pub userns_first: u32,
    pub userns_count: u32,
}

#[derive(Debug, Clone)]
pub struct Resources {
    /// 0 = unlimited.
    pub max_per_user: u32,
    pub max_containers: u32,
    /// The most that a Podfile gets for a session, whatever it asks for. `None` = what it asks for.
    pub max_cpus: Option<f64>,
    pub max_memory: Option<u64>,
    pub max_pids: Option<u64>,
    /// In bytes.
    pub max_disk: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Network {
    /// IPv4 network that sessions' addresses come from: address and prefix length (at most 30). The first address is the
    /// gateway's, on the host.
    ///
    /// `None`: one is chosen that the host does not use.
    pub pool: Option<(std::net::Ipv4Addr, u8)>,
    /// Of those whose project and user have none of their own.
    pub egress: Egress,
    /// Resolvers that our DNS forwarder asks; empty = those of the host's /etc/resolv.conf.
    pub dns: Vec<std::net::IpAddr>,
    /// Whether `ports.expose` of Podfiles is had on the loopback address of the host, by everybody who has an account there.
    pub expose_ports: bool,
}

/// What services may have mounted beside volumes of their own.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Directories of the host that Podfiles may mount, with all that is in them.
    pub allow: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Images {
    /// Registry that unqualified names are taken from (`docker.io`).
    pub default_registry: String,
    /// Registry host to the mirrors that are asked first.
    pub mirrors: std::collections::BTreeMap<String, Vec<String>>,
    /// Registries (`host[:port]`) that are spoken to without TLS.
    pub insecure: Vec<String>,
    /// Bytes that one image may unpack to, and entries that it may have.
    pub max_bytes: u64,
    pub max_entries: u64,
    /// Bytes that stay free on the store's file system; 0 is none.
    pub keep_free: u64,
}

/// Numbers for Prometheus.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where they are served over TCP, to whoever asks. `None` = only on the control socket.
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct Builds {
    /// How long each command of a step may take.
    pub step_timeout: Duration,
    /// Where languages are got instead of from their makers: an address that has what theirs has, for each language.
    pub mirrors: std::collections::BTreeMap<String, String>,
    /// How much is kept of packages that builds have downloaded, in bytes; with 0 nothing is.
    pub package_cache: u64,
}

/// What is kept of the repositories that sessions clone.
#[derive(Debug, Clone)]
pub struct Mirrors {
    /// What all of them may take, in bytes, and one of them a quarter of; with 0 there are none.
    pub size: u64,
    /// After which one is made anew, whatever has been used of it.
    pub max_age: Duration,
}

/// What Podfiles may lead to.
#[derive(Debug, Clone)]
pub struct Podfile {
    /// Hosts that a Podfile may extend one of although their addresses are private.
    pub private_hosts: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub audit_log: Option<PathBuf>,
}
