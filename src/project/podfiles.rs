//! What projects' Podfiles mean, read again only when one of their files has changed: connecting must not wait for YAML.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    ProjectError, Remotes,
    repository::{Repository, Seen},
};
use crate::{
    config::{
        Stamp,
        projects::{Places, Project, Projects},
    },
    names::ProjectName,
    podfile::{self, Podfile, Resolved},
};

/// The registered projects' Podfiles.
#[derive(Debug, Default)]
pub struct Podfiles(Mutex<Cache>);

#[derive(Debug, Default)]
struct Cache {
    list: Option<(Places, Option<Stamp>, Arc<Projects>)>,
    /// Of projects that are in the list only.
    podfiles: HashMap<ProjectName, Known>,
}

#[derive(Debug, Clone)]
struct Known {
    project: Project,
    seen: Arc<Seen>,
    podfile: Arc<Podfile>,
}

impl Podfiles {
    /// The project of this name and what its Podfile says; `None` if it is not registered.
    pub fn of(&self, places: &Places, name: &ProjectName) -> Result<Option<(Project, Arc<Podfile>)>, ProjectError> {
        let Some(project) = self.projects(places)?.get(name).cloned() else { return Ok(None) };
        let known = self.cache().podfiles.get(name).filter(|known| known.project == project).cloned();
        let open = || {
            let remotes = Remotes::Kept(places.extends_of(name));
            Repository::open(&project.local_path, remotes).map_err(|error| ProjectError::Open(name.clone(), error))
        };
        if let Some(known) = known
            && open()?.still(&known.seen)
        {
            return Ok(Some((project, known.podfile)));
        }
        let repository = open()?;
        let podfile = Arc::new(read(&repository, name)?.podfile);
        let known = Known { project: project.clone(), seen: Arc::new(repository.seen()), podfile: podfile.clone() };
        self.cache().podfiles.insert(name.clone(), known);
        Ok(Some((project, podfile)))
    }

    /// The registered projects as the file has them now.
    fn projects(&self, places: &Places) -> Result<Arc<Projects>, ProjectError> {
        // Taken before the file is read: one that is replaced meanwhile is read again the next time.
        let stamp = Stamp::of(&places.file);
        if let Some((_, _, projects)) = &self.cache().list.as_ref().filter(|(at, was, _)| at == places && *was == stamp)
        {
            return Ok(projects.clone());
        }
        let projects = Arc::new(places.read()?);
        let mut cache = self.cache();
        cache.podfiles.retain(|name, _| projects.contains_key(name));
        cache.list = Some((places.clone(), stamp, projects.clone()));
        Ok(projects)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // Each statement leaves it consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and checks the Podfile of a project's clone.
pub(super) fn read(repository: &Repository, name: &ProjectName) -> Result<Resolved, ProjectError> {
    let project = || name.clone();
    let document = repository.podfile().map_err(|(file, why)| ProjectError::File { project: project(), file, why })?;
    let document = document.ok_or_else(|| ProjectError::NoPodfile(project()))?;
    let resolved = podfile::resolve(&document, repository);
    let resolved = resolved.map_err(|why| ProjectError::Invalid { project: project(), why })?;
    let fields = unsupported(&resolved.podfile);
    if fields.is_empty() { Ok(resolved) } else { Err(ProjectError::Unsupported { project: project(), fields }) }
}

/// What a Podfile may say and no session can have yet: refused rather than not kept.
fn unsupported(podfile: &Podfile) -> Vec<String> {
    let limited = podfile.services.iter().filter(|service| service.resources.disk.is_some());
    limited.map(|service| format!("resources.disk of service {}", service.name)).collect()
}
