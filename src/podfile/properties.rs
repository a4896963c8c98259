//! What holds for every Podfile, tried with random ones.

use std::collections::BTreeMap;

use proptest::{collection, option, prelude::*, sample};

use super::{
    Document, Format, Podfile, fields, node,
    problem::{Place, Report},
    raw,
    read::Item,
    resolve,
    tests::{Files, document, podfile},
    yaml,
};

/// So few names that the entries of a chain meet.
fn word() -> impl Strategy<Value = &'static str> {
    sample::select(vec!["a", "b", "c", "d", "e"])
}

/// Whether a list replaces the inherited one, and what it has under each name; `None` removes it.
fn list() -> impl Strategy<Value = (bool, BTreeMap<&'static str, Option<&'static str>>)> {
    (prop::bool::weighted(0.2), collection::btree_map(word(), option::of(word()), 0..4))
}

/// The lines of a list, whose entries `write` makes.
fn lines(
    field: &str,
    (replace, items): &(bool, BTreeMap<&str, Option<&str>>),
    write: impl Fn(&str, Option<&str>) -> String,
) -> String {
    let bang = if *replace { "!" } else { "" };
    // A list that replaces has nothing to remove.
    let kept = items.iter().filter(|(_, value)| value.is_some() || !replace);
    let entries: String = kept.map(|(name, value)| format!("  {}\n", write(name, *value))).collect();
    if entries.is_empty() { String::new() } else { format!("{field}{bang}:\n{entries}") }
}

/// A file of a chain.
fn file() -> impl Strategy<Value = String> {
    let scalars = sample::subsequence(
        vec![
            "shell: /bin/zsh",
            "resources: {cpus: 1, pids: 5}",
            "ports: {expose: [1, 3], strategy: manual}",
            "mode: persistent",
        ],
        0..=4,
    );
    let hook = option::of((any::<bool>(), word()));
    (list(), list(), list(), list(), collection::vec(word(), 0..3), hook, scalars).prop_map(
        |(packages, env, services, repos, commands, hook, scalars)| {
            let packages = lines("packages", &packages, |name, version| match version {
                Some(version) => format!("- {name}@{version}"),
                None => format!("- \"!{name}@a\""),
            });
            let env = lines("env", &env, |name, value| format!("{name}: \"{}\"", value.unwrap_or_default()));
            let services = lines("services", &services, |name, image| match image {
                Some(image) => format!("- {{name: {name}, image: {image}}}"),
                None => format!("- {{name: \"!{name}\"}}"),
            });
            let repos = lines("repos", &repos, |name, branch| match branch {
                // Sometimes without, so that there is something to keep.
                Some("a") => format!("- {{url: h.x/{name}, path: /{name}}}"),
                Some(branch) => format!("- {{url: h.x/{name}, branch: {branch}}}"),
                None => format!("- {{url: \"!h.x/{name}\"}}"),
            });
            let hook = hook.map(|(replace, line)| format!("on_create{}: {line}\n", if replace { "!" } else { "" }));
            let commands = format!("extra_commands: [{}]\n", commands.join(", "));
            let scalars: String = scalars.into_iter().map(|line| format!("{line}\n")).collect();
            format!("extends: x.yaml\n{packages}{env}{services}{repos}{commands}{}{scalars}", hook.unwrap_or_default())
        },
    )
}

fn read(text: &str) -> raw::Podfile {
    let mut report = Report::default();
    let root = yaml::parse(text).unwrap();
    let (podfile, _) = fields::read(&Item::root(&root, &"x".into()), &mut report);
    assert_eq!(report.errors, [], "{text}");
    podfile
}

/// What a merged Podfile means on top of some image.
fn means(merged: raw::Podfile) -> Podfile {
    let mut report = Report::default();
    let start = Place { document: "x".into(), mark: node::Mark::START, field: String::new() };
    resolve::resolve(merged.over(read("base: image")), true, &start, &mut report).unwrap()
}

proptest! {
    #[test]
    fn a_chain_can_be_merged_from_either_end(a in file(), b in file(), c in file()) {
        let [a, b, c] = [read(&a), read(&b), read(&c)];
        let from_the_base = c.clone().over(b.clone().over(a.clone()));
        let from_the_child = c.over(b).over(a);
        prop_assert_eq!(from_the_base, from_the_child);
    }

    #[test]
    fn an_empty_child_or_base_changes_nothing(a in file()) {
        let a = read(&a);
        prop_assert_eq!(raw::Podfile::default().over(a.clone()), a.clone());
        prop_assert_eq!(a.clone().over(raw::Podfile::default()), a);
    }

    #[test]
    fn what_is_removed_is_gone_and_the_rest_stays_in_order(a in file(), b in file(), gone in word()) {
        let base = read(&b).over(read(&a));
        let child = read(&format!(
            "extends: x.yaml\npackages: [\"!{gone}@b\"]\nservices: [{{name: \"!{gone}\"}}]\n\
             repos: [{{url: \"!h.x/{gone}\"}}]\nenv: {{{gone}: \"\"}}"
        ));
        let mut expected = means(base.clone());
        expected.packages.retain(|package| package.to_string() != format!("{gone}@b"));
        expected.services.retain(|service| service.name != gone);
        expected.repos.retain(|repo| repo.url != format!("https://h.x/{gone}"));
        expected.env.remove(gone);
        prop_assert_eq!(means(child.over(base)), expected);
    }

    #[test]
    fn what_a_child_adds_comes_behind_what_it_inherits(a in file(), names in collection::vec(word(), 0..5)) {
        let base = read(&a);
        let child = read(&format!("packages: [{}]", names.join(", ")));
        let mut expected: Vec<String> = means(base.clone()).packages.iter().map(ToString::to_string).collect();
        for name in names {
            if !expected.iter().any(|known| known == name) {
                expected.push(name.to_owned());
            }
        }
        let found: Vec<String> = means(child.over(base)).packages.iter().map(ToString::to_string).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn what_is_printed_means_the_same(a in file(), b in file()) {
        let meant = means(read(&b).over(read(&a)));
        let printed = serde_yaml::to_string(&meant).unwrap();
        prop_assert_eq!(serde_yaml::to_string(&podfile(&printed)).unwrap(), printed);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        // Whether it is valid is not asked.
        let _ = super::resolve(&document(&text), &Files::default());
        let devcontainer = Document { format: Format::DevContainer, ..document(&text) };
        let _ = super::resolve(&devcontainer, &Files::default());
    }

    #[test]
    fn every_error_has_a_place(
        text in file(),
        at in any::<sample::Index>(),
        put in "[\\[\\]{}:,&*!|>'\"%@`#\\n\\t -]{0,3}",
    ) {
        let mut text = text;
        text.insert_str(at.index(text.len()), &put);
        if let Err(invalid) = super::resolve(&document(&text), &Files::default()) {
            let lines = text.lines().count() + 1;
            prop_assert!(!invalid.errors.is_empty());
            prop_assert!(invalid.errors.iter().all(|error| (1..=lines).contains(&error.line) && error.column > 0));
        }
    }
}
