//! The users' key files: one for each user, in the format of `authorized_keys`.

use std::path::{Path, PathBuf};

use russh::keys::ssh_key::public::KeyData;

use super::{
    Attempt, Refusal,
    credential::is_strong,
    key_line::{self, Entry, LineError},
    strict_file::{self, FileError, Links},
};
use crate::protocol::KeyOptions;

/// A key file that is larger is not read.
const MAX_BYTES: u64 = 1 << 20;

/// A thing in a file of keys that the administrator should know of. Shown as one line.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    #[error("{}:{line}: the key is not used: {why}", .file.display())]
    Line { file: PathBuf, line: usize, why: LineError },
    #[error("{}: no key in it is used: {}", .file.display(), crate::errors::chain(.why))]
    File { file: PathBuf, why: FileError },
    #[error("{}: no key in it is used: there is no such file", .0.display())]
    Missing(PathBuf),
}

/// A file that has been read.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    text: String,
}

impl KeyFile {
    /// `None` if there is none that can be believed; what is wrong with it is added to `warnings`.
    pub(super) fn open(path: &Path, links: Links, warnings: &mut Vec<Warning>) -> Option<Self> {
        match strict_file::read_text(path, MAX_BYTES, links) {
            Ok(text) => text.map(|text| Self { path: path.to_owned(), text }),
            Err(why) => {
                warnings.push(Warning::File { file: path.to_owned(), why });
                None
            }
        }
    }

    /// Every usable key, where lines have no options: what is wrong with the others is added to `warnings`.
    pub(super) fn bare_keys(&self, warnings: &mut Vec<Warning>) -> Vec<KeyData> {
        let parse = |line: &str| {
            let key = key_line::parse_bare(line)?;
            key.iter().try_for_each(is_strong)?;
            Ok(key)
        };
        self.lines(parse, warnings)
    }

    /// Every usable line. `authorities` says whether those with `cert-authority` are; what is wrong with the others is
    /// added to `warnings`.
    pub(super) fn entries(&self, authorities: bool, warnings: &mut Vec<Warning>) -> Vec<Entry> {
        let parse = |line: &str| match Entry::parse(line)? {
            Some(entry) if entry.authority && !authorities => Err(LineError::Authority),
            other => Ok(other),
        };
        self.lines(parse, warnings)
    }

    fn lines<T>(&self, parse: impl Fn(&str) -> Result<Option<T>, LineError>, warnings: &mut Vec<Warning>) -> Vec<T> {
        let mut found = Vec::new();
        for (index, line) in self.text.lines().enumerate() {
            match parse(line) {
                Ok(parsed) => found.extend(parsed),
                Err(why) => warnings.push(Warning::Line { file: self.path.clone(), line: index + 1, why }),
            }
        }
        found
    }
}

/// What the first line that has the key, and applies here and now, lets it do.
pub(super) fn authorize(
    file: Option<&KeyFile>,
    key: &KeyData,
    attempt: &Attempt<'_>,
    authorities: bool,
    warnings: &mut Vec<Warning>,
) -> Result<KeyOptions, Refusal> {
    let file = file.ok_or(Refusal::NoUser)?;
    let mut refusal = Refusal::UnknownKey;
    for entry in file.entries(authorities, warnings) {
        if !entry.authority && entry.key == *key {
            if entry.applies(attempt.peer, attempt.now) {
                return Ok(entry.options);
            }
            refusal = Refusal::NotNow;
        }
    }
    Err(refusal)
}

/// Checks every line of a file: how many keys are usable, and what is wrong with the others.
pub(super) fn check(path: &Path, authorities: bool) -> (usize, Vec<Warning>) {
    let mut warnings = Vec::new();
    let usable = KeyFile::open(path, Links::Refuse, &mut warnings)
        .map_or(0, |file| file.entries(authorities, &mut warnings).len());
    (usable, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Credential, Rules};
    use russh::keys::PublicKey;
    use std::{fs, os::unix::fs::PermissionsExt, time::SystemTime};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn the_first_line_that_applies_counts() {
        let directory = tempfile::tempdir().unwrap();
        let rules = Rules { key_dir: directory.path().to_owned(), user_cas: None, revoked: None };
        let user = "ada".parse().unwrap();
        let credential = Credential::parse(&PublicKey::from_openssh(KEY).unwrap().to_bytes().unwrap()).unwrap();
        let ask = || {
            let peer = "127.0.0.1".parse().unwrap();
            rules.judge(&Attempt { user: &user, credential: &credential, peer, now: SystemTime::now() })
        };
        assert!(matches!(ask(), (Err(Refusal::NoUser), warnings) if warnings.is_empty()));
        let file = directory.path().join("ada");
        let commands = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|options| format!("{options} {KEY}\n")).collect();
            fs::write(&file, lines.concat()).unwrap();
            let (verdict, warnings) = ask();
            let lines: Vec<_> = warnings
                .iter()
                .map(|warning| match warning {
                    Warning::Line { line, .. } => *line,
                    other => panic!("{other}"),
                })
                .collect();
            (verdict.map(|options| options.command), lines)
        };
        let first = "command=\"first\"";
        let second = "command=\"second\"";
        let some = |command: &str| Some(command.to_owned());
        assert!(matches!(commands(&[first, second]), (Ok(command), _) if command == some("first")));
        let elsewhere = format!("from=\"10.0.0.0/8\",{first}");
        assert!(matches!(commands(&[&elsewhere, second]), (Ok(command), _) if command == some("second")));
        let expired = format!("expiry-time=\"20200101\",{first}");
        assert!(matches!(commands(&[&expired, second]), (Ok(command), _) if command == some("second")));
        assert!(matches!(commands(&[&expired, &elsewhere]), (Err(Refusal::NotNow), _)));
        let broken = format!("tunnel=\"1\",{first}");
        assert!(
            matches!(commands(&[&broken, second]), (Ok(command), lines) if command == some("second") && lines == [1])
        );
        assert!(matches!(commands(&["cert-authority", &broken]), (Err(Refusal::UnknownKey), lines) if lines == [1, 2]));
    }

    #[test]
    fn a_file_that_others_can_change_lets_nobody_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ada");
        fs::write(&file, format!("{KEY}\n")).unwrap();
        assert!(matches!(check(&file, false), (1, warnings) if warnings.is_empty()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let (usable, warnings) = check(&file, false);
        assert_eq!(usable, 0);
        assert!(warnings[0].to_string().contains("others than root can change it; run: chown root"), "{}", warnings[0]);
    }
}
