//! The public keys that GitHub has of one of its users, `https://github.com/LOGIN.keys`.

use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::http::{self, Answer, Http, Timeouts};

/// Keys of one user; nobody has so many.
const MAX_BYTES: u64 = 256 << 10;

/// The longest that GitHub gives.
const MAX_LOGIN: usize = 39;

const LIMIT: Duration = Duration::from_secs(20);

/// Fetches them as they are, from the server at `base`.
pub(super) fn keys(base: &str, login: &str) -> anyhow::Result<String> {
    let plain = login.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if login.is_empty() || login.len() > MAX_LOGIN || login.starts_with('-') || !plain {
        bail!("{login:?} is not the login of a GitHub user");
    }
    let url = format!("{}/{login}.keys", base.trim_end_matches('/'));
    let fetch = || -> anyhow::Result<String> {
        let timeouts = Timeouts { connect: LIMIT / 2, answer: LIMIT, document: LIMIT, ..Timeouts::default() };
        let answer = Http::new(&url, timeouts)?.get(&url, Answer::Document, None, &[])?;
        match answer.status().as_u16() {
            200 => {}
            404 => bail!("there is no user {login}"),
            status => bail!("the server answers {status}"),
        }
        let bytes = http::body(answer, MAX_BYTES + 1)?;
        if bytes.len() as u64 > MAX_BYTES {
            bail!("it is larger than {} KiB", MAX_BYTES >> 10);
        }
        String::from_utf8(bytes).context("it is not text")
    };
    fetch().with_context(|| format!("cannot get {url}"))
}
