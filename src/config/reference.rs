//! docs/configuration.md is made from the types of the file and from the defaults.

use serde_json::Value;

use super::{Config, Options, raw, settings::settings};
use crate::generated::{cell, page_is};

const HEAD: &str = "\
# config.yaml

`/etc/podspawn/config.yaml`; every field is optional, and unknown ones are errors. `podspawn config check` says what is wrong, or
what is in force and where each value comes from. Changes count from the next connection on, those of `listen` and
`metrics` from the next start of the server.

Times are written as `90s`, `15m`, `8h`, `7d`; sizes as numbers of bytes, or with `k`, `m`, `g`, `t`, powers of 1024. What users,
projects and Podfiles may say instead is in [podfile.md](podfile.md#what-wins).

This page is made from the program; `cargo test` compares them.
";

/// A type of the file, for people.
fn kind(written: &str) -> &'static str {
    match written.replace(' ', "").as_str() {
        "String" => "text",
        "Vec<String>" => "list of texts",
        "BTreeMap<String,String>" => "map of texts",
        "BTreeMap<String,Vec<String>>" => "map of lists",
        "u32" | "u64" | "f64" => "number",
        "bool" => "`true`, `false`",
        "Size" => "size",
        "Listen" | "super::egress::Written" => "text or list",
        "Limit" => "number or text",
        other => panic!("no word for the type {other}"),
    }
}

/// `auth.per_source_penalties` is one value of the settings, and a section of the file.
fn default_of(defaults: &[(String, Value)], field: &str) -> Option<Value> {
    let find = |name: &str| defaults.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    match field.strip_prefix("auth.per_source_penalties.") {
        Some("enabled") => Some(Value::Bool(true)),
        Some(inner) => find("auth.per_source_penalties").map(|section| section[inner].clone()),
        // The set that they make is what is shown.
        None if field == "security.cap_drop" || field == "security.cap_add" => Some(Value::Null),
        None => find(field),
    }
}

fn shown(written: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(list) if list.is_empty() => String::new(),
        Value::Object(map) if map.is_empty() => String::new(),
        Value::Number(bytes) if written == "Size" => bytes.as_u64().map_or_else(String::new, size),
        Value::Array(list) => list.iter().map(|value| shown(written, value)).collect::<Vec<_>>().join(", "),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "`0`".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("`{}g`", bytes >> 30),
        _ => format!("`{bytes}`"),
    }
}

fn page() -> String {
    let root = tempfile::tempdir().unwrap();
    let config = Config::load(&Options { root: Some(root.path().to_owned()), config: None }).unwrap();
    let prefix = config.paths.root.display().to_string();
    let without_root = |value: Value| match value {
        Value::String(text) => Value::String(text.strip_prefix(&prefix).unwrap_or(&text).to_owned()),
        other => other,
    };
    let defaults: Vec<(String, Value)> =
        settings(&config).into_iter().map(|setting| (setting.field, without_root(setting.value))).collect();
    let sections = [
        ("", raw::File::described()),
        ("auth", raw::Auth::described()),
        ("auth.per_source_penalties", raw::Penalties::described()),
        ("defaults", raw::Defaults::described()),
        ("session", raw::Session::described()),
        ("state", raw::State::described()),
        ("log", raw::Log::described()),
        ("metrics", raw::Metrics::described()),
        ("security", raw::Security::described()),
        ("security.userns", raw::Userns::described()),
        ("resources", raw::Resources::described()),
        ("network", raw::Network::described()),
        ("volumes", raw::Volumes::described()),
        ("images", raw::Images::described()),
        ("builds", raw::Builds::described()),
        ("mirrors", raw::Mirrors::described()),
        ("podfile", raw::Podfile::described()),
    ];
    let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    let mut page = HEAD.to_owned();
    for (section, fields) in &sections {
        page += &if section.is_empty() { "\n## The file\n\n".to_owned() } else { format!("\n## {section}\n\n") };
        page += "| field | value | default | meaning |\n|---|---|---|---|\n";
        for (name, written, meaning) in fields {
            let field = if section.is_empty() { (*name).to_owned() } else { format!("{section}.{name}") };
            if names.contains(&field.as_str()) {
                let anchor = field.replace('.', "");
                page += &format!("| `{name}` | section | | [below](#{anchor}) |\n");
                continue;
            }
            assert!(!meaning.is_empty(), "{field} has no meaning in src/config/raw.rs");
            let value = default_of(&defaults, &field).unwrap_or_else(|| panic!("{field} has no default"));
            let default = shown(written, &value);
            page += &format!("| `{name}` | {} | {} | {} |\n", kind(written), cell(&default), cell(meaning));
        }
    }
    page
}

#[test]
fn the_page_on_the_configuration_is_current() {
    page_is("configuration.md", &page());
}
