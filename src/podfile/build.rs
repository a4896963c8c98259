//! What of a Podfile goes into its image, in a form in which nothing else shows.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::resolved::Podfile;
use crate::{errors::printable, image::Digest};

/// The base, and what is done to it in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildPlan {
    pub base: String,
    pub steps: Vec<Step>,
}

/// One layer of an image that is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Installs `name` or `name@version`.
    Package(String),
    /// Runs a command with the Podfile's shell and variables, `NAME=value`, those left out that differ between users.
    Run { command: String, shell: Option<String>, env: Vec<String> },
}

impl BuildPlan {
    pub fn of(podfile: &Podfile) -> Self {
        let same_for_all = |(_, value): &(&String, &String)| !value.contains("${PODSPAWN_");
        let env: Vec<String> =
            podfile.env.iter().filter(same_for_all).map(|(name, value)| format!("{name}={value}")).collect();
        let packages = podfile.packages.iter().map(|package| Step::Package(package.to_string()));
        let commands = podfile.extra_commands.iter().map(|command| Step::Run {
            command: command.clone(),
            shell: podfile.shell.clone(),
            env: env.clone(),
        });
        Self { base: podfile.base.to_string(), steps: packages.chain(commands).collect() }
    }

    /// Tells this plan from every other one.
    pub fn key(&self) -> Digest {
        self.steps.iter().fold(Digest::of(&fields([self.base.as_str()])), |key, step| step.key(&key))
    }

    /// A key for the result of each step, which tells it from that of every other list of steps on any other base.
    ///
    /// `base` is the digest of the base's manifest, and `logic` the version of how steps are done.
    pub fn keys(&self, base: &Digest, logic: u32) -> Vec<Digest> {
        let first = Digest::of(&fields([base.to_string().as_str(), &logic.to_string()]));
        let next = |key: &mut Digest, step: &Step| {
            *key = step.key(key);
            Some(key.clone())
        };
        self.steps.iter().scan(first, next).collect()
    }
}

impl Step {
    /// Of this step after those that `before` stands for.
    fn key(&self, before: &Digest) -> Digest {
        let before = before.to_string();
        Digest::of(&match self {
            Self::Package(package) => fields([before.as_str(), "package", package]),
            Self::Run { command, shell, env } => {
                let shell = shell.as_deref().unwrap_or_default();
                fields([before.as_str(), "run", command, shell].into_iter().chain(env.iter().map(String::as_str)))
            }
        })
    }
}

impl fmt::Display for Step {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(package) => write!(f, "install {package}"),
            Self::Run { command, .. } => {
                let line = command.trim().lines().next().unwrap_or_default();
                let short: String = line.chars().take(60).collect();
                let more = if short.len() < command.trim().len() { " ..." } else { "" };
                write!(f, "run {}{more}", printable(&short))
            }
        }
    }
}

/// The bytes of several texts. With its length, none can run into the next one.
fn fields<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}
