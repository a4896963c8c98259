//! What a session is made from and how it lives: everything that the configuration says, in one value.
//!
//! Values of `config` end here; the steps and the driver see an [`Environment`] and nothing else of them. It is made once
//! for each session, before there is anything of it, so that a change of a file counts for the next session.

use std::time::Duration;

use super::steps::SessionKey;
use crate::{
    cgroup,
    config::{Config, Mode},
    podfile::{self, BuildPlan},
    protocol::{Account, SecuritySpec},
};

/// One session's, checked and complete.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The image, as it was named, and what is built on it.
    pub image: BuildPlan,
    pub account: Account,
    /// Variables beside those of the image, which they win over.
    pub env: Vec<(String, String)>,
    /// Where shells and commands start; the home directory if `None`.
    pub workdir: Option<String>,
    pub set_up: SetUp,
    /// What runs beside it.
    pub services: Vec<podfile::Service>,
    pub limits: cgroup::Limits,
    pub security: SecuritySpec,
    pub life: Life,
}

/// What is done in a new session before anybody works in it, and for each who comes to.
#[derive(Debug, Clone, Default)]
pub struct SetUp {
    pub dotfiles: Option<podfile::Dotfiles>,
    pub repos: Vec<podfile::Repo>,
    /// A script for `sh`, once.
    pub on_create: Option<String>,
    /// A script for `sh`, for each connection.
    pub on_start: Option<String>,
}

/// When a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub mode: Mode,
    /// How long it lives without connections; `None` = not at all.
    pub grace: Option<Duration>,
    /// How long it lives at most; `None` = for ever.
    pub max_lifetime: Option<Duration>,
}

impl Environment {
    /// What a new session of `key` gets.
    pub fn of(key: &SessionKey, config: &Config) -> Self {
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
            limits: cgroup::Limits {
                cpus: defaults.cpus,
                memory_max: defaults.memory,
                pids_max: Some(config.security.pids_limit),
            },
            security: SecuritySpec {
                capabilities: config.security.capabilities.clone(),
                no_new_privileges: config.security.no_new_privileges.unwrap_or(!has_sudo),
                readonly_rootfs: config.security.readonly_rootfs,
                tmpfs: config.security.tmpfs.clone(),
                seccomp: true,
                nested: config.security.nested,
            },
            life: Life::of(config.session.mode, config),
        }
    }
}

impl Life {
    /// That of a session in `mode`.
    pub fn of(mode: Mode, config: &Config) -> Self {
        Self {
            mode,
            grace: match mode {
                Mode::DestroyOnDisconnect => None,
                Mode::GracePeriod => Some(config.session.grace_period),
            },
            max_lifetime: (!config.session.max_lifetime.is_zero()).then_some(config.session.max_lifetime),
        }
    }
}
