//! `bootstrap:debian/SUITE`: a base image built by mmdebstrap from the mirror that the host itself uses.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Image, ImageError, ImportOptions, Progress, Reference, Store};
use crate::errors::chain;

/// What a shell server needs beyond mmdebstrap's `minbase`.
const PACKAGES: &str = "ca-certificates,less,procps";

/// What of the error output is kept for the message.
const MAX_ERRORS: usize = 16 << 10;

/// How long mmdebstrap may take to clean up when it is told to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds the image, or says what mmdebstrap has against it.
pub(super) fn build(
    store: &Store,
    reference: &Reference,
    suite: &str,
    include: &[String],
    progress: &dyn Progress,
) -> Result<Image, ImageError> {
    let asked_at = SystemTime::now();
    // Whoever waits for somebody else's build gets that.
    let name = super::Digest::of(reference.to_string().as_bytes());
    let waiting = || progress.line(&format!("waiting for another build of {reference}"));
    let _turn = store.turn(&format!("bootstrap-{}", name.short()), waiting)?;
    // Times in the store are whole seconds.
    let whole = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Ok(Some(image)) = store.lookup(reference)
        && whole(image.pulled_at) > whole(asked_at)
    {
        return Ok(image);
    }
    progress.line(&format!("building Debian {suite} from the host's package mirror"));
    let mut packages = PACKAGES.to_owned();
    for package in include {
        packages.push(',');
        packages.push_str(package);
    }
    let mut child = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--mode=root", "--quiet", "--format=tar"])
        .arg(format!("--include={packages}"))
        // Nothing of the host: no resolver, no name, no downloaded packages.
        .args(["--customize-hook=rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"", "--skip=output/dev", suite, "-"])
        .args(sources(suite, &host_sources()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NoBootstrap { program: "mmdebstrap" },
            _ => ImageError::Source("mmdebstrap".to_owned(), error),
        })?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(ImageError::Bootstrap("it was started without its output".to_owned()));
    };
    // Read beside the archive, or mmdebstrap would wait for us while we wait for it.
    let errors = thread::spawn(move || tail(stderr));
    let options = ImportOptions { command: vec!["/bin/bash".to_owned()], ..ImportOptions::default() };
    let archive = Checked { stream: stdout, child: &mut child };
    let imported = store.import(archive, "mmdebstrap's archive", reference, &options);
    end(&mut child).map_err(|error| ImageError::Source("mmdebstrap".to_owned(), error))?;
    let said = errors.join().unwrap_or_default();
    imported.map_err(|error| {
        let reasons: Vec<&str> = said.lines().filter(|line| line.starts_with("E:")).collect();
        if reasons.is_empty() {
            error
        } else {
            ImageError::Bootstrap(format!("{} ({})", reasons.join("; "), chain(error)))
        }
    })
}

/// What the host's own list of sources says, as one text. A host without Debian's apt has none.
fn host_sources() -> String {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = parts.collect();
    files.sort();
    files.insert(0, PathBuf::from("/etc/apt/sources.list"));
    files.iter().filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n")
}

/// Lines of sources.list(5) that take a suite from where the host itself takes Debian from. None if it does not say: then
/// mmdebstrap knows a server.
fn sources(suite: &str, host: &str) -> Vec<String> {
    let lines = || host.lines().filter(|line| !line.trim_start().starts_with('#'));
    let server = |end: &str| {
        let mut addresses = lines().flat_map(str::split_ascii_whitespace).filter(|word| word.starts_with("http"));
        addresses.find(|word| word.trim_end_matches('/').ends_with(end)).map(|word| word.trim_end_matches('/'))
    };
    let Some(archive) = server("/debian") else { return Vec::new() };
    let mut sources = vec![format!("deb {archive} {suite} main")];
    // Suites that are never released have none of these.
    if !matches!(suite, "sid" | "unstable" | "experimental") {
        if host.contains("-updates") {
            sources.push(format!("deb {archive} {suite}-updates main"));
        }
        if let Some(security) = server("/debian-security") {
            sources.push(format!("deb {security} {suite}-security main"));
        }
    }
    sources
}

/// The last of what a program says.
fn tail(mut stream: impl Read) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    // A pipe that cannot be read says nothing more.
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        said.extend(&buffer[..length]);
        said.drain(..said.len().saturating_sub(MAX_ERRORS));
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Ends mmdebstrap if it still runs: nobody reads its archive any more. It cleans up after itself, if it is let.
fn end(child: &mut Child) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break;
        }
        if !told {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            told = true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program's output, whose end counts only if the program has succeeded.
struct Checked<'a, R> {
    stream: R,
    child: &'a mut Child,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            let status = self.child.wait()?;
            if !status.success() {
                return Err(io::Error::other(format!("mmdebstrap ended with {status}")));
            }
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_comes_from_the_mirror_of_the_host() {
        let old = "# deb http://old.example/debian bookworm main\n\
                   deb [signed-by=/x] https://mirror.example/debian/ bookworm main contrib\n\
                   deb https://mirror.example/debian/ bookworm-updates main\n\
                   deb http://mirror.example/debian-security bookworm-security main\n";
        let new = "Types: deb\nURIs: https://mirror.example/debian/\nSuites: trixie trixie-updates\n\n\
                   Types: deb\nURIs: http://mirror.example/debian-security\n";
        for host in [old, new] {
            assert_eq!(
                sources("trixie", host),
                [
                    "deb https://mirror.example/debian trixie main",
                    "deb https://mirror.example/debian trixie-updates main",
                    "deb http://mirror.example/debian-security trixie-security main",
                ]
            );
            assert_eq!(sources("sid", host), ["deb https://mirror.example/debian sid main"]);
        }
        assert_eq!(sources("bookworm", "deb http://m.example/debian bookworm main").len(), 1);
        let none: [String; 0] = [];
        assert_eq!(sources("bookworm", "deb http://mirror.example/ubuntu noble main"), none);
        assert_eq!(sources("bookworm", ""), none);
    }
}
