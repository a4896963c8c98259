//! What a session is made from and how it lives: everything that the configuration says, in one value.
//!
//! Values of `config` end here; the steps and the driver see an [`Environment`] and nothing else of them. It is made once
//! for each session, before there is anything of it, so that a change of a file counts for the next session.

use std::{path::PathBuf, time::Duration};

use super::{state::Alone, steps::SessionKey};
use crate::{
    cgroup,
    config::{
        self, Config, Egress, Mode, Resources,
        overrides::{self, OverridesError},
        projects::Project,
    },
    mirror::{self, Source},
    names::ProjectName,
    podfile::{self, BuildPlan, Bytes, Overrides, Podfile, Repo, git},
    project::{Podfiles, ProjectError},
    protocol::{Account, SecuritySpec},
};

/// One session's, checked and complete.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The image, as it was named, and what is built on it.
    pub image: BuildPlan,
    pub account: Account,
    /// Variables beside those of the image, which they win over; what stands in them is for [`super::Variables`].
    pub env: Vec<(String, String)>,
    /// Where shells and commands start; the home directory if `None`.
    pub workdir: Option<String>,
    pub set_up: SetUp,
    /// What runs beside it.
    pub services: Vec<podfile::Service>,
    /// What of it is to be had on the host's loopback address.
    pub ports: podfile::Ports,
    pub limits: cgroup::Limits,
    /// Bytes that it may write together with its services; `None` is no limit.
    pub disk: Option<u64>,
    pub security: SecuritySpec,
    /// The directory of the host that has its user's home; `None`: the home goes with the session.
    pub home: Option<PathBuf>,
    /// Where all of its containers may connect to; where the server lets everybody if `None`.
    pub egress: Option<Egress>,
    /// The same of what is built for it, which is for all who have the project.
    pub egress_of_builds: Option<Egress>,
    pub life: Life,
}

/// What is done in a new session before anybody works in it, and for each who comes to.
#[derive(Debug, Clone, Default)]
pub struct SetUp {
    /// One line that whoever has the session made is told.
    pub notice: Option<String>,
    pub dotfiles: Option<podfile::Dotfiles>,
    /// All of them have a path.
    pub repos: Vec<podfile::Repo>,
    /// A script for `sh`, once.
    pub on_create: Option<String>,
    /// A script for `sh`, for each connection.
    pub on_start: Option<String>,
    /// What mirrors may take, if any of these can be cloned from one.
    pub mirrors: Option<mirror::Limits>,
}

/// When a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub mode: Mode,
    /// What it does without connections.
    pub alone: Alone,
    /// How long it lives at most; `None` = for ever.
    pub max_lifetime: Option<Duration>,
    /// How long nobody may use it before its connections are closed; `None` = for ever.
    pub idle: Option<Duration>,
}

/// Why there is no environment for a session.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error(transparent)]
    Project(#[from] ProjectError),
    #[error(transparent)]
    Overrides(#[from] OverridesError),
    #[error("the environment variables are larger than 256 KiB together")]
    TooManyVariables,
}

impl EnvironmentError {
    /// Whether it tells about the administrator's files, which users do not get to see.
    pub fn is_private(&self) -> bool {
        match self {
            Self::Project(error) => error.is_private(),
            Self::Overrides(_) => true,
            Self::TooManyVariables => false,
        }
    }
}

impl Environment {
    /// What a new session of `key` gets. Reads files; whoever waits for a session waits for it.
    pub fn of(key: &SessionKey, config: &Config, podfiles: &Podfiles) -> Result<Self, EnvironmentError> {
        let overrides = overrides::of(&config.paths.users_dir, &key.user)?;
        let mut environment = Self::plain(key, config);
        let mut mode = overrides.mode.map(mode_of);
        let registered = match &key.project {
            Some(name) => podfiles.of(&config.projects(), name)?.map(|(project, podfile)| (name, project, podfile)),
            None => None,
        };
        match registered {
            Some((name, project, podfile)) => {
                environment.apply_podfile(name, &project, &podfile, config);
                mode = project.mode.or(podfile.mode.map(mode_of)).or(mode);
            }
            None => {
                environment.image.base = overrides.image.clone().unwrap_or(environment.image.base);
                environment.set_up.notice = key.project.as_ref().map(|name| {
                    format!("project {name} is not registered here (podspawn add-project); this is a plain session")
                });
            }
        }
        environment.apply_overrides(overrides, config);
        environment.set_up.mirrors = environment.mirrors(config);
        if let Some(mode) = mode {
            environment.life = Life::of(mode, config);
        }
        let stays = environment.life.mode == Mode::Persistent;
        environment.home = stays.then(|| config.paths.homes.join(key.user.as_str()));
        Ok(environment)
    }

    /// What the configuration alone says.
    fn plain(key: &SessionKey, config: &Config) -> Self {
        let defaults = &config.defaults;
        let has_sudo = defaults.sudo && !defaults.user_is_root;
        Self {
            image: BuildPlan { base: defaults.image.clone(), steps: Vec::new() },
            account: Account {
                user: (!defaults.user_is_root).then(|| key.user.clone()),
                shell: defaults.shell.clone(),
                sudo: has_sudo,
                owner: key.user.clone(),
                project: key.project.clone(),
            },
            env: Vec::new(),
            workdir: None,
            set_up: SetUp::default(),
            services: Vec::new(),
            ports: podfile::Ports::default(),
            limits: cgroup::Limits {
                cpus: defaults.cpus,
                memory_max: defaults.memory,
                pids_max: Some(config.security.pids_limit),
            },
            disk: defaults.disk,
            security: SecuritySpec {
                capabilities: config.security.capabilities.clone(),
                no_new_privileges: config.security.no_new_privileges.unwrap_or(!has_sudo),
                readonly_rootfs: config.security.readonly_rootfs,
                tmpfs: config.security.tmpfs.clone(),
                seccomp: true,
                seccomp_profile: config.security.seccomp_profile.as_ref().map(|file| file.profile.clone()),
                nested: config.security.nested,
            },
            home: None,
            egress: None,
            egress_of_builds: None,
            life: Life::of(config.session.mode, config),
        }
    }

    /// What the Podfile of a project says wins over the defaults.
    fn apply_podfile(&mut self, name: &ProjectName, project: &Project, podfile: &Podfile, config: &Config) {
        self.image = BuildPlan::of(podfile);
        self.env = podfile.env.clone().into_iter().collect();
        let repos = repos(name, project, podfile);
        self.workdir = podfile.workspace.clone().or_else(|| repos.first().and_then(|repo| repo.path.clone()));
        self.set_up = SetUp {
            notice: None,
            dotfiles: podfile.dotfiles.clone(),
            repos,
            on_create: podfile.on_create.clone(),
            on_start: podfile.on_start.clone(),
            mirrors: None,
        };
        self.services.clone_from(&podfile.services);
        self.apply_ports(&podfile.ports, config);
        self.egress.clone_from(&project.egress);
        self.egress_of_builds.clone_from(&project.egress);
        self.apply_account(podfile.user, podfile.shell.clone(), config);
        let Resources { max_cpus, max_memory, max_pids, max_disk, .. } = config.resources;
        let at_most = |asked: Option<u64>, max: Option<u64>| asked.map(|asked| max.map_or(asked, |max| asked.min(max)));
        // It is a stranger who asks, and the defaults are not his to lift.
        self.apply_limits(&podfile::Resources {
            cpus: podfile.resources.cpus.map(|cpus| max_cpus.map_or(cpus, |max| cpus.min(max))),
            memory: at_most(podfile.resources.memory.map(|Bytes(bytes)| bytes), max_memory).map(Bytes),
            pids: at_most(podfile.resources.pids, max_pids),
            disk: at_most(podfile.resources.disk.map(|Bytes(bytes)| bytes), max_disk).map(Bytes),
        });
    }

    /// Takes over what is exposed, if this server exposes anything. Who insists on a port is told if it does not.
    fn apply_ports(&mut self, ports: &podfile::Ports, config: &Config) {
        if config.network.expose_ports {
            self.ports.clone_from(ports);
        } else if let (podfile::PortStrategy::Expose, Some(port)) = (ports.strategy, ports.expose.first()) {
            self.set_up.notice = Some(format!(
                "this server exposes no ports (network.expose_ports), whatever ports.strategy says; to reach port {port}: ssh \
                 -L {port}:localhost:{port}"
            ));
        }
    }

    /// What the administrator says about the user wins over all.
    fn apply_overrides(&mut self, overrides: Overrides, config: &Config) {
        self.apply_account(overrides.user, overrides.shell, config);
        self.apply_limits(&overrides.resources);
        self.security.nested = overrides.nested.unwrap_or(self.security.nested);
        self.egress = overrides.egress.or(self.egress.take());
        self.set_up.dotfiles = overrides.dotfiles.or(self.set_up.dotfiles.take());
        for (name, value) in overrides.env {
            self.env.retain(|(known, _)| *known != name);
            if !value.is_empty() {
                self.env.push((name, value));
            }
        }
    }

    fn apply_account(&mut self, user: Option<podfile::User>, shell: Option<String>, config: &Config) {
        if user == Some(podfile::User::Root) {
            self.become_root(config);
        }
        if let Some(shell) = shell {
            self.account.shell = shell;
        }
    }

    fn apply_limits(&mut self, resources: &podfile::Resources) {
        self.limits.cpus = resources.cpus.or(self.limits.cpus);
        self.limits.memory_max = resources.memory.map(|Bytes(bytes)| bytes).or(self.limits.memory_max);
        self.limits.pids_max = resources.pids.or(self.limits.pids_max);
        self.disk = resources.disk.map(|Bytes(bytes)| bytes).or(self.disk);
    }

    /// What mirrors may take if any can be of use.
    fn mirrors(&self, config: &Config) -> Option<mirror::Limits> {
        let limits = limits_of_mirrors(config);
        // With no way out not even names are looked up.
        let way_out = self.egress.as_ref().unwrap_or(&config.network.egress) != &Egress::None;
        let urls = self.set_up.repos.iter().map(|repo| &repo.url);
        let urls = urls.chain(self.set_up.dotfiles.iter().map(|dotfiles| &dotfiles.repo));
        let any = urls.into_iter().any(|url| Source::of(url).is_some());
        (limits.bytes > 0 && way_out && any).then_some(limits)
    }

    /// Services run as their images say. Nobody is made for them.
    pub fn account_of_services(&self) -> Account {
        Account { user: None, sudo: false, ..self.account.clone() }
    }

    /// The profile of services: the session's, but that none of them needs sudo, or sandboxes.
    pub fn security_of_services(&self, config: &Config) -> SecuritySpec {
        let no_new_privileges = config.security.no_new_privileges.unwrap_or(true);
        SecuritySpec { no_new_privileges, nested: false, ..self.security.clone() }
    }

    fn become_root(&mut self, config: &Config) {
        self.account.user = None;
        self.account.sudo = false;
        self.security.no_new_privileges = config.security.no_new_privileges.unwrap_or(true);
    }
}

/// What the configuration says of mirrors.
pub fn limits_of_mirrors(config: &Config) -> mirror::Limits {
    let config::Mirrors { size, max_age } = config.mirrors;
    mirror::Limits { bytes: size, age: max_age }
}

/// What the configuration calls it.
fn mode_of(mode: podfile::Mode) -> Mode {
    match mode {
        podfile::Mode::GracePeriod => Mode::GracePeriod,
        podfile::Mode::DestroyOnDisconnect => Mode::DestroyOnDisconnect,
        podfile::Mode::Persistent => Mode::Persistent,
    }
}

/// The repositories of a session, each with the path that it is cloned to. The project's own one is the first, unless the
/// Podfile has it among the others.
fn repos(name: &ProjectName, project: &Project, podfile: &Podfile) -> Vec<Repo> {
    let home = podfile.workspace.clone().unwrap_or_else(|| format!("/workspace/{name}"));
    let branch = project.branch.clone().or_else(|| podfile.branch.clone());
    let mut repos = podfile.repos.clone();
    match repos.iter_mut().find(|repo| git::same_repository(&repo.url, &project.repo)) {
        Some(own) => {
            own.path.get_or_insert(home);
            own.branch = own.branch.take().or(branch);
        }
        None => repos.insert(0, Repo { url: project.repo.clone(), path: Some(home), branch }),
    }
    for index in 0..repos.len() {
        if repos[index].path.is_none() {
            let path = format!("/workspace/{}", git::directory_name(&repos[index].url));
            let taken = |path: &String| repos.iter().any(|repo| repo.path.as_ref() == Some(path));
            let numbered = (2..).map(|number| format!("{path}-{number}"));
            repos[index].path = std::iter::once(path.clone()).chain(numbered).find(|path| !taken(path));
        }
    }
    repos
}

impl Life {
    /// That of a session in `mode`.
    pub fn of(mode: Mode, config: &Config) -> Self {
        let limited = mode != Mode::Persistent && !config.session.max_lifetime.is_zero();
        Self {
            mode,
            alone: match mode {
                Mode::DestroyOnDisconnect => Alone::Ends,
                Mode::GracePeriod => Alone::Waits(config.session.grace_period),
                Mode::Persistent => Alone::Stays,
            },
            max_lifetime: limited.then_some(config.session.max_lifetime),
            idle: config.session.idle_timeout,
        }
    }
}
