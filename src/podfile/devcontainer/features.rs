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
            match version(&item, report) {
                Version::Any => add(package, &item.place, podfile, report),
                Version::Exactly(version) => add(&format!("{package}@{version}"), &item.place, podfile, report),
                // Then the feature is there for its other options.
                Version::None => {}
            }
        } else if let (true, Some((_, packages))) = (official, PLAIN.iter().find(|(known, _)| *known == name)) {
            for package in *packages {
                add(package, &item.place, podfile, report);
            }
            if name == "common-utils" {
                zsh(&item, podfile, report);
            } else if let Version::Exactly(version) = version(&item, report) {
                let why = "the version is the one that the image's distribution has";
                report.warning(&item.place, format_args!("{} is not used: {why}", quoted(&version)));
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

/// What `version` of a feature asks for.
enum Version {
    Any,
    Exactly(String),
    None,
}

/// The version that is wanted; other options are reported.
fn version(item: &Item<'_>, report: &mut Report) -> Version {
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
    match version {
        // What the distribution has is as good as any.
        None | Some("latest" | "lts" | "os-provided" | "system" | "") => Version::Any,
        Some("none") => Version::None,
        Some(version) => Version::Exactly(version.to_owned()),
    }
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
