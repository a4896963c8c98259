//! Reading Podfiles out of a clone, whose content somebody else has chosen.
//!
//! Every file is opened beneath the clone's own descriptor and without following a link, whatever is written in a Podfile or
//! has been put where one is looked for.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

use super::Remotes;
use crate::{
    config::Stamp,
    podfile::{Document, External, FILES, Format, MAX_FILE, Origin, Source, SourceError},
};

/// A clone, and what has been looked for in it.
#[derive(Debug)]
pub(super) struct Repository {
    root: OwnedFd,
    remotes: Remotes,
    looked_at: RefCell<Vec<Look>>,
}

/// One look at a file: what was there, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    found: Option<Stamp>,
}

/// What was read, by which it can be told whether it would be the same now.
#[derive(Debug)]
pub(super) struct Seen(Vec<Look>);

impl Repository {
    pub(super) fn open(path: &Path, remotes: Remotes) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { root: open(path, flags, Mode::empty())?, remotes, looked_at: RefCell::default() })
    }

    /// The project's Podfile: the first of [`FILES`] that there is.
    pub(super) fn podfile(&self) -> Result<Option<Document>, (&'static str, SourceError)> {
        for (name, format) in FILES {
            if let Some(document) = self.document(Path::new(name), format).map_err(|error| (name, error))? {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// What has been looked at so far.
    pub(super) fn seen(self) -> Seen {
        Seen(self.looked_at.into_inner())
    }

    /// Whether all that was seen is as it was.
    pub(super) fn still(&self, seen: &Seen) -> bool {
        seen.0.iter().all(|look| match (self.open_file(&look.path), &look.found) {
            (Ok(file), found) => file.metadata().ok().map(|meta| Stamp::from(&meta)) == *found,
            (Err(Errno::ENOENT | Errno::ENOTDIR), found) => found.is_none(),
            (Err(_), _) => false,
        })
    }

    fn open_file(&self, path: &Path) -> nix::Result<File> {
        // Not to wait for the writer of a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        openat2(&self.root, path, OpenHow::new().flags(flags).resolve(resolve)).map(File::from)
    }

    /// Reads the file at `path`; `None` if there is none.
    fn document(&self, path: &Path, format: Format) -> Result<Option<Document>, SourceError> {
        let name = path.display().to_string();
        let refused = |why| SourceError::Refused { what: name.clone(), why };
        let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
        let look = |found| self.looked_at.borrow_mut().push(Look { path: path.to_owned(), found });
        let file = match self.open_file(path) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                look(None);
                return Ok(None);
            }
            Err(Errno::ELOOP) => return Err(refused("it is a symbolic link, or behind one")),
            Err(Errno::EXDEV) => return Err(refused("it is outside the repository")),
            Err(error) => return Err(unreadable(error.into())),
        };
        let meta = file.metadata().map_err(unreadable)?;
        if !meta.is_file() {
            return Err(refused("it is not a file"));
        }
        look(Some(Stamp::from(&meta)));
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(refused("it is larger than 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8 text"))?;
        Ok(Some(Document { name, origin: Origin::File(Path::new("/").join(path)), text, format }))
    }
}

impl Source for Repository {
    fn read(&self, base: &External, from: &Origin) -> Result<Document, SourceError> {
        match (base, from) {
            (External::Path(path), Origin::File(file)) => {
                let what = || path.display().to_string();
                let beneath = beneath(file, path)
                    .ok_or_else(|| SourceError::Refused { what: what(), why: "it is outside the repository" })?;
                let missing = || SourceError::Refused { what: what(), why: "there is no such file in the repository" };
                self.document(&beneath, Format::Podfile)?.ok_or_else(missing)
            }
            (External::Path(path), Origin::BuiltIn(_) | Origin::Remote(_)) => {
                let what = path.display().to_string();
                Err(SourceError::Refused { what, why: "what extends it is not a file" })
            }
            (External::Remote(remote), _) => self.remotes.read(remote),
        }
    }
}

/// The path beneath the repository that `path` means in the file `from`, which is a path from its top; `None` if it leads
/// out. No component is a link, so that `..` is what it looks like.
fn beneath(from: &Path, path: &Path) -> Option<PathBuf> {
    if path.is_absolute() {
        return None;
    }
    let directory = from.parent().unwrap_or(Path::new("/"));
    let mut beneath = PathBuf::new();
    for component in directory.join(path).components() {
        match component {
            Component::Normal(name) => beneath.push(name),
            Component::ParentDir if !beneath.pop() => return None,
            Component::ParentDir | Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(beneath)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn open_here(path: &Path) -> io::Result<Repository> {
        Repository::open(path, Remotes::Kept(path.join("none")))
    }

    fn read(files: impl FnOnce(&Path)) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let clone = directory.path().join("clone");
        fs::create_dir(&clone).unwrap();
        fs::write(directory.path().join("secret.yaml"), "base: secret").unwrap();
        files(&clone);
        let repository = open_here(&clone).unwrap();
        let document = match repository.podfile() {
            Ok(Some(document)) => document,
            Ok(None) => return Ok(None),
            Err((file, error)) => return Err(format!("{file}: {error}")),
        };
        let resolved = crate::podfile::resolve(&document, &repository).map_err(|error| error.to_string())?;
        Ok(Some(resolved.podfile.base.to_string()))
    }

    #[test]
    fn the_first_podfile_counts_and_may_extend_others_of_the_repository() {
        assert_eq!(read(|_| {}), Ok(None));
        let found = read(|clone| {
            fs::create_dir_all(clone.join(".podspawn/bases")).unwrap();
            fs::write(clone.join(".podspawn/podfile.yaml"), "extends: ./bases/a.yaml").unwrap();
            fs::write(clone.join(".podspawn/bases/a.yaml"), "extends: ../../b.yaml").unwrap();
            fs::write(clone.join("b.yaml"), "base: debian:12").unwrap();
            fs::write(clone.join("podfile.yaml"), "base: other:1").unwrap();
        });
        assert_eq!(found, Ok(Some("debian:12".to_owned())));
    }

    #[test]
    fn a_change_of_any_file_that_counts_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        fs::write(file("podfile.yaml"), "extends: ./base.yaml").unwrap();
        fs::write(file("base.yaml"), "base: debian:12").unwrap();
        let read = || {
            let repository = open_here(directory.path()).unwrap();
            let document = repository.podfile().unwrap().unwrap();
            crate::podfile::resolve(&document, &repository).unwrap();
            repository.seen()
        };
        let still = |seen: &Seen| open_here(directory.path()).unwrap().still(seen);
        let seen = read();
        fs::write(file("README"), "x").unwrap();
        assert!(still(&seen));
        fs::write(file("base.yaml"), "base: debian:13").unwrap();
        assert!(!still(&seen), "what is extended");
        let seen = read();
        fs::create_dir(file(".podspawn")).unwrap();
        fs::write(file(".podspawn/podfile.yaml"), "base: debian:12").unwrap();
        assert!(!still(&seen), "a file that goes first");
        let seen = read();
        fs::remove_file(file(".podspawn/podfile.yaml")).unwrap();
        assert!(!still(&seen), "a file that is gone");
    }

    #[test]
    fn nothing_outside_the_repository_is_read() {
        let outside = "it is outside the repository";
        let link = "it is a symbolic link, or behind one";
        let extends = |text: &'static str| move |clone: &Path| fs::write(clone.join("podfile.yaml"), text).unwrap();
        type Files = Box<dyn FnOnce(&Path)>;
        let table: Vec<(Files, &str)> = vec![
            (Box::new(|clone| symlink("/etc/shadow", clone.join("podfile.yaml")).unwrap()), link),
            (Box::new(|clone| symlink("../secret.yaml", clone.join("podfile.yaml")).unwrap()), link),
            (Box::new(|clone| symlink("/etc", clone.join(".podspawn")).unwrap()), link),
            (Box::new(extends("extends: ../secret.yaml")), outside),
            (Box::new(extends("extends: a/../../secret.yaml")), outside),
            (Box::new(extends("extends: /etc/passwd")), outside),
            (Box::new(extends("extends: ./gone.yaml")), "there is no such file in the repository"),
            (
                Box::new(|clone| {
                    symlink("..", clone.join("up")).unwrap();
                    fs::write(clone.join("podfile.yaml"), "extends: up/secret.yaml").unwrap();
                }),
                link,
            ),
            (Box::new(|clone| fs::create_dir(clone.join("podfile.yaml")).unwrap()), "it is not a file"),
            (
                Box::new(|clone| {
                    nix::unistd::mkfifo(&clone.join("podfile.yaml"), Mode::S_IRUSR).unwrap();
                }),
                "it is not a file",
            ),
            (
                Box::new(|clone| {
                    let file = File::create(clone.join("podfile.yaml")).unwrap();
                    file.set_len(MAX_FILE + 1).unwrap();
                }),
                "it is larger than 1 MiB",
            ),
            (Box::new(|clone| fs::write(clone.join("podfile.yaml"), b"\xff").unwrap()), "it is not UTF-8 text"),
        ];
        for (files, expected) in table {
            let error = read(files).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
