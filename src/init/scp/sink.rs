//! `scp -t`: receiving files.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, futimens, utimensat},
        time::TimeSpec,
    },
};

use super::{
    Options,
    link::{Link, Stop},
    reason,
    record::{Kind, Record, Times, is_name},
};

/// What is read and written at a time.
const PIECE: usize = 256 * 1024;

/// Receives what the peer sends into the one path that `paths` has.
pub(super) fn receive<R: Read, W: Write>(
    link: &mut Link<R, W>,
    options: Options,
    paths: &[Vec<u8>],
) -> Result<(), Stop> {
    let [target] = paths else {
        link.complain(b"ambiguous target")?;
        return Err(Stop);
    };
    let target = Path::new(std::ffi::OsStr::from_bytes(target));
    if options.into_directory
        && let Some(error) = no_directory(target)
    {
        link.complain(&about(target, &reason(error)))?;
        return Err(Stop);
    }
    let mut sink = Sink { link, options, buffer: vec![0; PIECE] };
    sink.receive_into(target)
}

/// Why `path` is not a directory, if it is not.
fn no_directory(path: &Path) -> Option<io::Error> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(io::Error::from_raw_os_error(libc::ENOTDIR)),
        Err(error) => Some(error),
    }
}

/// `path: what`
fn about(path: &Path, what: &str) -> Vec<u8> {
    [path.as_os_str().as_bytes(), b": ", what.as_bytes()].concat()
}

struct Sink<'a, R: Read, W: Write> {
    link: &'a mut Link<R, W>,
    options: Options,
    buffer: Vec<u8>,
}

/// A file or directory that the peer announced, and where it goes.
struct Announced {
    path: PathBuf,
    mode: u32,
    times: Option<Times>,
    /// What is there already.
    existing: Option<Metadata>,
}

impl<R: Read, W: Write> Sink<'_, R, W> {
    /// Receives until the peer ends the directory, or its input. Calls itself for directories, not without end: each is
    /// below the one before, and paths have a limit.
    fn receive_into(&mut self, target: &Path) -> Result<(), Stop> {
        self.link.agree()?;
        let is_directory = target.is_dir();
        let mut times = None;
        let mut first = true;
        while let Some(line) = self.link.line()? {
            self.link.tell("Sink", &line);
            match Record::parse(&line) {
                Ok(Record::Error { fatal }) => {
                    self.link.fail();
                    if fatal {
                        return Err(Stop);
                    }
                }
                Ok(Record::End) => return self.link.agree(),
                Ok(Record::Times(announced)) => {
                    times = announced;
                    self.link.agree()?;
                }
                Ok(Record::Entry { kind, mode, size, name }) => {
                    if !is_name(name) {
                        self.link.complain(&[b"error: unexpected filename: ", name].concat())?;
                        return Err(Stop);
                    }
                    let path =
                        if is_directory { target.join(std::ffi::OsStr::from_bytes(name)) } else { target.to_owned() };
                    // Without -p nothing is set-id, and the umask counts.
                    let mode = if self.options.preserve { mode } else { mode & 0o777 };
                    let existing = fs::metadata(&path).ok();
                    let announced = Announced { path, mode, times: times.take(), existing };
                    match kind {
                        Kind::Directory if !self.options.recursive => {
                            return self.give_up("received directory without -r");
                        }
                        Kind::Directory => self.receive_directory(&announced)?,
                        Kind::File => self.receive_file(&announced, size)?,
                    }
                }
                // What a shell says instead of the file names that it does not find.
                Ok(Record::Unknown(line)) if first => {
                    self.link.complain(line)?;
                    return Err(Stop);
                }
                Ok(Record::Unknown(_)) => return self.give_up("expected control record"),
                Err(why) => return self.give_up(why),
            }
            first = false;
        }
        Ok(())
    }

    fn give_up(&mut self, why: &str) -> Result<(), Stop> {
        self.link.complain(format!("protocol error: {why}").as_bytes())?;
        Err(Stop)
    }

    fn receive_directory(&mut self, announced: &Announced) -> Result<(), Stop> {
        let Announced { path, mode, times, existing } = announced;
        let made = match existing {
            Some(metadata) if metadata.is_dir() => Ok(()),
            Some(_) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            // Writable for us while it is being filled.
            None => fs::DirBuilder::new().mode(mode | 0o700).create(path),
        };
        if let Err(error) = made {
            return self.link.complain(&about(path, &reason(error)));
        }
        self.receive_into(path)?;
        // Both as scp does: whether they work is not looked at.
        if let Some(times) = times {
            let [accessed, modified] = specs(*times);
            if let Err(_kept) = utimensat(AT_FDCWD, path, &accessed, &modified, UtimensatFlags::FollowSymlink) {}
        }
        if let Some(mode) = final_mode(self.options.preserve, *mode, existing.is_some(), &fs::metadata(path))
            && let Err(_kept) = fs::set_permissions(path, Permissions::from_mode(mode))
        {}
        Ok(())
    }

    fn receive_file(&mut self, announced: &Announced, size: u64) -> Result<(), Stop> {
        let Announced { path, mode, times, existing } = announced;
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(mode | 0o200).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) => return self.link.complain(&about(path, &reason(error))),
        };
        self.link.agree()?;
        // From here to its end the file's bytes come, so that nothing can be answered: the first failure is kept.
        let mut failure = self.receive_contents(&mut file, size)?.map(reason);
        let mut note = |what: &str, result: io::Result<()>| {
            if let (None, Err(error)) = (&failure, result) {
                failure = Some(format!("{what}{}", reason(error)));
            }
        };
        let is_regular = existing.as_ref().is_none_or(Metadata::is_file);
        if is_regular {
            note("truncate: ", file.set_len(size));
        }
        if let Some(mode) = final_mode(self.options.preserve, *mode, existing.is_some(), &file.metadata()) {
            note("set mode: ", file.set_permissions(Permissions::from_mode(mode)));
        }
        if let Some(times) = times {
            let [accessed, modified] = specs(*times);
            note("set times: ", futimens(&file, &accessed, &modified).map_err(Into::into));
        }
        self.link.answer()?;
        match failure {
            None => self.link.agree(),
            Some(why) => self.link.complain(&about(path, &why)),
        }
    }

    /// Reads `size` bytes from the peer, and writes them until that fails.
    fn receive_contents(&mut self, file: &mut File, size: u64) -> Result<Option<io::Error>, Stop> {
        let mut failure = None;
        let mut left = size;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let buffer = &mut self.buffer[..piece];
            self.link.read(buffer)?;
            if failure.is_none() {
                failure = file.write_all(buffer).err();
            }
            left -= piece as u64;
        }
        Ok(failure)
    }
}

/// The mode to set when the contents are there, if it is not the right one already. What is new without -p has got its mode
/// from the kernel, less the umask, and more than was asked for only for us to write.
fn final_mode(preserve: bool, mode: u32, existed: bool, now: &io::Result<Metadata>) -> Option<u32> {
    match (preserve, now) {
        (true, _) => Some(mode),
        (false, Ok(now)) if !existed && now.mode() & 0o700 & !mode != 0 => Some(now.mode() & mode),
        (false, _) => None,
    }
}

/// Access and modification.
fn specs(times: Times) -> [TimeSpec; 2] {
    [times.accessed, times.modified].map(|seconds| TimeSpec::new(seconds, 0))
}
