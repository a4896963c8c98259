//! `bootstrap:debian/SUITE`: a base image built by mmdebstrap from the mirror that the host itself uses.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use super::{Image, ImageError, ImportOptions, Progress, Reference, Store};

/// What a shell server needs beyond mmdebstrap's `minbase`.
const PACKAGES: &str = "ca-certificates,less,procps";

/// What of the error output is kept for the message.
const MAX_ERRORS: usize = 4096;

/// Builds the image, or what mmdebstrap says against it.
pub(super) fn build(
    store: &Store,
    reference: &Reference,
    suite: &str,
    include: &[String],
    progress: &dyn Progress,
) -> Result<Image, ImageError> {
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
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ImageError::NoBootstrap { program: "mmdebstrap" },
            _ => ImageError::Source("mmdebstrap".to_owned(), error),
        })?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(ImageError::Bootstrap("it was started without its output".to_owned()));
    };
    // Read beside the archive, or mmdebstrap would wait for us while we wait for it.
    let errors = std::thread::spawn(move || {
        let mut errors = Vec::new();
        let read = stderr.read_to_end(&mut errors);
        read.map(|_| String::from_utf8_lossy(&errors).into_owned())
    });
    let options = ImportOptions { command: vec!["/bin/bash".to_owned()], ..ImportOptions::default() };
    let archive = Checked { stream: stdout, child: &mut child };
    let imported = store.import(archive, reference, &options);
    // After a failed import mmdebstrap is still writing to nobody.
    let _ = child.kill();
    let _ = child.wait();
    match (imported, errors.join()) {
        (Ok(image), _) => Ok(image),
        (Err(_), Ok(Ok(errors))) if !errors.trim().is_empty() => {
            let start = errors.len().saturating_sub(MAX_ERRORS);
            let tail: Vec<&str> =
                errors.get(start..).unwrap_or(&errors).lines().filter(|line| line.starts_with("E:")).collect();
            Err(ImageError::Bootstrap(if tail.is_empty() {
                errors.trim().replace('\n', "; ")
            } else {
                tail.join("; ")
            }))
        }
        (Err(error), _) => Err(error),
    }
}

/// A program's output, whose end counts only if the program has succeeded.
struct Checked<'a, R> {
    stream: R,
    child: &'a mut std::process::Child,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            let status = self.child.wait()?;
            if !status.success() {
                return Err(std::io::Error::other(format!("mmdebstrap ended with {status}")));
            }
        }
        Ok(length)
    }
}
