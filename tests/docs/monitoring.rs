//! What is said of metrics and messages elsewhere is what the program has.

use std::{collections::BTreeSet, fs, path::Path};

use crate::pages::{read, root};

/// The names of metrics in a text, without what Prometheus adds to those of histograms.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("podspawn_") || word.starts_with("process_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

#[test]
fn dashboard_and_alerts_know_only_metrics_that_there_are() {
    let known = metrics(&read("docs/metrics.md"));
    let alerts = read("packaging/monitoring/alerts.yml");
    let dashboard = read("packaging/monitoring/grafana.json");
    for text in [&alerts, &dashboard] {
        let used = metrics(text);
        assert!(used.len() > 3 && used.is_subset(&known), "{:?}", used.difference(&known));
    }
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let rules: serde_json::Value = serde_yaml::from_str(&alerts).unwrap();
    let operations = read("docs/operations.md");
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(operations.contains(&format!("| {name} |")), "docs/operations.md does not say what to do about {name}");
    }
}

/// All of src/, with texts that go over several lines in one.
fn source(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut parts = text.split("\\\n");
            *into += parts.next().unwrap();
            parts.for_each(|part| *into += part.trim_start());
        }
    }
}

#[test]
fn messages_that_clients_are_told_are_in_the_program() {
    let mut program = String::new();
    source(&root().join("src"), &mut program);
    let page = read("docs/troubleshooting.md");
    let table = page.split("## What clients are told").nth(1).unwrap().split("## ").next().unwrap();
    let messages = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut seen = 0;
    for message in messages {
        seen += 1;
        for part in message.split("...").map(str::trim).filter(|part| part.len() > 3) {
            assert!(program.contains(part), "no message has {part:?}");
        }
    }
    assert!(seen > 8, "{seen} messages are few");
}
