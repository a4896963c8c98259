//! Users and projects as the control API shows and changes them: in the same files that the commands use.

use crate::{
    access::users::{self, UserError},
    api::{types, users::NotRemoved},
    config::Config,
    errors::chain,
    names::UserName,
    session::state::Reason,
};

use super::Supervisor;

/// The users, with what is usable of their keys.
pub(super) fn list(config: &Config) -> Result<Vec<users::User>, String> {
    users::list(&config.access()).map(|(users, _warnings)| users).map_err(chain)
}

/// The projects, without passwords that are in their addresses.
pub(super) fn projects(config: &Config) -> Result<Vec<types::Project>, String> {
    let projects = config.projects().read().map_err(chain)?;
    Ok(projects.iter().map(|(name, project)| types::Project::of(name, project)).collect())
}

/// Adds keys in `authorized_keys` format to a user, who is made if need be.
pub(super) fn add_keys(config: &Config, name: &UserName, keys: &[String]) -> Result<types::AddedKeys, String> {
    let texts: Vec<_> = keys.iter().map(|key| ("keys".to_owned(), key.clone())).collect();
    users::add(&config.paths.key_dir, name, &texts).map(|added| types::AddedKeys { added }).map_err(chain)
}

/// Takes a user's keys away, and ends the user's sessions, which there may be only with `force`.
pub(super) async fn remove(supervisor: &Supervisor, name: &UserName, force: bool) -> Result<(), NotRemoved> {
    let live: Vec<_> = supervisor.sessions.views().await.into_iter().filter(|view| view.key.user == *name).collect();
    if !live.is_empty() && !force {
        return Err(NotRemoved::HasSessions(format!("{name} has sessions; end them with force=true")));
    }
    // First the keys, then the sessions: the other way round a client could come back in between.
    users::remove(&supervisor.config().paths.key_dir, name).map_err(|error| match error {
        UserError::Unknown { .. } => NotRemoved::Unknown(chain(error)),
        other => NotRemoved::Failed(chain(other)),
    })?;
    for view in live {
        // One that has ended by itself is what is wanted.
        supervisor.sessions.stop(&view.key, Reason::Stop);
    }
    Ok(())
}
