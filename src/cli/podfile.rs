//! `podfile check`.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;

use crate::{
    podfile::{self, BuildPlan, Document, External, FILES, Format, MAX_FILE, Origin, Problem, Source, SourceError},
    project::Remotes,
};

#[derive(Debug, Subcommand)]
pub enum PodfileCommand {
    /// Check a podfile.yaml or devcontainer.json and print what it means, with everything that it extends
    Check {
        /// The file, or a directory to look for one in
        #[arg(value_name = "FILE|DIR", default_value = ".")]
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl PodfileCommand {
    pub fn run(&self, quiet: bool) -> anyhow::Result<()> {
        let Self::Check { path, json } = self;
        let document = find(path)?;
        let name = &document.name;
        match podfile::resolve(&document, &LocalFiles::default()) {
            Ok(resolved) => {
                let key = BuildPlan::of(&resolved.podfile).key().to_string();
                if *json {
                    return print_json(json!({
                        "file": name, "valid": true, "documents": resolved.documents, "podfile": resolved.podfile,
                        "build_key": key, "errors": [], "warnings": resolved.warnings,
                    }));
                }
                print_problems("warning: ", &resolved.warnings)?;
                write!(io::stdout(), "{}", serde_yaml::to_string(&resolved.podfile)?)?;
                if !quiet {
                    let extended = resolved.documents[1..].join(", ");
                    let extends = if extended.is_empty() { extended } else { format!(", extends {extended}") };
                    writeln!(io::stderr(), "{name}: valid{extends}")?;
                }
                Ok(())
            }
            Err(invalid) => {
                let count = invalid.errors.len() + invalid.unlisted;
                if *json {
                    print_json(json!({
                        "file": name, "valid": false, "errors": invalid.errors, "warnings": invalid.warnings,
                        "unlisted": invalid.unlisted,
                    }))?;
                } else {
                    print_problems("warning: ", &invalid.warnings)?;
                    print_problems("", &invalid.errors)?;
                }
                bail!("{name} is not valid: {count} {}", if count == 1 { "error" } else { "errors" })
            }
        }
    }
}

fn print_json(value: serde_json::Value) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&value)?)?;
    Ok(())
}

/// One on each line, on standard error.
pub(super) fn print_problems(kind: &str, problems: &[Problem]) -> io::Result<()> {
    problems.iter().try_for_each(|problem| writeln!(io::stderr(), "{kind}{problem}"))
}

/// The document that `path` is, or that is in the directory `path`.
pub(super) fn find(path: &Path) -> anyhow::Result<Document> {
    if !path.is_dir() {
        let json = path.extension().is_some_and(|extension| extension == "json");
        return Ok(read(path, if json { Format::DevContainer } else { Format::Podfile })?);
    }
    for (name, format) in FILES {
        let file = path.join(name);
        if file.exists() {
            return Ok(read(&file, format)?);
        }
    }
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    bail!("{} has none of {}; write one with: podspawn init", path.display(), names.join(", "))
}

fn read(path: &Path, format: Format) -> Result<Document, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(unreadable)?;
    // Also so that a pipe or device is not waited for.
    if !meta.is_file() || meta.len() > MAX_FILE {
        let why = if meta.is_file() { "it is larger than 1 MiB" } else { "it is not a file" };
        return Err(SourceError::Refused { what: path.display().to_string(), why });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let origin = Origin::File(path.canonicalize().map_err(unreadable)?);
    Ok(Document { name: shown(path), origin, text, format })
}

/// The path as people write it: below the current directory without it.
fn shown(path: &Path) -> String {
    let here = env::current_dir().ok();
    let below = here.as_deref().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path);
    below.strip_prefix(".").unwrap_or(below).display().to_string()
}

/// Reads bases from the user's own files, and fetches those of public servers.
#[derive(Debug, Default)]
pub(super) struct LocalFiles {
    /// Hosts that may be fetched from at private addresses.
    pub private_hosts: Vec<String>,
}

impl Source for LocalFiles {
    fn read(&self, base: &External, from: &Origin) -> Result<Document, SourceError> {
        let refused = |what: String, why| Err(SourceError::Refused { what, why });
        match (base, from) {
            (External::Path(path), Origin::File(file)) => {
                let directory = file.parent().unwrap_or(Path::new("/"));
                // Without the `.` of `./base.yaml`.
                read(&directory.join(path).components().collect::<PathBuf>(), Format::Podfile)
            }
            (External::Path(path), Origin::BuiltIn(_) | Origin::Remote(_)) => {
                refused(path.display().to_string(), "what extends it is not a file")
            }
            (External::Remote(remote), _) => {
                Remotes::Fetched { keep: None, private_hosts: self.private_hosts.clone() }.read(remote)
            }
        }
    }
}

/// The document that `init` is about to write.
pub(super) fn unwritten(path: &Path, text: String) -> anyhow::Result<Document> {
    let origin = Origin::File(std::path::absolute(path).context("cannot tell the current directory")?);
    Ok(Document { name: shown(path), origin, text, format: Format::Podfile })
}
