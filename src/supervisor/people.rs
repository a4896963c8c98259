//! Users as the control API shows and changes them: in the same files that the commands use.

use super::control::Control;
use crate::{
    access::{
        published,
        users::{self, UserError},
    },
    api::{
        Refusal,
        types::{AddedKeys, NewKeys, RemovedUser, User},
        users::Users,
    },
    config::Config,
    errors::chain,
    http::github,
    names::UserName,
    session::{
        SessionKey,
        belongings::{Belongings, Removed},
        state::Reason,
    },
    state::Phase,
};

impl Users for Control {
    async fn users(&self) -> Result<Vec<User>, Refusal> {
        let config = self.0.config();
        let listed = self.with_context(move |_| users::list(&config.access())).await;
        listed.map(|(users, _warnings)| users).map_err(|error| Refusal::Failed(chain(error)))
    }

    async fn add_keys(&self, name: UserName, new: NewKeys) -> Result<AddedKeys, Refusal> {
        let config = self.0.config();
        self.with_context(move |_| add_keys(&config, &name, new)).await
    }

    async fn remove_user(&self, name: UserName, force: bool, purge: bool) -> Result<RemovedUser, Refusal> {
        let config = self.0.config();
        let key_dir = &config.paths.key_dir;
        let belongings = purge.then(|| Belongings::of(&config, &name));
        let mut of_user = self.0.sessions.views().await;
        of_user.retain(|view| view.key.user == name);
        let live = of_user.iter().filter(|view| view.phase != Phase::Stopping).count();
        if live > 0 && !force {
            let sessions = if live == 1 { "session" } else { "sessions" };
            return Err(Refusal::Conflict(format!("{name} has {live} {sessions} running")));
        }
        // First the keys, then the sessions: the other way round a client could come back in between. They may have gone before
        // the rest.
        if users::exists(key_dir, &name) || !belongings.as_ref().is_some_and(Belongings::exist) {
            users::remove(key_dir, &name).map_err(|error| match error {
                UserError::Unknown { .. } => Refusal::Unknown(chain(error)),
                other => Refusal::Failed(chain(other)),
            })?;
        }
        let keys: Vec<SessionKey> = of_user.into_iter().map(|view| view.key).collect();
        // One that has ended by itself is what is wanted.
        let stopped = keys.iter().filter(|key| self.0.sessions.stop(key, Reason::Stop)).count();
        let removed = match belongings {
            None => Removed::default(),
            Some(belongings) => {
                for key in &keys {
                    self.0.sessions.down(key, false).await.map_err(|error| Refusal::Failed(chain(error)))?;
                }
                let removed = self.with_context(move |_| belongings.remove()).await;
                removed.map_err(|error| Refusal::Failed(chain(error)))?
            }
        };
        Ok(RemovedUser { sessions: stopped, removed })
    }
}

fn add_keys(config: &Config, name: &UserName, new: NewKeys) -> Result<AddedKeys, Refusal> {
    let mut texts: Vec<_> = new.keys.into_iter().map(|key| ("keys".to_owned(), key)).collect();
    let mut warnings = Vec::new();
    for login in &new.github {
        let published = github::keys(&config.auth.github_url, login);
        let published = published.map_err(|error| Refusal::Invalid(chain(error)))?;
        let (keys, complaints) = published::keys(&published, &format!("{login}@github"));
        warnings.extend(complaints.iter().map(|complaint| format!("keys of {login} at GitHub: {complaint}")));
        if keys.is_empty() {
            return Err(Refusal::Invalid(format!("{login} has no usable public key at GitHub")));
        }
        texts.push((format!("github {login}"), keys.join("\n")));
    }
    if texts.is_empty() {
        return Err(Refusal::Invalid("there are neither keys nor logins at GitHub".to_owned()));
    }
    match users::add(&config.paths.key_dir, name, &texts) {
        Ok(added) => Ok(AddedKeys { added, warnings }),
        Err(error @ (UserError::Key { .. } | UserError::NoKey(_))) => Err(Refusal::Invalid(chain(error))),
        Err(error) => Err(Refusal::Failed(chain(error))),
    }
}
