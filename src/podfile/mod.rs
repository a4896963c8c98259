//! What a repository says about its environment: `podfile.yaml`, or `devcontainer.json` where there is none.
//!
//! ```text
//! text ──▶ tree of nodes ──▶ raw ──▶ merged over what it extends ──▶ resolved
//!          yaml  json        raw     extends  edits                 resolve
//!          (places)          (each value checked)                   (checked as a whole, defaults)
//! ```
//!
//! All of it is a stranger's input, and pure: nothing here reads a file, runs a program or knows a user. What a Podfile
//! extends comes from a [`Source`], and the values end at `session`. Every limit (size, depth, entries) is a constant beside
//! its check, and is reported as any other mistake is.

mod build;
pub mod builtin;
mod choice;
mod devcontainer;
mod edits;
mod extends;
mod fields;
pub mod git;
mod json;
mod node;
mod overrides;
mod package;
mod problem;
mod raw;
mod read;
mod resolve;
mod resolved;
mod service;
mod value;
mod yaml;

pub use self::{
    build::{BuildPlan, Step},
    choice::{Mode, Mount, PortStrategy, Restart, User},
    extends::{External, Origin, Remote, Source, SourceError},
    overrides::Overrides,
    package::Package,
    problem::Problem,
    resolved::{Dotfiles, Podfile, Ports, Ready, Repo, Resources, Service, Volume, VolumeSource},
    value::{Bytes, ValueError},
};

use self::problem::{Place, Report};

/// The files of a project that say it, the first one found counts.
pub const FILES: [(&str, Format); 4] = [
    (".podspawn/podfile.yaml", Format::Podfile),
    ("podfile.yaml", Format::Podfile),
    (".devcontainer/devcontainer.json", Format::DevContainer),
    (".devcontainer.json", Format::DevContainer),
];

/// More than any Podfile needs; a bigger file is a mistake or an attack.
pub const MAX_FILE: u64 = 1 << 20;

/// The language of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Podfile,
    DevContainer,
}

/// A text that says what an environment is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// How messages call it.
    pub name: String,
    pub origin: Origin,
    pub text: String,
    pub format: Format,
}

/// A Podfile that can be used.
#[derive(Debug)]
pub struct Resolved {
    pub podfile: Podfile,
    /// The documents that it is made of, the first one first.
    pub documents: Vec<String>,
    /// What may not be what its author thinks.
    pub warnings: Vec<Problem>,
}

/// Why a Podfile cannot be used: everything that is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), and_more(*.unlisted))]
pub struct Invalid {
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// How many problems there are beyond these.
    pub unlisted: usize,
}

fn and_more(unlisted: usize) -> String {
    if unlisted == 0 { String::new() } else { format!("; and {unlisted} more") }
}

/// Reads a document and what it extends, and checks all of it.
pub fn resolve(document: &Document, source: &dyn Source) -> Result<Resolved, Invalid> {
    let mut report = Report::default();
    let chain = match document.format {
        Format::Podfile => extends::follow(document, source, &mut report),
        Format::DevContainer => devcontainer::convert(document, &mut report),
    };
    let start = Place { document: document.name.as_str().into(), mark: node::Mark::START, field: String::new() };
    let podfile = resolve::resolve(chain.podfile, chain.complete, &start, &mut report);
    report.sort(&chain.documents);
    match podfile {
        Some(podfile) if report.errors.is_empty() => {
            Ok(Resolved { podfile, documents: chain.documents, warnings: report.warnings })
        }
        _ => Err(Invalid { errors: report.errors, warnings: report.warnings, unlisted: report.unlisted }),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
