//! Projects on this host: their repositories' clones, and what their Podfiles say.
//!
//! ```text
//! STATE/projects/NAME/repository   the clone: git's, and whatever somebody has put into it
//! STATE/projects/NAME/extends      Podfiles of other servers that its Podfile extends
//! ```
//!
//! A new state is made beside the old one, checked, and put in its place as a whole, so that a session that is made
//! meanwhile reads either. Connecting clones and fetches nothing: that is done when a project is added or updated.

mod changes;
mod podfiles;
mod remote;
mod repository;

pub use self::{
    changes::{Change, Changes},
    podfiles::Podfiles,
    remote::Remotes,
};

use std::{io, path::PathBuf};

use crate::{
    config::projects::ProjectsError,
    git::GitError,
    names::ProjectName,
    podfile::{self, FILES},
};

/// Why a project could not be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    #[error(transparent)]
    List(#[from] ProjectsError),
    #[error("there is a project {0} already; fetch it anew with: podspawn update-project {0}")]
    Exists(ProjectName),
    #[error("there is no project {0}; add one with: podspawn add-project {0} --repo URL")]
    Unknown(ProjectName),
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    #[error("cannot make {}", .0.display())]
    Make(PathBuf, #[source] io::Error),
    #[error("cannot remove {}", .0.display())]
    Remove(PathBuf, #[source] io::Error),
    #[error("cannot put {} in its place", .0.display())]
    Place(PathBuf, #[source] io::Error),
    #[error("cannot clone the repository of project {0}")]
    Clone(ProjectName, #[source] GitError),
    #[error("the clone of project {0} cannot be read; fetch it anew with: podspawn update-project {0}")]
    Open(ProjectName, #[source] io::Error),
    #[error("project {project}: {file} cannot be used")]
    File {
        project: ProjectName,
        file: &'static str,
        #[source]
        why: podfile::SourceError,
    },
    #[error("project {0} has none of {names}; write one with: podspawn init", names = FILES.map(|(name, _)| name).join(", "))]
    NoPodfile(ProjectName),
    #[error("project {project}: its Podfile is not valid")]
    Invalid {
        project: ProjectName,
        #[source]
        why: podfile::Invalid,
    },
    #[error("project {project}: {} not supported by this version of podspawn", are(.fields))]
    Unsupported { project: ProjectName, fields: Vec<String> },
}

fn are(fields: &[String]) -> String {
    format!("{} {}", fields.join(", "), if fields.len() == 1 { "is" } else { "are" })
}

impl ProjectError {
    /// Whether this is the administrator's to mend, and nothing for others to see.
    pub fn is_private(&self) -> bool {
        matches!(self, Self::List(_) | Self::Open(..))
    }
}
