//! What one Podfile says, each value checked on its own, and how one is merged over another.

use super::{
    choice::{Mode, Mount, PortStrategy, User},
    edits::{Edits, Keyed},
    package::Package,
    problem::At,
    resolved::{self, Dotfiles, Repo, Service},
    value::Bytes,
};
use crate::image::Reference;

/// What one file says, or several that are merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Podfile {
    pub base: Option<At<Reference>>,
    pub name: Option<At<String>>,
    pub branch: Option<At<String>>,
    pub packages: Edits<Package>,
    pub shell: Option<At<String>>,
    pub user: Option<At<User>>,
    pub env: Edits<Variable>,
    pub dotfiles: Option<At<Dotfiles>>,
    pub repos: Edits<Repo>,
    pub services: Edits<Service>,
    pub expose: Edits<Port>,
    pub strategy: Option<At<PortStrategy>>,
    pub resources: Resources,
    pub on_create: Edits<String>,
    pub on_start: Edits<String>,
    pub extra_commands: Edits<String>,
    pub mount: Option<At<Mount>>,
    pub mode: Option<At<Mode>>,
    pub workspace: Option<At<String>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Resources {
    pub cpus: Option<At<f64>>,
    pub memory: Option<At<Bytes>>,
    pub pids: Option<At<u64>>,
    pub disk: Option<At<Bytes>>,
}

/// An environment variable.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variable {
    pub name: String,
    pub value: String,
}

/// A port of the session's own container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Port(pub u16);

impl Podfile {
    /// This Podfile merged over the one that it extends.
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            base: self.base.or(base.base),
            // A session's own name is nothing to inherit.
            name: self.name,
            branch: self.branch.or(base.branch),
            packages: self.packages.over(base.packages),
            shell: self.shell.or(base.shell),
            user: self.user.or(base.user),
            env: self.env.over(base.env),
            dotfiles: self.dotfiles.or(base.dotfiles),
            repos: self.repos.over(base.repos),
            services: self.services.over(base.services),
            expose: self.expose.over(base.expose),
            strategy: self.strategy.or(base.strategy),
            resources: Resources {
                cpus: self.resources.cpus.or(base.resources.cpus),
                memory: self.resources.memory.or(base.resources.memory),
                pids: self.resources.pids.or(base.resources.pids),
                disk: self.resources.disk.or(base.resources.disk),
            },
            on_create: self.on_create.over(base.on_create),
            on_start: self.on_start.over(base.on_start),
            extra_commands: self.extra_commands.over(base.extra_commands),
            mount: self.mount.or(base.mount),
            mode: self.mode.or(base.mode),
            workspace: self.workspace.or(base.workspace),
        }
    }
}

impl From<Resources> for resolved::Resources {
    fn from(raw: Resources) -> Self {
        let Resources { cpus, memory, pids, disk } = raw;
        Self {
            cpus: cpus.map(|at| at.value),
            memory: memory.map(|at| at.value),
            pids: pids.map(|at| at.value),
            disk: disk.map(|at| at.value),
        }
    }
}

impl Keyed for Package {
    fn key(&self) -> String {
        self.to_string()
    }

    fn update(&mut self, _same: Self) {}
}

impl Keyed for Variable {
    fn key(&self) -> String {
        self.name.clone()
    }

    fn update(&mut self, newer: Self) {
        *self = newer;
    }
}

impl Keyed for Port {
    fn key(&self) -> String {
        self.0.to_string()
    }

    fn update(&mut self, _same: Self) {}
}

impl Keyed for Repo {
    fn key(&self) -> String {
        self.url.clone()
    }

    fn update(&mut self, newer: Self) {
        self.path = newer.path.or(self.path.take());
        self.branch = newer.branch.or(self.branch.take());
    }
}

impl Keyed for Service {
    fn key(&self) -> String {
        self.name.clone()
    }

    fn update(&mut self, newer: Self) {
        *self = newer;
    }
}
