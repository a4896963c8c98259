//! What a Podfile extends, and following that to its end.

use std::{path::PathBuf, sync::Arc};

use super::{
    Document,
    builtin::{self, BuiltIn},
    fields::{self, Inherits},
    problem::{At, Place, Report, nearest, quoted},
    raw,
    read::Item,
    value::ValueError,
    yaml,
};
use crate::image::Digest;

/// Podfiles between the first and the one that extends nothing.
const MAX_CHAIN: usize = 10;

/// What `extends` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extends {
    /// One that is part of podspawn.
    BuiltIn(String),
    External(External),
}

/// A base that somebody has to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum External {
    /// Relative to the file that names it, unless absolute.
    Path(PathBuf),
    Remote(Remote),
}

/// A base to be fetched with https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub url: String,
    /// `#sha256:...`: the only content that will do.
    pub pin: Option<Digest>,
}

/// Where a document comes from; two of the same origin are the same document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An absolute path without symbolic links.
    File(PathBuf),
    BuiltIn(&'static str),
    Remote(String),
}

/// Reads the Podfiles that others extend. Which files may be read, and whether anything is fetched, is its decision.
pub trait Source {
    /// Reads `base`, which a document of the origin `from` extends.
    fn read(&self, base: &External, from: &Origin) -> Result<Document, SourceError>;
}

/// Why a base could not be read; follows the name of the field.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot fetch {url}: {why}")]
    Fetch { url: String, why: String },
    #[error("{what} is refused: {why}")]
    Refused { what: String, why: &'static str },
}

impl Extends {
    pub(super) fn parse(text: &str) -> Result<Self, ValueError> {
        let forms = "a name such as ubuntu-dev, a path such as ./base.yaml, or an https URL";
        let bad = || ValueError::Shape { value: text.to_owned(), what: forms };
        if text.is_empty() || text.len() > 2048 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(bad());
        }
        if text.contains("://") || text.starts_with("github.com/") {
            return remote(text).map(|remote| Self::External(External::Remote(remote)));
        }
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.starts_with(['.', '/']) || text.ends_with(".yaml") || text.ends_with(".yml") {
            Ok(Self::External(External::Path(PathBuf::from(text))))
        } else if text.chars().all(name) {
            Ok(Self::BuiltIn(text.to_owned()))
        } else {
            Err(bad())
        }
    }
}

fn remote(text: &str) -> Result<Remote, ValueError> {
    let bad = |what| ValueError::Shape { value: text.to_owned(), what };
    let (address, pin) = match text.split_once('#') {
        None => (text, None),
        Some((address, pin)) => {
            let pin = pin.parse::<Digest>().map_err(|_| bad("pinned; write #sha256: and 64 hexadecimal digits"))?;
            (address, Some(pin))
        }
    };
    let url = match address.strip_prefix("github.com/") {
        Some(rest) => {
            github(rest).ok_or_else(|| bad("a file of a repository; write github.com/owner/name/file.yaml"))?
        }
        None if address.starts_with("https://") => address.to_owned(),
        None => return Err(bad("fetched safely; write https://")),
    };
    let host = url.trim_start_matches("https://").split('/').next().unwrap_or_default();
    if host.is_empty() || host.contains('@') {
        return Err(bad("an https URL"));
    }
    Ok(Remote { url, pin })
}

/// `OWNER/NAME[/main|/master][/FILE]`, of branch main if none is named, of `podfile.yaml` if no file is.
fn github(text: &str) -> Option<String> {
    let word = |part: &&str| {
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        !part.is_empty() && *part != "." && *part != ".." && part.bytes().all(valid)
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (owner, name, rest) = match &parts[..] {
        [owner, name, rest @ ..] if parts.iter().all(word) => (owner, name, rest),
        _ => return None,
    };
    let (branch, file) = match rest {
        [branch @ ("main" | "master"), file @ ..] => (*branch, file),
        file => ("main", file),
    };
    let file = if file.is_empty() { "podfile.yaml".to_owned() } else { file.join("/") };
    Some(format!("https://raw.githubusercontent.com/{owner}/{name}/{branch}/{file}"))
}

/// A Podfile with everything that it extends merged in.
pub(super) struct Chain {
    pub podfile: raw::Podfile,
    /// The documents' names, the first one first.
    pub documents: Vec<String>,
    /// Whether all of it could be read; if not, what is missing may be in the part that could not.
    pub complete: bool,
}

/// Reads `first` and what it extends, to the end.
pub(super) fn follow(first: &Document, source: &dyn Source, report: &mut Report) -> Chain {
    let mut layers = Vec::new();
    let mut documents = vec![first.name.clone()];
    let mut origins = vec![first.origin.clone()];
    let mut next = read(first, &mut layers, report);
    let complete = loop {
        let extends = match next {
            Inherits::Nothing => break true,
            Inherits::Unknown => break false,
            Inherits::From(extends) => extends,
        };
        if origins.len() > MAX_CHAIN {
            report.error(&extends.place, format_args!("the chain of Podfiles is longer than {MAX_CHAIN}"));
            break false;
        }
        let from = &origins[origins.len() - 1];
        let Some(document) = fetch(&extends, from, source, report) else { break false };
        if origins.contains(&document.origin) {
            let chain = format!("{} -> {}", documents.join(" -> "), document.name);
            report.error(&extends.place, format_args!("goes round in a circle: {chain}"));
            break false;
        }
        documents.push(document.name.clone());
        origins.push(document.origin.clone());
        next = read(&document, &mut layers, report);
    };
    let merged = layers.into_iter().rev().reduce(|base: raw::Podfile, child| child.over(base));
    Chain { podfile: merged.unwrap_or_default(), documents, complete }
}

fn read(document: &Document, layers: &mut Vec<raw::Podfile>, report: &mut Report) -> Inherits {
    let name: Arc<str> = document.name.as_str().into();
    match yaml::parse(&document.text) {
        Ok(root) => {
            let (podfile, inherits) = fields::read(&Item::root(&root, &name), report);
            layers.push(podfile);
            inherits
        }
        Err(error) => {
            report.error(&Place { document: name, mark: error.mark, field: String::new() }, error.message);
            Inherits::Unknown
        }
    }
}

fn fetch(extends: &At<Extends>, from: &Origin, source: &dyn Source, report: &mut Report) -> Option<Document> {
    let external = match &extends.value {
        Extends::External(external) => external,
        Extends::BuiltIn(name) => {
            let found = builtin::find(name);
            if found.is_none() {
                report.error(&extends.place, unknown_name(name));
            }
            return found.map(BuiltIn::document);
        }
    };
    let document = match source.read(external, from) {
        Ok(document) => document,
        Err(error) => {
            report.error(&extends.place, error);
            return None;
        }
    };
    if let External::Remote(Remote { url, pin: Some(pin) }) = external
        && Digest::of(document.text.as_bytes()) != *pin
    {
        report.error(&extends.place, format_args!("{} is not what is pinned", quoted(url)));
        return None;
    }
    Some(document)
}

fn unknown_name(name: &str) -> String {
    let known = || builtin::ALL.iter().map(|built_in| built_in.name);
    let hint = match nearest(name, known()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("there are {}; a file is written ./{name}.yaml", known().collect::<Vec<_>>().join(", ")),
    };
    format!("there is no built-in Podfile {}; {hint}", quoted(name))
}
