//! A merged Podfile, checked as a whole, becomes a resolved one. Defaults are applied here and not before, so that none of
//! them is taken for something that a file says.

use super::{
    edits::{Applied, Edits, Keyed},
    fields::{MAX_ENTRIES, MAX_SERVICES},
    package::Package,
    problem::{At, Place, Report, nearest, quoted},
    raw::{self, Port, Variable},
    resolved::{Podfile, Ports, Repo, Service},
};

/// What the merged Podfile means; `None` if it has no base. `start` is the beginning of the first document; if not all
/// documents could be read, or not all of them is valid, what is missing is not reported.
pub(super) fn resolve(merged: raw::Podfile, complete: bool, start: &Place, report: &mut Report) -> Option<Podfile> {
    let complete = complete && report.errors.is_empty();
    if merged.base.is_none() && complete {
        let place = Place { field: "base".to_owned(), ..start.clone() };
        report.error(
            &place,
            "is missing: write an image, such as base: ubuntu:24.04, or extends with a Podfile that has one",
        );
    }
    let mut list = Applier { complete, report };
    let packages = list.apply(merged.packages, MAX_ENTRIES);
    let env = list.apply(merged.env, MAX_ENTRIES);
    let repos = list.apply(merged.repos, MAX_SERVICES);
    let services = list.apply(merged.services, MAX_SERVICES);
    let expose = list.apply(merged.expose, MAX_ENTRIES);
    let extra_commands = merged.extra_commands.into_added();
    let on_create = merged.on_create.into_added();
    let on_start = merged.on_start.into_added();
    if let Some(first) = extra_commands.get(MAX_ENTRIES) {
        report.error(&first.place, format_args!("there are more than {MAX_ENTRIES} with those that are inherited"));
    }
    check_versions(&packages, report);
    check_paths(&repos, report);
    if complete {
        check_needs(&services, report);
    }
    Some(Podfile {
        name: value(merged.name),
        base: value(merged.base)?,
        packages: values(packages),
        extra_commands: values(extra_commands),
        shell: value(merged.shell),
        user: value(merged.user),
        env: values(env).into_iter().map(|Variable { name, value }| (name, value)).collect(),
        dotfiles: value(merged.dotfiles),
        repos: values(repos),
        branch: value(merged.branch),
        services: values(services),
        ports: Ports {
            expose: values(expose).into_iter().map(|Port(port)| port).collect(),
            strategy: value(merged.strategy).unwrap_or_default(),
        },
        resources: merged.resources.into(),
        on_create: script(on_create),
        on_start: script(on_start),
        mount: value(merged.mount).unwrap_or_default(),
        mode: value(merged.mode),
        workspace: value(merged.workspace),
    })
}

fn value<T>(at: Option<At<T>>) -> Option<T> {
    at.map(|at| at.value)
}

fn values<T>(all: Vec<At<T>>) -> Vec<T> {
    all.into_iter().map(|at| at.value).collect()
}

/// Hooks of a chain are one script, the base's lines first.
fn script(parts: Vec<At<String>>) -> Option<String> {
    let parts: Vec<String> = values(parts).into_iter().filter(|part| !part.trim().is_empty()).collect();
    let lines: Vec<&str> = parts.iter().map(|part| part.trim_end_matches('\n')).collect();
    if lines.is_empty() { None } else { Some(lines.join("\n") + "\n") }
}

struct Applier<'r> {
    complete: bool,
    report: &'r mut Report,
}

impl Applier<'_> {
    /// Carries the changes to a list out, and says so where one finds nothing to remove.
    fn apply<T: Keyed>(&mut self, edits: Edits<T>, max: usize) -> Vec<At<T>> {
        let Applied { items, unmatched } = edits.apply();
        for removal in unmatched.iter().filter(|_| self.complete) {
            let keys: Vec<String> = items.iter().map(|item| item.value.key()).collect();
            let without_version = |key: &&String| key.split('@').next() == removal.value.split('@').next();
            let similar = keys.iter().find(without_version).map(String::as_str);
            let hint = similar.or_else(|| nearest(&removal.value, keys.iter().map(String::as_str)));
            let hint = hint.map(|key| format!("; there is {}", quoted(key))).unwrap_or_default();
            let message = format!("removes nothing, as {} is not inherited{hint}", quoted(&removal.value));
            self.report.warning(&removal.place, message);
        }
        if let Some(first) = items.get(max) {
            self.report.error(&first.place, format_args!("there are more than {max} with those that are inherited"));
        }
        items
    }
}

/// One package in two versions is rarely meant, but it is possible for some.
fn check_versions(packages: &[At<Package>], report: &mut Report) {
    for (index, package) in packages.iter().enumerate() {
        if let Some(earlier) = packages[..index].iter().find(|earlier| earlier.value.name == package.value.name) {
            let message = format!(
                "{} is wanted as well as {}; to have only this one, write \"!{}\" too",
                earlier.value, package.value, earlier.value
            );
            report.warning(&package.place, message);
        }
    }
}

fn check_paths(repos: &[At<Repo>], report: &mut Report) {
    for (index, repo) in repos.iter().enumerate() {
        let same = |earlier: &&At<Repo>| earlier.value.path.is_some() && earlier.value.path == repo.value.path;
        if let Some(earlier) = repos[..index].iter().find(same) {
            report.error(&repo.place, format_args!("is cloned to the same path as {}", quoted(&earlier.value.url)));
        }
    }
}

/// Services can only wait for services that there are, and not for each other.
fn check_needs(services: &[At<Service>], report: &mut Report) {
    let position = |name: &String| services.iter().position(|service| service.value.name == *name);
    for service in services {
        for need in service.value.needs.iter().filter(|need| position(need).is_none()) {
            let names = services.iter().map(|service| service.value.name.as_str());
            let hint = nearest(need, names).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            report.error(&needs(service), format_args!("there is no service {}{hint}", quoted(need)));
        }
    }
    // Takes away what waits for nothing that is left, until nothing changes: what is left waits in a circle.
    let mut left: Vec<usize> = (0..services.len()).collect();
    loop {
        let waits = |index: &usize| {
            let needs = &services[*index].value.needs;
            needs.iter().filter_map(position).any(|needed| left.contains(&needed))
        };
        let still: Vec<usize> = left.iter().copied().filter(waits).collect();
        if still.len() == left.len() {
            break;
        }
        left = still;
    }
    if let Some(first) = left.first() {
        let names: Vec<&str> = left.iter().map(|index| services[*index].value.name.as_str()).collect();
        report.error(&needs(&services[*first]), format_args!("services wait for each other: {}", names.join(", ")));
    }
}

fn needs(service: &At<Service>) -> Place {
    Place { field: format!("{}.needs", service.place.field), ..service.place.clone() }
}
