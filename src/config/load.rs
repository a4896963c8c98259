//! Finding, reading and re-reading the configuration.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Config, effective, raw,
    seccomp_profile::{ProfileError, ProfileFile},
    stamp::Stamp,
    units::UnitError,
};
use crate::names::InstanceTag;

/// Where the file is when nobody says otherwise, under the root.
const DEFAULT_FILE: &str = "etc/podspawn/config.yaml";

/// More than any configuration needs; a bigger file is a mistake.
const MAX_BYTES: u64 = 1 << 20;

/// What the command line and the environment say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--root`, `PODSPAWN_ROOT`
    pub root: Option<PathBuf>,
    /// `--config`, `PODSPAWN_CONFIG`
    pub config: Option<PathBuf>,
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--root {}", .0.display())]
    Root(PathBuf, #[source] io::Error),
    #[error("cannot read the configuration {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the configuration {} is larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: {message}", .file.display())]
    Syntax { file: PathBuf, message: String },
    #[error("{}: {} not supported by this version of podspawn; remove the setting", .file.display(), fields_are(.fields))]
    Unsupported { file: PathBuf, fields: Vec<String> },
    #[error("{}: {field} is not valid", .file.display())]
    Value {
        file: PathBuf,
        field: &'static str,
        #[source]
        why: ValueError,
    },
}

fn fields_are(fields: &[String]) -> String {
    format!("{} {}", fields.join(", "), if fields.len() == 1 { "is" } else { "are" })
}

/// Why a value makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("{0:?} is not an address with a port, such as 0.0.0.0:2222")]
    Address(String),
    #[error("{value:?} is not one of {}", .known.join(", "))]
    Word { value: String, known: &'static [&'static str] },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("{0}")]
    Rule(String),
}

/// What a configuration was made of.
#[derive(Debug, Clone)]
pub struct Source {
    options: Options,
    /// `None` if there is no file.
    stamp: Option<Stamp>,
    /// The file as YAML, to tell what it sets.
    document: serde_yaml::Value,
}

impl Config {
    /// Reads the file that `options` point to. Without `--config` a missing file means all defaults.
    pub fn load(options: &Options) -> Result<Self, ConfigError> {
        let root = options.root.as_deref().unwrap_or(Path::new("/"));
        fs::create_dir_all(root).map_err(|error| ConfigError::Root(root.to_owned(), error))?;
        let root = root.canonicalize().map_err(|error| ConfigError::Root(root.to_owned(), error))?;
        let file = match &options.config {
            Some(file) => std::path::absolute(file).map_err(|error| ConfigError::Read(file.clone(), error))?,
            None => root.join(DEFAULT_FILE),
        };
        let stamp = Stamp::of(&file);
        let text = match read(&file) {
            Err(ConfigError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound && options.config.is_none() => {
                String::new()
            }
            other => other?,
        };
        let (raw, document) = parse(&file, &text)?;
        let unsupported = raw.all_unsupported();
        if !unsupported.is_empty() {
            return Err(ConfigError::Unsupported { file, fields: unsupported });
        }
        let instance = InstanceTag::of_root(&root);
        let source = Source { options: options.clone(), stamp, document };
        effective::config(&root, &file, instance, raw, source)
    }

    /// Reads the file again if it, or one that it names, is not the one that was read; `None` if it is.
    pub fn reload_if_changed(&self) -> Option<Result<Self, ConfigError>> {
        let same_profile = self.security.seccomp_profile.as_ref().is_none_or(ProfileFile::is_the_same);
        if Stamp::of(&self.paths.config_file) == self.source.stamp && same_profile {
            return None;
        }
        Some(self.reload())
    }

    /// The configuration as its file says it now.
    pub fn reload(&self) -> Result<Self, ConfigError> {
        Self::load(&self.source.options)
    }

    /// Whether the file sets the field, given as `section.field`.
    pub fn sets(&self, field: &str) -> bool {
        field.split('.').try_fold(&self.source.document, |value, part| value.get(part)).is_some()
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let failed = |error| ConfigError::Read(file.to_owned(), error);
    if fs::metadata(file).map_err(failed)?.len() > MAX_BYTES {
        return Err(ConfigError::TooLarge(file.to_owned()));
    }
    fs::read_to_string(file).map_err(failed)
}

fn parse(file: &Path, text: &str) -> Result<(raw::File, serde_yaml::Value), ConfigError> {
    let failed = |error: serde_yaml::Error| ConfigError::Syntax {
        file: file.to_owned(),
        message: explain(&error.to_string(), text),
    };
    let document: serde_yaml::Value = serde_yaml::from_str(text).map_err(failed)?;
    if document.is_null() {
        return Ok((raw::File::default(), document));
    }
    Ok((serde_yaml::from_str(text).map_err(failed)?, document))
}

/// Adds the nearest field to serde's message about an unknown one, which names all that it knows, and the line, which it
/// knows for fields of a section only.
pub fn explain(message: &str, text: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let ([unknown, known @ ..], true) = (&quoted[..], message.contains("unknown field")) else {
        return message.to_owned();
    };
    let is_key = |line: &&str| line.trim_start().strip_prefix(unknown).is_some_and(|rest| rest.starts_with(':'));
    let place = match message.rsplit_once(" at line ") {
        Some((_, place)) => format!(" at line {place}"),
        None => match text.lines().position(|line| is_key(&line)) {
            Some(index) => format!(" at line {} column 1", index + 1),
            None => String::new(),
        },
    };
    let section = message.split_once(": unknown field").map(|(section, _)| format!("{section}: ")).unwrap_or_default();
    let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, unknown));
    let hint = nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    format!("{section}unknown field `{unknown}`{place}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn load(yaml: &str) -> Result<Config, String> {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("etc/podspawn/config.yaml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, yaml).unwrap();
        let options = Options { root: Some(root.path().to_owned()), config: None };
        Config::load(&options).map_err(|error| {
            let text = crate::errors::chain(error);
            text.replace(&format!("{}/", root.path().canonicalize().unwrap().display()), "")
        })
    }

    #[test]
    fn nothing_at_all_is_a_configuration() {
        let config = load("").unwrap();
        assert_eq!(config.defaults.image, "ubuntu:24.04");
        assert_eq!(config.session.grace_period, Duration::from_secs(60));
        assert_eq!(config.security.pids_limit, 512);
        assert_eq!(config.listen.len(), 2);
        assert!(!config.sets("defaults.image"));
        assert!(config.paths.key_dir.ends_with("etc/podspawn/keys"));
    }

    #[test]
    fn what_the_file_sets_is_used() {
        let config =
            load("listen: 127.0.0.1:2200\ndefaults: {memory: 512m, cpus: 0.5}\nsession: {mode: destroy-on-disconnect}")
                .unwrap();
        assert_eq!(config.listen, ["127.0.0.1:2200".parse().unwrap()]);
        assert_eq!(config.defaults.memory, Some(512 << 20));
        assert_eq!(config.session.mode, super::super::Mode::DestroyOnDisconnect);
        assert!(config.sets("defaults.memory") && !config.sets("defaults.image"));
    }

    #[test]
    fn mistakes_are_named() {
        let table = [
            ("sesion: {}", "unknown field `sesion` at line 1 column 1; did you mean `session`?"),
            (
                "session:\n  grace_perod: 5s",
                "session: unknown field `grace_perod` at line 2 column 3; did you mean `grace_period`?",
            ),
            ("session: {grace_period: 5}", "session.grace_period is not valid"),
            ("session: {mode: forever}", "\"forever\" is not one of"),
            ("session: {idle_timeout: 1s}", "session.idle_timeout is not valid: it is shorter than 2s"),
            ("state: {homes_dir: homes}", "state.homes_dir is not valid: homes is not an absolute path"),
            ("defaults: {memory: lots}", "defaults.memory is not valid: \"lots\" is not a size"),
            ("listen: nowhere", "listen is not valid: \"nowhere\""),
            ("network: {pool: 10.0.0.0/31}", "network.pool is not valid"),
            ("auth: {per_source_max_startups: some}", "auth.per_source_max_startups is not valid"),
            ("auth: {per_source_net_block_size: \"64\"}", "auth.per_source_net_block_size is not valid"),
            ("auth: {per_source_penalties: {min: 1h}}", "min is longer than max"),
            ("auth: {per_source_penalties: {exempt: [10.0.0.0/33]}}", "neither an address, a network nor a pattern"),
            ("auth: {per_source_penalties: {crsh: 1s}}", "did you mean `crash`?"),
            ("auth: {max_startups: x}", "auth.max_startups is not valid"),
            ("auth: {revoked_keys: krl}", "auth.revoked_keys is not valid: krl is not an absolute path"),
            ("auth: {algorithms: weak}", "\"weak\" is not one of post-quantum, strong, compatible"),
            ("security: {cap_add: [NET_RAW]}", "ping works without it"),
            ("security: {seccomp_profile: profile.json}", "profile.json is not an absolute path"),
            ("security: {seccomp_profile: /nonexistent}", "cannot read /nonexistent"),
            ("security: {cap_add: [SYS_ADMIN]}", "security.cap_add is not valid"),
            ("security: {nested: perhaps}", "security.nested: invalid type"),
            ("listen: [", "line 2 column 1"),
        ];
        for (yaml, expected) in table {
            let error = load(yaml).map(|_| ()).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("etc/podspawn/config.yaml: "), "{yaml}: {error}");
        }
    }
}
