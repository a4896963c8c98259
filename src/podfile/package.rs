//! `name` and `name@version`.

use std::fmt;

use serde::{Serialize, Serializer};

use super::value::ValueError;

/// What an image's package manager is to install, in the version if one is given.
///
/// `nodejs`, `python`, `go` and `rust` are the languages, whatever a distribution calls them; other names are its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: Option<String>,
}

impl Package {
    pub(super) fn parse(text: &str) -> Result<Self, ValueError> {
        let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
        // What apt, apk and dnf have in names and versions, but nothing that one of them could take for an option, a file, a
        // pattern or a second word.
        let word = |word: &str, extra: &[u8]| {
            let valid =
                |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_') || extra.contains(&b);
            word.len() <= 128 && word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.bytes().all(valid)
        };
        if !word(name, b":") || !version.is_none_or(|version| word(version, b":~")) {
            return Err(ValueError::Shape {
                value: text.to_owned(),
                what: "a package; write name or name@version, such as git or nodejs@22",
            });
        }
        if let Some(version) = version {
            language_version(name, version)?;
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

/// The four languages have versions of a known form.
fn language_version(name: &str, version: &str) -> Result<(), ValueError> {
    let numbered = version.starts_with(|c: char| c.is_ascii_digit());
    let channel = || ["stable", "beta", "nightly"].contains(&version) || version.starts_with("nightly-");
    let example = match name {
        "nodejs" if !numbered => "nodejs@22",
        "python" if !numbered => "python@3.12",
        "go" if !numbered => "go@1.24",
        "rust" if !numbered && !channel() => "rust@1.85 or rust@stable",
        _ => return Ok(()),
    };
    Err(ValueError::Other(format!("{name} has no version {version:?}; write for instance {example}")))
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for Package {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_a_name_and_perhaps_a_version() {
        let good = [
            "git",
            "g++",
            "libc6:i386",
            "gcc-c++",
            "NetworkManager",
            "nodejs@22",
            "python@3.12",
            "go@1.25rc1",
            "rust@nightly-2024-01-15",
            "rust@1.78.0",
            "nginx@1.24.0-1ubuntu1",
            "x@2:1.0~rc1+dfsg-1",
        ];
        for text in good {
            assert_eq!(Package::parse(text).map(|package| package.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_a_package_manager_could_misunderstand_is_refused() {
        let bad = [
            "",
            "-y",
            "--allow-unauthenticated",
            "git curl",
            "git;id",
            "./x.deb",
            "/tmp/x.deb",
            "git=1.0",
            "git/sid",
            "git*",
            "@group",
            "git@",
            "git@-1",
            "git@1@2",
            "nodejs@lts",
            "go@latest",
            "rust@newest",
            "$(id)",
        ];
        for text in bad {
            assert!(Package::parse(text).is_err(), "{text:?}");
        }
    }
}
