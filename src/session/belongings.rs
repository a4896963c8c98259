//! What there is of a user beside keys and sessions: home, volumes, settings, and the records of past sessions.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{evidence::Records, homes, volumes};
use crate::{config::Config, names::UserName};

/// What one user has.
#[derive(Debug)]
pub struct Belongings {
    name: UserName,
    home: PathBuf,
    /// The directory of all users' volumes.
    volumes: PathBuf,
    settings: PathBuf,
    records: Records,
}

/// What was there and is not any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Paths of the home directory and of the settings.
    pub home: Option<PathBuf>,
    pub settings: Option<PathBuf>,
    pub volumes: bool,
    /// Of past sessions.
    pub records: usize,
}

/// Why something of it is still there.
#[derive(Debug, thiserror::Error)]
pub enum BelongingsError {
    #[error(transparent)]
    Home(#[from] homes::HomeError),
    #[error("cannot remove the volumes of {0}")]
    Volumes(UserName, #[source] io::Error),
    #[error("cannot remove {}", .0.display())]
    Settings(PathBuf, #[source] io::Error),
    #[error("cannot remove the records of {0}'s sessions")]
    Records(UserName, #[source] io::Error),
}

impl Belongings {
    pub fn of(config: &Config, name: &UserName) -> Self {
        let paths = &config.paths;
        Self {
            name: name.clone(),
            home: paths.homes.join(name.as_str()),
            volumes: paths.state_dir.join("volumes"),
            settings: paths.users_dir.join(format!("{name}.yaml")),
            records: Records::new(&paths.state_dir.join("records"), config.session.keep_records),
        }
    }

    /// Whether there is any of it. Records alone do not make a user.
    pub fn exist(&self) -> bool {
        self.home.exists() || self.volumes.join(self.name.as_str()).exists() || self.settings.exists()
    }

    /// Removes all of it. No session of the user may be there.
    pub fn remove(&self) -> Result<Removed, BelongingsError> {
        let home = homes::remove(&self.home)?.then(|| self.home.clone());
        let volumes = volumes::remove_all_of(&self.volumes, &self.name)
            .map_err(|error| BelongingsError::Volumes(self.name.clone(), error))?;
        let settings = remove_file(&self.settings)
            .map_err(|error| BelongingsError::Settings(self.settings.clone(), error))?
            .then(|| self.settings.clone());
        let records =
            self.records.forget(&self.name).map_err(|error| BelongingsError::Records(self.name.clone(), error))?;
        Ok(Removed { home, settings, volumes, records })
    }
}

/// Returns whether it was there.
fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
