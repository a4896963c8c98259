//! Login data for registries: the `auth.json` that podman, skopeo and docker share (containers-auth.json(5)).

use std::{collections::BTreeMap, env, fmt, fs, io, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::ImageError;

/// A user name and password. `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// The value of an `Authorization` header (RFC 7617).
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
}

/// The login for a repository, from the first file that has one; the most specific entry of a file wins.
pub(super) fn find(registry: &str, repository: &str) -> Result<Option<Credentials>, ImageError> {
    for path in files() {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| ImageError::Auth(path.clone(), error))?,
        };
        let file: AuthFile =
            serde_json::from_slice(&text).map_err(|error| ImageError::Auth(path.clone(), error.into()))?;
        if let Some(found) = lookup(&file, registry, repository) {
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
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from("/run/containers/0"));
    let mut files = vec![runtime.join("containers/auth.json"), PathBuf::from("/run/containers/0/auth.json")];
    if let Some(home) = variable("HOME") {
        files.push(home.join(".config/containers/auth.json"));
        files.push(home.join(".docker/config.json"));
    }
    files
}

fn lookup(file: &AuthFile, registry: &str, repository: &str) -> Option<Credentials> {
    let full = format!("{registry}/{repository}");
    let mut names: Vec<&str> = full.match_indices('/').map(|(at, _)| &full[..at]).collect();
    names.push(&full);
    // Docker's own registry goes by an old address.
    let docker = ["https://index.docker.io/v1/", "index.docker.io"];
    let more = if registry == "docker.io" { &docker[..] } else { &[] };
    let entry =
        names.into_iter().rev().chain(more.iter().copied()).find_map(|name| file.auths.get(name)?.auth.as_ref())?;
    let decoded = String::from_utf8(STANDARD.decode(entry).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(Credentials { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_login_wins() {
        let file: AuthFile = serde_json::from_value(serde_json::json!({"auths": {
            "r.example": {"auth": STANDARD.encode("all:1")},
            "r.example/team": {"auth": STANDARD.encode("team:2:3")},
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:4")},
            "broken.example": {"auth": "!"},
        }}))
        .unwrap();
        let ask =
            |registry, repository| lookup(&file, registry, repository).map(|c| format!("{}/{}", c.user, c.password));
        assert_eq!(ask("r.example", "x").as_deref(), Some("all/1"));
        assert_eq!(ask("r.example", "team/x").as_deref(), Some("team/2:3"));
        assert_eq!(ask("docker.io", "library/x").as_deref(), Some("hub/4"));
        assert_eq!(ask("broken.example", "x"), None);
        assert_eq!(ask("other.example", "x"), None);
        assert!(!format!("{:?}", lookup(&file, "r.example", "x")).contains("all"));
    }
}
