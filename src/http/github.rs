//! The public keys that GitHub has of one of its users, `https://github.com/LOGIN.keys`.

use std::time::Duration;

use super::{Answer, Http, HttpError, Timeouts, body};

/// Keys of one user; nobody has so many.
const MAX_BYTES: u64 = 256 << 10;

/// The longest that GitHub gives.
const MAX_LOGIN: usize = 39;

const LIMIT: Duration = Duration::from_secs(20);

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    #[error("{0:?} is not the login of a GitHub user")]
    Login(String),
    #[error("cannot get {url}")]
    Get {
        url: String,
        #[source]
        source: HttpError,
    },
    #[error("cannot get {url}: there is no user {login}")]
    Unknown { url: String, login: String },
    #[error("cannot get {url}: the server answers {status}")]
    Answer { url: String, status: u16 },
    #[error("cannot get {url}: {why}")]
    Content { url: String, why: String },
}

/// Fetches them as they are, from the server at `base`. Blocks.
pub fn keys(base: &str, login: &str) -> Result<String, GithubError> {
    let plain = login.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if login.is_empty() || login.len() > MAX_LOGIN || login.starts_with('-') || !plain {
        return Err(GithubError::Login(login.to_owned()));
    }
    let url = format!("{}/{login}.keys", base.trim_end_matches('/'));
    let timeouts = Timeouts { connect: LIMIT / 2, answer: LIMIT, document: LIMIT, ..Timeouts::default() };
    let answer = Http::new(&url, timeouts).and_then(|http| http.get(&url, Answer::Document, None, &[]));
    let answer = answer.map_err(|source| GithubError::Get { url: url.clone(), source })?;
    match answer.status().as_u16() {
        200 => {}
        404 => return Err(GithubError::Unknown { url, login: login.to_owned() }),
        status => return Err(GithubError::Answer { url, status }),
    }
    let content = |why: String| GithubError::Content { url: url.clone(), why };
    let bytes = body(answer, MAX_BYTES + 1).map_err(|error| content(crate::errors::chain(error)))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(content(format!("it is larger than {} KiB", MAX_BYTES >> 10)));
    }
    String::from_utf8(bytes).map_err(|_| content("it is not text".to_owned()))
}
