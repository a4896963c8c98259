//! A container that one step is done in: like a session's, with root in it and nobody connected to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::super::{
    driver::blocking,
    environment::{Environment, Life, SetUp},
    registry::Inner,
    state::Alone,
    steps::{Context, CreateError, Images, SessionKey},
};
use crate::{
    cgroup,
    config::{Config, Egress, Mode},
    image::{Digest, Image, ImageError, Packages, Upper, Wanted},
    podfile::{BuildPlan, Ports},
    protocol::{Account, SecuritySpec},
    runtime::{Container, disk_image::DiskImageError},
    state::{Kind, SessionRecord},
};

/// What of a container's changes are not the step's: where other file systems are mounted, and what init writes.
const NOT_OF_THE_STEP: [&str; 6] = ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// How often removing is tried before the rest is left to the next start, and how long to wait in between.
const ATTEMPTS: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);

/// Why what a container has changed is not a layer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error("its processes cannot be ended: {0}")]
    Running(String),
    #[error("what it has written cannot be read")]
    Disk(#[source] DiskImageError),
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Its processes run until it is committed or removed.
pub(super) struct BuildContainer {
    inner: Arc<Inner>,
    record: SessionRecord,
    container: Option<Container>,
    packages: Packages,
    removed: bool,
}

impl BuildContainer {
    /// Starts one on top of `image`, which may connect to what `egress` says.
    pub(super) async fn start(
        inner: &Arc<Inner>,
        config: &Arc<Config>,
        egress: Option<&Egress>,
        image: &Image,
    ) -> Result<Self, CreateError> {
        let packages = Packages::new(&config.paths.state_dir.join("cache"), config.builds.package_cache);
        let (config, egress, image) = (config.clone(), egress.cloned(), image.clone());
        let create = move |context: &Context| context.create_for_build(&image, egress, &config);
        let (record, container) = blocking(inner, create).await?;
        Ok(Self { inner: inner.clone(), record, container: Some(container), packages, removed: false })
    }

    /// The socket of its init.
    pub(super) fn socket(&self) -> PathBuf {
        self.inner.context.init_socket(&self.record.id)
    }

    /// The packages that it can have of other builds.
    pub(super) fn packages(&self) -> &Packages {
        &self.packages
    }

    /// Ends its processes and keeps what they have changed, but for what is in the directories `left_out`, as the image of the
    /// step `key`, which is called `step`. It started on top of `base`. What of `wanted` it has downloaded is for other builds.
    pub(super) async fn commit(
        &mut self,
        key: &Digest,
        base: &Image,
        step: String,
        left_out: &'static [&'static str],
        wanted: Vec<Wanted>,
    ) -> Result<Image, CommitError> {
        let (record, container) = (self.record.clone(), self.container.take());
        let packages = self.packages.clone();
        let (key, base) = (key.clone(), base.clone());
        blocking(&self.inner, move |context| {
            context.end_containers(&record, container).map_err(CommitError::Running)?;
            let written = context.written(&record.id.clone().into()).map_err(CommitError::Disk)?;
            let directory = written.upper();
            match packages.take(&directory, &wanted) {
                Ok(taken) => tracing::debug!(session = %record.id, taken, wanted = wanted.len(), "packages kept"),
                // The next build downloads them again.
                Err(error) => tracing::warn!(session = %record.id, "cannot keep packages for other builds: {error}"),
            }
            let left_out = [&NOT_OF_THE_STEP[..], left_out].concat();
            let upper = Upper { directory: &directory, id_base: record.id_base, left_out: &left_out, source: &step };
            Ok(context.store.commit_step(&key, &base, &upper)?)
        })
        .await
    }

    /// Removes all of it.
    pub(super) async fn remove(mut self) {
        self.removed = true;
        let mut container = self.container.take();
        for attempt in 1..=ATTEMPTS {
            let (record, container) = (self.record.clone(), container.take());
            match blocking(&self.inner, move |context| context.destroy(&record, container)).await {
                Ok(()) => return,
                Err(error) if attempt == ATTEMPTS => {
                    tracing::error!("{error}; trying again in the background");
                    self.inner.context.remains.add(self.record.clone());
                }
                Err(error) => {
                    tracing::warn!("{error}; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

impl Drop for BuildContainer {
    fn drop(&mut self) {
        if !self.removed {
            tracing::error!(session = %self.record.id, "a build container was not removed; doing it now");
            self.inner.context.undo(&self.record, self.container.take());
        }
    }
}

impl Context {
    /// Makes a container on top of `image`, or leaves nothing behind. Blocks.
    fn create_for_build(
        &self,
        image: &Image,
        egress: Option<Egress>,
        config: &Config,
    ) -> Result<(SessionRecord, Container), CreateError> {
        let user = "build".parse().map_err(|_| CreateError::ImageRemoved(image.reference.clone()))?;
        let key = SessionKey { user, project: None };
        let environment = Environment { egress, ..environment(&key, image, config) };
        let mut record = {
            // Nobody may prune it before the row says that it is in use.
            let _held = self.store.hold().map_err(|error| CreateError::Image(image.reference.clone(), error))?;
            self.record(Kind::Build, &key, &environment, image, &[], config)?
        };
        let images = Images { session: image.clone(), services: Vec::new() };
        match self.create_objects(&key, &environment, config, &images, &mut record) {
            Ok(container) => Ok((record, container)),
            Err(error) => {
                self.undo(&record, None);
                Err(error)
            }
        }
    }
}

/// The server's limits and security, and nothing of anybody's session: what is built is the same for all.
fn environment(key: &SessionKey, image: &Image, config: &Config) -> Environment {
    Environment {
        image: BuildPlan { base: image.reference.clone(), steps: Vec::new() },
        account: Account {
            user: None,
            shell: "/bin/sh".to_owned(),
            sudo: false,
            owner: key.user.clone(),
            project: None,
        },
        env: Vec::new(),
        workdir: None,
        set_up: SetUp::default(),
        services: Vec::new(),
        ports: Ports::default(),
        limits: cgroup::Limits {
            cpus: config.defaults.cpus,
            memory_max: config.defaults.memory,
            pids_max: Some(config.security.pids_limit),
        },
        disk: config.defaults.disk,
        security: SecuritySpec {
            capabilities: config.security.capabilities.clone(),
            // Root has nothing to gain from a setuid program.
            no_new_privileges: config.security.no_new_privileges.unwrap_or(true),
            // What is written is what it is for, wherever that is.
            readonly_rootfs: false,
            tmpfs: std::collections::BTreeMap::new(),
            seccomp: true,
            seccomp_profile: config.security.seccomp_profile.as_ref().map(|file| file.profile.clone()),
            nested: false,
        },
        egress: None,
        egress_of_builds: None,
        home: None,
        life: Life { mode: Mode::DestroyOnDisconnect, alone: Alone::Ends, max_lifetime: None, idle: None },
    }
}
