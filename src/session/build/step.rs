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
    container::{BuildContainer, CommitError},
};
use crate::{
    config::Config,
    errors::printable,
    image::{Digest, Image},
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
    pub(super) key: &'a Digest,
    pub(super) base: &'a Image,
    pub(super) tail: Arc<Tail>,
}

impl Doing<'_> {
    /// Does `step` on top of the base. Returns the image that it leads to, which the store then has; without one nothing is
    /// kept.
    pub(super) async fn run(&self, step: &Step) -> Result<Image, StepError> {
        let stop = &self.inner.builds.stop;
        if stop.is_cancelled() {
            return Err(StepError::Stopped);
        }
        let mut container =
            BuildContainer::start(self.inner, self.config, self.base).await.map_err(StepError::Container)?;
        let result = match stop.run_until_cancelled(self.inside(&container, step)).await {
            None => Err(StepError::Stopped),
            Some(Err(error)) => Err(error),
            Some(Ok(())) => container.commit(self.key, self.base, step.to_string(), &[]).await.map_err(Into::into),
        };
        container.remove().await;
        result
    }

    async fn inside(&self, container: &BuildContainer, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Package(package) => {
                let run = as_root([
                    "/bin/sh",
                    "-c",
                    "apt-get update && apt-get install -y --no-install-recommends \"$1\"",
                    "podspawn",
                    package,
                ]);
                self.done(container, run).await
            }
            Step::Run { command, shell, env } => {
                let pair =
                    |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                let mut run = as_root([shell.as_deref().unwrap_or("/bin/sh"), "-c", command]);
                run.env.extend(env.iter().filter_map(pair));
                self.done(container, run).await
            }
        }
    }

    /// Runs something that has to succeed, within the time that a step has.
    async fn done(&self, container: &BuildContainer, run: Run) -> Result<(), StepError> {
        let tail = self.tail.clone();
        let limit = self.config.builds.step_timeout;
        match inside::run(&container.socket(), run, limit, move |line| tail.push(line)).await? {
            ExitStatus::Code(0) => Ok(()),
            status => Err(StepError::Failed(status)),
        }
    }
}

/// A program as root, with nothing of a session in its environment.
fn as_root<'a>(words: impl IntoIterator<Item = &'a str>) -> Run {
    // Nobody is there to answer.
    let env = vec![("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())];
    let cwd = Some("/".to_owned());
    let (identity, variables) = (Identity::Root, Variables::Bare);
    Run { identity, variables, cwd, env, output_limit: OUTPUT, ..Run::argv(words) }
}
