//! Images of Podfiles: each step is done in a container of its own on top of the ones before, and what it has changed becomes
//! a layer that all who need the same get.
//!
//! ```text
//! base ─▶ step 1 ─▶ layer ─▶ step 2 ─▶ layer ─▶ ... ─▶ the image of a session
//! ```
//!
//! A step's key stands for the base, the steps before and its own text ([`BuildPlan::keys`]); what has been done under a key
//! is not done again. A build belongs to nobody: it goes on when those who wait for it leave, and all who come while it runs
//! wait for the same one. Its containers have records, so that a supervisor that dies over it leaves nothing to the next.

mod container;
mod kept;
mod package;
mod step;

pub use self::kept::kept;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::step::{StepError, Tail};
use super::{
    driver::blocking,
    registry::Inner,
    steps::{Context, CreateError},
};
use crate::{
    config::{Config, Egress},
    errors::chain,
    image::{self, Digest, Image},
    podfile::BuildPlan,
};

/// The version of how steps are done: images that were built by another one are built again.
const LOGIC: u32 = 1;

/// Lines of a build's progress that are kept for those who come later. Beyond it only the result is told.
const MAX_LINES: usize = 1024;

/// How often it is said that a step still runs.
const STILL: Duration = Duration::from_secs(15);

/// Why there is no image.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BuildFailure {
    message: String,
    /// The end of what the step that failed has written.
    pub output: Vec<String>,
}

impl BuildFailure {
    fn of(error: impl std::error::Error) -> Self {
        Self { message: chain(error), output: Vec::new() }
    }

    /// One line, and behind it the end of the output.
    pub(super) fn told(&self) -> String {
        self.output.iter().fold(self.message.clone(), |told, line| format!("{told}\n  | {line}"))
    }
}

/// All builds of this server.
pub(super) struct Builds {
    running: Mutex<HashMap<Digest, watch::Receiver<Status>>>,
    /// Steps that are being done, also as a part of different plans.
    steps: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Steps that are done at once.
    turns: Semaphore,
    tasks: TaskTracker,
    /// Ends them all.
    stop: CancellationToken,
}

/// How far a build is.
#[derive(Debug, Clone, Default)]
struct Status {
    lines: Vec<Arc<str>>,
    ended: Option<Result<Image, BuildFailure>>,
}

impl Builds {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            running: Mutex::default(),
            steps: Mutex::default(),
            turns: Semaphore::new(cores.max(2)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Ends all builds and lets no more begin. Returns whether nothing is left of them within `limit`.
    pub(super) async fn end(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    /// The right to do the step of this key. Whoever waits for it may find it done.
    async fn turn(&self, key: &Digest, told: &Told) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.retain(|_, turn| turn.strong_count() > 0);
            if let Some(turn) = steps.get(key).and_then(Weak::upgrade) {
                turn
            } else {
                let turn = Arc::default();
                steps.insert(key.clone(), Arc::downgrade(&turn));
                turn
            }
        };
        if let Ok(turn) = turn.clone().try_lock_owned() {
            return turn;
        }
        told.line("waiting for another build that does the same step");
        turn.lock_owned().await
    }
}

impl Context {
    /// The image of `plan`, if all that it needs is here.
    pub(super) fn find_image(&self, plan: &BuildPlan) -> Result<Option<Image>, CreateError> {
        let unreadable = |error| CreateError::Image(plan.base.clone(), error);
        let Some(base) = self.store.lookup(&super::steps::image_reference(&plan.base)?).map_err(unreadable)? else {
            return Ok(None);
        };
        if plan.steps.is_empty() {
            return Ok(Some(base));
        }
        let built = self.store.built(&plan.keys(&base.id, LOGIC)).map_err(unreadable)?;
        Ok(built.filter(|(done, _)| *done == plan.steps.len()).map(|(_, image)| image))
    }
}

/// Gets the image of `plan` ready, unless it is there; waits for it, and passes on how it goes. Its steps may connect to what
/// `egress` says, or else to what the server lets everybody; if somebody else has begun it, to what that one said.
///
/// Dropping the future leaves the build to itself.
pub(super) async fn ensure(
    inner: &Arc<Inner>,
    plan: &BuildPlan,
    egress: Option<&Egress>,
    config: &Arc<Config>,
    mut progress: impl FnMut(&str),
) -> Result<Image, CreateError> {
    let found = {
        let plan = plan.clone();
        blocking(inner, move |context| context.find_image(&plan)).await?
    };
    if let Some(image) = found {
        return Ok(image);
    }
    let mut status = join(inner, plan, egress, config);
    let mut shown = 0;
    loop {
        let Status { lines, ended } = status.borrow_and_update().clone();
        lines[shown..].iter().for_each(|line| progress(line));
        shown = lines.len();
        if let Some(ended) = ended {
            return ended.map_err(CreateError::Build);
        }
        if status.changed().await.is_err() {
            // It has panicked.
            let message = "the build has ended unexpectedly; the server's log says why".to_owned();
            return Err(CreateError::Build(BuildFailure { message, output: Vec::new() }));
        }
    }
}

/// The running build of `plan`, or a new one.
fn join(
    inner: &Arc<Inner>,
    plan: &BuildPlan,
    egress: Option<&Egress>,
    config: &Arc<Config>,
) -> watch::Receiver<Status> {
    let key = plan.key();
    let mut running = inner.builds.running.lock().unwrap_or_else(PoisonError::into_inner);
    // One that has panicked is in nobody's way.
    if let Some(status) = running.get(&key).filter(|status| status.has_changed().is_ok()) {
        return status.clone();
    }
    let (told, status) = watch::channel(Status::default());
    running.insert(key.clone(), status.clone());
    let build = Build {
        inner: inner.clone(),
        plan: plan.clone(),
        egress: egress.cloned(),
        config: config.clone(),
        told: Arc::new(Told(told)),
    };
    inner.builds.tasks.spawn(async move {
        let ended = build.run().await;
        let Build { inner, told, .. } = build;
        // Those who come from here on start anew, and find what was done.
        inner.builds.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        told.0.send_modify(|status| status.ended = Some(ended));
    });
    status
}

/// Those who wait for a build.
struct Told(watch::Sender<Status>);

impl Told {
    fn line(&self, line: &str) {
        self.0.send_if_modified(|status| {
            let room = status.lines.len() < MAX_LINES;
            if room {
                status.lines.push(line.into());
            }
            room
        });
    }
}

impl image::Progress for Told {
    fn line(&self, line: &str) {
        Told::line(self, line);
    }
}

struct Build {
    inner: Arc<Inner>,
    plan: BuildPlan,
    egress: Option<Egress>,
    config: Arc<Config>,
    told: Arc<Told>,
}

impl Build {
    async fn run(&self) -> Result<Image, BuildFailure> {
        let base = {
            let (name, told) = (self.plan.base.clone(), self.told.clone());
            let base = blocking(&self.inner, move |context| context.ensure_base(&name, &*told));
            let base = self.inner.builds.stop.run_until_cancelled(base).await;
            base.unwrap_or(Err(CreateError::Stopped)).map_err(BuildFailure::of)?
        };
        if self.plan.steps.is_empty() {
            return Ok(base);
        }
        let keys = self.plan.keys(&base.id, LOGIC);
        let (mut done, mut image) = (0, base.clone());
        while done < keys.len() {
            let _turn = self.inner.builds.turn(&keys[done], &self.told).await;
            // Perhaps more of it than before: by whom we have waited for.
            if let Some((found, built)) = self.built(&keys).await?.filter(|(found, _)| *found > done) {
                (done, image) = (found, built);
                continue;
            }
            image = self.step(done, &keys[done], &base, &image).await?;
            done += 1;
        }
        Ok(image)
    }

    async fn built(&self, keys: &[Digest]) -> Result<Option<(usize, Image)>, BuildFailure> {
        let keys = keys.to_vec();
        blocking(&self.inner, move |context| context.store.built(&keys)).await.map_err(BuildFailure::of)
    }

    /// Does the step with this number, and says how it goes.
    async fn step(&self, number: usize, key: &Digest, origin: &Image, base: &Image) -> Result<Image, BuildFailure> {
        let step = &self.plan.steps[number];
        let name = format!("step {}/{}: {step}", number + 1, self.plan.steps.len());
        let _turn = match self.inner.builds.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_taken) => {
                self.told.line("waiting for other builds to end");
                self.inner.builds.turns.acquire().await.expect("the semaphore is never closed")
            }
        };
        self.told.line(&name);
        let began = Instant::now();
        let tail = Arc::new(Tail::default());
        let (inner, config, told) = (&self.inner, &self.config, &self.told);
        let egress = self.egress.as_ref();
        let doing = step::Doing { inner, config, egress, origin, base, told, tail: tail.clone() };
        let mut done = std::pin::pin!(doing.run(key, step));
        let result = loop {
            tokio::select! {
                result = &mut done => break result,
                () = tokio::time::sleep(STILL) => {
                    self.told.line(&format!("{name}: {} s", began.elapsed().as_secs()));
                }
            }
        };
        result.map_err(|error: StepError| BuildFailure {
            message: format!("{name}: {}", chain(error)),
            output: tail.lines(),
        })
    }
}
