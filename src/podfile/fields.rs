//! Reading the fields of a Podfile.

use std::collections::BTreeMap;

use super::{
    choice::{Mode, Mount, PortStrategy, User},
    edits::Edits,
    extends::Extends,
    git,
    package::Package,
    problem::{At, Place, Report},
    raw::{Podfile, Port, Resources, Variable},
    read::{Fields, Item},
    resolved::{Dotfiles, Repo, Service},
    service,
    value::{self, Bytes},
};

/// Entries of one list or map of a Podfile.
pub(super) const MAX_ENTRIES: usize = 500;

/// Services and repositories: each is a container or a clone.
pub(super) const MAX_SERVICES: usize = 50;

const FIELDS: &[&str] = &[
    "base",
    "extends",
    "name",
    "branch",
    "packages",
    "packages!",
    "shell",
    "user",
    "env",
    "env!",
    "dotfiles",
    "repos",
    "repos!",
    "services",
    "services!",
    "ports",
    "resources",
    "on_create",
    "on_create!",
    "on_start",
    "on_start!",
    "extra_commands",
    "extra_commands!",
    "mount",
    "mode",
    "workspace",
];

/// What a file extends.
pub(super) enum Inherits {
    Nothing,
    From(At<Extends>),
    /// Something, but it cannot be told what.
    Unknown,
}

/// Reads the root of a document: what it says, and what it extends.
pub(super) fn read(root: &Item<'_>, report: &mut Report) -> (Podfile, Inherits) {
    let mut podfile = Podfile::default();
    let fields = root.fields(report, FIELDS);
    let extends = match fields.get("extends") {
        None => Inherits::Nothing,
        Some(item) => item.parse(report, Extends::parse).map_or(Inherits::Unknown, Inherits::From),
    };
    podfile.base = fields.get("base").and_then(|item| item.parse(report, value::image));
    podfile.name = fields.get("name").and_then(|item| item.parse(report, value::name));
    podfile.branch = fields.get("branch").and_then(|item| item.parse(report, git::branch));
    podfile.shell = fields.get("shell").and_then(|item| item.parse(report, value::shell));
    podfile.user = fields.get("user").and_then(|item| item.parse(report, User::parse));
    podfile.mount = fields.get("mount").and_then(|item| item.parse(report, Mount::parse));
    podfile.mode = fields.get("mode").and_then(|item| item.parse(report, Mode::parse));
    podfile.workspace = fields.get("workspace").and_then(|item| item.parse(report, value::absolute_path));
    podfile.dotfiles = fields.get("dotfiles").and_then(|item| dotfiles(item, report));
    if let Some(item) = fields.get("resources") {
        podfile.resources = resources(item, report);
    }
    if let Some(item) = fields.get("ports") {
        ports(item, &mut podfile, report);
    }
    let inherits = !matches!(extends, Inherits::Nothing);
    let mut list = Lists { fields: &fields, inherits, report };
    podfile.packages = list.read("packages", packages);
    podfile.env = list.read("env", variables);
    podfile.repos = list.read("repos", repos);
    podfile.services = list.read("services", services);
    podfile.extra_commands = list.read("extra_commands", commands);
    podfile.on_create = list.read("on_create", hook);
    podfile.on_start = list.read("on_start", hook);
    (podfile, extends)
}

/// Reads fields that may be written with a `!`.
struct Lists<'f, 'n, 'r> {
    fields: &'f Fields<'n>,
    /// Whether the file extends another, so that there is something to remove or replace.
    inherits: bool,
    report: &'r mut Report,
}

/// Where the items of a list go to while they are read.
struct Sink<'r, T> {
    edits: Edits<T>,
    inherits: bool,
    report: &'r mut Report,
}

impl Lists<'_, '_, '_> {
    fn read<T>(&mut self, name: &str, read: impl FnOnce(&Item<'_>, &mut Sink<'_, T>)) -> Edits<T> {
        // Without a value it replaces what is inherited by nothing.
        let bang = self.fields.key(&format!("{name}!"));
        let plain = self.fields.get(name);
        if let (Some(bang), Some(_)) = (bang, plain) {
            self.report.error(&bang.place, format_args!("{name} is there as well; one of them must go"));
        }
        if let (Some(bang), false) = (bang, self.inherits) {
            self.report
                .error(&bang.place, format_args!("replaces nothing, as this file extends nothing; write {name}"));
        }
        let mut edits = Edits { replace: bang.is_some(), ..Edits::default() };
        if let Some(item) = bang.or(plain).filter(|item| !item.is_null()) {
            let mut sink = Sink { edits, inherits: self.inherits, report: self.report };
            read(item, &mut sink);
            edits = sink.edits;
        }
        edits
    }
}

impl<T> Sink<'_, T> {
    fn add(&mut self, item: Option<At<T>>) {
        if let Some(At { value, place }) = item {
            self.edits.add(value, place);
        }
    }

    /// Takes an item that begins with `!`; whether it does.
    fn removes(&mut self, item: &Item<'_>, key: &str) -> bool {
        let Some(key) = key.strip_prefix('!') else { return false };
        if !self.inherits {
            self.report.error(&item.place, "removes nothing, as this file extends nothing");
        } else if self.edits.replace {
            self.report.error(&item.place, "removes nothing, as this list replaces what is inherited");
        } else {
            self.edits.remove(key.to_owned(), item.place.clone());
        }
        true
    }
}

fn packages(item: &Item<'_>, sink: &mut Sink<'_, Package>) {
    for item in item.list(sink.report, MAX_ENTRIES) {
        let Some(text) = item.text(sink.report) else { continue };
        if !sink.removes(&item, text) {
            let package = item.parse(sink.report, Package::parse);
            sink.add(package);
        }
    }
}

fn variables(item: &Item<'_>, sink: &mut Sink<'_, Variable>) {
    for (name, place, value) in environment(item, sink.report) {
        // In a file that inherits nothing an empty value is just that.
        if value.is_empty() && sink.inherits && !sink.edits.replace {
            sink.edits.remove(name, place);
        } else {
            sink.edits.add(Variable { name, value }, place);
        }
    }
}

/// The variables of a map. One without a value is empty.
fn environment(item: &Item<'_>, report: &mut Report) -> Vec<(String, Place, String)> {
    let mut variables = Vec::new();
    for (name, item) in item.entries(report, MAX_ENTRIES) {
        if let Err(error) = value::variable(name) {
            report.error(&item.place, error);
            continue;
        }
        let value = if item.is_null() { Some("") } else { item.text(report) };
        if let Some(value) = value {
            variables.push((name.to_owned(), item.place, value.to_owned()));
        }
    }
    variables
}

/// The variables of a map that inherits none.
pub(super) fn variables_of(item: &Item<'_>, report: &mut Report) -> BTreeMap<String, String> {
    environment(item, report).into_iter().map(|(name, _, value)| (name, value)).collect()
}

fn repos(item: &Item<'_>, sink: &mut Sink<'_, Repo>) {
    let mut seen = Vec::new();
    for item in item.list(sink.report, MAX_SERVICES) {
        let fields = item.fields(sink.report, &["url", "path", "branch"]);
        let Some(url) = required(&fields, "url", &item, sink.report) else { continue };
        let Some(text) = url.text(sink.report) else { continue };
        if let Some(removed) = text.strip_prefix('!') {
            // By what it is cloned from, which may be written in two ways.
            let key = git::url(removed).unwrap_or_else(|_| removed.to_owned());
            sink.removes(url, &format!("!{key}"));
            continue;
        }
        let Some(url) = url.parse(sink.report, git::url) else { continue };
        if seen.contains(&url.value) {
            sink.report.error(&url.place, "is there twice");
            continue;
        }
        seen.push(url.value.clone());
        let path = fields.get("path").and_then(|item| item.parse(sink.report, value::absolute_path));
        let branch = fields.get("branch").and_then(|item| item.parse(sink.report, git::branch));
        let repo = Repo { url: url.value, path: path.map(|at| at.value), branch: branch.map(|at| at.value) };
        sink.edits.add(repo, item.place.clone());
    }
}

fn services(item: &Item<'_>, sink: &mut Sink<'_, Service>) {
    let mut seen: Vec<String> = Vec::new();
    for item in item.list(sink.report, MAX_SERVICES) {
        let fields = item.fields(sink.report, service::FIELDS);
        let Some(name) = required(&fields, "name", &item, sink.report) else { continue };
        let Some(text) = name.text(sink.report) else { continue };
        if sink.removes(name, text) {
            continue;
        }
        if seen.iter().any(|known| known.eq_ignore_ascii_case(text)) {
            sink.report.error(&name.place, format_args!("there are two services of the name {text:?}"));
        }
        seen.push(text.to_owned());
        if let Some(service) = service::read(&item, &fields, sink.report) {
            sink.edits.add(service, item.place.clone());
        }
    }
}

fn commands(item: &Item<'_>, sink: &mut Sink<'_, String>) {
    for item in item.list(sink.report, MAX_ENTRIES) {
        let command = item.parse(sink.report, script);
        sink.add(command);
    }
}

fn hook(item: &Item<'_>, sink: &mut Sink<'_, String>) {
    let script = item.text(sink.report).map(str::to_owned);
    sink.add(script.map(|value| At { value, place: item.place.clone() }));
}

fn script(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("is an empty command") } else { Ok(text.to_owned()) }
}

pub(super) fn dotfiles(item: &Item<'_>, report: &mut Report) -> Option<At<Dotfiles>> {
    let fields = item.fields(report, &["repo", "install"]);
    let install = fields.get("install").and_then(|item| item.parse(report, script));
    let repo = required(&fields, "repo", item, report)?.parse(report, git::url)?;
    let value = Dotfiles { repo: repo.value, install: install.map(|at| at.value) };
    Some(At { value, place: item.place.clone() })
}

/// Limits of the whole session, or of a service.
pub(super) fn resources(item: &Item<'_>, report: &mut Report) -> Resources {
    limits(&item.fields(report, &["cpus", "memory", "pids", "disk"]), report)
}

/// The limits among these fields.
pub(super) fn limits(fields: &Fields<'_>, report: &mut Report) -> Resources {
    Resources {
        cpus: fields.get("cpus").and_then(|item| item.parse(report, value::cpus)),
        memory: fields.get("memory").and_then(|item| item.parse(report, Bytes::parse)),
        pids: fields.get("pids").and_then(|item| item.parse(report, value::pids)),
        disk: fields.get("disk").and_then(|item| item.parse(report, Bytes::parse_disk)),
    }
}

fn ports(item: &Item<'_>, podfile: &mut Podfile, report: &mut Report) {
    let fields = item.fields(report, &["expose", "strategy"]);
    podfile.strategy = fields.get("strategy").and_then(|item| item.parse(report, PortStrategy::parse));
    for item in fields.get("expose").map(|item| item.list(report, MAX_ENTRIES)).unwrap_or_default() {
        if let Some(At { value, place }) = item.parse(report, value::port) {
            podfile.expose.add(Port(value), place);
        }
    }
}

/// A field that must be there.
pub(super) fn required<'f, 'n>(
    fields: &'f Fields<'n>,
    name: &str,
    of: &Item<'_>,
    report: &mut Report,
) -> Option<&'f Item<'n>> {
    let item = fields.get(name);
    // What is no map at all has been reported as such.
    if item.is_none() && of.is_map() {
        report.error(&of.place, format_args!("has no {name}"));
    }
    item
}
