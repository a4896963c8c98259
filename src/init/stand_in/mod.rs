//! Commands of file transfers that the image has no program for.
//!
//! `scp -t` and `scp -f`, which old clients run at our end, are done here, and so is an SFTP server that is asked for by
//! its path instead of as a subsystem, or by the name that a key's `command=` has for it. Of rsync and git's own ends the
//! user is told in a sentence what is missing; the shell's `not found` would be all that they show. Everything else is the
//! shell's, and so is everything that the image has a program for.

mod words;

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::unistd::{AccessFlags, access};
use words::Words;

use super::{
    scp::{self, Options},
    sftp,
};

/// The status of shells for commands that are not found.
const NOT_FOUND: u8 = 127;

/// What words may expand to, all together: as much as an exec takes on common systems.
const MAX_EXPANDED: u64 = 2 << 20;

/// What happens instead of a command.
#[derive(Debug)]
pub(super) enum StandIn<'a> {
    Scp(Words<'a>),
    Sftp,
    Missing { program: &'static str, instead: &'static str },
}

/// Whose command it is.
pub(super) struct Caller<'a> {
    pub(super) shell: &'a OsStr,
    pub(super) environment: &'a [CString],
    pub(super) home: &'a Path,
}

/// What stands in for `command`, for whoever calls it with `environment` (`NAME=value`); `None` if it can be run.
pub(super) fn for_command<'a>(command: &'a [u8], environment: &[CString]) -> Option<StandIn<'a>> {
    let words = words::split(command)?;
    let text: Vec<&[u8]> = words.words.iter().map(Vec::as_slice).collect();
    let program = text.first()?.to_vec();
    let stand_in = match text[..] {
        [b"scp", ..] if Options::parse(&words.words[1..]).is_some() => StandIn::Scp(words),
        // With options it would be another one: read-only, or with another umask.
        [server] if server == b"internal-sftp" || Path::new(OsStr::from_bytes(server)).ends_with("sftp-server") => {
            StandIn::Sftp
        }
        [b"rsync", b"--server", ..] => {
            StandIn::Missing { program: "rsync", instead: "or copy with scp or sftp, which need nothing in the image" }
        }
        [b"git-upload-pack" | b"git-receive-pack" | b"git-upload-archive", ..]
        | [b"git", b"upload-pack" | b"receive-pack" | b"upload-archive", ..] => {
            StandIn::Missing { program: "git", instead: "or push to and fetch from a repository elsewhere" }
        }
        _ => return None,
    };
    (!is_on_path(Path::new(OsStr::from_bytes(&program)), environment)).then_some(stand_in)
}

/// Whether a shell would find `program`.
fn is_on_path(program: &Path, environment: &[CString]) -> bool {
    let path = environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    std::env::split_paths(OsStr::from_bytes(path.unwrap_or_default())).any(|directory| {
        let file = directory.join(program);
        file.is_file() && access(&file, AccessFlags::X_OK).is_ok()
    })
}

impl StandIn<'_> {
    /// Does it, on this process's standard streams, and returns the exit status.
    pub(super) fn run(&self, caller: &Caller<'_>) -> u8 {
        let result = match self {
            Self::Scp(words) => arguments(words, caller).and_then(|arguments| run_scp(&arguments)),
            Self::Sftp => streams().map(|(input, output)| {
                sftp::serve(&input, &output, caller.home).map_or_else(|error| error.status(), |()| 0)
            }),
            Self::Missing { program, instead } => {
                let line =
                    format!("podspawn: the image of this session has no {program}: use one that has it, {instead}\n");
                io::stderr().write_all(line.as_bytes()).map(|()| NOT_FOUND)
            }
        };
        result.unwrap_or_else(|error| {
            // Nobody is left to tell if that fails too.
            if let Err(_gone) = writeln!(io::stderr(), "podspawn: cannot transfer files: {error}") {}
            1
        })
    }
}

/// Standard input and output without the buffers of the library's own handles.
fn streams() -> io::Result<(File, File)> {
    let stream = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    Ok((stream(io::stdin().as_fd())?, stream(io::stdout().as_fd())?))
}

fn run_scp(arguments: &[Vec<u8>]) -> io::Result<u8> {
    match Options::parse(arguments) {
        Some((options, paths)) => streams().map(|(input, output)| scp::run(options, paths, input, output)),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the expanded command has other options")),
    }
}

/// The arguments of a command, expanded as the user's shell would.
fn arguments(words: &Words<'_>, caller: &Caller<'_>) -> io::Result<Vec<Vec<u8>>> {
    if !words.has_expansions {
        return Ok(words.words[1..].to_vec());
    }
    let script = [b"printf '%s\\0'", words.after_first].concat();
    let mut child = Command::new(caller.shell)
        .arg("-c")
        .arg(OsStr::from_bytes(&script))
        .env_clear()
        .envs(caller.environment.iter().filter_map(|entry| {
            let entry = entry.to_bytes();
            let (name, value) = entry.split_at(entry.iter().position(|&byte| byte == b'=')?);
            Some((OsStr::from_bytes(name), OsStr::from_bytes(&value[1..])))
        }))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut expanded = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // Closed afterwards, which ends a shell that has more to say.
        stdout.take(MAX_EXPANDED + 1).read_to_end(&mut expanded)?;
    }
    let status = child.wait()?;
    if expanded.len() as u64 > MAX_EXPANDED {
        return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, "there are too many matching files"));
    }
    if !status.success() {
        return Err(io::Error::other("the shell cannot expand the file names"));
    }
    let mut arguments: Vec<_> = expanded.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    arguments.pop(); // nothing is after the last NUL
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(path: &str) -> Vec<CString> {
        ["HOME=/home/ada".to_owned(), format!("PATH={path}")].map(|entry| CString::new(entry).unwrap()).into()
    }

    #[test]
    fn only_ends_of_transfers_whose_program_is_missing_are_stood_in_for() {
        let nothing = environment("/nonexistent:/etc");
        for (command, is_scp) in [
            ("scp -t /tmp", true),
            ("scp -v -r -p -d -t -- 'a b'", true),
            ("scp -rpf *.txt", true),
            ("rsync --server -logDtpre.iLsfxCIvu . dir/", false),
            ("git-upload-pack '/repo.git'", false),
            ("git receive-pack '/repo.git'", false),
        ] {
            let stand_in = for_command(command.as_bytes(), &nothing);
            assert!(
                matches!(stand_in, Some(StandIn::Scp(_))) == is_scp && stand_in.is_some(),
                "{command}: {stand_in:?}"
            );
            // What runs these tests has everything.
            assert!(
                for_command(command.as_bytes(), &environment("/nonexistent:/usr/local/bin:/usr/bin:/bin")).is_none()
            );
        }
        for command in [
            "scp a b:c",
            "scp -t a; id",
            "rsync a b",
            "git status",
            "/usr/bin/scp -t x",
            "cd x && scp -t y",
            "scp -Z -t x",
            "",
        ] {
            assert!(for_command(command.as_bytes(), &nothing).is_none(), "{command}");
        }
    }

    #[test]
    fn arguments_are_what_the_shell_makes_of_them() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "new\nline.txt"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let directory = directory.path().to_str().unwrap();
        let environment = environment("/usr/bin:/bin");
        let caller = Caller { shell: OsStr::new("/bin/sh"), environment: &environment, home: Path::new("/home/ada") };
        let expand = |command: &str| {
            let words = words::split(command.as_bytes()).unwrap();
            let arguments = arguments(&words, &caller)?;
            Ok::<_, io::Error>(arguments.into_iter().map(|word| String::from_utf8(word).unwrap()).collect::<Vec<_>>())
        };
        let names = ["a.txt", "b.txt", "new\nline.txt"];
        let paths = names.iter().map(|name| format!("{directory}/{name}"));
        let expected: Vec<_> = std::iter::once("-f".to_owned()).chain(paths).collect();
        assert_eq!(expand(&format!("scp -f {directory}/*.txt")).unwrap(), expected);
        assert_eq!(expand("scp -f ~/x '$HOME' \"$HOME\"").unwrap(), ["-f", "/home/ada/x", "$HOME", "/home/ada"]);
        assert_eq!(expand("scp -t /nothing/*").unwrap(), ["-t", "/nothing/*"]);
        expand("scp -t ${x?}").unwrap_err();
    }
}
