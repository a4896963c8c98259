//! Which files a session has changed: its upper directory compared with the layers below it, as `docker diff` does.
//!
//! The tree is hostile, and that of a live session changes while it is walked. Every path is resolved below the upper
//! directory without following a link (openat2(2)), and the walk ends after [`ENTRIES`], [`NAMES`] or [`TIME`], whichever
//! comes first; the result says so. It goes level by level and takes no more than [`IN_ONE`] entries of a directory, so that
//! what fills one directory hides little of the others.
//!
//! See "whiteouts and opaque directories" in the kernel's overlayfs.rst.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};
use serde::{Deserialize, Serialize};

/// Entries that are looked at.
const ENTRIES: usize = 20_000;

/// Of one directory.
const IN_ONE: usize = 2_000;

/// Bytes of all paths that are told.
const NAMES: usize = 256 << 10;

/// How long a walk may take. The end of a session waits for it.
const TIME: Duration = Duration::from_millis(250);

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Added,
    Changed,
    Deleted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: Kind,
    /// Absolute, as seen inside, with what is no printable character escaped: `\n`, `\u{202e}`, `\xff`, and `\\`.
    pub path: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// In the order of their paths.
    pub changes: Vec<Change>,
    /// Whether these are all.
    pub complete: bool,
}

const OPAQUE: &str = "trusted.overlay.opaque";

/// Compares the upper directory in the session's directory `dir`, which [`super::rootfs::prepare`] has made, with the
/// directories `layers`, uppermost first. One that is gone has no changes.
///
/// A directory that was removed and made again counts as changed; what of the old one is not in it any more is not listed.
///
/// # Errors
/// One of the directories cannot be opened. What cannot be read below them makes the result incomplete.
pub fn changes(dir: &Path, layers: &[PathBuf]) -> io::Result<Changes> {
    let open_top = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let upper = match open_top(&dir.join("upper")) {
        Err(Errno::ENOENT) => return Ok(Changes { changes: Vec::new(), complete: true }),
        other => other?,
    };
    let layers = layers.iter().map(|layer| open_top(layer)).collect::<Result<Vec<_>, _>>()?;
    let mut walk = Walk {
        found: Changes { changes: Vec::new(), complete: true },
        end: Instant::now() + TIME,
        entries: ENTRIES,
        names: NAMES,
        upper,
        layers,
        waiting: VecDeque::new(),
    };
    let all = (0..walk.layers.len()).collect();
    walk.waiting.push_back((PathBuf::new(), all));
    while let Some((path, below)) = walk.waiting.pop_front() {
        if walk.directory(&path, &below).is_none() {
            walk.found.complete = false;
            break;
        }
    }
    walk.found.changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

struct Walk {
    found: Changes,
    end: Instant,
    entries: usize,
    names: usize,
    upper: OwnedFd,
    layers: Vec<OwnedFd>,
    /// Directories, with the layers that have a directory of this path that shows.
    waiting: VecDeque<(PathBuf, Vec<usize>)>,
}

/// What the layers have at a path.
struct Below {
    exists: bool,
    directories: Vec<usize>,
}

impl Walk {
    /// Looks at what is in one directory; `None` when a limit of the whole walk is reached.
    fn directory(&mut self, path: &Path, below: &[usize]) -> Option<()> {
        let (names, all) = match self.list(path) {
            Ok(listed) => listed,
            // Removed meanwhile.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Some(()),
            Err(_) => {
                self.found.complete = false;
                return Some(());
            }
        };
        self.found.complete &= all;
        for (name, entry) in names {
            self.entries = self.entries.checked_sub(1)?;
            if Instant::now() >= self.end {
                return None;
            }
            let path = path.join(&name);
            let underneath = self.below(&path, below);
            let kind = match (entry, underneath.exists) {
                (Entry::Whiteout, true) => Kind::Deleted,
                // The deletion of nothing.
                (Entry::Whiteout, false) => continue,
                (_, true) => Kind::Changed,
                (_, false) => Kind::Added,
            };
            let shown = shown(&path);
            self.names = self.names.checked_sub(shown.len())?;
            self.found.changes.push(Change { kind, path: shown });
            if entry == Entry::Directory {
                self.waiting.push_back((path, underneath.directories));
            }
        }
        Some(())
    }

    /// The names in a directory of the upper one, and whether these are all.
    fn list(&self, path: &Path) -> Result<(Vec<(OsString, Entry)>, bool), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = Dir::from_fd(resolve(self.upper.as_fd(), path, flags)?)?;
        let mut listed: Vec<_> = dir
            .iter()
            .filter_map(Result::ok)
            .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
            .take(IN_ONE + 1)
            .map(|entry| (entry.file_name().to_owned(), entry.file_type()))
            .collect();
        let all = listed.len() <= IN_ONE;
        listed.truncate(IN_ONE);
        let kind = |(name, kind): (std::ffi::CString, Option<Type>)| {
            let entry = match kind {
                Some(Type::Directory) => Entry::Directory,
                Some(Type::File | Type::Symlink | Type::Fifo | Type::Socket | Type::BlockDevice) => Entry::Other,
                // A whiteout is a device with a certain number; some file systems do not tell types here.
                Some(Type::CharacterDevice) | None => {
                    Entry::of(&fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?)
                }
            };
            Some((OsStr::from_bytes(name.to_bytes()).to_owned(), entry))
        };
        Ok((listed.into_iter().filter_map(kind).collect(), all))
    }

    /// What shows of the layers at `path`, if those of `candidates` have a directory where it is in.
    fn below(&self, path: &Path, candidates: &[usize]) -> Below {
        let mut found = Below { exists: false, directories: Vec::new() };
        for layer in candidates {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let (fd, entry) = match resolve(self.layers[*layer].as_fd(), path, flags) {
                Err(Errno::ENOENT) => continue,
                Err(_) => break,
                Ok(fd) => match fstat(&fd) {
                    Ok(stat) => (fd, Entry::of(&stat)),
                    Err(_) => break,
                },
            };
            found.exists |= entry != Entry::Whiteout;
            if entry != Entry::Directory {
                break;
            }
            found.directories.push(*layer);
            let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
            if matches!(xattr::get_deref(through, OPAQUE), Ok(Some(value)) if value == b"y") {
                break;
            }
        }
        found
    }
}

/// Opens `path` below `top` without following any link.
fn resolve(top: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(top, path, OpenHow::new().flags(flags).resolve(resolve))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Directory,
    Whiteout,
    Other,
}

impl Entry {
    fn of(stat: &FileStat) -> Self {
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFCHR if stat.st_rdev == 0 => Self::Whiteout,
            _ => Self::Other,
        }
    }
}

/// The path as it is told: a line, whatever is in it.
fn shown(path: &Path) -> String {
    let mut shown = "/".to_owned();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                // Those that `char` escapes in debug output are what is not printed as itself, or changes what is around it.
                '\'' | '"' => shown.push(c),
                c => shown.extend(c.escape_debug()),
            }
        }
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    struct World(tempfile::TempDir);

    impl World {
        /// A session's directory with `upper`, and two layers.
        fn new() -> Self {
            let world = Self(tempfile::tempdir().unwrap());
            for name in ["upper", "high", "low"] {
                fs::create_dir(world.0.path().join(name)).unwrap();
            }
            world
        }

        fn file(&self, path: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }

        fn whiteout(&self, path: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            assert!(Command::new("mknod").arg(path).args(["c", "0", "0"]).status().unwrap().success());
        }

        fn changes(&self) -> Changes {
            changes(self.0.path(), &["high", "low"].map(|name| self.0.path().join(name))).unwrap()
        }

        fn lines(&self) -> Vec<String> {
            let letter = |kind| match kind {
                Kind::Added => 'A',
                Kind::Changed => 'C',
                Kind::Deleted => 'D',
            };
            self.changes().changes.iter().map(|change| format!("{} {}", letter(change.kind), change.path)).collect()
        }
    }

    #[test]
    fn what_shows_of_the_layers_is_what_a_change_is_told_by() {
        let world = World::new();
        world.file("low/etc/passwd");
        world.file("low/gone/file");
        world.whiteout("high/gone");
        world.file("low/opaque/hidden");
        world.file("high/opaque/seen");
        xattr::set(world.0.path().join("high/opaque"), OPAQUE, b"y").unwrap();
        fs::create_dir_all(world.0.path().join("low/lib")).unwrap();
        symlink("/etc", world.0.path().join("high/lib")).unwrap();
        world.file("upper/etc/passwd");
        world.file("upper/etc/new");
        world.file("upper/gone/file");
        world.whiteout("upper/opaque/hidden");
        world.whiteout("upper/opaque/seen");
        world.file("upper/lib/passwd");
        symlink("/", world.0.path().join("upper/root")).unwrap();
        let expected = [
            "C /etc",
            "A /etc/new",
            "C /etc/passwd",
            "A /gone",
            "A /gone/file",
            "C /lib",
            "A /lib/passwd",
            "C /opaque",
            "D /opaque/seen",
            "A /root",
        ];
        assert_eq!(world.lines(), expected);
        assert!(world.changes().complete);
    }

    #[test]
    fn a_name_is_one_line_of_printable_characters() {
        let world = World::new();
        fs::write(
            world.0.path().join("upper").join(OsStr::from_bytes(b"a\nD etc\x1b[2J\xff\\\xe2\x80\xae.\xc3\xa9'")),
            "",
        )
        .unwrap();
        assert_eq!(world.lines(), [r"A /a\nD etc\u{1b}[2J\xff\\\u{202e}.é'"]);
    }

    #[test]
    fn there_is_a_limit_to_what_is_looked_at_and_one_directory_does_not_hide_the_others() {
        let world = World::new();
        for number in 0..=IN_ONE {
            world.file(&format!("upper/many/{number}"));
        }
        world.file("upper/zz/last");
        let found = world.changes();
        assert!(!found.complete);
        assert_eq!(found.changes.len(), IN_ONE + 3);
        assert!(found.changes.iter().any(|change| change.path == "/zz/last"));

        let world = World::new();
        let long = "n".repeat(200);
        for number in 0..NAMES / 200 {
            world.file(&format!("upper/{}/{long}{number}", number / 1000));
        }
        let found = world.changes();
        assert!(!found.complete);
        assert!(found.changes.iter().map(|change| change.path.len()).sum::<usize>() <= NAMES);
        let none = tempfile::tempdir().unwrap();
        assert_eq!(changes(none.path(), &[]).unwrap(), Changes { changes: Vec::new(), complete: true });
    }
}
