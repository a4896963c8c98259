//! A companion service as it is written.

use std::fmt::Display;

use super::{
    choice::Restart,
    fields::{self, MAX_ENTRIES, MAX_SERVICES, required, variables_of},
    problem::{At, Report},
    read::{Fields, Item},
    resolved::{Ready, Resources, Service, Volume, VolumeSource},
    value::{self, ValueError},
};

pub(super) const FIELDS: &[&str] = &[
    "name",
    "image",
    "ports",
    "env",
    "volumes",
    "command",
    "entrypoint",
    "user",
    "resources",
    "ready",
    "needs",
    "restart",
];

/// Reads all of it, so that all that is wrong is reported; `None` if name or image are not valid.
pub(super) fn read(item: &Item<'_>, fields: &Fields<'_>, report: &mut Report) -> Option<Service> {
    let name = fields.get("name").and_then(|item| item.parse(report, value::label));
    let image = required(fields, "image", item, report).and_then(|item| item.parse(report, value::image));
    let mut ports = values(fields, "ports", report, value::port);
    let mut seen = std::collections::HashSet::new();
    ports.retain(|port| seen.insert(*port));
    let env = fields.get("env").map(|item| variables_of(item, report)).unwrap_or_default();
    let volumes = fields.get("volumes").map(|item| volumes(item, report)).unwrap_or_default();
    let command = fields.get("command").and_then(|item| arguments(item, report, value::command_words));
    let entrypoint = fields.get("entrypoint").and_then(|item| arguments(item, report, value::command_words));
    let user = fields.get("user").and_then(|item| item.parse(report, value::image_user));
    let resources = fields.get("resources").map(|item| fields::resources(item, report)).unwrap_or_default();
    let ready = fields.get("ready").map(|item| ready(item, report)).unwrap_or_default();
    let restart = fields.get("restart").and_then(|item| item.parse(report, Restart::parse));
    let needs = values(fields, "needs", report, value::label);
    Some(Service {
        name: name?.value,
        image: image?.value,
        ports,
        env,
        volumes,
        entrypoint,
        command,
        user: user.map(|at| at.value),
        resources: Resources {
            cpus: resources.cpus.map(|at| at.value),
            memory: resources.memory.map(|at| at.value),
            pids: resources.pids.map(|at| at.value),
            disk: resources.disk.map(|at| at.value),
        },
        ready,
        needs,
        restart: restart.map(|at| at.value).unwrap_or_default(),
    })
}

/// The values of a list, if the field is there.
fn values<T, E: Display>(
    fields: &Fields<'_>,
    name: &str,
    report: &mut Report,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Vec<T> {
    let items = fields.get(name).map(|item| item.list(report, MAX_ENTRIES)).unwrap_or_default();
    items.iter().filter_map(|item| item.parse(report, &parse)).map(|at| at.value).collect()
}

/// A command: a list of arguments, or a text that `split` makes one of.
fn arguments(
    item: &Item<'_>,
    report: &mut Report,
    split: impl FnOnce(&str) -> Result<Vec<String>, ValueError>,
) -> Option<Vec<String>> {
    if !item.is_list() {
        return item.parse(report, split).map(|at| at.value);
    }
    let arguments: Vec<String> =
        item.list(report, MAX_ENTRIES).iter().filter_map(|item| item.text(report)).map(str::to_owned).collect();
    if arguments.is_empty() {
        report.error(&item.place, "is an empty command");
        return None;
    }
    Some(arguments)
}

fn ready(item: &Item<'_>, report: &mut Report) -> Ready {
    let fields = item.fields(report, &["exec", "timeout"]);
    let in_shell = |text: &str| match text.trim() {
        "" => Err(ValueError::Other("is an empty command".to_owned())),
        _ => Ok(["sh", "-c", text].map(str::to_owned).to_vec()),
    };
    let exec = fields.get("exec").and_then(|item| arguments(item, report, in_shell));
    let timeout = fields.get("timeout").and_then(|item| item.parse(report, value::timeout));
    Ready { exec, timeout: timeout.map_or(Ready::default().timeout, |at| at.value) }
}

fn volumes(item: &Item<'_>, report: &mut Report) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    for item in item.list(report, MAX_SERVICES) {
        let volume = if item.is_map() { volume_map(&item, report) } else { item.parse(report, volume_text) };
        let Some(At { value, place }) = volume else { continue };
        if volumes.iter().any(|known| known.path == value.path) {
            report.error(&place, format_args!("another volume is at {:?} already", value.path));
        } else {
            volumes.push(value);
        }
    }
    volumes
}

/// `name:/path`, `/host/path:/path`, either with `:ro` or `:rw` behind it.
fn volume_text(text: &str) -> Result<Volume, ValueError> {
    let bad = || ValueError::Shape {
        value: text.to_owned(),
        what: "a volume; write name:/path, with :ro behind it if it is only read",
    };
    let (source, rest) = text.split_once(':').ok_or_else(bad)?;
    let (path, read_only) = match rest.rsplit_once(':') {
        Some((path, "ro")) => (path, true),
        Some((path, "rw")) => (path, false),
        Some(_) => return Err(bad()),
        None => (rest, false),
    };
    let source = if source.starts_with('/') {
        VolumeSource::Host(value::absolute_path(source)?)
    } else {
        VolumeSource::Name(value::label(source)?)
    };
    Ok(Volume { source, path: value::absolute_path(path)?, read_only, keep: false })
}

/// `{name: data, path: /path, read_only: true, keep: true}`, or with `host` instead of `name`.
fn volume_map(item: &Item<'_>, report: &mut Report) -> Option<At<Volume>> {
    let fields = item.fields(report, &["name", "host", "path", "read_only", "keep"]);
    let name = fields.get("name").and_then(|item| item.parse(report, value::label));
    let host = fields.get("host").and_then(|item| item.parse(report, value::absolute_path));
    let path = required(&fields, "path", item, report).and_then(|item| item.parse(report, value::absolute_path));
    let mut flag = |name| fields.get(name).and_then(|item| item.parse(report, value::truth)).is_some_and(|at| at.value);
    let (read_only, keep) = (flag("read_only"), flag("keep"));
    let source = match (fields.get("name"), fields.get("host")) {
        (Some(_), None) => VolumeSource::Name(name?.value),
        (None, Some(_)) if keep => {
            report.error(&item.place, "keep is for volumes with a name; what is on the host stays there");
            return None;
        }
        (None, Some(_)) => VolumeSource::Host(host?.value),
        _ => {
            report.error(&item.place, "needs a name, or else a path of the host as host");
            return None;
        }
    };
    Some(At { value: Volume { source, path: path?.value, read_only, keep }, place: item.place.clone() })
}
