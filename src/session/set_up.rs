//! What is done in a new session before anybody works in it, and for each who comes to: dotfiles, repositories, `on_create`,
//! then `on_start` for each connection.
//!
//! All of it runs inside, as the session's user, with the environment that the user's commands have. Each step has its time.
//! Only `on_create` can fail the session; of everything else that goes wrong the user is warned.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    agents::Agents,
    inside::{self, InsideError, Run},
    log::Log,
    mirrors::{Given, Mirror, SessionMirrors},
};
use crate::{
    errors::{chain, printable},
    podfile::{Dotfiles, Repo},
    protocol::ExitStatus,
    session::environment::SetUp,
    transcript::Transcript,
};

const CLONE_LIMIT: Duration = Duration::from_secs(15 * 60);
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);
const ON_CREATE_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Whoever connects waits for it.
const ON_START_LIMIT: Duration = Duration::from_secs(5 * 60);

/// What of one step's output is passed on. The step itself may say more.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// Clones `$1` to `$2` (`~/` is the home directory) with the further options, unless it is there already. With a mirror, `$3`,
/// all comes from that if all is there, else what is there, and nothing of the clone depends on it afterwards; if that fails in any
/// way it is cloned as without. Keys are asked for nowhere, and a host that is seen for the first time is believed, as there is
/// nobody to ask.
const CLONE: &str = r#"
url=$1 path=$2 mirror=$3; shift 3
case $path in "~/"*) path=$HOME/${path#"~/"};; esac
[ ! -e "$path/.git" ] || exit 0
command -v git > /dev/null || exit 127
if [ "$mirror" = look ]; then
    # What git would ask instead (url.*.insteadOf) is not what the mirror is of.
    [ "$(git ls-remote --get-url -- "$url")" = "$url" ] || exit 0
    exit 66
fi
export GIT_TERMINAL_PROMPT=0
export GIT_SSH_COMMAND="${GIT_SSH_COMMAND:-ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30}"
empty() {
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do [ ! -e "$entry" ] && [ ! -L "$entry" ] || return 1; done
}
if [ -n "$mirror" ] && [ -e "$mirror/clone" ] && empty "$path"; then
    export GIT_DEFAULT_HASH=sha1 GIT_DEFAULT_REF_FORMAT=files GIT_REFLOG_ACTION="clone: from $url"
    read -r _ head < "$mirror/clone/HEAD"
    git init --quiet "$path" && cp -R "$mirror/clone/." "$path/.git" &&
        while IFS= read -r line; do printf '%s\n' "$line"; done < "$mirror/config-of-clone" >> "$path/.git/config" &&
        git -C "$path" reset --quiet --hard "refs/remotes/origin/${head#refs/heads/}" &&
        if [ $# -gt 0 ]; then
            # With one branch come the tags of its own commits.
            git -C "$path" for-each-ref --format='delete %(refname)' --no-merged=HEAD refs/tags |
                git -C "$path" update-ref --stdin
        fi && exit 0
    unset GIT_DEFAULT_HASH GIT_DEFAULT_REF_FORMAT GIT_REFLOG_ACTION
    rm -rf "$path"/* "$path"/.[!.]* "$path"/..?*
    git clone --quiet "$@" -- "$url" "$path" && exit 65
    exit
fi
if [ -z "$mirror" ] || [ ! -e "$mirror/HEAD" ]; then
    exec git clone --quiet "$@" -- "$url" "$path"
fi
if said=$(git clone --quiet --reference "$mirror" --dissociate "$@" -- "$url" "$path" 2>&1); then
    [ -z "$said" ] || printf '%s\n' "$said" >&2
    # For servers of files, and left by what makes the clone independent.
    rm -f "$path/.git/objects/info/packs"
    exit 0
fi
git clone --quiet "$@" -- "$url" "$path" && exit 65
"#;

/// Runs the script `$1`, called `$0`. Both outputs are one, so that what is said comes in its order.
const SCRIPT: &str = r#"exec 2>&1; exec sh -c "$1" "$0""#;

/// Likewise in the clone of the dotfiles.
const INSTALL: &str = r#"exec 2>&1; cd "$HOME/dotfiles" && exec sh -c "$1" "$0""#;

/// Where both start. The session's working directory may not be there yet.
const ANYWHERE: &str = "/";

/// The status of [`CLONE`] without git.
const NO_GIT: ExitStatus = ExitStatus::Code(127);

/// That of one that was only to look whether there is something to clone, and just from that address.
const TO_DO: ExitStatus = ExitStatus::Code(66);

/// That of one that has worked without the mirror, and not with it.
const WITHOUT_MIRROR: ExitStatus = ExitStatus::Code(65);

/// The mirror of one that is only to look.
const LOOK: &str = "look";

/// Why a session cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetUpError {
    #[error("on_create {0}; the session is removed")]
    OnCreate(Ending),
}

/// How a step ended that did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ending {
    #[error("failed with exit status {0}")]
    Status(u8),
    #[error("was ended by signal {0}")]
    Signal(i32),
    #[error("could not be run: {0}")]
    NotRun(String),
    #[error("took longer than {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
}

/// Where it is done, and who hears of it.
pub(super) struct Stage {
    /// The socket of the container's init.
    pub init: PathBuf,
    pub transcript: Transcript,
    pub log: Arc<Log>,
    pub agents: Agents,
    /// `None` if nothing is cloned from mirrors.
    pub mirrors: Option<SessionMirrors>,
    /// Hears one line about what takes so long.
    pub progress: Box<dyn Fn(&str) + Send + Sync>,
}

impl SetUp {
    /// Whether there is nothing to be done once.
    pub(super) fn is_empty(&self) -> bool {
        let Self { notice, dotfiles, repos, on_create, on_start: _, mirrors: _ } = self;
        notice.is_none() && dotfiles.is_none() && repos.is_empty() && on_create.is_none()
    }

    /// Does what is to be done once.
    pub(super) async fn run(&self, stage: &Stage) -> Result<(), SetUpError> {
        if let Some(notice) = &self.notice {
            stage.warn("project", notice);
        }
        let mut git_is_missing = false;
        if let Some(dotfiles) = &self.dotfiles {
            stage.dotfiles(dotfiles, &mut git_is_missing).await;
        }
        for repo in &self.repos {
            // Whoever fills this in gives each a path.
            if let Some(path) = &repo.path {
                stage.clone_repo(repo, path, &mut git_is_missing).await;
            }
        }
        if let Some(script) = &self.on_create {
            (stage.progress)("running on_create");
            let agent = stage.agents.any().await;
            let ended = stage.run("on_create", script_run("on_create", script), agent, ON_CREATE_LIMIT).await;
            ended.map_err(SetUpError::OnCreate)?;
        }
        Ok(())
    }
}

impl Stage {
    /// Does what is to be done for each connection; `agent` is the connection's own.
    pub(super) async fn on_start(&self, script: &str, agent: Option<String>) {
        (self.progress)("running on_start");
        if let Err(ending) = self.run("on_start", script_run("on_start", script), agent, ON_START_LIMIT).await {
            self.warn("on_start", &format!("on_start {ending}"));
        }
    }

    async fn dotfiles(&self, dotfiles: &Dotfiles, git_is_missing: &mut bool) {
        if !self.clone("dotfiles", &dotfiles.repo, "~/dotfiles", None, git_is_missing).await {
            return;
        }
        if let Some(script) = &dotfiles.install {
            (self.progress)("installing dotfiles");
            let run = Run { cwd: Some(ANYWHERE.to_owned()), ..Run::argv(["sh", "-c", INSTALL, "install", script]) };
            if let Err(ending) = self.run("dotfiles", run, self.agents.now(), INSTALL_LIMIT).await {
                self.warn("dotfiles", &format!("the dotfiles' install {ending}"));
            }
        }
    }

    async fn clone_repo(&self, repo: &Repo, path: &str, git_is_missing: &mut bool) {
        if let Err(error) = inside::make_directory(&self.init, path).await {
            self.warn("repos", &format!("cannot make {path} for {}: {error}", repo.url));
            return;
        }
        self.clone("repos", &repo.url, path, repo.branch.as_deref(), git_is_missing).await;
    }

    /// Clones a repository, or warns; returns whether there is one now.
    async fn clone(
        &self,
        source: &'static str,
        url: &str,
        path: &str,
        branch: Option<&str>,
        git_is_missing: &mut bool,
    ) -> bool {
        (self.progress)(&format!("cloning {url}"));
        let agent = if is_ssh(url) { self.agents.any().await } else { self.agents.now() };
        let clone = |mirror: &str| {
            let mut words = vec!["sh", "-c", CLONE, "clone", url, path, mirror];
            if let Some(branch) = branch {
                words.extend(["--single-branch", "--branch", branch]);
            }
            let run = Run { cwd: Some(ANYWHERE.to_owned()), ..Run::argv(words) };
            self.status(source, run, agent.clone(), CLONE_LIMIT)
        };
        let given = match self.mirrors.as_ref().and_then(|mirrors| mirrors.of(url)) {
            Some(mirror) => given(mirror, branch, clone(LOOK)).await,
            None => None,
        };
        let status = clone(given.as_ref().map_or("", |given| &given.inside)).await;
        if let Some(given) = given {
            given.take_back(matches!(status, Ok(WITHOUT_MIRROR))).await;
        }
        match status {
            Ok(ExitStatus::Code(0) | WITHOUT_MIRROR) => true,
            Ok(NO_GIT) => {
                if !*git_is_missing {
                    self.warn(source, "the image has no git, so nothing is cloned; add it: packages: [git]");
                }
                *git_is_missing = true;
                false
            }
            Ok(status) => {
                self.warn(source, &format!("{url} is not cloned: git {}", Ending::of(status)));
                false
            }
            Err(ending) => {
                self.warn(source, &format!("{url} is not cloned: git {ending}"));
                false
            }
        }
    }

    /// Runs something that must succeed.
    async fn run(&self, source: &'static str, run: Run, agent: Option<String>, limit: Duration) -> Result<(), Ending> {
        match self.status(source, run, agent, limit).await? {
            ExitStatus::Code(0) => Ok(()),
            status => Err(Ending::of(status)),
        }
    }

    async fn status(
        &self,
        source: &'static str,
        run: Run,
        agent: Option<String>,
        limit: Duration,
    ) -> Result<ExitStatus, Ending> {
        let env = agent.map(|path| ("SSH_AUTH_SOCK".to_owned(), path)).into_iter().collect();
        let run = Run { env, output_limit: OUTPUT_LIMIT, ..run };
        let (transcript, log) = (self.transcript.clone(), self.log.clone());
        let heard = move |line: inside::Line<'_>| {
            transcript.push([line.text, b"\n"].concat().into());
            log.append(source, line.text);
        };
        inside::run(&self.init, run, limit, heard).await.map_err(|error| match error {
            InsideError::TimedOut(limit) => Ending::TimedOut(limit),
            other => Ending::NotRun(chain(other)),
        })
    }

    /// Tells those who wait, and the log, that something is not as it should be.
    fn warn(&self, source: &'static str, text: &str) {
        let text = printable(text);
        self.transcript.push(format!("podspawn: {text}\n").into());
        self.log.append(source, format!("warning: {text}").as_bytes());
    }
}

/// What the session gets of a mirror, if `look` finds that there is something to clone, and git to do it.
async fn given(
    mirror: Mirror<'_>,
    branch: Option<&str>,
    look: impl Future<Output = Result<ExitStatus, Ending>>,
) -> Option<Given> {
    if !mirror.is_there() {
        // It is not worth making for an image without git.
        return if matches!(look.await, Ok(TO_DO)) { mirror.give(branch).await } else { None };
    }
    // Asking the server takes longer, and is seldom in vain.
    let (looked, given) = tokio::join!(look, mirror.give(branch));
    let given = given?;
    if matches!(looked, Ok(TO_DO)) {
        return Some(given);
    }
    given.take_back(false).await;
    None
}

impl Ending {
    fn of(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Code(code) => Self::Status(code),
            ExitStatus::Signal { signal, .. } => Self::Signal(signal),
        }
    }
}

fn script_run(name: &str, script: &str) -> Run {
    Run::argv(["sh", "-c", SCRIPT, name, script])
}

/// Whether the user's keys may be wanted for `url`: `ssh://...` or `user@host:path`.
fn is_ssh(url: &str) -> bool {
    url.split_once("://").is_none_or(|(scheme, _)| scheme == "ssh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_waited_for_where_ssh_asks_for_them() {
        for (url, ssh) in [
            ("git@github.com:a/b.git", true),
            ("ssh://git@host:2222/a", true),
            ("https://github.com/a/b", false),
            ("git://10.0.0.1/a", false),
        ] {
            assert_eq!(is_ssh(url), ssh, "{url}");
        }
    }
}
