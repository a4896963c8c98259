//! Packages that builds have downloaded, for other builds.
//!
//! A build container is anybody's: it says which files it wants, by name, size and checksum, and later what it has downloaded.
//! The name is its own affair; the checksum decides, and is made out here both times. So a container can only get what its own
//! package manager has named, from indexes that it has verified, and can only leave what has the checksum that it names, which
//! is of no use to anybody who wants something else.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use nix::sys::stat::SFlag;

use super::{
    Digest,
    kept::{Kept, KeptFile},
    layer::tree::kind,
    tarball::{Entry, TarWriter},
    view::{Attributes, LayerFiles},
};

/// Where package managers keep what they have downloaded, in a container, without the slash.
const CACHE: &str = "var/cache";

/// How many files a step may want; more are not looked at.
const MAX_WANTED: usize = 4096;

/// A file that a package manager wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Below `/var/cache`.
    name: PathBuf,
    bytes: u64,
    digest: Digest,
}

impl Wanted {
    /// From `NAME BYTES sha256:HEX`. A name that is not plainly one of a file below `/var/cache` is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (name, bytes, digest) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let plain = |part: &str| {
            (1..=255).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~%:^".contains(&byte))
        };
        let valid = words.next().is_none() && name.len() < 1024 && name.split('/').all(plain);
        valid.then(|| Self { name: name.into(), bytes, digest })
    }
}

/// Adds what a line says, if there is room for it.
pub fn want(wanted: &mut Vec<Wanted>, text: &str) {
    if wanted.len() < MAX_WANTED {
        wanted.extend(Wanted::parse(text));
    }
}

/// Where they are kept.
#[derive(Debug, Clone)]
pub struct Packages(Kept);

impl Packages {
    /// In the directory `cache`, up to `limit` bytes; with 0 none are.
    pub fn new(cache: &Path, limit: u64) -> Self {
        Self(Kept::new(cache.join("packages"), limit))
    }

    /// Those that were used least lately first.
    pub fn list(&self) -> io::Result<Vec<KeptFile>> {
        self.0.list()
    }

    /// Writes those of `wanted` that are there, as a tar of what is in `/var/cache`. Blocks.
    pub fn give(&self, wanted: &[Wanted], to: impl io::Write) -> io::Result<()> {
        let mut tar = TarWriter::new(to);
        for Wanted { name, bytes, digest } in wanted {
            let Some(content) = self.0.open(digest)? else { continue };
            if content.metadata()?.len() != *bytes {
                continue;
            }
            let attributes = Attributes { mode: 0o644, ..Attributes::made_up() };
            tar.append(name, &attributes, Entry::File { size: *bytes, content })?;
        }
        tar.finish().map(drop)
    }

    /// Takes over what of `wanted` a container has downloaded, whose processes have ended and whose upperdir this is. Returns
    /// how many files that were. Blocks.
    pub fn take(&self, upper: &Path, wanted: &[Wanted]) -> io::Result<usize> {
        let files = LayerFiles::open(upper)?;
        let (mut taken, mut left) = (0, self.0.limit());
        for Wanted { name, bytes, digest } in wanted {
            if *bytes > left || self.0.has(digest) {
                continue;
            }
            let path = Path::new(CACHE).join(name);
            let Some(stat) = files.stat(&path)? else { continue };
            if kind(&stat) != SFlag::S_IFREG || u64::try_from(stat.st_size) != Ok(*bytes) {
                continue;
            }
            left -= bytes;
            if self.0.keep(digest, files.file(&path)?.take(*bytes))?.is_some() {
                taken += 1;
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileTypeExt, symlink},
        process::{Command, Stdio},
    };

    use super::*;

    fn wanted(name: &str, content: &str) -> Wanted {
        Wanted::parse(&format!("{name} {} {}", content.len(), Digest::of(content.as_bytes()))).unwrap()
    }

    #[test]
    fn only_names_of_files_below_the_cache_are_names() {
        let hex = "0".repeat(64);
        for name in ["apt/a/b_1%3a2.0~rc1+x-1_amd64.deb", "dnf/r-0/packages/a-1^2.rpm"] {
            let parsed = Wanted::parse(&format!("{name} 7 sha256:{hex}")).unwrap();
            assert_eq!((parsed.name.to_str().unwrap(), parsed.bytes), (name, 7));
        }
        let long = "a".repeat(256);
        for name in ["", "/etc/passwd", "../a", "apt/../../a", "apt//a", "apt/.a", "a/", "a\tb", "ä", "a'b", &long] {
            assert_eq!(Wanted::parse(&format!("{name} 7 sha256:{hex}")), None, "{name:?}");
        }
        for rest in ["", "7", "-1 sha256:0", "7 sha512:0", "7 sha256:0", "x sha256:0"] {
            assert_eq!(Wanted::parse(&format!("a {rest}")), None, "{rest:?}");
        }
        assert_eq!(Wanted::parse(&format!("a 7 sha256:{hex} b")), None);
    }

    #[test]
    fn a_container_leaves_what_it_says_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let packages = Packages::new(&scratch.path().join("cache"), 1000);
        let upper = scratch.path().join("upper");
        let apt = upper.join("var/cache/apt");
        fs::create_dir_all(&apt).unwrap();
        let secret = scratch.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::write(apt.join("good"), "good").unwrap();
        fs::write(apt.join("evil"), "evil").unwrap();
        fs::write(apt.join("large"), "x".repeat(1001)).unwrap();
        fs::create_dir(apt.join("directory")).unwrap();
        symlink(&secret, apt.join("link")).unwrap();
        symlink(scratch.path(), apt.join("up")).unwrap();
        fs::hard_link(apt.join("good"), apt.join("second")).unwrap();
        nix::unistd::mkfifo(&apt.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(fs::metadata(apt.join("pipe")).unwrap().file_type().is_fifo());

        let named = [
            wanted("apt/good", "good"),
            wanted("apt/second", "good"),
            wanted("apt/evil", "nice"),
            wanted("apt/evil", "evi"),
            wanted("apt/large", &"x".repeat(1001)),
            wanted("apt/directory", ""),
            wanted("apt/link", "secret"),
            wanted("apt/up/secret", "secret"),
            wanted("apt/pipe", ""),
            wanted("apt/none", "none"),
        ];
        assert_eq!(packages.take(&upper, &named).unwrap(), 1);
        let kept: Vec<Digest> = packages.list().unwrap().into_iter().map(|file| file.digest).collect();
        assert_eq!(kept, [Digest::of(b"good")]);
    }

    #[test]
    fn who_wants_it_by_its_checksum_and_size_gets_it_under_its_own_name() {
        let scratch = tempfile::tempdir().unwrap();
        let packages = Packages::new(&scratch.path().join("cache"), 1000);
        for text in ["one", "two"] {
            packages.0.keep(&Digest::of(text.as_bytes()), text.as_bytes()).unwrap().unwrap();
        }
        let list = |wanted: &[Wanted]| {
            let mut tar = Vec::new();
            packages.give(wanted, &mut tar).unwrap();
            let mut child =
                Command::new("tar").arg("-tvf-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            io::Write::write_all(&mut child.stdin.take().unwrap(), &tar).unwrap();
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        };
        assert_eq!(list(&[wanted("a", "three")]), "");
        let other_size = Wanted { bytes: 4, ..wanted("c", "one") };
        let listing = list(&[wanted("apt/a", "one"), wanted("b", "three"), other_size, wanted("d", "two")]);
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 2, "{listing}");
        assert_eq!((lines[0][0], lines[0][1], lines[0][2], lines[0][5]), ("-rw-r--r--", "0/0", "3", "apt/a"));
        assert_eq!(lines[1][5], "d");
    }

    #[test]
    fn no_more_is_wanted_than_there_is_room_for() {
        let mut all = Vec::new();
        for number in 0..=MAX_WANTED {
            want(&mut all, &format!("a{number} 1 sha256:{}", "0".repeat(64)));
        }
        assert_eq!(all.len(), MAX_WANTED);
    }
}
