//! Whether the files that a configuration points to are valid.

use super::{Config, overrides, projects};
use crate::access::{self, authorized_keys::Warning, users};

/// The first file that is not.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Revoked(#[from] access::RevokedError),
    #[error(transparent)]
    Users(#[from] users::UserError),
    #[error(transparent)]
    Overrides(#[from] overrides::OverridesError),
    #[error(transparent)]
    Projects(#[from] projects::ProjectsError),
}

/// Reads all of them. Returns what is wrong with keys, which only means that these are not used.
pub fn check(config: &Config) -> Result<Vec<Warning>, CheckError> {
    let rules = config.access();
    rules.check_revoked()?;
    let (_, mut warnings) = users::list(&rules)?;
    rules.check_user_cas(&mut warnings);
    overrides::check(&config.paths.users_dir)?;
    config.projects().read()?;
    Ok(warnings)
}
