//! Installing packages with what the image has: apt, apk or dnf; languages also from their makers.
//!
//! What is installed and how is decided inside the container, by a script of ours that the image's own shell runs: nothing of the
//! image is looked at from outside. The lists of what there is to install are got once for all builds on the same base, within
//! [`FRESH`], and lie above the image only while a package is installed; neither they nor archives get into layers. What a package
//! manager is about to download it gets from what other builds have downloaded, as far as that is there ([`Packages`]).
//!
//! [`Packages`]: crate::image::Packages

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    super::{
        driver::blocking,
        inside::{self, Line, Source},
    },
    LOGIC,
    container::BuildContainer,
    step::{Doing, StepError, as_root},
};
use crate::{
    image::{Digest, Image, Libc, Upstream, Wanted, want},
    protocol::ExitStatus,
};

/// What the script is, for whatever shell the image has.
const SCRIPT: &str = include_str!("package.sh");

/// Unpacks what is not the image's own.
const LANGUAGE: &str = include_str!("language.sh");

/// The status with which the script says that a language has to come from elsewhere.
const ELSEWHERE: u8 = 64;

/// Where package managers keep lists and archives, without the slash.
pub(super) const CACHES: [&str; 7] = [
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/apk",
    "etc/apk/cache",
    "var/cache/dnf",
    "var/cache/libdnf5",
    "var/cache/yum",
];

/// How long lists are used.
const FRESH: Duration = Duration::from_secs(3600);

impl Doing<'_> {
    /// An image whose uppermost layer has the lists of what the origin's package manager can install now.
    pub(super) async fn lists(&self) -> Result<Image, StepError> {
        let key = Digest::of(format!("lists {LOGIC} {}", self.origin.id).as_bytes());
        let _turn = self.inner.builds.turn(&key, self.told).await;
        let found = {
            let keys = [key.clone()];
            blocking(self.inner, move |context| context.store.built(&keys)).await.map_err(StepError::Store)?
        };
        let fresh = |image: &Image| SystemTime::now().duration_since(image.pulled_at).is_ok_and(|age| age < FRESH);
        if let Some((_, lists)) = found.filter(|(_, lists)| fresh(lists)) {
            return Ok(lists);
        }
        self.told.line(&format!("getting the package lists of {}", self.origin.reference));
        let base = Doing { base: self.origin, tail: self.tail.clone(), ..*self };
        let container = base.container(self.origin).await?;
        let name = "get the package lists".to_owned();
        base.keep(container, &key, name, &[], async |container| {
            self.done(container, as_root(["/bin/sh", "-c", SCRIPT, "podspawn", "lists"])).await.map(|()| Vec::new())
        })
        .await
    }

    /// Installs a package that may have a version. Returns what there was to download.
    pub(super) async fn install(&self, container: &BuildContainer, package: &str) -> Result<Vec<Wanted>, StepError> {
        let (name, version) = package.split_once('@').unwrap_or((package, ""));
        let wanted = self.wanted(container, name, version).await?;
        let mut run = as_root(["/bin/sh", "-c", SCRIPT, "podspawn", "install", name, version]);
        run.input = given(container, &wanted);
        let said = Arc::new(Mutex::new(None));
        let heard = said.clone();
        let status = self.ended(container, run, move |line| {
            if let Some(libc) = elsewhere(line) {
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(libc);
            }
        });
        let status = status.await?;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (status, said) {
            (ExitStatus::Code(0), _) => {}
            (ExitStatus::Code(ELSEWHERE), Some(libc)) => self.install_language(container, name, version, libc).await?,
            _ => return Err(StepError::Failed(status)),
        }
        Ok(wanted)
    }

    /// What the image's package manager would download. Whatever is wrong with the package is told by installing it.
    async fn wanted(&self, container: &BuildContainer, name: &str, version: &str) -> Result<Vec<Wanted>, StepError> {
        if self.config.builds.package_cache == 0 {
            return Ok(Vec::new());
        }
        let run = as_root(["/bin/sh", "-c", SCRIPT, "podspawn", "wants", name, version]);
        let wanted = Arc::new(Mutex::new(Vec::new()));
        let heard = wanted.clone();
        let hear = move |line: Line<'_>| {
            let text = std::str::from_utf8(line.text).ok().and_then(|text| text.strip_prefix("podspawn: wants "));
            if let Some(text) = text {
                want(&mut heard.lock().unwrap_or_else(PoisonError::into_inner), text);
            }
        };
        inside::run(&container.socket(), run, self.config.builds.step_timeout, hear).await?;
        let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *wanted))
    }

    /// Unpacks a language that its makers publish. The archive is fetched and verified out here, as an image may have no program
    /// for that.
    async fn install_language(
        &self,
        container: &BuildContainer,
        name: &str,
        version: &str,
        libc: Libc,
    ) -> Result<(), StepError> {
        self.told.line(&format!("getting {name} {version} from its makers"));
        let upstream = Upstream::new(self.config.builds.mirrors.clone(), &self.config.paths.state_dir.join("cache"));
        let wanted = (name.to_owned(), version.to_owned());
        let archive = blocking(self.inner, move |_context| upstream.fetch(&wanted.0, &wanted.1, libc)).await?;
        let mut run = as_root(["/bin/sh", "-c", LANGUAGE, "podspawn", name]);
        run.input = Some(Arc::new(archive));
        self.done(container, run).await
    }
}

/// What of `wanted` other builds have downloaded, as a tar that is written while it is read.
fn given(container: &BuildContainer, wanted: &[Wanted]) -> Option<Arc<File>> {
    if wanted.is_empty() {
        return None;
    }
    let (packages, wanted) = (container.packages().clone(), wanted.to_vec());
    let (reader, writer) = io::pipe().inspect_err(|error| tracing::warn!("cannot make a pipe: {error}")).ok()?;
    tokio::task::spawn_blocking(move || {
        // Without the end of it, the rest is downloaded again.
        if let Err(error) = packages.give(&wanted, writer)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!("cannot give packages to a build: {error}");
        }
    });
    Some(Arc::new(File::from(OwnedFd::from(reader))))
}

/// What the script says before it ends with [`ELSEWHERE`].
fn elsewhere(line: Line<'_>) -> Option<Libc> {
    match (line.source, line.text) {
        (Source::Stdout, b"podspawn: elsewhere gnu") => Some(Libc::Gnu),
        (Source::Stdout, b"podspawn: elsewhere musl") => Some(Libc::Musl),
        _ => None,
    }
}
