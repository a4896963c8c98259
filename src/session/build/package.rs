//! Installing packages with what the image has: apt, apk or dnf; languages also from their makers.
//!
//! What is installed and how is decided inside the container, by a script of ours that the image's own shell runs: nothing of the
//! image is looked at from outside. The lists of what there is to install are got once for all builds on the same base, within
//! [`FRESH`], and lie above the image only while a package is installed; neither they nor archives get into layers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    super::{
        driver::blocking,
        inside::{Line, Source},
    },
    LOGIC,
    container::BuildContainer,
    step::{Doing, StepError, as_root},
};
use crate::{
    image::{Digest, Image, Libc, Upstream},
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
            self.done(container, as_root(["/bin/sh", "-c", SCRIPT, "podspawn", "lists"])).await
        })
        .await
    }

    /// Installs a package that may have a version.
    pub(super) async fn install(&self, container: &BuildContainer, package: &str) -> Result<(), StepError> {
        let (name, version) = package.split_once('@').unwrap_or((package, ""));
        let run = as_root(["/bin/sh", "-c", SCRIPT, "podspawn", "install", name, version]);
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
            (ExitStatus::Code(0), _) => Ok(()),
            (ExitStatus::Code(ELSEWHERE), Some(libc)) => self.install_language(container, name, version, libc).await,
            _ => Err(StepError::Failed(status)),
        }
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
        let upstream =
            Upstream { mirrors: self.config.builds.mirrors.clone(), cache: self.config.paths.state_dir.join("cache") };
        let wanted = (name.to_owned(), version.to_owned());
        let archive = blocking(self.inner, move |_context| upstream.fetch(&wanted.0, &wanted.1, libc)).await?;
        let mut run = as_root(["/bin/sh", "-c", LANGUAGE, "podspawn", name]);
        run.input = Some(Arc::new(archive));
        self.done(container, run).await
    }
}

/// What the script says before it ends with [`ELSEWHERE`].
fn elsewhere(line: Line<'_>) -> Option<Libc> {
    match (line.source, line.text) {
        (Source::Stdout, b"podspawn: elsewhere gnu") => Some(Libc::Gnu),
        (Source::Stdout, b"podspawn: elsewhere musl") => Some(Libc::Musl),
        _ => None,
    }
}
