//! What a Podfile says when everything it extends is merged in and every value is checked.
//!
//! Serialized, it is a Podfile again, one that extends nothing and means the same.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    choice::{Mode, Mount, PortStrategy, Restart, User},
    package::Package,
    value::Bytes,
};
use crate::image::Reference;

/// An environment, checked and complete. What is `None` or empty is left to the server or not wanted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Podfile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(serialize_with = "displayed")]
    pub base: Reference,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Package>,
    /// Commands that root runs while the image is built, after the packages are installed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_commands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// `${PODSPAWN_...}` in values is not expanded yet.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dotfiles: Option<Dotfiles>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repos: Vec<Repo>,
    /// Branch of the project itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    #[serde(skip_serializing_if = "Ports::is_default")]
    pub ports: Ports,
    #[serde(skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    /// A script for `sh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_create: Option<String>,
    /// A script for `sh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_start: Option<String>,
    pub mount: Mount,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dotfiles {
    pub repo: String,
    /// A script for `sh`, run in the clone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Repo {
    pub url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    pub name: String,
    #[serde(serialize_with = "displayed")]
    pub image: Reference,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Instead of the image's own; arguments as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's own; arguments as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    pub ready: Ready,
    /// Services that are to be ready before this one is started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    pub restart: Restart,
}

/// What is mounted into a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Volume {
    #[serde(flatten)]
    pub source: VolumeSource,
    /// Where in the service.
    pub path: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether it survives a session that is destroyed on disconnect.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// A volume of this user and project.
    Name(String),
    /// A path of the server, which its administrator must have allowed.
    Host(String),
}

/// When a service counts as ready.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ready {
    /// When this command succeeds in it; without one when each of its ports accepts connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
    /// It has failed if it is not ready by then.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Ready {
    fn default() -> Self {
        Self { exec: None, timeout: Duration::from_secs(60) }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Ports {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<u16>,
    pub strategy: PortStrategy,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}

impl Ports {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Resources {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn displayed<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}
