//! Features, as far as a package does the same.

use super::super::{
    fields::MAX_ENTRIES,
    package::Package,
    problem::{At, Place, Report, quoted},
    raw,
    read::Item,
    value,
};

/// Features of `ghcr.io/devcontainers/features` that install one thing in a version, and the package for it.
const VERSIONED: [(&str, &str); 4] = [("node", "nodejs"), ("python", "python"), ("go", "go"), ("rust", "rust")];

/// Features that are packages, whatever the version.
const PLAIN: [(&str, &[&str]); 4] = [
    ("git", &["git"]),
    ("git-lfs", &["git-lfs"]),
    ("github-cli", &["gh"]),
    ("common-utils", &["ca-certificates", "curl", "git", "jq", "less", "procps", "sudo", "unzip", "wget", "zip"]),
];

pub(super) fn convert(item: &Item<'_>, podfile: &mut raw::Podfile, report: &mut Report) {
    for (id, item) in item.entries(report, MAX_ENTRIES) {
        // `ghcr.io/devcontainers/features/go:1`; `./local`; in old files just `go`.
        let (source, last) = id.rsplit_once('/').unwrap_or(("", id));
        let name = last.split([':', '@']).next().unwrap_or(last);
        let official = ["", "ghcr.io/devcontainers/features", "devcontainers/features"].contains(&source);
        if name.starts_with("docker-") && official {
            let instead = "write a podfile.yaml with services for what would run in it";
            report.error(&item.place, format_args!("there is no Docker inside a session; {instead}"));
        } else if name == "sshd" && official {
            // A session is reached over SSH.
        } else if let (true, Some((_, package))) = (official, VERSIONED.iter().find(|(known, _)| *known == name)) {
            let version = version(&item, report);
            let text = version.map_or_else(|| (*package).to_owned(), |version| format!("{package}@{version}"));
            add(&text, &item.place, podfile, report);
        } else if let (true, Some((_, packages))) = (official, PLAIN.iter().find(|(known, _)| *known == name)) {
            for package in *packages {
                add(package, &item.place, podfile, report);
            }
            if name == "common-utils" {
                zsh(&item, podfile, report);
            } else {
                version(&item, report);
            }
        } else {
            report.warning(&item.place, format_args!("the feature {} is not supported", quoted(id)));
        }
    }
}

fn add(text: &str, place: &Place, podfile: &mut raw::Podfile, report: &mut Report) {
    match Package::parse(text) {
        Ok(package) => podfile.packages.add(package, place.clone()),
        Err(error) => report.warning(place, format_args!("is left out: {error}")),
    }
}

/// The version that is wanted, if it is a certain one; other options are reported.
fn version(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let version = if item.is_map() {
        let mut version = None;
        for (name, option) in item.entries(report, MAX_ENTRIES) {
            if name == "version" {
                version = option.text(report);
            } else {
                report.warning(&option.place, "the option is not supported");
            }
        }
        version
    } else {
        // `"go": "1.24"`, and `"go": true` for any.
        item.text(report).filter(|text| *text != "true")
    };
    // What the distribution has is as good as any.
    let any = ["latest", "lts", "os-provided", "system", "none", ""];
    version.filter(|version| !any.contains(version)).map(str::to_owned)
}

/// The options of common-utils that concern the shell.
fn zsh(item: &Item<'_>, podfile: &mut raw::Podfile, report: &mut Report) {
    if !item.is_map() {
        return;
    }
    for (name, option) in item.entries(report, MAX_ENTRIES) {
        let chosen = option.text(report) == Some("true");
        match name {
            "installZsh" if chosen => add("zsh", &option.place, podfile, report),
            "configureZshAsDefaultShell" if chosen => {
                add("zsh", &option.place, podfile, report);
                podfile.shell = value::shell("/bin/zsh").ok().map(|value| At { value, place: option.place.clone() });
            }
            "installZsh" | "configureZshAsDefaultShell" => {}
            _ => report.warning(&option.place, "the option is not supported"),
        }
    }
}
