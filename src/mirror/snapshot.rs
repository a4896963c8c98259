//! What a session gets of a mirror, whose packs are hard links to the mirror's: if that has all that a clone needs, the clone but
//! for its files; else a bare repository that git inside takes objects from.
//!
//! Only packs and the list of refs are the mirror's. All else, its configuration above all, is written here, so that nothing
//! but objects reaches a session: git there reads them as it reads those of the server.
//!
//! ```text
//! clone/                                         what it has beside what `git init` makes
//! config-of-clone                                what its configuration ends with
//!
//! HEAD, config, packed-refs, refs/, objects/     the bare repository
//! ```

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{Mode, SFlag, fstatat},
    unistd::{LinkatFlags, linkat},
};

use super::{MirrorError, listing::Beginning};
use crate::sys::remove_tree::remove_tree;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Packs of one snapshot. A mirror has far fewer.
const MAX_PACKS: usize = 1024;

/// Of a list of refs that is read.
const MAX_REFS_BYTES: u64 = 256 << 10;

/// A session's own; removed when it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    place: PathBuf,
}

impl Snapshot {
    /// Makes one of `repository` at `place`, which is on the same file system. If the repository has all that a clone needs,
    /// `beginning` is the rest of that.
    pub(super) fn take(
        repository: &Path,
        uid: u32,
        beginning: Option<&Beginning>,
        place: &Path,
    ) -> Result<Self, MirrorError> {
        let failed = |error| MirrorError::Directory(place.to_owned(), error);
        let make = |path: &Path| -> io::Result<()> {
            fs::DirBuilder::new().mode(0o755).create(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        make(place).map_err(failed)?;
        // From here on whatever fails takes it away again.
        let snapshot = Self { place: place.to_owned() };
        let write = |name: &str, text: &str| {
            fs::write(place.join(name), text)?;
            fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o644))
        };
        let fill = || -> io::Result<usize> {
            let top = open(repository, DIRECTORY, Mode::empty())?;
            let packs = |to: &str| link_packs(&top, &open(&place.join(to), DIRECTORY, Mode::empty())?, uid);
            if let Some(beginning) = beginning {
                for directory in ["", "/objects", "/objects/pack", "/refs", "/refs/remotes", "/refs/remotes/origin"] {
                    make(&place.join(format!("clone{directory}")))?;
                }
                write("clone/HEAD", &beginning.head)?;
                write("clone/packed-refs", &beginning.packed_refs)?;
                if let Some(head) = &beginning.origin_head {
                    write("clone/refs/remotes/origin/HEAD", head)?;
                }
                write("config-of-clone", &beginning.config)?;
                return packs("clone/objects/pack");
            }
            for directory in ["objects", "objects/info", "objects/pack", "refs"] {
                make(&place.join(directory))?;
            }
            write("HEAD", "ref: refs/heads/main\n")?;
            write("config", "[core]\n\trepositoryformatversion = 0\n\tbare = true\n")?;
            if !link(&top, "packed-refs", &open(place, DIRECTORY, Mode::empty())?, uid)? {
                return Ok(0);
            }
            packs("objects/pack")
        };
        match fill().map_err(failed)? {
            0 => Err(MirrorError::Empty),
            _ => Ok(snapshot),
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.place) {
            // It goes with the session.
            tracing::warn!("cannot remove {}: {error}", self.place.display());
        }
    }
}

/// The list of refs of the user `uid`'s repository; `None` if it is out of the ordinary.
pub(super) fn packed_refs(repository: &Path, uid: u32) -> io::Result<Option<String>> {
    let top = open(repository, DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat2(&top, "packed-refs", OpenHow::new().flags(flags).resolve(resolve)) {
        Err(Errno::ENOENT | Errno::ELOOP) => return Ok(None),
        file => File::from(file?),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != uid {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(MAX_REFS_BYTES + 1).read_to_end(&mut text)?;
    Ok(String::from_utf8(text).ok().filter(|text| text.len() as u64 <= MAX_REFS_BYTES))
}

/// Returns how many files that were.
fn link_packs(repository: &OwnedFd, to: &OwnedFd, uid: u32) -> io::Result<usize> {
    // Git's directory is git's: nothing on the way may lead out of it.
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let packs = match openat2(repository, "objects/pack", OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        Err(Errno::ENOENT) => return Ok(0),
        packs => packs?,
    };
    let mut linked = 0;
    for entry in Dir::from_fd(packs.try_clone()?)?.iter() {
        let Ok(name) = entry?.file_name().to_str().map(str::to_owned) else { continue };
        let hex = name.strip_prefix("pack-").and_then(|name| name.rsplit_once('.'));
        let is_pack = hex.is_some_and(|(hex, kind)| {
            matches!(kind, "pack" | "idx") && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if is_pack && link(&packs, &name, to, uid)? {
            linked += 1;
        }
        if linked > 2 * MAX_PACKS {
            return Err(io::Error::other("it has too many packs"));
        }
    }
    Ok(linked)
}

/// Links the file `name`, which is git's and everybody's to read; whether there is one.
fn link(from: &OwnedFd, name: &str, to: &OwnedFd, uid: u32) -> io::Result<bool> {
    match linkat(from.as_fd(), name, to.as_fd(), name, LinkatFlags::empty()) {
        Err(Errno::ENOENT) => return Ok(false),
        linked => linked?,
    }
    // Looked at after it was linked, since who may write there may exchange it.
    let stat = fstatat(to.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let plain = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() && stat.st_mode & 0o7004 == 0o004;
    if plain && stat.st_uid == uid { Ok(true) } else { Err(io::Error::other(format!("{name} is not a file of git's"))) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const OWN: fn() -> u32 = || nix::unistd::getuid().as_raw();

    fn repository(at: &Path) -> PathBuf {
        let packs = at.join("repository/objects/pack");
        fs::create_dir_all(&packs).unwrap();
        for name in ["pack-12ab.pack", "pack-12ab.idx", "pack-12ab.keep", "tmp_pack_x"] {
            fs::write(packs.join(name), name).unwrap();
        }
        fs::write(at.join("repository/packed-refs"), "refs").unwrap();
        fs::write(at.join("repository/config"), "[core]\n\tfsmonitor = evil\n").unwrap();
        at.join("repository")
    }

    #[test]
    fn a_snapshot_has_the_packs_and_a_configuration_of_its_own_and_is_gone_when_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(scratch.path());
        let place = scratch.path().join("given");
        let snapshot = Snapshot::take(&repository, OWN(), None, &place).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(place.join("objects/pack")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["pack-12ab.idx", "pack-12ab.pack"]);
        assert!(!fs::read_to_string(place.join("config")).unwrap().contains("evil"));
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        let pack = "objects/pack/pack-12ab.pack";
        assert_eq!(inode(place.join(pack)), inode(repository.join(pack)));
        fs::remove_dir_all(&repository).unwrap();
        assert_eq!(fs::read_to_string(place.join(pack)).unwrap(), "pack-12ab.pack");
        drop(snapshot);
        assert!(!place.exists());
    }

    #[test]
    fn one_that_is_all_of_a_clone_has_what_podspawn_has_written_and_the_packs() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(scratch.path());
        let place = scratch.path().join("given");
        let beginning = Beginning {
            config: "[remote]\n".to_owned(),
            head: "ref: refs/heads/fix\n".to_owned(),
            packed_refs: "no refs of git's\n".to_owned(),
            origin_head: None,
        };
        let _snapshot = Snapshot::take(&repository, OWN(), Some(&beginning), &place).unwrap();
        let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
        assert_eq!(read("clone/packed-refs"), "no refs of git's\n");
        assert_eq!(
            (read("clone/HEAD").as_str(), read("config-of-clone").as_str()),
            ("ref: refs/heads/fix\n", "[remote]\n")
        );
        assert_eq!(read("clone/objects/pack/pack-12ab.pack"), "pack-12ab.pack");
        assert!(!place.join("clone/refs/remotes/origin/HEAD").exists() && !place.join("config").exists());
        // Nor is anything but git's own files among the packs.
        symlink("/etc/passwd", repository.join("objects/pack/pack-0.pack")).unwrap();
        let refused = Snapshot::take(&repository, OWN(), Some(&beginning), &scratch.path().join("other"));
        assert!(matches!(refused, Err(MirrorError::Directory(..))), "{refused:?}");
    }

    #[test]
    fn nothing_but_files_of_gits_own_gets_into_one() {
        type Spoil = fn(&Path);
        let table: [(&str, Spoil); 5] = [
            ("a link as a pack", |at| symlink("/etc/passwd", at.join("objects/pack/pack-0.pack")).unwrap()),
            ("a link as the refs", |at| {
                fs::remove_file(at.join("packed-refs")).unwrap();
                symlink("/etc/passwd", at.join("packed-refs")).unwrap();
            }),
            ("a directory that is a link", |at| {
                fs::rename(at.join("objects"), at.join("other")).unwrap();
                symlink("other", at.join("objects")).unwrap();
            }),
            ("a pipe", |at| nix::unistd::mkfifo(&at.join("objects/pack/pack-0.idx"), Mode::S_IRWXU).unwrap()),
            ("a file that not everybody may read", |at| {
                let pack = at.join("objects/pack/pack-12ab.pack");
                fs::set_permissions(pack, fs::Permissions::from_mode(0o600)).unwrap();
            }),
        ];
        for (what, spoil) in table {
            let scratch = tempfile::tempdir().unwrap();
            let repository = repository(scratch.path());
            spoil(&repository);
            let place = scratch.path().join("given");
            let refused = Snapshot::take(&repository, OWN(), None, &place);
            assert!(matches!(refused, Err(MirrorError::Directory(..))), "{what}: {refused:?}");
            assert!(!place.exists(), "{what}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(scratch.path());
        let others = Snapshot::take(&repository, OWN() + 1, None, &scratch.path().join("given"));
        assert!(matches!(others, Err(MirrorError::Directory(..))), "a file of somebody else's");
    }
}
