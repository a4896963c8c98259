//! Login data for registries: the `auth.json` that podman, skopeo and docker share (containers-auth.json(5)).

use std::{collections::BTreeMap, env, fmt, fs, io, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::ImageError;

/// What a registry knows us by. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// A token to get tokens with, which some registries give out at login.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// The value of an `Authorization` header (RFC 7617).
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// The login for a repository, from the first file that has one; the most specific entry of a file wins.
pub(super) fn find(registry: &str, repository: &str) -> Result<Option<Credentials>, ImageError> {
    for path in files() {
        let text = match fs::read(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            other => other.map_err(|error| ImageError::Auth(path.clone(), error))?,
        };
        let file: AuthFile =
            serde_json::from_slice(&text).map_err(|error| ImageError::Auth(path.clone(), error.into()))?;
        let found = lookup(&file, registry, repository);
        if let Some(found) = found.map_err(|error| ImageError::Auth(path, io::Error::other(error)))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn files() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let mut files = Vec::new();
    files.extend(variable("XDG_RUNTIME_DIR").map(|runtime| runtime.join("containers/auth.json")));
    files.push(PathBuf::from("/run/containers/0/auth.json"));
    // A service has no HOME.
    let home = variable("HOME").unwrap_or_else(|| PathBuf::from("/root"));
    files.push(variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("containers/auth.json"));
    files.push(variable("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker")).join("config.json"));
    files
}

/// The entry for the longest part of `registry/repository`. Docker's own registry goes by an old address, and docker writes
/// addresses rather than names.
fn lookup(file: &AuthFile, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
    let full = format!("{registry}/{repository}");
    let mut names: Vec<&str> = full.match_indices('/').map(|(at, _)| &full[..at]).collect();
    names.push(&full);
    let old = if registry == "docker.io" { Some("index.docker.io") } else { None };
    for name in names.into_iter().rev().chain(old) {
        let entries = file.auths.iter().filter(|(key, _)| normalized(key) == name);
        for (key, entry) in entries {
            if let Some(token) = entry.identitytoken.as_ref().filter(|token| !token.is_empty()) {
                return Ok(Some(Credentials::Identity(token.clone())));
            }
            // Without it the login is kept elsewhere.
            if let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) {
                return decode(auth).map(Some).ok_or_else(|| format!("the entry for {key} is not valid"));
            }
        }
    }
    Ok(None)
}

fn normalized(key: &str) -> &str {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let name = name.trim_end_matches('/');
    name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name)
}

fn decode(auth: &str) -> Option<Credentials> {
    let decoded = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(Credentials::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_login_wins() {
        let file: AuthFile = serde_json::from_value(serde_json::json!({"auths": {
            "r.example": {"auth": STANDARD.encode("all:1")},
            "r.example/team": {"auth": STANDARD.encode("team:2:3")},
            "r.example/empty": {},
            "localhost:5000/x": {"auth": STANDARD.encode("port:5")},
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:4")},
            "https://old.example": {"auth": STANDARD.encode("old:6")},
            "broken.example": {"auth": "!"},
            "cloud.example": {"auth": STANDARD.encode("00000:"), "identitytoken": "refresh"},
        }}))
        .unwrap();
        let ask = |registry, repository| match lookup(&file, registry, repository) {
            Ok(Some(Credentials::Password { user, password })) => format!("{user}/{password}"),
            Ok(Some(Credentials::Identity(token))) => token,
            Ok(None) => String::new(),
            Err(error) => error,
        };
        assert_eq!(ask("r.example", "x"), "all/1");
        assert_eq!(ask("r.example", "team"), "team/2:3");
        assert_eq!(ask("r.example", "team/x/y"), "team/2:3");
        assert_eq!(ask("r.example", "teams/x"), "all/1");
        assert_eq!(ask("r.example", "empty/x"), "all/1");
        assert_eq!(ask("localhost:5000", "x"), "port/5");
        assert_eq!(ask("localhost:5000", "y"), "");
        assert_eq!(ask("docker.io", "library/x"), "hub/4");
        assert_eq!(ask("old.example", "x"), "old/6");
        assert_eq!(ask("cloud.example", "x"), "refresh");
        assert_eq!(ask("broken.example", "x"), "the entry for broken.example is not valid");
        assert_eq!(ask("other.example", "x"), "");
        assert!(!format!("{:?}", lookup(&file, "r.example", "x")).contains("all"));
    }
}
