//! What of a Podfile goes into its image, in a form in which nothing else shows.

use serde::Serialize;

use super::resolved::Podfile;
use crate::image::Digest;

/// The base, and what is done to it in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildPlan {
    pub base: String,
    pub steps: Vec<Step>,
}

/// One layer of an image that is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
        let mut bytes = Vec::new();
        // With its length, a text cannot run into the next one.
        let mut add = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        add(&self.base);
        for step in &self.steps {
            match step {
                Step::Package(package) => ["package", package].into_iter().for_each(&mut add),
                Step::Run { command, shell, env } => {
                    ["run", command, shell.as_deref().unwrap_or_default()].into_iter().for_each(&mut add);
                    add(&env.len().to_string());
                    for variable in env {
                        add(variable);
                    }
                }
            }
        }
        Digest::of(&bytes)
    }
}
