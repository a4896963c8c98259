//! Names of images (distribution's reference grammar, as Docker uses it, and podspawn's own prefixes).

use std::{fmt, path::PathBuf, str::FromStr};

use super::digest::Digest;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `[registry/]repository[:tag][@digest]`
    Registry(RegistryReference),
    /// `oci:DIR[:TAG]`: an OCI image layout.
    OciDir { path: PathBuf, tag: Option<String> },
    /// `oci-archive:FILE`: a tar of one.
    OciArchive(PathBuf),
    /// `docker-archive:FILE`: what `docker save` writes.
    DockerArchive(PathBuf),
    /// `bootstrap:debian/SUITE[?include=PACKAGE,...]`: built from the distribution's mirror.
    Bootstrap { suite: String, include: Vec<String> },
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// `None`: the configured default registry.
    pub registry: Option<String>,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// Why a name is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("{0:?} is not an image name; write for instance ubuntu:24.04 or localhost:5000/name:tag")]
    Shape(String),
    #[error("{0:?} is not supported; possible is bootstrap:debian/SUITE, such as bootstrap:debian/bookworm")]
    Bootstrap(String),
    #[error("{0:?} names no file")]
    NoPath(String),
}

impl Reference {
    /// The same for all ways to write the same name. `default_registry` is where names without a registry are looked up.
    pub fn canonical(&self, default_registry: &str) -> String {
        match self {
            Self::Registry(image) => {
                let (registry, repository) = image.full(default_registry);
                RegistryReference { registry: Some(registry), repository, ..image.clone() }.to_string()
            }
            other => other.to_string(),
        }
    }

    /// Whether it is a tag of a registry, which an image can be given.
    pub fn can_be_pushed_to(&self) -> bool {
        matches!(self, Self::Registry(image) if image.digest.is_none())
    }
}

impl RegistryReference {
    /// The registry and the repository, as they are spoken of there.
    pub fn full(&self, default_registry: &str) -> (String, String) {
        let registry = match self.registry.as_deref().unwrap_or(default_registry) {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            other => other,
        };
        // Docker's own images are in a repository of theirs.
        if registry == "docker.io" && !self.repository.contains('/') {
            return (registry.to_owned(), format!("library/{}", self.repository));
        }
        (registry.to_owned(), self.repository.clone())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let path = |path: &str| {
            if path.is_empty() { Err(ReferenceError::NoPath(text.to_owned())) } else { Ok(PathBuf::from(path)) }
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, tag) = match rest.rsplit_once(':') {
                Some((directory, tag)) if is_tag(tag) => (directory, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return Ok(Self::OciDir { path: path(directory)?, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return Ok(Self::OciArchive(path(rest)?));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return Ok(Self::DockerArchive(path(rest)?));
        }
        if let Some(rest) = text.strip_prefix("bootstrap:") {
            return bootstrap(rest).ok_or_else(|| ReferenceError::Bootstrap(text.to_owned()));
        }
        registry(text).map(Self::Registry).ok_or_else(|| ReferenceError::Shape(text.chars().take(300).collect()))
    }
}

fn bootstrap(text: &str) -> Option<Reference> {
    let (name, query) = text.split_once('?').unwrap_or((text, ""));
    let suite = name.strip_prefix("debian/")?;
    let word = |word: &str| {
        let first = word.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        first && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.'))
    };
    let include = match query.strip_prefix("include=") {
        Some(list) => list.split(',').map(str::to_owned).collect(),
        None if query.is_empty() => Vec::new(),
        None => return None,
    };
    (word(suite) && include.iter().all(|package: &String| word(package)))
        .then(|| Reference::Bootstrap { suite: suite.to_owned(), include })
}

fn registry(text: &str) -> Option<RegistryReference> {
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => (name, Some(digest.parse().ok()?)),
    };
    // The first component is a registry if it cannot be part of a repository, or is `localhost` (Docker's rule).
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        None => (rest, None),
        Some((repository, tag)) => (repository, Some(tag)),
    };
    // With a tag behind them these mean something else, and every name is written with its tag somewhere.
    if registry.is_none() && ["oci", "oci-archive", "docker-archive", "bootstrap"].contains(&repository) {
        return None;
    }
    let valid = repository.len() <= 255
        && repository.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && registry.is_none_or(is_host);
    valid.then(|| RegistryReference {
        registry: registry.map(str::to_owned),
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component.split(alphanumeric).all(separator)
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// A host name or address with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let name_valid = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            name.split('.').all(|label| !label.is_empty() && !label.starts_with('-'))
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        }
    };
    name_valid && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::OciDir { path, tag: None } => write!(f, "oci:{}", path.display()),
            Self::OciDir { path, tag: Some(tag) } => write!(f, "oci:{}:{tag}", path.display()),
            Self::OciArchive(path) => write!(f, "oci-archive:{}", path.display()),
            Self::DockerArchive(path) => write!(f, "docker-archive:{}", path.display()),
            Self::Bootstrap { suite, include } if include.is_empty() => write!(f, "bootstrap:debian/{suite}"),
            Self::Bootstrap { suite, include } => write!(f, "bootstrap:debian/{suite}?include={}", include.join(",")),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.repository)?;
        match (&self.tag, &self.digest) {
            (None, None) => f.write_str(":latest")?,
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, Some(_)) => {}
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_understood() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("ubuntu", "ubuntu:latest"),
            ("ubuntu:24.04", "ubuntu:24.04"),
            ("library/ubuntu:24.04", "library/ubuntu:24.04"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost/x/y:1", "localhost/x/y:1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("ghcr.io/a/b_c__d-e.f:V1", "ghcr.io/a/b_c__d-e.f:V1"),
            ("bootstrap:debian/bookworm", "bootstrap:debian/bookworm"),
            ("bootstrap:debian/sid?include=sudo,g++", "bootstrap:debian/sid?include=sudo,g++"),
            ("oci:/a/b:v1", "oci:/a/b:v1"),
            ("oci:/a:b/c", "oci:/a:b/c"),
            ("docker-archive:x.tar", "docker-archive:x.tar"),
        ];
        for (text, shown) in table {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()).as_deref(), Ok(shown), "{text}");
        }
        let pinned = format!("x@{digest}");
        assert_eq!(pinned.parse::<Reference>().unwrap().to_string(), pinned);
    }

    #[test]
    fn the_same_name_can_be_written_in_several_ways() {
        let canonical = |text: &str| text.parse::<Reference>().unwrap().canonical("docker.io");
        for name in ["ubuntu", "library/ubuntu:latest", "docker.io/ubuntu", "index.docker.io/library/ubuntu:latest"] {
            assert_eq!(canonical(name), "docker.io/library/ubuntu:latest");
        }
        assert_eq!(canonical("localhost:5000/x"), "localhost:5000/x:latest");
        assert_eq!("x".parse::<Reference>().unwrap().canonical("r.example"), "r.example/x:latest");
        assert_eq!(canonical("oci:/a:b"), "oci:/a:b");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let bad = [
            "",
            "/",
            "UPPER",
            "a//b",
            "a._b",
            "a___b",
            "a..b",
            "a-",
            "_a",
            "r.example/UPPER",
            "x@sha512:12",
            "../x",
            "a/../b",
            "x:",
            "x:-tag",
            "x@sha256:12",
            "-x",
            "a b",
            "x\n",
            "host:99999/x",
            "bootstrap:",
            "bootstrap:alpine/3",
            "bootstrap:debian/-x",
            "bootstrap:debian/x?include=-o",
            "oci:",
            "oci",
            "bootstrap",
            "docker-archive",
            "http://x/y",
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_means_the_same(text in "[a-z0-9:/@._-]{1,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again = reference.to_string().parse::<Reference>();
                prop_assert_eq!(again.map(|r| r.to_string()), Ok(reference.to_string()));
            }
        }
    }
}
