//! An image with the same files and another configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::fcntl::FlockArg;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Image, ImageRecord, RefRecord, Store, files::read_json};
use crate::image::{Digest, ImageError, Reference};

/// What is to be different in the `config` of an image (OCI image spec, config.md). What is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ConfigChanges {
    pub user: Option<String>,
    /// `80/tcp`
    pub exposed_ports: Option<Names>,
    /// `NAME=value`, in the place of the value that the name has.
    #[serde(default)]
    pub env: Vec<String>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub volumes: Option<Names>,
    pub working_dir: Option<String>,
    /// Besides those that there are.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub stop_signal: Option<String>,
}

/// A set of names, which is written as a map there: `{"80/tcp": {}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Names(BTreeSet<String>);

impl TryFrom<Map<String, Value>> for Names {
    type Error = String;

    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        match map.iter().find(|(_, value)| **value != json!({})) {
            Some((name, _)) => Err(format!("the value of {name:?} is not {{}}")),
            None => Ok(Self(map.into_iter().map(|(name, _)| name).collect())),
        }
    }
}

impl Names {
    fn json(&self) -> Value {
        self.0.iter().map(|name| (name.clone(), json!({}))).collect()
    }
}

/// What would make a configuration that nobody can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("Env: {0:?} is not NAME=value")]
    Variable(String),
    #[error("ExposedPorts: {0:?} is not a port, such as 80/tcp")]
    Port(String),
    #[error("{field}: {path:?} is not an absolute path")]
    Path { field: &'static str, path: String },
    #[error("StopSignal: {0:?} is not a signal, such as SIGTERM or 15")]
    Signal(String),
}

/// Whether each is `NAME=value`.
pub fn check_env(env: &[String]) -> Result<(), ConfigError> {
    match env.iter().find(|entry| entry.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        Some(bad) => Err(ConfigError::Variable(bad.clone())),
        None => Ok(()),
    }
}

impl ConfigChanges {
    /// Checks each value on its own.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_env(&self.env)?;
        let is_port = |text: &&String| {
            let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            matches!(protocol, "tcp" | "udp") && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if let Some(bad) = self.exposed_ports.iter().flat_map(|ports| &ports.0).find(|text| !is_port(text)) {
            return Err(ConfigError::Port(bad.clone()));
        }
        let volumes = self.volumes.iter().flat_map(|volumes| &volumes.0).map(|path| ("Volumes", path));
        let paths = volumes.chain(self.working_dir.iter().map(|path| ("WorkingDir", path)));
        for (field, path) in paths {
            if !path.starts_with('/') {
                return Err(ConfigError::Path { field, path: path.clone() });
            }
        }
        let is_signal = |text: &str| match text.parse::<u8>() {
            Ok(number) => (1..=64).contains(&number),
            Err(_) => {
                let name = text.strip_prefix("SIG").unwrap_or(text);
                name.starts_with(|c: char| c.is_ascii_uppercase())
                    && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"+-".contains(&b))
            }
        };
        match self.stop_signal.as_ref().filter(|signal| !is_signal(signal)) {
            Some(bad) => Err(ConfigError::Signal(bad.clone())),
            None => Ok(()),
        }
    }

    /// Puts them into the `config` of a configuration.
    fn apply(&self, config: &mut Map<String, Value>) {
        let mut set = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                config.insert(field.to_owned(), value);
            }
        };
        set("User", self.user.as_ref().map(|value| json!(value)));
        set("ExposedPorts", self.exposed_ports.as_ref().map(Names::json));
        set("Entrypoint", self.entrypoint.as_ref().map(|value| json!(value)));
        set("Cmd", self.cmd.as_ref().map(|value| json!(value)));
        set("Volumes", self.volumes.as_ref().map(Names::json));
        set("WorkingDir", self.working_dir.as_ref().map(|value| json!(value)));
        set("StopSignal", self.stop_signal.as_ref().map(|value| json!(value)));
        let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let mut env: Vec<String> = config
            .get("Env")
            .and_then(Value::as_array)
            .map(|env| env.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        for entry in &self.env {
            match env.iter_mut().find(|known| name_of(known) == name_of(entry)) {
                Some(known) => known.clone_from(entry),
                None => env.push(entry.clone()),
            }
        }
        if !self.env.is_empty() {
            config.insert("Env".to_owned(), json!(env));
        }
        if !self.labels.is_empty() {
            let labels = config.entry("Labels").or_insert_with(|| json!({}));
            // One that was null, or is nonsense, has nothing in it.
            if !labels.is_object() {
                *labels = json!({});
            }
            for (name, value) in &self.labels {
                labels[name] = json!(value);
            }
        }
    }
}

impl Store {
    /// Makes an image that is called `reference`, with the files of `image` and a configuration that is different in
    /// `changes`, which have been checked.
    pub fn configure(
        &self,
        image: &Image,
        changes: &ConfigChanges,
        reference: &Reference,
    ) -> Result<Image, ImageError> {
        let invalid = |what: &'static str, why: String| {
            let image = image.reference.clone();
            ImageError::Invalid { image, what, why }
        };
        let path = self.image_path(&image.id);
        let _leases = self.lease_all(&image.layers)?;
        let below: ImageRecord =
            read_json(&path)?.ok_or_else(|| ImageError::NotFound(format!("image {}", image.reference)))?;
        let (manifest, config) = self.documents(image)?;
        let parse = |what: &'static str, bytes: &[u8]| {
            let parsed = serde_json::from_slice::<Map<String, Value>>(bytes);
            parsed.map_err(|error| invalid(what, error.to_string()))
        };
        let (mut manifest, mut config) = (parse("the manifest", &manifest)?, parse("the configuration", &config)?);
        let inner = config.entry("config").or_insert_with(|| json!({}));
        if inner.is_null() {
            *inner = json!({});
        }
        let inner = inner.as_object_mut().ok_or_else(|| invalid("the configuration", "it is no map".to_owned()))?;
        changes.apply(inner);
        if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
            history.push(json!({"created_by": "podspawn image config", "empty_layer": true}));
        }
        let config = Value::Object(config).to_string().into_bytes();
        let config_digest = Digest::of(&config);
        manifest["config"]["digest"] = json!(config_digest);
        manifest["config"]["size"] = json!(config.len());
        let manifest = Value::Object(manifest).to_string().into_bytes();
        let record = ImageRecord { manifest: Digest::of(&manifest), config: config_digest, ..below };
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let named = RefRecord {
            reference: reference.to_string(),
            image: record.manifest.clone(),
            pulled_at,
            refetchable: false,
        };
        let _lock = self.lock(FlockArg::LockExclusive)?;
        self.write_blob(&record.manifest, &manifest)?;
        self.write_blob(&record.config, &config)?;
        self.write_record(&self.image_path(&record.manifest), &record)?;
        self.write_record(&self.ref_path(reference), &named)?;
        self.load(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<ConfigChanges, String> {
        let changes: ConfigChanges = serde_json::from_str(json).map_err(|error| error.to_string())?;
        changes.check().map_err(|error| error.to_string()).map(|()| changes)
    }

    #[test]
    fn what_is_not_said_stays() {
        let before = json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["x"], "Labels": {"a": "1"}, "Strange": true});
        let Value::Object(mut config) = before.clone() else { panic!() };
        parsed("{}").unwrap().apply(&mut config);
        assert_eq!(Value::Object(config.clone()), before);
        let changes = r#"{"Env": ["A=2=3", "B="], "Entrypoint": ["/e"], "Labels": {"b": "2"}, "Cmd": [],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "StopSignal": "SIGRTMIN+3", "WorkingDir": "/", "User": "1:2"}"#;
        parsed(changes).unwrap().apply(&mut config);
        let after = json!({"Env": ["PATH=/bin", "A=2=3", "B="], "Cmd": [], "Labels": {"a": "1", "b": "2"},
            "Strange": true, "Entrypoint": ["/e"], "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "StopSignal": "SIGRTMIN+3", "WorkingDir": "/", "User": "1:2"});
        assert_eq!(Value::Object(config), after);
    }

    #[test]
    fn what_nobody_can_use_is_refused() {
        let table = [
            (r#"{"Entrypiont": []}"#, "unknown field `Entrypiont`"),
            (r#"{"Cmd": "sh"}"#, "invalid type"),
            (r#"{"Env": ["A"]}"#, "\"A\" is not NAME=value"),
            (r#"{"Env": ["=A"]}"#, "\"=A\" is not NAME=value"),
            (r#"{"ExposedPorts": {"http": {}}}"#, "\"http\" is not a port"),
            (r#"{"ExposedPorts": {"0/tcp": {}}}"#, "\"0/tcp\" is not a port"),
            (r#"{"ExposedPorts": {"80": {"x": 1}}}"#, "the value of \"80\" is not {}"),
            (r#"{"Volumes": {"data": {}}}"#, "Volumes: \"data\" is not an absolute path"),
            (r#"{"WorkingDir": ""}"#, "WorkingDir: \"\" is not an absolute path"),
            (r#"{"StopSignal": "sigterm"}"#, "\"sigterm\" is not a signal"),
            (r#"{"StopSignal": "99"}"#, "\"99\" is not a signal"),
        ];
        for (json, expected) in table {
            let error = parsed(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
        for signal in ["9", "SIGKILL", "INT", "SIGRTMAX-1"] {
            parsed(&format!(r#"{{"StopSignal": "{signal}"}}"#)).unwrap();
        }
    }
}
