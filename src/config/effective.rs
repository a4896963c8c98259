//! Turns the file's fields into values with every default filled in, and refuses what makes no sense.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use super::{
    Auth, Builds, Config, Defaults, Egress, Images, Log, MaxStartups, Metrics, Mirrors, Mode, Network, Paths, Podfile,
    Resources, Security, Session, Volumes,
    load::{ConfigError, Source, ValueError},
    per_source, raw,
    seccomp_profile::{Circumstances, ProfileFile},
    units,
};
use crate::{image, names::InstanceTag, protocol::Algorithms};

/// The bounding set of a container: what package managers and servers need, and nothing that reaches beyond the
/// container's own namespaces. See docs/security.md.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What `security.cap_add` may add to them.
const MORE_CAPABILITIES: &[&str] = &["AUDIT_WRITE", "MKNOD", "SYS_NICE", "SYS_PTRACE"];

/// Ids per container, and the last that a container may have: the kernel takes no larger one for `ping_group_range`
/// (icmp(7)).
const IDS: u64 = 65_536;
const LAST_ID: u64 = (1 << 31) - 1;

/// Bytes that a file system in a file may have.
const DISK: std::ops::RangeInclusive<u64> = 16 << 20..=16 << 40;

/// Processes that a session needs at least.
const MIN_PIDS: u64 = 8;
/// Connections report their traffic once a second.
const MIN_IDLE: Duration = Duration::from_secs(2);

const TOO_FEW_PIDS: &str = "no session works with fewer than 8 processes";

pub(super) struct Fields<'a> {
    file: &'a Path,
}

impl Fields<'_> {
    pub(super) fn bad(&self, field: &'static str, why: impl Into<ValueError>) -> ConfigError {
        ConfigError::Value { file: self.file.to_owned(), field, why: why.into() }
    }

    pub(super) fn rule(&self, field: &'static str, text: impl Into<String>) -> ConfigError {
        self.bad(field, ValueError::Rule(text.into()))
    }

    pub(super) fn duration(
        &self,
        field: &'static str,
        text: Option<&str>,
        default: &str,
    ) -> Result<Duration, ConfigError> {
        units::parse_duration(text.unwrap_or(default)).map_err(|error| self.bad(field, error))
    }

    fn size(&self, field: &'static str, size: Option<raw::Size>, default: u64) -> Result<u64, ConfigError> {
        match size {
            None => Ok(default),
            Some(raw::Size::Bytes(bytes)) => Ok(bytes),
            Some(raw::Size::Text(text)) => units::parse_size(&text).map_err(|error| self.bad(field, error)),
        }
    }

    /// A number of CPUs; 0 is no limit.
    fn cpus(&self, field: &'static str, cpus: f64) -> Result<Option<f64>, ConfigError> {
        if cpus == 0.0 || (0.01..=4096.0).contains(&cpus) {
            return Ok((cpus > 0.0).then_some(cpus));
        }
        Err(self.rule(field, format!("{cpus} is not between 0.01 and 4096 (0 = no limit)")))
    }

    /// Bytes of memory; 0 is no limit.
    fn memory(&self, field: &'static str, size: Option<raw::Size>, default: u64) -> Result<Option<u64>, ConfigError> {
        match self.size(field, size, default)? {
            0 => Ok(None),
            memory if memory < 8 << 20 => Err(self.rule(field, "no container runs in less than 8m (0 = no limit)")),
            memory => Ok(Some(memory)),
        }
    }

    /// Bytes of disk; 0 is no limit.
    fn disk(&self, field: &'static str, size: Option<raw::Size>) -> Result<Option<u64>, ConfigError> {
        match self.size(field, size, 0)? {
            0 => Ok(None),
            bytes if !DISK.contains(&bytes) => Err(self.rule(field, "a disk has between 16m and 16t (0 = no limit)")),
            bytes => Ok(Some(bytes)),
        }
    }

    fn absolute(&self, field: &'static str, path: &Path) -> Result<(), ConfigError> {
        if path.is_absolute() {
            return Ok(());
        }
        Err(self.rule(field, format!("{} is not an absolute path", path.display())))
    }

    fn network(&self, field: &'static str, text: &str) -> Result<(std::net::Ipv4Addr, u8), ConfigError> {
        units::parse_network(text).map_err(|error| self.bad(field, error))
    }
}

pub(super) fn config(
    root: &Path,
    file: &Path,
    instance: InstanceTag,
    raw: raw::File,
    source: Source,
) -> Result<Config, ConfigError> {
    let fields = Fields { file };
    let auth_raw = raw.auth.unwrap_or_default();
    let state_raw = raw.state.unwrap_or_default();
    let under_root = |path: &str| root.join(path.trim_start_matches('/'));
    let chosen = |path: Option<String>, default: &str| path.map_or_else(|| under_root(default), PathBuf::from);
    let paths = Paths {
        root: root.to_owned(),
        config_file: file.to_owned(),
        key_dir: chosen(auth_raw.key_dir.clone(), "etc/podspawn/keys"),
        host_key_dir: chosen(auth_raw.host_key_dir.clone(), "etc/podspawn/host_keys"),
        users_dir: under_root("etc/podspawn/users"),
        projects_file: chosen(raw.projects_file, "etc/podspawn/projects.yaml"),
        state_dir: under_root("var/lib/podspawn"),
        db: chosen(state_raw.db_path, "var/lib/podspawn/state.db"),
        homes: chosen(state_raw.homes_dir, "var/lib/podspawn/homes"),
        run_dir: under_root("run/podspawn"),
        control_socket: under_root("run/podspawn/podspawn.sock"),
    };
    for (field, path) in [
        ("auth.key_dir", &paths.key_dir),
        ("auth.host_key_dir", &paths.host_key_dir),
        ("projects_file", &paths.projects_file),
        ("state.db_path", &paths.db),
        ("state.homes_dir", &paths.homes),
    ] {
        fields.absolute(field, path)?;
    }
    let log = raw.log.unwrap_or_default();
    Ok(Config {
        paths,
        instance,
        listen: listen(&fields, raw.listen)?,
        auth: auth(&fields, auth_raw)?,
        defaults: defaults(&fields, raw.defaults.unwrap_or_default())?,
        session: session(&fields, raw.session.unwrap_or_default())?,
        security: security(&fields, raw.security.unwrap_or_default())?,
        resources: resources(&fields, raw.resources.unwrap_or_default())?,
        network: network(&fields, raw.network.unwrap_or_default())?,
        volumes: volumes(&fields, raw.volumes.unwrap_or_default())?,
        images: images(&fields, raw.images.unwrap_or_default())?,
        metrics: metrics(&fields, raw.metrics.unwrap_or_default())?,
        builds: builds(&fields, raw.builds.unwrap_or_default())?,
        mirrors: mirrors(&fields, raw.mirrors.unwrap_or_default())?,
        podfile: Podfile { private_hosts: raw.podfile.and_then(|raw| raw.private_hosts).unwrap_or_default() },
        log: Log { file: log.file.map(PathBuf::from), audit_log: log.audit_log.map(PathBuf::from) },
        source,
    })
}

fn listen(fields: &Fields<'_>, raw: Option<raw::Listen>) -> Result<Vec<std::net::SocketAddr>, ConfigError> {
    let texts = match raw {
        None => vec!["0.0.0.0:2222".to_owned(), "[::]:2222".to_owned()],
        Some(raw::Listen::One(text)) => vec![text],
        Some(raw::Listen::Many(texts)) => texts,
    };
    if texts.is_empty() {
        return Err(fields.rule("listen", "the list is empty"));
    }
    texts.iter().map(|text| text.parse().map_err(|_| fields.bad("listen", ValueError::Address(text.clone())))).collect()
}

fn metrics(fields: &Fields<'_>, raw: raw::Metrics) -> Result<Metrics, ConfigError> {
    let parse =
        |text: String| text.parse().map_err(|_| fields.bad("metrics.listen", ValueError::Address(text.clone())));
    Ok(Metrics { listen: raw.listen.map(parse).transpose()? })
}

fn auth(fields: &Fields<'_>, raw: raw::Auth) -> Result<Auth, ConfigError> {
    let max_startups = match &raw.max_startups {
        None => MaxStartups { start: 50, rate: 30, full: 100 },
        Some(text) => max_startups(text).ok_or_else(|| {
            fields
                .rule("auth.max_startups", format!("{text:?} is not START:RATE:FULL or one number, such as 50:30:100"))
        })?,
    };
    let per_source = per_source::per_source(fields, &raw)?;
    let accept_env = raw.accept_env.unwrap_or_default();
    let file = |field: &'static str, path: Option<String>| {
        let path = path.map(PathBuf::from);
        path.iter().try_for_each(|path| fields.absolute(field, path)).map(|()| path)
    };
    let known = &["post-quantum", "strong", "compatible"];
    let algorithms = match raw.algorithms.as_deref() {
        Some("post-quantum") => Algorithms::PostQuantum,
        None | Some("strong") => Algorithms::Strong,
        Some("compatible") => Algorithms::Compatible,
        Some(other) => return Err(fields.bad("auth.algorithms", ValueError::Word { value: other.to_owned(), known })),
    };
    let github_url = raw.github_url.unwrap_or_else(|| "https://github.com".to_owned());
    if !github_url.starts_with("https://") && !github_url.starts_with("http://") {
        return Err(fields.rule("auth.github_url", format!("{github_url:?} is not an http or https address")));
    }
    Ok(Auth {
        github_url,
        max_startups,
        per_source,
        login_grace_time: fields.duration("auth.login_grace_time", raw.login_grace_time.as_deref(), "30s")?,
        max_auth_tries: raw.max_auth_tries.unwrap_or(6),
        max_sessions: raw.max_sessions.unwrap_or(32),
        accept_env: ["LANG", "LC_*", "TERM", "COLORTERM"].map(str::to_owned).into_iter().chain(accept_env).collect(),
        trusted_user_ca_keys: file("auth.trusted_user_ca_keys", raw.trusted_user_ca_keys)?,
        revoked_keys: file("auth.revoked_keys", raw.revoked_keys)?,
        algorithms,
    })
}

fn max_startups(text: &str) -> Option<MaxStartups> {
    let parts: Vec<u32> = text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [full] if full > 0 => Some(MaxStartups { start: full, rate: 100, full }),
        [start, rate @ 1..=100, full] if start > 0 && full >= start => Some(MaxStartups { start, rate, full }),
        _ => None,
    }
}

fn defaults(fields: &Fields<'_>, raw: raw::Defaults) -> Result<Defaults, ConfigError> {
    let cpus = fields.cpus("defaults.cpus", raw.cpus.unwrap_or(2.0))?;
    let memory = fields.memory("defaults.memory", raw.memory, 2 << 30)?;
    let shell = raw.shell.unwrap_or_else(|| "/bin/bash".to_owned());
    if !shell.starts_with('/') || shell.contains(['\n', ':', '\0']) {
        return Err(fields.rule("defaults.shell", format!("{shell:?} is not an absolute path")));
    }
    let user_is_root = match raw.user.as_deref() {
        None => false,
        Some("root") => true,
        Some(other) => {
            return Err(fields.bad("defaults.user", ValueError::Word { value: other.to_owned(), known: &["root"] }));
        }
    };
    Ok(Defaults {
        image: raw.image.unwrap_or_else(|| "ubuntu:24.04".to_owned()),
        shell,
        cpus,
        memory,
        user_is_root,
        sudo: raw.sudo.unwrap_or(true),
        disk: fields.disk("defaults.disk", raw.disk)?,
    })
}

fn session(fields: &Fields<'_>, raw: raw::Session) -> Result<Session, ConfigError> {
    let mode = Mode::parse(raw.mode.as_deref().unwrap_or("grace-period"));
    let mode = mode.map_err(|why| fields.bad("session.mode", why))?;
    let idle_timeout = fields.duration("session.idle_timeout", raw.idle_timeout.as_deref(), "0s")?;
    if !idle_timeout.is_zero() && idle_timeout < MIN_IDLE {
        return Err(fields.rule("session.idle_timeout", "it is shorter than 2s (0s = never)"));
    }
    Ok(Session {
        mode,
        idle_timeout: (!idle_timeout.is_zero()).then_some(idle_timeout),
        grace_period: fields.duration("session.grace_period", raw.grace_period.as_deref(), "60s")?,
        max_lifetime: fields.duration("session.max_lifetime", raw.max_lifetime.as_deref(), "8h")?,
        keep_records: fields.duration("session.keep_records", raw.keep_records.as_deref(), "7d")?,
        client_alive_interval: fields.duration(
            "session.client_alive_interval",
            raw.client_alive_interval.as_deref(),
            "60s",
        )?,
        client_alive_count_max: raw.client_alive_count_max.unwrap_or(3),
    })
}

fn security(fields: &Fields<'_>, raw: raw::Security) -> Result<Security, ConfigError> {
    let name = |text: &String| text.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    let mut capabilities: BTreeSet<String> = CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    for dropped in raw.cap_drop.iter().flatten().map(name) {
        if dropped == "ALL" {
            capabilities.clear();
        } else if !capabilities.remove(&dropped) {
            return Err(fields.rule("security.cap_drop", format!("{dropped} is not in the default set")));
        }
    }
    for added in raw.cap_add.iter().flatten().map(name) {
        if added == "NET_RAW" {
            let text = "NET_RAW has no effect, as the network belongs to the host; ping works without it";
            return Err(fields.rule("security.cap_add", text));
        }
        if !CAPABILITIES.contains(&added.as_str()) && !MORE_CAPABILITIES.contains(&added.as_str()) {
            let text = format!("{added} would let a container act on the host; possible are {}", possible());
            return Err(fields.rule("security.cap_add", text));
        }
        capabilities.insert(added);
    }
    let userns = raw.userns.unwrap_or_default();
    let first = userns.first.unwrap_or(1_000_000_000);
    if u64::from(first) < IDS || u64::from(first) + IDS > LAST_ID {
        return Err(
            fields.rule("security.userns", format!("first: {first} is not between {IDS} and {}", LAST_ID - IDS))
        );
    }
    let room = (LAST_ID - u64::from(first)) / IDS;
    let count = userns.count.map_or(room, u64::from);
    if count == 0 || count > room {
        return Err(fields.rule("security.userns", format!("count: {count} is not between 1 and {room}")));
    }
    let tmpfs = raw.tmpfs.unwrap_or_default();
    if let Some(path) = tmpfs.keys().find(|path| !path.starts_with('/') || path.split('/').any(|part| part == "..")) {
        return Err(fields.rule("security.tmpfs", format!("{path:?} is not an absolute path without ..")));
    }
    let pids_limit = raw.pids_limit.unwrap_or(512);
    if pids_limit < MIN_PIDS {
        return Err(fields.rule("security.pids_limit", TOO_FEW_PIDS));
    }
    let capabilities: Vec<String> = capabilities.into_iter().collect();
    let seccomp_profile = match raw.seccomp_profile.map(PathBuf::from) {
        None => None,
        Some(path) => {
            fields.absolute("security.seccomp_profile", &path)?;
            let circumstances = Circumstances::here(&capabilities);
            Some(
                ProfileFile::read(path, &circumstances)
                    .map_err(|error| fields.bad("security.seccomp_profile", error))?,
            )
        }
    };
    Ok(Security {
        capabilities,
        no_new_privileges: raw.no_new_privileges,
        pids_limit,
        readonly_rootfs: raw.readonly_rootfs.unwrap_or(false),
        tmpfs,
        seccomp_profile,
        nested: raw.nested.unwrap_or(false),
        userns_first: first,
        userns_count: u32::try_from(count).unwrap_or(u32::MAX),
    })
}

fn possible() -> String {
    CAPABILITIES.iter().chain(MORE_CAPABILITIES).copied().collect::<Vec<_>>().join(", ")
}

fn resources(fields: &Fields<'_>, raw: raw::Resources) -> Result<Resources, ConfigError> {
    let cpus = fields.cpus("resources.max_cpus", raw.max_cpus.unwrap_or(0.0))?;
    let memory = fields.memory("resources.max_memory", raw.max_memory, 0)?;
    let pids = raw.max_pids.unwrap_or(0);
    if (1..MIN_PIDS).contains(&pids) {
        return Err(fields.rule("resources.max_pids", TOO_FEW_PIDS));
    }
    Ok(Resources {
        max_per_user: raw.max_per_user.unwrap_or(3),
        max_containers: raw.max_containers.unwrap_or(0),
        max_cpus: cpus,
        max_memory: memory,
        max_pids: (pids > 0).then_some(pids),
        max_disk: fields.disk("resources.max_disk", raw.max_disk)?,
    })
}

fn volumes(fields: &Fields<'_>, raw: raw::Volumes) -> Result<Volumes, ConfigError> {
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let checked = |text: String| {
        let path = PathBuf::from(&text);
        let valid = path.is_absolute() && plain(&path);
        if valid { Ok(path) } else { Err(fields.rule("volumes.allow", format!("{text:?} is not an absolute path"))) }
    };
    let allow = raw.allow.unwrap_or_default().into_iter().map(checked).collect::<Result<_, _>>()?;
    Ok(Volumes { allow })
}

fn network(fields: &Fields<'_>, raw: raw::Network) -> Result<Network, ConfigError> {
    let pool = raw.pool.map(|text| fields.network("network.pool", &text)).transpose()?;
    if let Some((address, prefix)) = pool.filter(|(_, prefix)| *prefix > 30 || *prefix < 8) {
        let text = format!("{address}/{prefix} does not have between 4 and 16 million addresses");
        return Err(fields.rule("network.pool", text));
    }
    let egress = raw.egress.map_or(Ok(Egress::Public), Egress::of).map_err(|why| fields.bad("network.egress", why))?;
    let dns = raw.dns.unwrap_or_default();
    let dns = dns
        .iter()
        .map(|text| text.parse().map_err(|_| fields.rule("network.dns", format!("{text:?} is not an IP address"))))
        .collect::<Result<_, _>>()?;
    Ok(Network { pool, egress, dns, expose_ports: raw.expose_ports.unwrap_or(false) })
}

fn images(fields: &Fields<'_>, raw: raw::Images) -> Result<Images, ConfigError> {
    Ok(Images {
        default_registry: raw.default_registry.unwrap_or_else(|| "docker.io".to_owned()),
        mirrors: raw.mirrors.unwrap_or_default(),
        insecure: raw.insecure.unwrap_or_default(),
        max_bytes: fields.size("images.max_size", raw.max_size, 64 << 30)?,
        max_entries: raw.max_entries.unwrap_or(4_000_000),
        keep_free: fields.size("images.keep_free", raw.keep_free, 0)?,
    })
}

fn mirrors(fields: &Fields<'_>, raw: raw::Mirrors) -> Result<Mirrors, ConfigError> {
    let size = fields.size("mirrors.size", raw.size, 8 << 30)?;
    let max_age = fields.duration("mirrors.max_age", raw.max_age.as_deref(), "30d")?;
    Ok(Mirrors { size, max_age })
}

fn builds(fields: &Fields<'_>, raw: raw::Builds) -> Result<Builds, ConfigError> {
    let mirrors = raw.mirrors.unwrap_or_default();
    for (language, address) in &mirrors {
        if !image::MAKERS.iter().any(|(name, _)| name == language) {
            let text = format!("{language:?} is not one of go, nodejs, python, rust");
            return Err(fields.rule("builds.mirrors", text));
        }
        if !address.starts_with("https://") && !address.starts_with("http://") {
            return Err(fields.rule("builds.mirrors", format!("{address:?} is not an http or https address")));
        }
    }
    let step_timeout = fields.duration("builds.step_timeout", raw.step_timeout.as_deref(), "30m")?;
    let package_cache = fields.size("builds.package_cache", raw.package_cache, 8 << 30)?;
    Ok(Builds { step_timeout, mirrors, package_cache })
}
