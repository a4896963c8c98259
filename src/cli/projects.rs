//! `add-project`, `update-project`, `remove-project` and `list-projects`: what they change are files, which count for the next
//! session, and work without a server too. Where there is one, it is that which removes projects, as it has their sessions.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;

use super::{Session, podfile::print_problems, table};
use crate::{
    api::{client::ClientError, types},
    config::{
        Mode,
        projects::{Project, shown},
        service_user,
    },
    names::ProjectName,
    podfile::git,
    project::{Change, Changes, ProjectError},
};

#[derive(Debug, Args)]
pub struct AddProject {
    /// Name of the project, as in ssh USER+NAME@host
    name: String,
    /// Where its git repository is: https, http, ssh, git, user@host:path, or host/path
    #[arg(long, value_name = "URL")]
    repo: String,
    /// The branch or tag to use instead of the repository's default
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
}

impl AddProject {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: ProjectName = self.name.parse()?;
        let repo = git::url(&self.repo).map_err(|error| anyhow::anyhow!("--repo {error}"))?;
        let branch = self.branch.as_deref().map(git::branch).transpose();
        let branch = branch.map_err(|error| anyhow::anyhow!("--branch {error}"))?;
        let changes = begin(session)?;
        session.remark(&format!("cloning {}", shown(&repo)))?;
        let change = report(changes.add(&name, &repo, branch.as_deref()))?;
        print_problems("warning: ", &change.resolved.warnings)?;
        session.remark(&format!("{name}: added at {}", at(&change.project)))
    }
}

#[derive(Debug, Args)]
pub struct UpdateProject {
    /// Name of the project
    name: String,
}

impl UpdateProject {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: ProjectName = self.name.parse()?;
        let Change { project, resolved, before } = report(begin(session)?.update(&name))?;
        print_problems("warning: ", &resolved.warnings)?;
        let before = before.unwrap_or_else(|| project.clone());
        let image = if before.podfile_hash == project.podfile_hash { "" } else { "; its image has changed" };
        if before.commit == project.commit {
            session.remark(&format!("{name}: still at {}{image}", at(&project)))
        } else {
            session.remark(&format!("{name}: now at {}{image}", at(&project)))
        }
    }
}

#[derive(Debug, Args)]
pub struct RemoveProject {
    /// Name of the project
    name: String,
    /// End the project's sessions instead of refusing while there are some
    #[arg(long)]
    force: bool,
}

impl RemoveProject {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let name: ProjectName = self.name.parse()?;
        match session.client().remove_project(&name, self.force) {
            Ok(()) => {}
            Err(ClientError::NotRunning(_)) => {
                let changes = begin(session)?;
                changes.remove(&name)?;
                changes.remove_clone(&name)?;
            }
            Err(ClientError::Conflict(error)) => bail!("{error}; end them with --force"),
            Err(error) => return Err(error.into()),
        }
        session.remark(&format!("{name}: removed; images that were built for it stay until: podspawn image prune"))
    }
}

#[derive(Debug, Args)]
pub struct ListProjects {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ListProjects {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let projects = session.config.projects().read()?;
        if self.json {
            let all = projects.iter().map(|(name, project)| types::Project::of(name, project));
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&all.collect::<Vec<_>>())?)?;
        } else {
            let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
            let rows: Vec<_> = projects
                .iter()
                .map(|(name, project)| {
                    let mode = project.mode.map(Mode::as_str);
                    let (branch, repo) = (or_dash(project.branch.as_deref()), shown(&project.repo));
                    [name.to_string(), repo, branch, at(project), or_dash(mode)]
                })
                .collect();
            table::print(["PROJECT", "REPO", "BRANCH", "COMMIT", "MODE"], &rows)?;
        }
        Ok(())
    }
}

fn begin(session: &Session<'_>) -> anyhow::Result<Changes> {
    let config = session.config;
    Ok(Changes::begin(config.projects(), service_user::uid(), config.podfile.private_hosts.clone())?)
}

/// Prints everything that is wrong with a Podfile, each on a line of its own, and leaves the sum of it to the error.
fn report(result: Result<Change, ProjectError>) -> anyhow::Result<Change> {
    match result {
        Err(ProjectError::Invalid { project, why }) => {
            print_problems("warning: ", &why.warnings)?;
            print_problems("", &why.errors)?;
            let count = why.errors.len() + why.unlisted;
            bail!("the Podfile of {project} is not valid: {count} {}", if count == 1 { "error" } else { "errors" })
        }
        other => Ok(other?),
    }
}

/// The commit, short.
fn at(project: &Project) -> String {
    project.commit.as_deref().map_or("-", |commit| commit.get(..12).unwrap_or(commit)).to_owned()
}
