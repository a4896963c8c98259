//! Languages from where their makers publish them, for images whose own packages do not have the version that is wanted.
//!
//! Which file a version is, and what checksum it has, is read from what the makers (or a mirror) publish beside it. Files are kept
//! by their checksum, so that whatever is asked for by one is what it says, whoever had it fetched.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Digest,
    kept::{Kept, KeptFile},
};
use crate::http::{self, Answer, Http, HttpError, Timeouts};

/// The languages, and where their makers publish them.
pub const MAKERS: [(&str, &str); 4] = [
    ("go", "https://go.dev/dl"),
    ("nodejs", "https://nodejs.org/dist"),
    ("python", "https://github.com/astral-sh/python-build-standalone/releases/latest/download"),
    ("rust", "https://static.rust-lang.org/dist"),
];

/// Larger lists and archives are refused.
const MAX_DOCUMENT: u64 = 32 << 20;
const MAX_ARCHIVE: u64 = 2 << 30;

/// What is kept of archives; beyond it those that were used least lately go.
const MAX_KEPT: u64 = 8 << 30;

/// Why a language could not be had.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("{0:?} is not a language that is known")]
    Language(String),
    #[error("cannot get {url}")]
    Unreachable {
        url: String,
        #[source]
        source: Box<HttpError>,
    },
    #[error("{url}: the server answers {status}")]
    Answer { url: String, status: u16 },
    #[error("{url} cannot be read")]
    Read {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("{url} is not what it should be: {why}")]
    Document { url: String, why: &'static str },
    #[error("there is no {name} {version} for {platform} at {url}")]
    NoVersion { name: String, version: String, platform: String, url: String },
    #[error("{url} does not have the checksum that is published for it")]
    Checksum { url: String },
    #[error("cannot use {}", .0.display())]
    Cache(PathBuf, #[source] io::Error),
}

/// What programs of an image are linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    Gnu,
    Musl,
}

/// A file and what it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Published {
    url: String,
    digest: Digest,
}

/// Where to look, and where archives are kept.
#[derive(Debug, Clone)]
pub struct Upstream {
    mirrors: BTreeMap<String, String>,
    kept: Kept,
}

impl Upstream {
    /// Uses `mirrors` instead of the makers' addresses, by language, and keeps archives in the directory `cache`.
    pub fn new(mirrors: BTreeMap<String, String>, cache: &Path) -> Self {
        Self { mirrors, kept: Kept::new(cache.join("languages"), MAX_KEPT) }
    }

    /// The archives that are kept, those that were used least lately first.
    pub fn list(&self) -> io::Result<Vec<KeptFile>> {
        self.kept.list()
    }

    /// The archive of a language (gzipped tar) in the newest version that is `version` or begins with it. Blocks, perhaps for
    /// minutes.
    pub fn fetch(&self, language: &str, version: &str, libc: Libc) -> Result<File, UpstreamError> {
        let makers = MAKERS.iter().find(|(name, _)| *name == language).map(|(_, url)| *url);
        let makers = makers.ok_or_else(|| UpstreamError::Language(language.to_owned()))?;
        let home = self.mirrors.get(language).map_or(makers, String::as_str).trim_end_matches('/');
        let http = Http::new(home, Timeouts::default())
            .map_err(|error| UpstreamError::Unreachable { url: home.to_owned(), source: Box::new(error) })?;
        let wanted = Wanted { home, version, libc };
        let document = |url: String| -> Result<(String, String), UpstreamError> {
            let answer = get(&http, &url, Answer::Document)?;
            let bytes =
                http::body(answer, MAX_DOCUMENT).map_err(|source| UpstreamError::Read { url: url.clone(), source })?;
            Ok((String::from_utf8_lossy(&bytes).into_owned(), url))
        };
        let found = match language {
            "go" => {
                let (list, url) = document(format!("{home}/?mode=json&include=all"))?;
                (wanted.go(&json(&list, &url)?), url)
            }
            "nodejs" => {
                let (list, url) = document(format!("{home}/index.json"))?;
                match wanted.nodejs(&json(&list, &url)?) {
                    None => (None, url),
                    Some(newest) => {
                        let (sums, url) = document(format!("{home}/{newest}/SHASUMS256.txt"))?;
                        (wanted.sum_of(&sums, &newest, |name| name == Wanted::node_archive(&newest)), url)
                    }
                }
            }
            "python" => {
                let (sums, url) = document(format!("{home}/SHA256SUMS"))?;
                (wanted.python(&sums), url)
            }
            _ => {
                let (manifest, url) = document(wanted.rust_manifest())?;
                (wanted.rust(&manifest), url)
            }
        };
        match found {
            (Some(published), _) => self.archive(&http, &published),
            (None, url) => Err(UpstreamError::NoVersion {
                name: language.to_owned(),
                version: version.to_owned(),
                platform: format!("{} with {}", std::env::consts::ARCH, libc.as_str()),
                url,
            }),
        }
    }

    /// The file, from what is kept or from where it is published.
    fn archive(&self, http: &Http, published: &Published) -> Result<File, UpstreamError> {
        let failed = |error| UpstreamError::Cache(self.kept.directory().to_owned(), error);
        let Published { url, digest } = published;
        if let Some(kept) = self.kept.open(digest).map_err(failed)? {
            return Ok(kept);
        }
        let answer = get(http, url, Answer::Blob)?;
        let stream = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut stream = Fetched { stream: stream.take(MAX_ARCHIVE), failed: false };
        match self.kept.keep(digest, &mut stream) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(UpstreamError::Checksum { url: url.clone() }),
            Err(source) if stream.failed => Err(UpstreamError::Read { url: url.clone(), source }),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Remembers whether it was the reading that has failed.
struct Fetched<R> {
    stream: R,
    failed: bool,
}

impl<R: Read> Read for Fetched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).inspect_err(|_| self.failed = true)
    }
}

fn get(http: &Http, url: &str, answer: Answer) -> Result<ureq::http::Response<ureq::Body>, UpstreamError> {
    let unreachable = |source| UpstreamError::Unreachable { url: url.to_owned(), source: Box::new(source) };
    let answer = http.get(url, answer, None, &[]).map_err(unreachable)?;
    match answer.status().as_u16() {
        200 => Ok(answer),
        status => Err(UpstreamError::Answer { url: url.to_owned(), status }),
    }
}

fn json(text: &str, url: &str) -> Result<Value, UpstreamError> {
    serde_json::from_str(text).map_err(|_| UpstreamError::Document { url: url.to_owned(), why: "it is not JSON" })
}

impl Libc {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gnu => "gnu",
            Self::Musl => "musl",
        }
    }
}

/// What is looked for.
struct Wanted<'a> {
    home: &'a str,
    version: &'a str,
    libc: Libc,
}

impl Wanted<'_> {
    /// `x86_64-unknown-linux-gnu`
    fn target(&self) -> String {
        format!("{}-unknown-linux-{}", std::env::consts::ARCH, self.libc.as_str())
    }

    /// As Go and Node.js call this processor.
    fn arch(intel: &'static str) -> &'static str {
        if cfg!(target_arch = "aarch64") { "arm64" } else { intel }
    }

    /// Whether it is the version that is wanted, or begins with it.
    fn fits(&self, version: &str) -> bool {
        let rest = version.strip_prefix(self.version);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// From go.dev's list of downloads.
    fn go(&self, list: &Value) -> Option<Published> {
        let versions = list.as_array()?.iter().filter_map(|entry| {
            let version = entry["version"].as_str()?.strip_prefix("go")?;
            self.fits(version).then_some((numbers(version), entry))
        });
        let (_, newest) = versions.max_by(|(a, _), (b, _)| a.cmp(b))?;
        let file = newest["files"]
            .as_array()?
            .iter()
            .find(|file| file["os"] == "linux" && file["arch"] == Self::arch("amd64") && file["kind"] == "archive")?;
        published(self.home, file["filename"].as_str()?, file["sha256"].as_str()?)
    }

    /// The newest version, as in `v22.1.0`, from Node.js's index.
    fn nodejs(&self, index: &Value) -> Option<String> {
        // It is made for the GNU library only.
        if self.libc == Libc::Musl {
            return None;
        }
        let versions = index.as_array()?.iter().filter_map(|entry| entry["version"].as_str());
        let fitting = versions.filter(|version| version.strip_prefix('v').is_some_and(|version| self.fits(version)));
        fitting.filter(|version| is_plain(version)).max_by_key(|version| numbers(&version[1..])).map(str::to_owned)
    }

    fn node_archive(version: &str) -> String {
        format!("node-{version}-linux-{}.tar.gz", Self::arch("x64"))
    }

    /// From a list of checksums, each with a name behind it.
    fn sum_of(&self, sums: &str, directory: &str, wanted: impl Fn(&str) -> bool) -> Option<Published> {
        let (sum, name) = sum_lines(sums).find(|(_, name)| wanted(name))?;
        published(&format!("{}/{directory}", self.home), name, sum)
    }

    /// From the checksums of one release of python-build-standalone: `cpython-3.12.1+20240107-TARGET-install_only.tar.gz`.
    fn python(&self, sums: &str) -> Option<Published> {
        let end = format!("-{}-install_only.tar.gz", self.target());
        let fitting = sum_lines(sums).filter_map(|(sum, name)| {
            let (version, _release) = name.strip_prefix("cpython-")?.strip_suffix(&end)?.split_once('+')?;
            self.fits(version).then(|| (numbers(version), sum, name))
        });
        let (_, sum, name) = fitting.max_by(|(a, ..), (b, ..)| a.cmp(b))?;
        published(self.home, name, sum)
    }

    /// The manifest of a channel: `stable`, `1.85`, `nightly-2025-01-31`.
    fn rust_manifest(&self) -> String {
        match self.version.split_once('-') {
            Some((channel, date)) => format!("{}/{date}/channel-rust-{channel}.toml", self.home),
            None => format!("{}/channel-rust-{}.toml", self.home, self.version),
        }
    }

    /// From the manifest of a channel, in which each component has a table for each target.
    fn rust(&self, manifest: &str) -> Option<Published> {
        let table = format!("[pkg.rust.target.{}]", self.target());
        let lines = manifest.lines().skip_while(|line| line.trim() != table).skip(1);
        let fields: BTreeMap<&str, &str> = lines
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .collect();
        // It says where the makers have it; a mirror has it in the same place.
        let (_, path) = fields.get("url")?.split_once("/dist/")?;
        published(self.home, path, fields.get("hash")?)
    }
}

fn sum_lines(sums: &str) -> impl Iterator<Item = (&str, &str)> {
    sums.lines().filter_map(|line| line.split_once(' ')).map(|(sum, name)| (sum, name.trim_start_matches([' ', '*'])))
}

fn published(directory: &str, name: &str, sum: &str) -> Option<Published> {
    let digest = format!("sha256:{}", sum.to_ascii_lowercase()).parse().ok()?;
    let plain = name.split('/').all(|part| is_plain(part) && !part.starts_with('.'));
    plain.then(|| Published { url: format!("{directory}/{}", name.replace('+', "%2B")), digest })
}

/// Whether a name means the same in a URL.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte))
}

/// Versions in their order: the numbers in them.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(version: &str) -> Wanted<'_> {
        Wanted { home: "http://m", version, libc: Libc::Gnu }
    }

    fn sum(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    fn url(published: Option<Published>) -> Option<String> {
        published.map(|published| published.url)
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_newest_version_that_fits_is_found() {
        let file = |version: &str, digit| {
            serde_json::json!({"version": format!("go{version}"), "files": [
                {"filename": "x.zip", "os": "windows", "arch": "amd64", "kind": "archive", "sha256": sum('0')},
                {"filename": format!("go{version}.linux-amd64.tar.gz"), "os": "linux", "arch": "amd64", "kind": "archive",
                 "sha256": sum(digit)},
            ]})
        };
        let list =
            serde_json::json!([file("1.25rc1", '1'), file("1.24.9", '2'), file("1.24.10", '3'), file("1.2", '4')]);
        let go = |version| url(wanted(version).go(&list));
        assert_eq!(go("1.24").as_deref(), Some("http://m/go1.24.10.linux-amd64.tar.gz"));
        assert_eq!(go("1.24.9").as_deref(), Some("http://m/go1.24.9.linux-amd64.tar.gz"));
        assert_eq!(go("1.25rc1").as_deref(), Some("http://m/go1.25rc1.linux-amd64.tar.gz"));
        assert_eq!(go("1.2").as_deref(), Some("http://m/go1.2.linux-amd64.tar.gz"));
        assert_eq!(go("1.25"), None);

        let index = serde_json::json!([{"version": "v22.9.0"}, {"version": "v22.11.0"}, {"version": "v2.0.0"}]);
        assert_eq!(wanted("22").nodejs(&index).as_deref(), Some("v22.11.0"));
        assert_eq!(wanted("22.9").nodejs(&index).as_deref(), Some("v22.9.0"));
        assert_eq!(wanted("20").nodejs(&index), None);

        let python =
            |version: &str, libc| format!("cpython-{version}+2025-x86_64-unknown-linux-{libc}-install_only.tar.gz");
        let sums = format!(
            "{}  {}\n{} *{}\n{}  {}\n",
            sum('a'),
            python("3.12.9", "gnu"),
            sum('b'),
            python("3.12.10", "gnu"),
            sum('c'),
            python("3.12.11", "musl")
        );
        let found = wanted("3.12").python(&sums).unwrap();
        assert_eq!(found.url, format!("http://m/{}", python("3.12.10", "gnu").replace('+', "%2B")));
        assert_eq!(found.digest.hex(), sum('b'));
        assert_eq!(wanted("3.1").python(&sums), None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_channel_of_rust_says_where_its_archive_is() {
        let manifest = format!(
            "[pkg.rust]\nversion = \"1.85.1\"\n[pkg.rust.target.x86_64-unknown-linux-gnu]\navailable = true\n\
             url = \"https://static.rust-lang.org/dist/2025-03-18/rust-1.85.1-x86_64-unknown-linux-gnu.tar.gz\"\n\
             hash = \"{}\"\nxz_url = \"x\"\n[pkg.rust.target.other]\nurl = \"no\"\n",
            sum('d')
        );
        let found = wanted("1.85").rust(&manifest).unwrap();
        assert_eq!(found.url, "http://m/2025-03-18/rust-1.85.1-x86_64-unknown-linux-gnu.tar.gz");
        assert_eq!(found.digest.hex(), sum('d'));
        assert_eq!(wanted("stable").rust_manifest(), "http://m/channel-rust-stable.toml");
        assert_eq!(wanted("nightly-2025-01-31").rust_manifest(), "http://m/2025-01-31/channel-rust-nightly.toml");
    }

    #[test]
    fn a_list_cannot_send_us_elsewhere() {
        for name in ["../x", "a//b", "a/../b", "", "a?b", "a#b", "a%2e", ".x", "http://x/y"] {
            assert_eq!(published("http://m", name, &sum('0')), None, "{name}");
        }
        assert_eq!(published("http://m", "x", "0123"), None);
    }
}
