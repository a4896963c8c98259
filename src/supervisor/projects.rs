//! Projects as the control API shows and changes them: in the same files that the commands use, one change at a time.

use super::{
    control::Control,
    jobs::{self, Failure},
};
use crate::{
    api::{
        Refusal,
        projects::{Projects, Told},
        types::{NewProject, Project, ProjectChange},
    },
    config::{Config, projects::shown, service_user},
    errors::chain,
    image::Progress,
    names::ProjectName,
    podfile::git,
    project::{Change, Changes, ProjectError},
    session::state::Reason,
    state::Phase,
};

impl Projects for Control {
    async fn projects(&self) -> Result<Vec<Project>, Refusal> {
        let config = self.0.config();
        let listed = self.with_context(move |_| config.projects().read()).await;
        let listed = listed.map_err(|error| Refusal::Failed(chain(error)))?;
        Ok(listed.iter().map(|(name, project)| Project::of(name, project)).collect())
    }

    async fn add_project(&self, name: ProjectName, new: NewProject, told: Told) -> Result<(), Refusal> {
        let repo = git::url(&new.repo).map_err(|error| Refusal::Invalid(format!("repo {error}")))?;
        let branch = new.branch.as_deref().map(git::branch).transpose();
        let branch = branch.map_err(|error| Refusal::Invalid(format!("branch {error}")))?;
        if self.has_project(&name).await? {
            return Err(refusal(ProjectError::Exists(name)));
        }
        let config = self.0.config();
        tokio::spawn(jobs::run(told, move |client| {
            client.line(&format!("cloning {}", shown(&repo)));
            let added = begin(&config).and_then(|changes| changes.add(&name, &repo, branch.as_deref()));
            added.map(|change| told_of(&name, change)).map_err(failure)
        }));
        Ok(())
    }

    async fn update_project(&self, name: ProjectName, told: Told) -> Result<(), Refusal> {
        if !self.has_project(&name).await? {
            return Err(refusal(ProjectError::Unknown(name)));
        }
        let config = self.0.config();
        tokio::spawn(jobs::run(told, move |client| {
            client.line(&format!("fetching {name}"));
            let updated = begin(&config).and_then(|changes| changes.update(&name));
            updated.map(|change| told_of(&name, change)).map_err(failure)
        }));
        Ok(())
    }

    async fn remove_project(&self, name: ProjectName, force: bool) -> Result<(), Refusal> {
        let config = self.0.config();
        let changes = self.with_context(move |_| begin(&config)).await.map_err(refusal)?;
        let mut live = self.0.sessions.views().await;
        live.retain(|view| view.key.project.as_ref() == Some(&name) && view.phase != Phase::Stopping);
        if !live.is_empty() && !force {
            let users: Vec<&str> = live.iter().map(|view| view.key.user.as_str()).collect();
            return Err(Refusal::Conflict(format!("{name} has sessions of {}", users.join(", "))));
        }
        // First the entry, then the sessions: the other way round one could be made in between.
        let of = name.clone();
        let changes = self.with_context(move |_| changes.remove(&of).map(|()| changes)).await.map_err(refusal)?;
        for view in live {
            // One that has ended by itself is what is wanted.
            self.0.sessions.stop(&view.key, Reason::Stop);
        }
        self.with_context(move |_| changes.remove_clone(&name)).await.map_err(refusal)
    }
}

impl Control {
    async fn has_project(&self, name: &ProjectName) -> Result<bool, Refusal> {
        let (config, name) = (self.0.config(), name.clone());
        let listed = self.with_context(move |_| config.projects().read().map(|all| all.contains_key(&name))).await;
        listed.map_err(|error| refusal(error.into()))
    }
}

/// Waits until nobody else changes projects. Blocks.
fn begin(config: &Config) -> Result<Changes, ProjectError> {
    Changes::begin(config.projects(), service_user::uid(), config.podfile.private_hosts.clone())
}

fn told_of(name: &ProjectName, change: Change) -> ProjectChange {
    ProjectChange {
        project: Project::of(name, &change.project),
        before: change.before.map(|before| Project::of(name, &before)),
        warnings: change.resolved.warnings.iter().map(ToString::to_string).collect(),
    }
}

/// Says everything that is wrong with a Podfile.
fn failure(error: ProjectError) -> Failure {
    let output = match &error {
        ProjectError::Invalid { why, .. } => why.errors.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    Failure { error: chain(error), output }
}

fn refusal(error: ProjectError) -> Refusal {
    match error {
        ProjectError::Unknown(_) => Refusal::Unknown(chain(error)),
        ProjectError::Exists(_) => Refusal::Conflict(chain(error)),
        other => Refusal::Failed(chain(other)),
    }
}
