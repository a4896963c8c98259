//! A registry as a source of images (OCI distribution spec 1.1; Docker's token authentication).

use std::{
    io::{self, Read},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde::Deserialize;
use ureq::{
    Body,
    http::{Response, StatusCode, header},
};

use super::{
    Digest, ImageError,
    auth::{self, Credentials},
    http::{self, Http, HttpError},
    manifest::Source,
    reference::RegistryReference,
    store::Settings,
};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One byte more than a manifest may have, so that a larger one is noticed.
const MANIFEST_LIMIT: u64 = (4 << 20) + 1;
const TOKEN_LIMIT: u64 = 1 << 20;

/// How often a request is tried, or a blob resumed without anything new having come, and how long to wait in between.
const ATTEMPTS: u32 = 4;
const BACK_OFF: Duration = Duration::from_millis(300);

/// One repository of one registry, or of its mirrors.
pub(super) struct Registry {
    name: String,
    /// Tag or digest.
    wanted: String,
    pinned: Option<Digest>,
    http: Http,
    /// Mirrors first, then the registry itself.
    hosts: Vec<Host>,
}

/// A server that has the repository.
struct Host {
    registry: String,
    base: String,
    repository: String,
    credentials: Option<Credentials>,
    /// The `Authorization` that the server has wanted so far.
    authorization: Mutex<Option<String>>,
}

impl Registry {
    pub(super) fn open(reference: &RegistryReference, settings: &Settings) -> Result<Self, ImageError> {
        let registry = reference.registry.clone().unwrap_or_else(|| settings.default_registry.clone());
        let mut repository = reference.repository.clone();
        if registry == "docker.io" && !repository.contains('/') {
            repository = format!("library/{repository}");
        }
        let host = |registry: &str| -> Result<Host, ImageError> {
            let scheme = if settings.insecure.iter().any(|other| other == registry) { "http" } else { "https" };
            let server = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
            Ok(Host {
                registry: registry.to_owned(),
                base: format!("{scheme}://{server}/v2/{repository}"),
                repository: repository.clone(),
                credentials: auth::find(registry, &repository)?,
                authorization: Mutex::default(),
            })
        };
        let mirrors = settings.mirrors.get(&registry).into_iter().flatten();
        let mut hosts = mirrors.map(|mirror| host(mirror)).collect::<Result<Vec<_>, _>>()?;
        hosts.push(host(&registry)?);
        let wanted = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        };
        Ok(Self {
            name: format!("{registry}/{repository}:{wanted}"),
            wanted,
            pinned: reference.digest.clone(),
            http: Http::new(),
            hosts,
        })
    }

    /// Asks one host after the other until one has it.
    fn document(&self, reference: &str) -> Result<Vec<u8>, ImageError> {
        let ask = |host: &Host| {
            let url = format!("{}/manifests/{reference}", host.base);
            let what = format!("manifest {reference}");
            let answer = host.get(&self.http, &url, &[("Accept", MANIFEST_TYPES)], &what)?;
            match answer.status() {
                StatusCode::OK => {
                    http::body(answer, MANIFEST_LIMIT).map_err(|error| ImageError::Source(self.name.clone(), error))
                }
                StatusCode::NOT_FOUND => Err(ImageError::NotFound(self.name.clone())),
                status => Err(host.unexpected(status, what)),
            }
        };
        let mut last = ImageError::NotFound(self.name.clone());
        for host in &self.hosts {
            match ask(host) {
                Ok(bytes) => return Ok(bytes),
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

    fn top(&self) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&self.wanted)?;
        match &self.pinned {
            Some(digest) if Digest::of(&bytes) != *digest => {
                Err(ImageError::DigestMismatch { what: "manifest", digest: digest.clone() })
            }
            _ => Ok(bytes),
        }
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.document(&digest.to_string())
    }

    fn blob(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + Send + '_>, ImageError> {
        let mut last = ImageError::NotFound(self.name.clone());
        for host in &self.hosts {
            let mut blob =
                Blob { registry: self, host, digest: digest.clone(), size, offset: 0, stream: None, failures: 0 };
            match blob.connect() {
                Ok(()) => return Ok(Box::new(blob)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Host {
    fn unexpected(&self, status: StatusCode, what: String) -> ImageError {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::Denied { registry: self.registry.clone(), repository: self.repository.clone() }
            }
            _ => ImageError::Answer { registry: self.registry.clone(), status: status.as_u16(), what },
        }
    }

    fn unreachable(&self, source: HttpError) -> ImageError {
        ImageError::Unreachable { registry: self.registry.clone(), source: Box::new(source) }
    }

    /// Sends a request, with what authorization the server asks for; again after a pause while the server is unwell.
    fn get(&self, http: &Http, url: &str, headers: &[(&str, &str)], what: &str) -> Result<Response<Body>, ImageError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = self.get_authorized(http, url, headers);
            let unwell = match &result {
                Ok(answer) => answer.status().is_server_error() || answer.status() == StatusCode::TOO_MANY_REQUESTS,
                Err(ImageError::Unreachable { .. }) => true,
                Err(_) => false,
            };
            if !unwell || attempt == ATTEMPTS {
                return match result {
                    Ok(answer) if unwell => Err(self.unexpected(answer.status(), what.to_owned())),
                    other => other,
                };
            }
            thread::sleep(BACK_OFF * 2_u32.pow(attempt - 1));
        }
    }

    fn get_authorized(&self, http: &Http, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, ImageError> {
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = http.get(url, known.as_deref(), headers).map_err(|error| self.unreachable(error))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let Some(authorization) = self.answer_challenge(http, &challenges)? else { return Ok(answer) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        http.get(url, Some(&authorization), headers).map_err(|error| self.unreachable(error))
    }

    fn answer_challenge(&self, http: &Http, challenges: &[Challenge]) -> Result<Option<String>, ImageError> {
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service } => return self.token(http, realm, service.as_deref()).map(Some),
                Challenge::Basic => {
                    if let Some(credentials) = &self.credentials {
                        return Ok(Some(credentials.basic()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Fetches a token for pulling from the repository (distribution's token specification).
    fn token(&self, http: &Http, realm: &str, service: Option<&str>) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        // A password is sent over TLS, or to a server that is configured as insecure itself.
        let secure = realm.starts_with("https://") || self.base.starts_with("http://");
        let credentials = self.credentials.as_ref().filter(|_| secure).map(Credentials::basic);
        let separator = if realm.contains('?') { '&' } else { '?' };
        let mut url = format!("{realm}{separator}scope=repository:{}:pull", self.repository);
        if let Some(service) = service {
            url.push_str("&service=");
            url.push_str(&escape(service));
        }
        let answer = http.get(&url, credentials.as_deref(), &[]).map_err(|error| self.unreachable(error))?;
        if answer.status() != StatusCode::OK {
            return Err(self.unexpected(answer.status(), "the request for a token".to_owned()));
        }
        let damaged = |error: io::Error| ImageError::Source(format!("the token of {}", self.registry), error);
        let body = http::body(answer, TOKEN_LIMIT).map_err(damaged)?;
        let token: Token = serde_json::from_slice(&body).map_err(|error| damaged(error.into()))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        Ok(format!("Bearer {token}"))
    }
}

fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// What a server wants to see (RFC 9110, 11.6.1).
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest;
        while let Some((name, after)) = rest.split_once('=') {
            let (value, more) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim().trim_start_matches(',').trim() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = more.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// A blob being downloaded. When the connection breaks, it goes on where it was.
struct Blob<'a> {
    registry: &'a Registry,
    host: &'a Host,
    digest: Digest,
    size: u64,
    offset: u64,
    stream: Option<Box<dyn Read + Send>>,
    /// In a row, without a byte in between.
    failures: u32,
}

impl Blob<'_> {
    fn connect(&mut self) -> Result<(), ImageError> {
        let url = format!("{}/blobs/{}", self.host.base, self.digest);
        let range = format!("bytes={}-", self.offset);
        let headers: &[(&str, &str)] = if self.offset > 0 { &[("Range", &range)] } else { &[] };
        let what = format!("layer {}", self.digest);
        let answer = self.host.get(&self.registry.http, &url, headers, &what)?;
        let status = answer.status();
        let mut stream: Box<dyn Read + Send> = Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader());
        match status {
            StatusCode::OK => {
                // A server that does not know ranges sends all of it again.
                let skipped = io::copy(&mut (&mut stream).take(self.offset), &mut io::sink());
                if skipped.ok() != Some(self.offset) {
                    return Err(self.host.unexpected(status, what));
                }
            }
            StatusCode::PARTIAL_CONTENT if self.offset > 0 => {}
            StatusCode::NOT_FOUND => return Err(ImageError::NotFound(format!("{what} of {}", self.registry.name))),
            status => return Err(self.host.unexpected(status, what)),
        }
        self.stream = Some(stream);
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let broken = match &mut self.stream {
                None => self.connect().err().map(io::Error::other),
                Some(stream) => match stream.read(buffer) {
                    Ok(0) if self.offset < self.size && !buffer.is_empty() => {
                        self.stream = None;
                        Some(io::ErrorKind::UnexpectedEof.into())
                    }
                    Ok(length) => {
                        self.offset += length as u64;
                        if length > 0 {
                            self.failures = 0;
                        }
                        return Ok(length);
                    }
                    Err(error) => {
                        self.stream = None;
                        Some(error)
                    }
                },
            };
            if let Some(error) = broken {
                self.failures += 1;
                if self.failures >= ATTEMPTS {
                    return Err(error);
                }
                thread::sleep(BACK_OFF * 2_u32.pow(self.failures - 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(
            Challenge::parse(r#"Bearer realm="https://a/t",service="r.example",scope="repository:x:pull,push""#),
            bearer("https://a/t", Some("r.example"))
        );
        assert_eq!(Challenge::parse("bearer realm=https://a/t"), bearer("https://a/t", None));
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse(r#"Bearer realm="unclosed"#), None);
    }
}
