//! The registered projects: `projects_file`, which `podspawn add-project` and its like write, and administrators edit.
//!
//! A map from names to what is known of each, as the original has it. Its `image_tag` named an image of Docker's and is
//! dropped; `branch` and `commit` are ours.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    Egress, Mode,
    egress::Written,
    load::{ValueError, explain},
};
use crate::{
    access::strict_file::{self, FileError, Links},
    names::ProjectName,
    podfile::git,
};

/// More than any list of projects needs; a bigger file is a mistake.
const MAX_BYTES: u64 = 4 << 20;

/// The header of a file that is written.
const HEADER: &str = "# Written by podspawn add-project, update-project and remove-project.\n";

/// Where projects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The file of this module.
    pub file: PathBuf,
    /// `STATE/projects`: a directory for each project.
    pub directory: PathBuf,
}

/// All of them, by name.
pub type Projects = BTreeMap<ProjectName, Project>;

/// A registered project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Where its repository is cloned from.
    pub repo: String,
    /// The branch or tag that was asked for.
    pub branch: Option<String>,
    /// The clone on this host.
    pub local_path: PathBuf,
    /// What the clone is at.
    pub commit: Option<String>,
    /// Of what goes into its image.
    pub podfile_hash: Option<String>,
    /// What the administrator has set, whatever the Podfile says.
    pub mode: Option<Mode>,
    /// Where its sessions may connect to; `None` = where all may.
    pub egress: Option<Egress>,
}

/// Why the projects could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ProjectsError {
    #[error("cannot use the list of projects {}", .0.display())]
    Read(PathBuf, #[source] FileError),
    #[error("{}: {message}", .file.display())]
    Syntax { file: PathBuf, message: String },
    #[error("{}: {name}.{field} is not valid", .file.display())]
    Value {
        file: PathBuf,
        name: ProjectName,
        field: &'static str,
        #[source]
        why: ValueError,
    },
    #[error("cannot write the list of projects {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// An entry of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    repo: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    branch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local_path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    podfile_hash: Option<String>,
    #[serde(default, rename = "image_tag", skip_serializing)]
    _image_tag: Option<IgnoredAny>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress: Option<Written>,
}

impl Places {
    /// What belongs to a project.
    pub fn of(&self, name: &ProjectName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// Where its repository is cloned to.
    pub fn clone_of(&self, name: &ProjectName) -> PathBuf {
        self.of(name).join("repository")
    }

    /// Where Podfiles of other servers are kept for it.
    pub fn extends_of(&self, name: &ProjectName) -> PathBuf {
        self.of(name).join("extends")
    }

    /// Reads the file; one that is not there has no projects.
    pub fn read(&self) -> Result<Projects, ProjectsError> {
        let text = strict_file::read_text(&self.file, MAX_BYTES, Links::Follow);
        match text.map_err(|error| ProjectsError::Read(self.file.clone(), error))? {
            None => Ok(Projects::new()),
            Some(text) => self.parse(&text),
        }
    }

    /// Replaces the file.
    pub fn write(&self, projects: &Projects) -> Result<(), ProjectsError> {
        let entries: BTreeMap<&ProjectName, Entry> =
            projects.iter().map(|(name, project)| (name, Entry::of(project))).collect();
        let failed = |error| ProjectsError::Write(self.file.clone(), error);
        let text = serde_yaml::to_string(&entries).map_err(|error| failed(io::Error::other(error)))?;
        // Addresses may have a password in them.
        strict_file::replace(&self.file, &format!("{HEADER}{text}"), 0o600).map_err(failed)
    }

    fn parse(&self, text: &str) -> Result<Projects, ProjectsError> {
        let syntax = |message: String| ProjectsError::Syntax { file: self.file.clone(), message };
        let entries: Option<BTreeMap<String, Entry>> =
            serde_yaml::from_str(text).map_err(|error| syntax(explain(&error.to_string(), text)))?;
        let project = |(name, entry): (String, Entry)| {
            let name: ProjectName = name.parse().map_err(|error| syntax(format!("{error}")))?;
            let project = self.project(&name, entry).map_err(|(field, why)| {
                let (file, name) = (self.file.clone(), name.clone());
                ProjectsError::Value { file, name, field, why }
            })?;
            Ok((name, project))
        };
        entries.unwrap_or_default().into_iter().map(project).collect()
    }

    fn project(&self, name: &ProjectName, entry: Entry) -> Result<Project, (&'static str, ValueError)> {
        let rule = |field| move |text: String| (field, ValueError::Rule(text));
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        let local_path = entry.local_path.filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = local_path.as_deref().filter(|path| !path.is_absolute()) {
            return Err(rule("local_path")(format!("{} is not an absolute path", path.display())));
        }
        Ok(Project {
            repo: git::url(&entry.repo).map_err(|error| rule("repo")(error.to_string()))?,
            branch: set(entry.branch)
                .map(|branch| git::branch(&branch))
                .transpose()
                .map_err(|error| rule("branch")(error.to_string()))?,
            local_path: local_path.unwrap_or_else(|| self.clone_of(name)),
            commit: set(entry.commit),
            podfile_hash: set(entry.podfile_hash),
            mode: set(entry.mode).map(|mode| Mode::parse(&mode)).transpose().map_err(|why| ("mode", why))?,
            egress: entry.egress.map(Egress::of).transpose().map_err(|why| ("egress", why))?,
        })
    }
}

impl Entry {
    fn of(project: &Project) -> Self {
        let Project { repo, branch, local_path, commit, podfile_hash, mode, egress } = project.clone();
        Self {
            repo,
            branch,
            local_path: Some(local_path),
            commit,
            podfile_hash,
            _image_tag: None,
            mode: mode.map(|mode| mode.as_str().to_owned()),
            egress: egress.map(Written::from),
        }
    }
}

/// The address without the password that may be in it, for listings.
pub fn shown(repo: &str) -> String {
    let parts = repo.split_once("://").and_then(|(scheme, rest)| {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host) = authority.rsplit_once('@')?;
        let (user, _password) = user.split_once(':')?;
        Some(format!("{scheme}://{user}@{host}{path}"))
    });
    parts.unwrap_or_else(|| repo.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn places(directory: &Path) -> Places {
        Places { file: directory.join("projects.yaml"), directory: directory.join("projects") }
    }

    #[test]
    fn a_file_of_the_original_is_understood_and_what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        assert_eq!(places.read().unwrap(), Projects::new());
        let text = "backend:\n  repo: github.com/org/backend\n  local_path: /etc/podspawn/projects/backend\n  \
                    podfile_hash: 0123456789ab\n  image_tag: podspawn/backend:podfile-0123456789ab\n  mode: \"\"\n\
                    web:\n  repo: git@host:web.git\n  mode: destroy-on-disconnect\n  egress: [10.1.0.0/16]\n";
        std::fs::write(&places.file, text).unwrap();
        let projects = places.read().unwrap();
        let backend = &projects[&"backend".parse().unwrap()];
        assert_eq!(backend.repo, "https://github.com/org/backend");
        assert_eq!(backend.local_path, Path::new("/etc/podspawn/projects/backend"));
        assert_eq!((backend.mode, backend.podfile_hash.as_deref()), (None, Some("0123456789ab")));
        let web = &projects[&"web".parse().unwrap()];
        assert_eq!(web.local_path, directory.path().join("projects/web/repository"));
        assert_eq!(web.mode, Some(Mode::DestroyOnDisconnect));
        assert_eq!(web.egress, Some(Egress::Only(vec![("10.1.0.0".parse().unwrap(), 16)])));
        places.write(&projects).unwrap();
        assert_eq!(places.read().unwrap(), projects);
    }

    #[test]
    fn mistakes_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        let table = [
            (
                "a: {repo: github.com/o/a, brnch: x}",
                "unknown field `brnch` at line 1 column 27; did you mean `branch`?",
            ),
            ("a: {}", "missing field `repo`"),
            ("A: {repo: github.com/o/a}", "project name \"A\" is not valid"),
            ("a: {repo: /srv/a}", "a.repo is not valid: \"/srv/a\" is not a URL"),
            ("a: {repo: github.com/o/a, branch: -x}", "a.branch is not valid"),
            ("a: {repo: github.com/o/a, mode: forever}", "a.mode is not valid: \"forever\" is not one of"),
            ("a: {repo: github.com/o/a, egress: [a.test]}", "a.egress is not valid: \"a.test\": rules for names"),
            ("a: {repo: github.com/o/a, local_path: x}", "a.local_path is not valid: x is not an absolute path"),
        ];
        for (text, expected) in table {
            let error = crate::errors::chain(places.parse(text).unwrap_err());
            assert!(error.contains(expected) && error.contains("projects.yaml"), "{text}: {error}");
        }
    }

    #[test]
    fn passwords_are_not_listed() {
        let table = [
            ("https://u:p@host/x", "https://u@host/x"),
            ("https://u@host/x", "https://u@host/x"),
            ("https://host/a@b:c", "https://host/a@b:c"),
            ("git@host:x", "git@host:x"),
        ];
        for (repo, expected) in table {
            assert_eq!(shown(repo), expected);
        }
    }
}
