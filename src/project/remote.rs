//! Podfiles on other servers, which those of projects extend.
//!
//! Where they are is written in a repository, so it is a stranger who sends us there: to public addresses only, by https, and
//! for a small text. They are fetched when a project is added or updated and then kept beside its clone, so that making a
//! session needs nobody else and two sessions of one state are the same.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    errors::chain,
    http::{self, Answer, Http, HttpError, Reach, Timeouts},
    image::Digest,
    podfile::{Document, Format, MAX_FILE, Origin, Remote, SourceError},
};

/// How long one may take to arrive.
const LIMIT: Duration = Duration::from_secs(20);

/// Where remote Podfiles come from.
#[derive(Debug, Clone)]
pub enum Remotes {
    /// Only those that have been kept in this directory.
    Kept(PathBuf),
    /// Fetched, and kept there if there is one; `private_hosts` may be at private addresses.
    Fetched { keep: Option<PathBuf>, private_hosts: Vec<String> },
}

impl Remotes {
    /// The Podfile at the address. Its pin is the caller's to check.
    pub fn read(&self, remote: &Remote) -> Result<Document, SourceError> {
        let url = &remote.url;
        let text = match self {
            Self::Kept(directory) => kept(directory, url)?,
            Self::Fetched { keep, private_hosts } => {
                let failed = |why| SourceError::Fetch { url: url.clone(), why };
                let text = fetch(url, private_hosts).map_err(failed)?;
                if let Some(directory) = keep {
                    let write = fs::create_dir_all(directory).and_then(|()| fs::write(place(directory, url), &text));
                    write.map_err(|source| SourceError::Unreadable { path: directory.clone(), source })?;
                }
                text
            }
        };
        Ok(Document { name: url.clone(), origin: Origin::Remote(url.clone()), text, format: Format::Podfile })
    }
}

/// The file that one is kept in.
fn place(directory: &Path, url: &str) -> PathBuf {
    directory.join(format!("{}.yaml", Digest::of(url.as_bytes()).hex()))
}

fn kept(directory: &Path, url: &str) -> Result<String, SourceError> {
    let path = place(directory, url);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "it has not been fetched; run: podspawn update-project";
            Err(SourceError::Refused { what: url.to_owned(), why })
        }
        other => other.map_err(|source| SourceError::Unreadable { path, source }),
    }
}

fn fetch(url: &str, private_hosts: &[String]) -> Result<String, String> {
    let timeouts = Timeouts { connect: LIMIT / 2, answer: LIMIT, document: LIMIT, ..Timeouts::default() };
    let reach = Reach::Public { but: private_hosts.to_vec() };
    let get =
        || -> Result<_, HttpError> { Http::reaching(reach, url, timeouts)?.get(url, Answer::Document, None, &[]) };
    let answer = get().map_err(chain)?;
    if answer.status() != 200 {
        return Err(format!("the server answers {}", answer.status()));
    }
    let bytes = http::body(answer, MAX_FILE + 1).map_err(chain)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("it is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}
