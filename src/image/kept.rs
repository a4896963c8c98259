//! Files that are kept by their checksum: what is got by one is what it says, whoever had it kept and whatever has happened to
//! the disk since. Several processes may use the same directory. A file appears when it is complete, and never changes.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::{
    errno::Errno,
    fcntl::AT_FDCWD,
    unistd::{LinkatFlags, linkat},
};

use super::{Digest, digest::Hashing};

/// A directory of them.
#[derive(Debug, Clone)]
pub struct Kept {
    directory: PathBuf,
    /// In bytes; beyond it those that were used least lately go.
    limit: u64,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    pub digest: Digest,
    pub bytes: u64,
    pub used: SystemTime,
}

impl Kept {
    pub fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.place(digest).is_file()
    }

    /// The file of this checksum, which counts as used now. One that has another by now is removed.
    pub(super) fn open(&self, digest: &Digest) -> io::Result<Option<File>> {
        let place = self.place(digest);
        let file = match File::open(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut content = Hashing::new(&file);
        io::copy(&mut content, &mut io::sink())?;
        if content.finish().0 != *digest {
            tracing::warn!("{} has changed on the disk; it is got anew", place.display());
            fs::remove_file(place)?;
            return Ok(None);
        }
        (&file).rewind()?;
        file.set_modified(SystemTime::now())?;
        Ok(Some(file))
    }

    /// Keeps what `content` has, if that has the checksum `digest`; otherwise nothing is left of it. Returns it from its start.
    pub(super) fn keep(&self, digest: &Digest, content: impl Read) -> io::Result<Option<File>> {
        fs::create_dir_all(&self.directory)?;
        // Without a name until it is complete, so that nothing is left of one that is not.
        let mut file = tempfile::tempfile_in(&self.directory)?;
        let mut content = Hashing::new(content);
        io::copy(&mut content, &mut file)?;
        if content.finish().0 != *digest {
            return Ok(None);
        }
        file.rewind()?;
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &self.place(digest), LinkatFlags::AT_SYMLINK_FOLLOW) {
            // Somebody else was faster; it is the same.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.tidy()?;
        Ok(Some(file))
    }

    /// All that are kept, those that were used least lately first.
    pub fn list(&self) -> io::Result<Vec<KeptFile>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut kept = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Ok(digest) = format!("sha256:{}", name.to_string_lossy()).parse() else { continue };
            match entry.metadata() {
                // Another process has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                meta => {
                    let meta = meta?;
                    kept.push(KeptFile { digest, bytes: meta.len(), used: meta.modified()? });
                }
            }
        }
        kept.sort_by(|a, b| (a.used, &a.digest).cmp(&(b.used, &b.digest)));
        Ok(kept)
    }

    /// Removes what was used least lately, beyond what may be kept. Whoever has one of them open can still read it.
    fn tidy(&self) -> io::Result<()> {
        let kept = self.list()?;
        let mut sum: u64 = kept.iter().map(|file| file.bytes).sum();
        for file in kept {
            if sum <= self.limit {
                break;
            }
            match fs::remove_file(self.place(&file.digest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => sum -= file.bytes,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(file: Option<File>) -> Option<String> {
        file.map(|file| io::read_to_string(file).unwrap())
    }

    #[test]
    fn what_is_got_by_a_checksum_has_it() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = Kept::new(scratch.path().join("new"), 100);
        let (text, other) = (Digest::of(b"text"), Digest::of(b"other"));
        assert_eq!(content(kept.open(&text).unwrap()), None);
        assert_eq!(content(kept.keep(&text, &b"texts"[..]).unwrap()), None);
        assert_eq!(content(kept.open(&text).unwrap()), None);
        assert_eq!(kept.list().unwrap(), []);

        for _twice in 0..2 {
            assert_eq!(content(kept.keep(&text, &b"text"[..]).unwrap()).as_deref(), Some("text"));
        }
        assert_eq!(content(kept.open(&text).unwrap()).as_deref(), Some("text"));
        assert_eq!(content(kept.open(&other).unwrap()), None);
        fs::write(kept.place(&text), "tixt").unwrap();
        assert_eq!(content(kept.open(&text).unwrap()), None);
        assert!(!kept.has(&text));
        assert_eq!(content(kept.keep(&text, &b"text"[..]).unwrap()).as_deref(), Some("text"));
        assert_eq!(fs::read_dir(kept.directory()).unwrap().count(), 1);
    }

    #[test]
    fn those_that_were_used_least_lately_go() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = Kept::new(scratch.path().to_owned(), 10);
        let digest = |text: &str| Digest::of(text.as_bytes());
        let keep = |text: &str| kept.keep(&digest(text), text.as_bytes()).unwrap().unwrap();
        let age = |text: &str, seconds| {
            let file = File::options().write(true).open(kept.place(&digest(text))).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        for text in ["aaaa", "bbbb"] {
            keep(text);
        }
        age("aaaa", 50);
        age("bbbb", 20);
        kept.open(&digest("aaaa")).unwrap().unwrap();
        keep("cccc");
        let has = |text| kept.has(&digest(text));
        assert_eq!([has("aaaa"), has("bbbb"), has("cccc")], [true, false, true]);
        // Larger than all that may be kept: it is had, and not kept.
        assert_eq!(content(Some(keep("dddddddddddd"))).as_deref(), Some("dddddddddddd"));
        assert_eq!(kept.list().unwrap(), []);
    }
}
