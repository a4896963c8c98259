//! `~/.podspawn/config.yaml`: which server a project is on.
//!
//! ```yaml
//! servers:
//!   default: server.example            # HOST or HOST:PORT
//!   mappings:
//!     backend.pod: other.example:2200
//!     gpu.pod: {host: gpu.example, port: 22, mode: persistent}
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use super::{
    files::{self, FileError, Home},
    server::{DEFAULT_PORT, NotServer, Server},
};
use crate::{
    config::explain,
    names::{NameError, ProjectName},
};

/// What hosts of projects end in.
pub const SUFFIX: &str = ".pod";

/// The project whose host is this machine, unless it is mapped.
const LOCALHOST: &str = "localhost";

/// More mappings are refused: `podspawn servers` asks each of their servers at once.
const MAX_MAPPINGS: usize = 256;

/// Why there is no valid configuration, or no server for a host.
#[derive(Debug, thiserror::Error)]
pub enum ClientConfigError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {message}", .file.display())]
    Syntax { file: PathBuf, message: String },
    #[error("{}: {field} is not valid", .file.display())]
    Value {
        file: PathBuf,
        field: String,
        #[source]
        why: WrongValue,
    },
    #[error("{key} is no setting; did you mean {nearest}?")]
    UnknownKey { key: String, nearest: String },
    #[error("{0} has no mapping yet: set servers.mappings.{0} first")]
    NotMapped(String),
    #[error("{0:?} is not the host of a project: it must be a project's name and {SUFFIX}")]
    NotProject(String, #[source] Option<NameError>),
    #[error("no server is configured for {0}: podspawn setup --server HOST[:PORT]")]
    NoServer(String),
}

/// Why a value makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WrongValue {
    #[error(transparent)]
    Server(#[from] NotServer),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{0}")]
    Rule(String),
}

impl WrongValue {
    fn rule(text: impl Into<String>) -> Self {
        Self::Rule(text.into())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawFile {
    servers: Option<RawServers>,
    /// For commands that this version does not have.
    local: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawServers {
    default: Option<String>,
    mappings: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawMapping {
    host: Option<String>,
    port: Option<u16>,
    mode: Option<Mode>,
}

/// What sessions are like there: a note for `podspawn servers`, as the server decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Ephemeral,
    Persistent,
}

/// The server of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    pub server: Server,
    pub mode: Option<Mode>,
}

/// The configuration.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    file: PathBuf,
    document: Value,
    pub default: Option<Server>,
    pub mappings: BTreeMap<ProjectName, Mapped>,
}

/// Where a host leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub server: Server,
    /// What is announced there.
    pub project: Option<ProjectName>,
}

impl ClientConfig {
    /// Reads the user's file; one that is not there is empty.
    pub fn load(home: &Home) -> Result<Self, ClientConfigError> {
        Self::read(&home.config())
    }

    pub(super) fn read(file: &Path) -> Result<Self, ClientConfigError> {
        let text = files::read_text(file)?;
        let failed = |error: serde_yaml::Error| ClientConfigError::Syntax {
            file: file.to_owned(),
            message: explain(&error.to_string(), &text),
        };
        let document = serde_yaml::from_str(&text).map_err(failed)?;
        Self::of(file.to_owned(), document, &text)
    }

    /// `text` is what the document was read from, if it was.
    fn of(file: PathBuf, document: Value, text: &str) -> Result<Self, ClientConfigError> {
        let syntax = |error: serde_yaml::Error| ClientConfigError::Syntax {
            file: file.clone(),
            message: explain(&error.to_string(), text),
        };
        let wrong = |field: String, why: WrongValue| ClientConfigError::Value { file: file.clone(), field, why };
        let raw = match &document {
            Value::Null => RawFile::default(),
            // The text knows the lines; a changed document has none.
            _ if !text.is_empty() => serde_yaml::from_str(text).map_err(syntax)?,
            document => serde_yaml::from_value(document.clone()).map_err(syntax)?,
        };
        if raw.local.is_some() {
            let message = "local is not supported by this version of podspawn; remove the setting".to_owned();
            return Err(ClientConfigError::Syntax { file, message });
        }
        let servers = raw.servers.unwrap_or_default();
        let default = servers.default.map(|text| text.parse()).transpose();
        let default = default.map_err(|error: NotServer| wrong("servers.default".to_owned(), error.into()))?;
        let raw_mappings = servers.mappings.unwrap_or_default();
        if raw_mappings.len() > MAX_MAPPINGS {
            let why = WrongValue::rule(format!("there are more than {MAX_MAPPINGS}"));
            return Err(wrong("servers.mappings".to_owned(), why));
        }
        let mut mappings = BTreeMap::new();
        for (host, value) in raw_mappings {
            let field = format!("servers.mappings.{host}");
            let name = host.strip_suffix(SUFFIX).unwrap_or(&host);
            let project: ProjectName = name.parse().map_err(|error: NameError| wrong(field.clone(), error.into()))?;
            let mapped = match value {
                Value::String(text) => Mapped {
                    server: text.parse().map_err(|error: NotServer| wrong(field.clone(), error.into()))?,
                    mode: None,
                },
                value @ Value::Mapping(_) => {
                    let raw = serde_yaml::from_value(value)
                        .map_err(|error| wrong(field.clone(), WrongValue::rule(explain(&error.to_string(), text))))?;
                    mapped(raw).map_err(|why| wrong(field.clone(), why))?
                }
                _ => return Err(wrong(field, WrongValue::rule("it must be HOST[:PORT], or host, port and mode"))),
            };
            if mappings.insert(project, mapped).is_some() {
                return Err(wrong(field, WrongValue::rule("it is there with and without the ending")));
            }
        }
        Ok(Self { file, document, default, mappings })
    }

    /// Where the host `name` leads.
    pub fn destination(&self, name: &str) -> Result<Destination, ClientConfigError> {
        let lower = name.to_ascii_lowercase();
        let not_project = |why| ClientConfigError::NotProject(name.chars().take(300).collect(), why);
        let bare = lower.strip_suffix(SUFFIX).ok_or_else(|| not_project(None))?;
        let project: ProjectName = bare.parse().map_err(|error| not_project(Some(error)))?;
        let local = project.as_str() == LOCALHOST;
        let server = match self.mappings.get(&project) {
            Some(mapped) => mapped.server.clone(),
            None if local => localhost(),
            None => self.default.clone().ok_or(ClientConfigError::NoServer(lower.clone()))?,
        };
        Ok(Destination { server, project: (!local).then_some(project) })
    }

    /// Every server with the pattern of hosts that lead to it, and its note; the default and this machine last.
    pub fn servers(&self) -> Vec<(String, Server, Option<Mode>)> {
        let named = |(project, mapped): (&ProjectName, &Mapped)| {
            (format!("{project}{SUFFIX}"), mapped.server.clone(), mapped.mode)
        };
        let mut all: Vec<_> = self.mappings.iter().map(named).collect();
        all.extend(self.default.clone().map(|server| (format!("*{SUFFIX}"), server, None)));
        if !self.mappings.keys().any(|project| project.as_str() == LOCALHOST) {
            all.push((format!("{LOCALHOST}{SUFFIX}"), localhost(), None));
        }
        all
    }

    /// The same configuration with another value for `key`, and the server that this chooses.
    pub fn with(&self, key: &str, value: &str) -> Result<(Self, Server), ClientConfigError> {
        let key = Key::parse(key)?;
        let mut document = self.document.as_mapping().cloned().unwrap_or_default();
        let servers = section(&mut document, "servers");
        match &key {
            Key::Default => drop(servers.insert("default".into(), value.into())),
            Key::Mapping { project, field } => set_mapping(section(servers, "mappings"), project, *field, value)?,
        }
        let changed = Self::of(self.file.clone(), document.into(), "")?;
        let server = match &key {
            Key::Default => changed.default.clone(),
            Key::Mapping { project, .. } => changed.mappings.get(project).map(|mapped| mapped.server.clone()),
        };
        // What was set is there.
        let server = server.ok_or_else(|| ClientConfigError::NoServer(value.to_owned()))?;
        Ok((changed, server))
    }

    /// Writes the file. Comments are lost.
    pub fn save(&self) -> Result<(), ClientConfigError> {
        let failed = |error: serde_yaml::Error| ClientConfigError::Syntax {
            file: self.file.clone(),
            message: error.to_string(),
        };
        Ok(files::write(&self.file, serde_yaml::to_string(&self.document).map_err(failed)?.as_bytes())?)
    }
}

/// What `podspawn config set` can set.
enum Key {
    Default,
    Mapping { project: ProjectName, field: Option<Field> },
}

#[derive(Clone, Copy)]
enum Field {
    Host,
    Port,
    Mode,
}

const FIELDS: [(&str, Field); 3] = [("host", Field::Host), ("port", Field::Port), ("mode", Field::Mode)];

impl Key {
    fn parse(key: &str) -> Result<Self, ClientConfigError> {
        if key == "servers.default" {
            return Ok(Self::Default);
        }
        let unknown = |nearest: String| ClientConfigError::UnknownKey { key: key.chars().take(300).collect(), nearest };
        let Some(rest) = key.strip_prefix("servers.mappings.") else {
            let known = ["servers.default", "servers.mappings.HOST.pod"];
            let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, key));
            return Err(unknown(nearest.copied().unwrap_or_default().to_owned()));
        };
        let of_field = |(name, field): (&str, Field)| Some((rest.strip_suffix(name)?.strip_suffix('.')?, Some(field)));
        let (host, field) = FIELDS.into_iter().find_map(of_field).unwrap_or((rest, None));
        let bare = match host.strip_suffix(SUFFIX) {
            Some(bare) => bare,
            // A name with a dot needs its ending, or a field that is written wrong would be one.
            None => match host.rsplit_once('.') {
                None => host,
                Some((before, last)) => {
                    let nearest = FIELDS.iter().min_by_key(|(name, _)| strsim::damerau_levenshtein(name, last));
                    let nearest = nearest.map(|(name, _)| *name).unwrap_or_default();
                    return Err(unknown(format!("servers.mappings.{before}.{nearest}")));
                }
            },
        };
        let not_project = |error| ClientConfigError::NotProject(host.chars().take(300).collect(), Some(error));
        Ok(Self::Mapping { project: bare.parse().map_err(not_project)?, field })
    }
}

/// The section of this name, made if there is none. What is there is one, as the file has been checked, or empty.
fn section<'a>(parent: &'a mut Mapping, name: &str) -> &'a mut Mapping {
    let value = parent.entry(name.into()).or_insert(Value::Null);
    if !value.is_mapping() {
        *value = Mapping::new().into();
    }
    value.as_mapping_mut().expect("it has just been made one")
}

fn set_mapping(
    mappings: &mut Mapping,
    project: &ProjectName,
    field: Option<Field>,
    value: &str,
) -> Result<(), ClientConfigError> {
    let host = format!("{project}{SUFFIX}");
    let key = [host.as_str(), project.as_str()].into_iter().find(|key| mappings.contains_key(*key));
    let Some(field) = field else {
        mappings.insert(key.unwrap_or(&host).into(), value.into());
        return Ok(());
    };
    let current = key.and_then(|key| mappings.get_mut(key)).ok_or(ClientConfigError::NotMapped(host.clone()))?;
    if let Some(server) = current.as_str().and_then(|text| text.parse::<Server>().ok()) {
        let mut entry = Mapping::new();
        entry.insert("host".into(), server.host.into());
        if server.port != DEFAULT_PORT {
            entry.insert("port".into(), server.port.into());
        }
        *current = entry.into();
    }
    let Some(entry) = current.as_mapping_mut() else { return Err(ClientConfigError::NotMapped(host)) };
    match field {
        Field::Host => drop(entry.insert("host".into(), value.into())),
        // What is no number is refused with the rest.
        Field::Port => {
            drop(entry.insert("port".into(), value.parse::<u64>().map_or_else(|_| value.into(), Value::from)));
        }
        Field::Mode => drop(entry.insert("mode".into(), value.into())),
    }
    Ok(())
}

fn mapped(raw: RawMapping) -> Result<Mapped, WrongValue> {
    let RawMapping { host, port, mode } = raw;
    let host = host.ok_or_else(|| WrongValue::rule("it has no host"))?;
    let mut server: Server = host.parse()?;
    if let Some(port) = port {
        let bare = !host.contains(':') || host.parse::<std::net::IpAddr>().is_ok();
        if !bare || port == 0 {
            return Err(WrongValue::rule(if bare { "the port is 0" } else { "there are two ports" }));
        }
        server.port = port;
    }
    Ok(Mapped { server, mode })
}

fn localhost() -> Server {
    Server { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::chain;

    fn config(yaml: &str) -> Result<ClientConfig, String> {
        let syntax = |error: serde_yaml::Error| explain(&error.to_string(), yaml);
        let document = serde_yaml::from_str(yaml).map_err(syntax)?;
        ClientConfig::of("config.yaml".into(), document, yaml).map_err(chain)
    }

    fn leads_to(config: &ClientConfig, name: &str) -> String {
        match config.destination(name) {
            Ok(Destination { server, project }) => {
                format!("{server} {}", project.map_or("-".to_owned(), String::from))
            }
            Err(error) => chain(error),
        }
    }

    #[test]
    fn hosts_lead_to_their_mapping_or_the_default() {
        let yaml =
            "servers:\n  default: main\n  mappings:\n    api.pod: 10.0.0.1:22\n    db: {host: '::1', port: 2200}\n";
        let some = config(yaml).unwrap();
        for (name, expected) in [
            ("web.pod", "main:2222 web"),
            ("WEB.pod", "main:2222 web"),
            ("api.pod", "10.0.0.1:22 api"),
            ("db.pod", "[::1]:2200 db"),
            ("a.b.pod", "main:2222 a.b"),
            ("localhost.pod", "127.0.0.1:2222 -"),
            ("web", "\"web\" is not the host of a project: it must be a project's name and .pod"),
        ] {
            assert_eq!(leads_to(&some, name), expected);
        }
        assert!(leads_to(&some, "../x.pod").contains("must match"));
        let none = config("").unwrap();
        assert_eq!(
            leads_to(&none, "web.pod"),
            "no server is configured for web.pod: podspawn setup --server HOST[:PORT]"
        );
        assert_eq!(leads_to(&none, "localhost.pod"), "127.0.0.1:2222 -");
        let mapped = config("servers: {mappings: {localhost.pod: vm:22}}").unwrap();
        assert_eq!(leads_to(&mapped, "localhost.pod"), "vm:22 -");
    }

    #[test]
    fn mistakes_are_named() {
        for (yaml, expected) in [
            ("server: {}", "unknown field `server` at line 1 column 1; did you mean `servers`?"),
            ("servers: {defualt: x}", "did you mean `default`?"),
            ("servers: {default: 'a b'}", "servers.default is not valid: \"a b\" is not a server"),
            ("servers: {mappings: {A.pod: x}}", "servers.mappings.A.pod is not valid: project name \"A\""),
            ("servers: {mappings: {a.pod: {}}}", "servers.mappings.a.pod is not valid: it has no host"),
            ("servers: {mappings: {a.pod: {host: x, prot: 2}}}", "did you mean `port`?"),
            ("servers: {mappings: {a.pod: {host: 'x:1', port: 2}}}", "there are two ports"),
            ("servers: {mappings: {a.pod: {host: x, port: 0}}}", "the port is 0"),
            ("servers: {mappings: {a.pod: {host: x, mode: fast}}}", "unknown variant `fast`"),
            ("servers: {mappings: {a.pod: 5}}", "it must be HOST[:PORT]"),
            ("servers: {mappings: {a.pod: x, a: y}}", "with and without the ending"),
            ("servers: {mappings: {a.pod: x, a.pod: y}}", "duplicate"),
            ("local: {image: x}", "local is not supported by this version"),
        ] {
            let error = config(yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }

    #[test]
    fn settings_are_changed_one_at_a_time() {
        let mut current = config("").unwrap();
        for (key, value, host, expected) in [
            ("servers.default", "main:22", "web.pod", "main:22 web"),
            ("servers.mappings.api.pod", "other:2200", "api.pod", "other:2200 api"),
            ("servers.mappings.api.pod.mode", "persistent", "api.pod", "other:2200 api"),
            ("servers.mappings.api.host", "third", "api.pod", "third:2200 api"),
            ("servers.mappings.api.pod.port", "22", "api.pod", "third:22 api"),
            ("servers.mappings.a.b.pod", "x", "a.b.pod", "x:2222 a.b"),
            ("servers.mappings.api", "fourth", "api.pod", "fourth:2222 api"),
        ] {
            current = current.with(key, value).unwrap().0;
            assert_eq!(leads_to(&current, host), expected, "{key}");
        }
        for (key, value, expected) in [
            ("server.default", "x", "server.default is no setting; did you mean servers.default?"),
            ("servers.maping.x.pod", "x", "did you mean servers.mappings.HOST.pod?"),
            ("servers.mappings.api.pod.mod", "x", "did you mean servers.mappings.api.pod.mode?"),
            ("servers.mappings.new.hots", "x", "did you mean servers.mappings.new.host?"),
            ("servers.mappings.new.pod.port", "22", "new.pod has no mapping yet: set servers.mappings.new.pod first"),
            ("servers.mappings.N.pod", "x", "\"N.pod\" is not the host of a project"),
            ("servers.default", "x:y", "servers.default is not valid"),
            ("servers.mappings.api.pod.port", "x", "servers.mappings.api.pod is not valid"),
            ("servers.mappings.api.pod.mode", "x", "unknown variant `x`"),
        ] {
            let error = chain(current.with(key, value).unwrap_err());
            assert!(error.contains(expected), "{key}: {error}");
        }
    }
}
