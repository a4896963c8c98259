//! What a session's set-up clones from the mirrors of this host ([`crate::mirror`]).
//!
//! ```text
//!   STATE/sessions/<id>/mirrors     mounted in the user's container at /run/podspawn/mirrors: read-only, nosuid, nodev, noexec,
//!                                   and of ids that nobody in the container has
//!   STATE/sessions/<id>/mirrors/0   a snapshot, while that repository is cloned
//! ```
//!
//! The mirror is brought up to date in the session's own network namespace, which decides what can be reached, and in its
//! cgroup: what a repository costs is the session's to pay, and all of it ends with the session.

use std::{
    fs::{self, DirBuilder, File, Permissions, set_permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{driver::blocking, registry::Inner, steps::Context, volumes::Prepared};
use crate::{
    config::service_user,
    errors::chain,
    mirror::{Limits, MirrorError, Reach, Snapshot, Source},
    names::ContainerId,
    network, protocol,
    state::SessionRecord,
    sys::mount_api::open_tree_clone,
};

/// Where a container sees them.
const INSIDE: &str = "/run/podspawn/mirrors";

/// How long a connection's end may take to be answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// In the directory of a session.
const NAME: &str = "mirrors";

/// Makes the directory for snapshots in that of a container, and its mount, and adds them to `volumes`.
pub(super) fn add_volume(volumes: &mut Prepared, container: &Path) -> io::Result<()> {
    let path = container.join(NAME);
    DirBuilder::new().mode(0o755).create(&path)?;
    set_permissions(&path, Permissions::from_mode(0o755))?;
    let mount = open_tree_clone(File::open(&path)?.as_fd(), c"")?;
    let kind = protocol::VolumeKind::Foreign;
    volumes.add(path, mount, protocol::Volume { path: INSIDE.to_owned(), read_only: true, kind });
    Ok(())
}

/// The mirrors for the set-up of one session.
pub(super) struct SessionMirrors {
    inner: Arc<Inner>,
    record: Arc<SessionRecord>,
    limits: Limits,
    next: AtomicU32,
}

/// One that is not up to date yet.
pub(super) struct Mirror<'a> {
    mirrors: &'a SessionMirrors,
    source: Source,
}

/// What the session has of one.
pub(super) struct Given {
    inner: Arc<Inner>,
    source: Source,
    limits: Limits,
    snapshot: Snapshot,
    /// Where git inside finds it.
    pub(super) inside: String,
}

impl SessionMirrors {
    pub(super) fn new(inner: &Arc<Inner>, record: SessionRecord, limits: Limits) -> Self {
        Self { inner: inner.clone(), record: Arc::new(record), limits, next: AtomicU32::new(0) }
    }

    /// That of the repository, if it can have one.
    pub(super) fn of(&self, url: &str) -> Option<Mirror<'_>> {
        Source::of(url).map(|source| Mirror { mirrors: self, source })
    }
}

impl Mirror<'_> {
    /// Whether it was made before.
    pub(super) fn is_there(&self) -> bool {
        self.mirrors.inner.context.mirrors.has(&self.source)
    }

    /// Brings it up to date and lets the session see it, for a clone of `branch` or of all. Without one everything goes on, so
    /// that why is for the log.
    pub(super) async fn give(self, branch: Option<&str>) -> Option<Given> {
        let SessionMirrors { inner, record, limits, next } = self.mirrors;
        let (limits, name) = (*limits, next.fetch_add(1, Ordering::Relaxed).to_string());
        let (source, session, branch) = (self.source.clone(), record.clone(), branch.map(str::to_owned));
        let inside = format!("{INSIDE}/{name}");
        let given =
            blocking(inner, move |context| context.give_mirror(&session, &source, branch.as_deref(), limits, &name))
                .await;
        match given {
            Ok(snapshot) => Some(Given { inner: inner.clone(), source: self.source, limits, snapshot, inside }),
            Err(error) => {
                let url = self.source.url();
                if error.is_ordinary() {
                    tracing::info!(session = %record.id, url, "not cloned from a mirror: {}", chain(error));
                } else {
                    tracing::warn!(session = %record.id, url, "not cloned from a mirror: {}", chain(error));
                }
                None
            }
        }
    }
}

impl Given {
    /// Takes it away again. If it was of no use the mirror is thrown away, to be made anew by the next session.
    pub(super) async fn take_back(self, of_no_use: bool) {
        let Self { inner, source, limits, snapshot, inside: _ } = self;
        blocking(&inner, move |_| drop(snapshot)).await;
        // Nobody waits for the others' sake.
        tokio::spawn(async move {
            let done = blocking(&inner, move |context| {
                if of_no_use {
                    tracing::warn!(url = source.url(), "the mirror was of no use to git; it is removed");
                    context.mirrors.distrust(&source)?;
                }
                context.mirrors.prune(limits)
            });
            if let Err(error) = done.await {
                tracing::error!("{}", chain(error));
            }
        });
    }
}

impl Context {
    fn give_mirror(
        &self,
        record: &SessionRecord,
        source: &Source,
        branch: Option<&str>,
        limits: Limits,
        name: &str,
    ) -> Result<Snapshot, MirrorError> {
        let pool = self.network.pool();
        // Before anybody waits for us.
        let hosts = source.hosts(|address| pool.contains(address))?;
        let update = self.updates.begin(&record.id).ok_or(MirrorError::Ended)?;
        let container = self.adopt(record).ok_or(MirrorError::Ended)?;
        let ended = |_gone| MirrorError::Ended;
        let netns = File::open(format!("/proc/{}/ns/net", container.pid())).map_err(ended)?;
        let cgroup = self.cgroups.adopt(&record.id);
        let own = ContainerId::from(record.id.clone());
        let cgroup = if record.services.is_empty() { cgroup } else { cgroup.below(&own) };
        let tasks = cgroup.tasks().map_err(|_gone| MirrorError::Ended)?;
        // The pid was the session's when all of that was opened.
        if container.has_ended() {
            return Err(MirrorError::Ended);
        }
        let reach = Reach {
            uid: service_user::uid(),
            netns: netns.as_fd(),
            resolv_conf: &network::resolv_conf(self.network.gateway()),
            hosts: &hosts,
            tasks: &tasks,
            wanted: &|| update.is_wanted() && !container.has_ended(),
        };
        let place = self.directory(&record.id).join(NAME).join(name);
        let given = self.mirrors.give(source, branch, &reach, limits, &place);
        if !update.is_wanted() {
            wait_for_closed(container.pid());
        }
        given
    }
}

/// Waits, as long as that is moments, until no connection in the network of the process `pid` waits for the other side's word on
/// its end: once the session's packets are dropped, such a one keeps its network namespace for minutes.
fn wait_for_closed(pid: i32) {
    let deadline = Instant::now() + CLOSE_LIMIT;
    while Instant::now() < deadline {
        let connections = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
        // FIN_WAIT1, LAST_ACK, CLOSING (the kernel's net/tcp_states.h).
        let state =
            |line: &str| line.split_whitespace().nth(3).is_some_and(|state| ["04", "09", "0B"].contains(&state));
        if !connections.lines().any(state) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
