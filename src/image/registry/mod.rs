//! A registry as a source of images, and as a place to put them (OCI distribution spec 1.1; Docker's token authentication).

mod blob;
mod challenge;
mod host;
#[cfg(test)]
mod tests;
mod upload;

use std::time::Duration;

use ureq::http::{StatusCode, header};

pub(super) use self::upload::Upload;
use self::{
    blob::Blob,
    host::{Access, Host},
};
use super::{
    Digest, ImageError,
    manifest::{Blob as Fetched, Document, Source},
    reference::RegistryReference,
    store::Settings,
};
use crate::http::{self, Answer};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One byte more than a manifest may have, so that a larger one is noticed.
const MANIFEST_LIMIT: u64 = (4 << 20) + 1;

/// One repository of one registry, or of its mirrors.
pub(super) struct Registry {
    name: String,
    /// Tag or digest.
    wanted: String,
    pinned: Option<Digest>,
    /// Mirrors first, then the registry itself.
    hosts: Vec<Host>,
    stall: Duration,
}

impl Registry {
    pub(super) fn open(reference: &RegistryReference, settings: &Settings) -> Result<Self, ImageError> {
        let (registry, repository) = reference.full(&settings.default_registry);
        let mirrors = settings.mirrors.get(&registry).into_iter().flatten();
        let hosts = mirrors.chain([&registry]).map(|server| Host::new(server, &repository, Access::Pull, settings));
        let wanted = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        };
        Ok(Self {
            name: format!("{registry}/{repository}:{wanted}"),
            wanted,
            pinned: reference.digest.clone(),
            hosts: hosts.collect::<Result<_, _>>()?,
            stall: settings.timeouts.stall,
        })
    }

    /// Asks one server after the other until one has it.
    fn document(&self, reference: &str, digest: Option<&Digest>) -> Result<Document, ImageError> {
        let what = format!("manifest {reference}");
        let ask = |host: &Host| {
            let url = format!("{}/manifests/{reference}", host.base);
            let answer = host.get(&url, Answer::Document, &[("Accept", MANIFEST_TYPES)], &what)?;
            let media_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type = media_type.map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
            let bytes = match answer.status() {
                StatusCode::OK => http::body(answer, MANIFEST_LIMIT),
                StatusCode::NOT_FOUND => return Err(ImageError::NotFound(self.name.clone())),
                status => return Err(host.unexpected(status, &what)),
            };
            let bytes = bytes.map_err(|error| ImageError::Source(self.name.clone(), error))?;
            match digest {
                Some(digest) if Digest::of(&bytes) != *digest => {
                    Err(ImageError::DigestMismatch { what: "manifest", digest: digest.clone() })
                }
                _ => Ok(Document { media_type, bytes }),
            }
        };
        self.first(0, |_, host| ask(host))
    }

    /// The first server's good answer, starting with number `from`; the last one's error, which is that of the registry
    /// itself, if there is none.
    fn first<'a, T>(
        &'a self,
        from: usize,
        mut ask: impl FnMut(usize, &'a Host) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let mut last = ImageError::NotFound(self.name.clone());
        for (place, host) in self.hosts.iter().enumerate().skip(from) {
            match ask(place, host) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Source for Registry {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn top(&self) -> Result<Document, ImageError> {
        self.document(&self.wanted, self.pinned.as_ref())
    }

    fn manifest(&self, digest: &Digest) -> Result<Document, ImageError> {
        self.document(&digest.to_string(), Some(digest))
    }

    fn places(&self) -> usize {
        self.hosts.len()
    }

    fn blob(&self, digest: &Digest, size: u64, from: usize) -> Result<Fetched<'_>, ImageError> {
        self.first(from, |place, _| {
            let mut blob = Blob::new(self, place, digest.clone(), size);
            blob.connect()?;
            Ok(Fetched { place, stream: Box::new(blob) })
        })
    }
}
