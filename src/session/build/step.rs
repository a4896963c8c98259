//! One step, in a container of its own.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    super::{
        inside::{self, InsideError, Line, Run},
        registry::Inner,
        steps::CreateError,
    },
    Told,
    container::{BuildContainer, CommitError},
    package::CACHES,
};
use crate::{
    config::{Config, Egress},
    errors::printable,
    image::{Digest, Image, ImageError, UpstreamError, Wanted},
    podfile::Step,
    protocol::{ExitStatus, Identity, Variables},
};

/// What is kept of a step's output for a message.
const TAIL: usize = 20;
const TAIL_LINE: usize = 400;

/// What is read of it in all; more is not looked at.
const OUTPUT: u64 = 256 << 20;

/// Why a step has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("there is no container for it")]
    Container(#[source] CreateError),
    #[error("it cannot be run")]
    Run(#[from] InsideError),
    #[error("{}", ended(*.0))]
    Failed(ExitStatus),
    #[error("what it has changed cannot be kept")]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the image store cannot be read")]
    Store(#[source] ImageError),
    #[error("the server is shutting down")]
    Stopped,
}

fn ended(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("it ended with status {code}"),
        ExitStatus::Signal { signal, .. } => format!("it was ended by signal {signal}"),
    }
}

/// The last lines that a step has written.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<VecDeque<String>>);

impl Tail {
    fn push(&self, line: Line<'_>) {
        let text = String::from_utf8_lossy(line.text);
        // Programs draw their progress over the line again and again.
        let last = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        let short: String = last.chars().take(TAIL_LINE).collect();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL {
            lines.pop_front();
        }
        lines.push_back(printable(&short));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// What a step is done with.
pub(super) struct Doing<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) config: &'a Arc<Config>,
    /// Where the step may connect to; `None` = where the server lets everybody.
    pub(super) egress: Option<&'a Egress>,
    /// What the plan starts from.
    pub(super) origin: &'a Image,
    /// What this step starts from.
    pub(super) base: &'a Image,
    pub(super) told: &'a Told,
    pub(super) tail: Arc<Tail>,
}

impl Doing<'_> {
    /// Does `step` on top of the base. Returns the image that it leads to, which the store then has under `key`; without one
    /// nothing is kept.
    pub(super) async fn run(&self, key: &Digest, step: &Step) -> Result<Image, StepError> {
        let name = step.to_string();
        match step {
            Step::Package(package) => {
                let lists = self.lists().await?;
                let mut with_lists = self.base.clone();
                with_lists.layers.retain(|layer| lists.layers.first() != Some(layer));
                with_lists.layers.splice(0..0, lists.layers.first().cloned());
                let container = self.container(&with_lists).await?;
                self.keep(container, key, name, &CACHES, async |container| self.install(container, package).await).await
            }
            Step::Run { command, shell, env } => {
                let pair =
                    |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                let mut run = as_root([shell.as_deref().unwrap_or("/bin/sh"), "-c", command]);
                run.env.extend(env.iter().filter_map(pair));
                let container = self.container(self.base).await?;
                let work = async |container: &BuildContainer| self.done(container, run).await.map(|()| Vec::new());
                self.keep(container, key, name, &[], work).await
            }
        }
    }

    pub(super) async fn container(&self, image: &Image) -> Result<BuildContainer, StepError> {
        if self.inner.builds.stop.is_cancelled() {
            return Err(StepError::Stopped);
        }
        BuildContainer::start(self.inner, self.config, self.egress, image).await.map_err(StepError::Container)
    }

    /// Does something in `container` and keeps what it has changed, as the image of `key` on top of the base. `work` returns
    /// which packages there were to download.
    pub(super) async fn keep(
        &self,
        mut container: BuildContainer,
        key: &Digest,
        name: String,
        left_out: &'static [&'static str],
        work: impl AsyncFnOnce(&BuildContainer) -> Result<Vec<Wanted>, StepError>,
    ) -> Result<Image, StepError> {
        let result = match self.inner.builds.stop.run_until_cancelled(work(&container)).await {
            None => Err(StepError::Stopped),
            Some(Err(error)) => Err(error),
            Some(Ok(wanted)) => container.commit(key, self.base, name, left_out, wanted).await.map_err(Into::into),
        };
        container.remove().await;
        result
    }

    /// Runs something that has to succeed, within the time that a step has.
    pub(super) async fn done(&self, container: &BuildContainer, run: Run) -> Result<(), StepError> {
        match self.ended(container, run, |_line| {}).await? {
            ExitStatus::Code(0) => Ok(()),
            status => Err(StepError::Failed(status)),
        }
    }

    /// Runs something to its end, within the time that a step has. `heard` also hears its output.
    pub(super) async fn ended(
        &self,
        container: &BuildContainer,
        run: Run,
        mut heard: impl FnMut(Line<'_>) + Send + 'static,
    ) -> Result<ExitStatus, StepError> {
        let tail = self.tail.clone();
        let both = move |line: Line<'_>| {
            tail.push(line);
            heard(line);
        };
        Ok(inside::run(&container.socket(), run, self.config.builds.step_timeout, both).await?)
    }
}

/// A program as root, with nothing of a session in its environment. All that it writes goes into one pipe, as two have no
/// order between them, and why something failed should be the last that is heard of it.
pub(super) fn as_root<'a>(words: impl IntoIterator<Item = &'a str>) -> Run {
    let words = ["/bin/sh", "-c", "exec \"$@\" 2>&1", "sh"].into_iter().chain(words);
    // Nobody is there to answer.
    let env = vec![("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())];
    let cwd = Some("/".to_owned());
    let (identity, variables) = (Identity::Root, Variables::Bare);
    Run { identity, variables, cwd, env, output_limit: OUTPUT, ..Run::argv(words) }
}
