//! Adding, updating and removing projects.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::{ProjectError, Remotes, podfiles, repository::Repository};
use crate::{
    config::projects::{Places, Project, Projects},
    git::{self, Git, Network},
    names::ProjectName,
    podfile::{BuildPlan, Resolved},
    sys::remove_tree::remove_tree,
};

/// How long a repository may take to arrive.
const CLONE_LIMIT: Duration = Duration::from_secs(900);

/// The right to change the projects, which one process has at a time.
#[derive(Debug)]
pub struct Changes {
    places: Places,
    /// The user that git runs as.
    uid: u32,
    /// Hosts that may be at private addresses.
    private_hosts: Vec<String>,
    _lock: Flock<File>,
}

/// A project as it is after a change.
#[derive(Debug)]
pub struct Change {
    pub project: Project,
    pub resolved: Resolved,
    /// What it was before an update.
    pub before: Option<Project>,
}

/// A clone that is not in its place yet; removed unless it gets there.
struct New {
    path: PathBuf,
}

impl Changes {
    /// Waits until no other process changes projects.
    pub fn begin(places: Places, uid: u32, private_hosts: Vec<String>) -> Result<Self, ProjectError> {
        let directory = &places.directory;
        let make = |error| ProjectError::Make(directory.clone(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(make)?;
        let path = directory.join(".lock");
        let failed = |error: io::Error| ProjectError::Lock(path.clone(), error);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
        Ok(Self { places, uid, private_hosts, _lock: lock })
    }

    /// Clones `repo` and registers it. Whatever fails leaves nothing behind. Blocks.
    pub fn add(&self, name: &ProjectName, repo: &str, branch: Option<&str>) -> Result<Change, ProjectError> {
        let mut projects = self.places.read()?;
        if projects.contains_key(name) {
            return Err(ProjectError::Exists(name.clone()));
        }
        let (new, project, resolved) = self.fetch(name, repo, branch)?;
        let directory = self.places.of(name);
        // Left by a removal that was cut short: it is in no list.
        remove(&directory)?;
        fs::rename(&new.path, &directory).map_err(|error| ProjectError::Place(directory.clone(), error))?;
        projects.insert(name.clone(), project.clone());
        if let Err(error) = self.places.write(&projects) {
            remove(&directory)?;
            return Err(error.into());
        }
        Ok(Change { project, resolved, before: None })
    }

    /// Fetches a project anew. Whatever fails leaves it as it was. Blocks.
    pub fn update(&self, name: &ProjectName) -> Result<Change, ProjectError> {
        let mut projects = self.places.read()?;
        let before = projects.get(name).cloned().ok_or_else(|| ProjectError::Unknown(name.clone()))?;
        let (new, mut project, resolved) = self.fetch(name, &before.repo, before.branch.as_deref())?;
        project.mode = before.mode;
        project.egress.clone_from(&before.egress);
        let directory = self.places.of(name);
        exchange(&new.path, &directory).map_err(|error| ProjectError::Place(directory.clone(), error))?;
        projects.insert(name.clone(), project.clone());
        if let Err(error) = self.places.write(&projects) {
            exchange(&new.path, &directory).map_err(|error| ProjectError::Place(directory, error))?;
            return Err(error.into());
        }
        // What is in the new one's place now is the old one.
        drop(new);
        Ok(Change { project, resolved, before: Some(before) })
    }

    /// Takes a project out of the list. Its clone stays for [`Changes::remove_clone`], when nobody uses it any more.
    pub fn remove(&self, name: &ProjectName) -> Result<(), ProjectError> {
        let mut projects: Projects = self.places.read()?;
        projects.remove(name).ok_or_else(|| ProjectError::Unknown(name.clone()))?;
        Ok(self.places.write(&projects)?)
    }

    /// Removes the clone of a project that is not in the list.
    pub fn remove_clone(&self, name: &ProjectName) -> Result<(), ProjectError> {
        remove(&self.places.of(name))
    }

    fn fetch(
        &self,
        name: &ProjectName,
        repo: &str,
        branch: Option<&str>,
    ) -> Result<(New, Project, Resolved), ProjectError> {
        let new = New { path: self.places.directory.join(format!(".new-{name}")) };
        // Left by a process that was killed.
        remove(&new.path)?;
        let make = |error| ProjectError::Make(new.path.clone(), error);
        DirBuilder::new().mode(0o700).create(&new.path).map_err(make)?;
        let clone = new.path.join("repository");
        let commit = self.clone(&clone, repo, branch).map_err(|error| ProjectError::Clone(name.clone(), error))?;
        let keep = Some(new.path.join("extends"));
        let remotes = Remotes::Fetched { keep, private_hosts: self.private_hosts.clone() };
        let repository = Repository::open(&clone, remotes).map_err(|error| ProjectError::Open(name.clone(), error))?;
        let resolved = podfiles::read(&repository, name)?;
        let project = Project {
            repo: repo.to_owned(),
            branch: branch.map(str::to_owned),
            local_path: self.places.clone_of(name),
            commit: Some(commit),
            podfile_hash: Some(BuildPlan::of(&resolved.podfile).key().to_string()),
            mode: None,
            egress: None,
        };
        Ok((new, project, resolved))
    }

    /// Clones the latest state and returns its commit.
    fn clone(&self, directory: &Path, repo: &str, branch: Option<&str>) -> Result<String, git::GitError> {
        git::make_directory(directory, self.uid)?;
        let git = Git { uid: self.uid, directory, network: Network::Host, tasks: &[], limit: CLONE_LIMIT };
        let mut arguments =
            vec!["clone", "--quiet", "--depth=1", "--single-branch", "--no-tags", "--no-recurse-submodules"];
        arguments.extend(branch.into_iter().flat_map(|branch| ["--branch", branch]));
        arguments.extend(["--", repo, "."]);
        git.run(&arguments)?;
        let commit = git.run(&["rev-parse", "HEAD"])?;
        Ok(commit.trim().chars().filter(char::is_ascii_hexdigit).take(64).collect())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::error!("{}", crate::errors::chain(error));
        }
    }
}

fn remove(directory: &Path) -> Result<(), ProjectError> {
    remove_tree(directory).map_err(|error| ProjectError::Remove(directory.to_owned(), error))
}

/// Puts each of two directories where the other one was; `new` is moved if `place` is free.
fn exchange(new: &Path, place: &Path) -> io::Result<()> {
    if !place.exists() {
        return fs::rename(new, place);
    }
    Ok(renameat2(AT_FDCWD, new, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE)?)
}
