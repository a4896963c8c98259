//! `devcontainer.json` (containers.dev, "Dev Container metadata reference") as a Podfile.
//!
//! What has a counterpart is converted; what an environment could not do without is an error, and everything else is named
//! in a warning.

mod commands;
mod features;
mod variables;

use std::sync::Arc;

use self::variables::{Expanded, Variables};
use super::{
    Document,
    choice::User,
    edits::Change,
    extends::Chain,
    fields::MAX_ENTRIES,
    json,
    problem::{At, Place, Report},
    raw::{self, Port, Variable},
    read::Item,
    value,
};

/// What an environment has if the file names no image, as with the original.
const DEFAULT_IMAGE: &str = "ubuntu:24.04";

/// Fields that describe an image which only Docker can make.
const BUILDS: [&str; 3] = ["build", "dockerFile", "dockerComposeFile"];

/// Fields without a counterpart, and why that is so.
const UNUSED: [(&str, &str); 26] = [
    ("capAdd", "what a session may do is the server's decision"),
    ("context", "it belongs to a build"),
    ("customizations", "it is for editors"),
    ("extensions", "it is for editors"),
    ("gpu", "there are none in a session"),
    ("hostRequirements", "a podfile.yaml has resources"),
    ("init", "a session has an init always"),
    ("initializeCommand", "it would run on the client"),
    ("mounts", "nothing of the host is mounted"),
    ("otherPortsAttributes", "it is for editors"),
    ("overrideCommand", "a session does not run the image's command"),
    ("overrideFeatureInstallOrder", "packages have no order"),
    ("portsAttributes", "it is for editors"),
    ("postAttachCommand", "postStartCommand runs for each connection"),
    ("privileged", "what a session may do is the server's decision"),
    ("runArgs", "they are options of Docker"),
    ("runServices", "it belongs to Docker Compose"),
    ("secrets", "they come with the connection"),
    ("securityOpt", "what a session may do is the server's decision"),
    ("service", "it belongs to Docker Compose"),
    ("settings", "it is for editors"),
    ("shutdownAction", "a session has a mode"),
    ("updateRemoteUserUID", "nothing of the host is mounted"),
    ("userEnvProbe", "it is for editors"),
    ("waitFor", "a session is there when its commands are done"),
    ("workspaceMount", "nothing of the host is mounted"),
];

/// Converts the document; the result extends nothing.
pub(super) fn convert(document: &Document, report: &mut Report) -> Chain {
    let name: Arc<str> = document.name.as_str().into();
    let documents = vec![document.name.clone()];
    match json::parse(&document.text) {
        Ok(root) => Chain { podfile: podfile(&Item::root(&root, &name), report), documents, complete: true },
        Err(error) => {
            report.error(&Place { document: name, mark: error.mark, field: String::new() }, error.message);
            Chain { podfile: raw::Podfile::default(), documents, complete: false }
        }
    }
}

fn podfile(root: &Item<'_>, report: &mut Report) -> raw::Podfile {
    let mut podfile = raw::Podfile::default();
    let entries = root.entries(report, MAX_ENTRIES);
    let field = |name: &str| entries.iter().find(|(known, _)| *known == name).map(|(_, item)| item);
    for (name, item) in &entries {
        unused(name, item, report);
    }
    podfile.base = match field("image") {
        Some(image) => image.parse(report, value::image),
        None if BUILDS.iter().any(|name| field(name).is_some()) => None,
        None => {
            report.warning(&root.place, format_args!("names no image, so {DEFAULT_IMAGE} is used"));
            value::image(DEFAULT_IMAGE).ok().map(|value| At { value, place: root.place.clone() })
        }
    };
    let workspace = field("workspaceFolder").and_then(|item| workspace(item, report));
    let variables = Variables { workspace: workspace.as_ref().map(|at| at.value.as_str()) };
    // What remoteEnv says goes before what containerEnv says.
    for name in ["containerEnv", "remoteEnv"] {
        if let Some(item) = field(name) {
            environment(item, &variables, &mut podfile, report);
        }
    }
    for item in ["forwardPorts", "appPort"].into_iter().filter_map(field) {
        let ports = if item.is_list() { item.list(report, MAX_ENTRIES) } else { vec![item.clone()] };
        for port in ports {
            forward(&port, &mut podfile, report);
        }
    }
    if let Some(item) = field("features") {
        features::convert(item, &mut podfile, report);
    }
    for name in ["remoteUser", "containerUser"] {
        if let Some(item) = field(name) {
            user(item, &mut podfile, report);
        }
    }
    let on_create: Vec<&Item<'_>> =
        ["onCreateCommand", "updateContentCommand", "postCreateCommand"].into_iter().filter_map(field).collect();
    podfile.on_create = commands::script(&on_create, &variables, report);
    let on_start: Vec<&Item<'_>> = field("postStartCommand").into_iter().collect();
    podfile.on_start = commands::script(&on_start, &variables, report);
    podfile.workspace = workspace;
    podfile
}

fn unused(name: &str, item: &Item<'_>, report: &mut Report) {
    const USED: [&str; 15] = [
        "$schema",
        "name",
        "image",
        "workspaceFolder",
        "containerEnv",
        "remoteEnv",
        "forwardPorts",
        "appPort",
        "features",
        "remoteUser",
        "containerUser",
        "onCreateCommand",
        "updateContentCommand",
        "postCreateCommand",
        "postStartCommand",
    ];
    if BUILDS.contains(&name) {
        report.error(
            &item.place,
            "is not supported: podspawn runs no Dockerfile and no Compose file; write a podfile.yaml",
        );
    } else if let Some((_, why)) = UNUSED.iter().find(|(unused, _)| *unused == name) {
        report.warning(&item.place, format_args!("is not supported: {why}"));
    } else if !USED.contains(&name) {
        report.warning(&item.place, "is not known");
    }
}

fn workspace(item: &Item<'_>, report: &mut Report) -> Option<At<String>> {
    let text = item.text(report)?;
    match (Variables { workspace: None }).in_value(text) {
        Expanded::Text(_) => item.parse(report, value::absolute_path),
        Expanded::Unknown(variable) => {
            report.warning(&item.place, format_args!("is left out, as {variable} is not known on the server"));
            None
        }
    }
}

fn environment(item: &Item<'_>, variables: &Variables<'_>, podfile: &mut raw::Podfile, report: &mut Report) {
    for (name, item) in item.entries(report, MAX_ENTRIES) {
        if let Err(error) = value::variable(name) {
            report.error(&item.place, error);
        } else if item.is_null() {
            // "Not set", in remoteEnv: what containerEnv says about it does not count.
            podfile.env.changes.retain(|change| !matches!(change, Change::Add(set) if set.value.name == name));
        } else if let Some(text) = item.text(report) {
            match variables.in_value(text) {
                Expanded::Text(value) => podfile.env.add(Variable { name: name.to_owned(), value }, item.place),
                Expanded::Unknown(variable) => {
                    report.warning(&item.place, format_args!("is left out, as {variable} is not known on the server"));
                }
            }
        }
    }
}

fn forward(item: &Item<'_>, podfile: &mut raw::Podfile, report: &mut Report) {
    // `db:5432` is a port of another container.
    if let Some(text) = item.text(report)
        && text.contains(':')
    {
        report.warning(&item.place, "is not supported: only ports of the session itself are forwarded");
    } else if let Some(At { value, place }) = item.parse(report, value::port) {
        podfile.expose.add(Port(value), place);
    }
}

fn user(item: &Item<'_>, podfile: &mut raw::Podfile, report: &mut Report) {
    match item.text(report) {
        Some("root") => podfile.user = Some(At { value: User::Root, place: item.place.clone() }),
        Some(_) => report.warning(&item.place, "is not used: sessions run as their own user, or as root"),
        None => {}
    }
}
