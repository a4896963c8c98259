//! The language as a whole: chains, merging, and what holds for every Podfile.

use std::{collections::HashMap, path::PathBuf};

use super::{extends::Extends, *};

/// Files by their paths, and pages by their URLs.
#[derive(Default)]
pub(super) struct Files(HashMap<String, String>);

impl Files {
    fn with(mut self, name: &str, text: &str) -> Self {
        self.0.insert(name.to_owned(), text.to_owned());
        self
    }
}

impl Source for Files {
    fn read(&self, base: &External, from: &Origin) -> Result<Document, SourceError> {
        let (name, origin) = match (base, from) {
            (External::Path(path), Origin::File(file)) => {
                let path = file.with_file_name(path.strip_prefix(".").unwrap_or(path));
                (path.display().to_string(), Origin::File(path))
            }
            (External::Path(_), _) => return Err(SourceError::Refused { what: "it".into(), why: "no directory" }),
            (External::Remote(remote), _) => (remote.url.clone(), Origin::Remote(remote.url.clone())),
        };
        match self.0.get(&name) {
            Some(text) => Ok(Document { name, origin, text: text.clone(), format: Format::Podfile }),
            None => Err(SourceError::Refused { what: name, why: "it is not there" }),
        }
    }
}

pub(super) fn document(text: &str) -> Document {
    let origin = Origin::File(PathBuf::from("podfile.yaml"));
    Document { name: "podfile.yaml".to_owned(), origin, text: text.to_owned(), format: Format::Podfile }
}

fn resolved(text: &str, files: &Files) -> Resolved {
    resolve(&document(text), files).unwrap_or_else(|invalid| panic!("{text}\n{invalid}"))
}

pub(super) fn podfile(text: &str) -> Podfile {
    resolved(text, &Files::default()).podfile
}

fn errors(text: &str, files: &Files) -> Vec<String> {
    let invalid = resolve(&document(text), files).map(|resolved| resolved.podfile).expect_err(text);
    invalid.errors.iter().map(ToString::to_string).collect()
}

fn packages(podfile: &Podfile) -> Vec<String> {
    podfile.packages.iter().map(ToString::to_string).collect()
}

#[test]
fn every_built_in_podfile_is_valid_and_warns_of_nothing() {
    for built_in in builtin::ALL {
        let resolved = resolve(&built_in.document(), &Files::default()).unwrap_or_else(|invalid| panic!("{invalid}"));
        assert_eq!(resolved.warnings, [], "{}", built_in.name);
        assert!(!resolved.podfile.packages.is_empty(), "{}", built_in.name);
    }
}

#[test]
fn a_chain_is_merged_from_its_end_and_says_what_it_is_made_of() {
    let files = Files::default()
        .with("parent.yaml", "extends: ./grandparent.yml\npackages: [go]\nshell: /bin/zsh\nname: parent")
        .with("grandparent.yml", "base: ubuntu:24.04\npackages: [git]\nshell: /bin/sh\non_create: one");
    let resolved = resolved("extends: parent.yaml\npackages: [npm]\non_create: two", &files);
    assert_eq!(resolved.documents, ["podfile.yaml", "parent.yaml", "grandparent.yml"]);
    assert_eq!(packages(&resolved.podfile), ["git", "go", "npm"]);
    assert_eq!(resolved.podfile.shell.as_deref(), Some("/bin/zsh"), "a default of the child must not win");
    assert_eq!(resolved.podfile.on_create.as_deref(), Some("one\ntwo\n"));
    assert_eq!(resolved.podfile.name, None, "names are not inherited");
}

#[test]
fn a_chain_has_an_end() {
    let circle = Files::default().with("a.yaml", "extends: b.yaml").with("b.yaml", "extends: ./a.yaml");
    assert_eq!(
        errors("extends: a.yaml", &circle),
        ["b.yaml:1:10: extends: goes round in a circle: podfile.yaml -> a.yaml -> b.yaml -> a.yaml"]
    );
    let itself = Files::default().with("podfile.yaml", "extends: podfile.yaml");
    assert_eq!(
        errors("extends: podfile.yaml", &itself),
        ["podfile.yaml:1:10: extends: goes round in a circle: podfile.yaml -> podfile.yaml"]
    );
    let long = |length: usize| {
        let mut files = Files::default().with(&format!("{length}.yaml"), "base: a");
        for index in 1..length {
            files = files.with(&format!("{index}.yaml"), &format!("extends: {}.yaml", index + 1));
        }
        files
    };
    assert_eq!(resolved("extends: 1.yaml", &long(10)).documents.len(), 11);
    assert_eq!(
        errors("extends: 1.yaml", &long(11)),
        ["10.yaml:1:10: extends: the chain of Podfiles is longer than 10"]
    );
}

#[test]
fn what_is_wrong_in_a_base_is_reported_where_it_is() {
    let files = Files::default().with("base.yaml", "base: UPPER\nshel: /bin/sh\n");
    assert_eq!(
        errors("extends: base.yaml\nmode: forever", &files),
        [
            "podfile.yaml:2:7: mode: \"forever\" is not one of grace-period, destroy-on-disconnect, persistent",
            "base.yaml:1:7: base: \"UPPER\" is not an image name; write for instance ubuntu:24.04 or \
             localhost:5000/name:tag",
            "base.yaml:2:1: shel: unknown field; did you mean shell?",
        ]
    );
    // What cannot be read is not held against the rest.
    assert_eq!(
        errors("extends: gone.yaml\npackages: [\"!git\"]", &Files::default()),
        ["podfile.yaml:1:10: extends: gone.yaml is refused: it is not there"]
    );
    let broken = Files::default().with("base.yaml", "base: [");
    assert_eq!(
        errors("extends: base.yaml", &broken),
        ["base.yaml:2:1: while parsing a node, did not find expected node content"]
    );
}

#[test]
fn a_pinned_base_is_the_one_that_is_pinned() {
    let url = "https://example.com/base.yaml";
    let files = Files::default().with(url, "base: debian:12");
    let pin = crate::image::Digest::of(b"base: debian:12");
    let right = resolved(&format!("extends: {url}#{pin}"), &files);
    assert_eq!(right.podfile.base.to_string(), "debian:12");
    assert_eq!(right.documents[1], url);
    let other = crate::image::Digest::of(b"");
    assert_eq!(
        errors(&format!("extends: {url}#{other}"), &files),
        [format!("podfile.yaml:1:10: extends: {url:?} is not what is pinned")]
    );
    assert_eq!(resolved(&format!("extends: {url}"), &files).podfile.base.to_string(), "debian:12");
}

#[test]
fn a_base_is_named_in_one_of_four_ways() {
    let path = |text: &str| Extends::External(External::Path(PathBuf::from(text)));
    let remote = |url: &str| Extends::External(External::Remote(Remote { url: url.to_owned(), pin: None }));
    let raw = "https://raw.githubusercontent.com/org/repo";
    let table = [
        ("ubuntu-dev", Extends::BuiltIn("ubuntu-dev".to_owned())),
        ("./base.yaml", path("./base.yaml")),
        ("../base", path("../base")),
        ("/etc/base.yaml", path("/etc/base.yaml")),
        ("team/base.yml", path("team/base.yml")),
        ("https://example.com/x.yaml", remote("https://example.com/x.yaml")),
        ("github.com/org/repo", remote(&format!("{raw}/main/podfile.yaml"))),
        ("github.com/org/repo/go.yaml", remote(&format!("{raw}/main/go.yaml"))),
        ("github.com/org/repo/master/a/go.yaml", remote(&format!("{raw}/master/a/go.yaml"))),
    ];
    for (text, expected) in table {
        assert_eq!(Extends::parse(text), Ok(expected), "{text}");
    }
    let bad = [
        "",
        "Ubuntu",
        "a b.yaml",
        "a/b",
        "http://example.com/x.yaml",
        "https://",
        "https://user@example.com/x.yaml",
        "ftp://example.com/x.yaml",
        "github.com/org",
        "github.com/org/../x",
        "https://example.com/x.yaml#md5:12",
    ];
    for text in bad {
        assert!(Extends::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn services_wait_for_services_that_there_are_and_not_in_a_circle() {
    let services = |list: &str| format!("base: a\nservices:\n{list}");
    let fine =
        services("- {name: a, image: a, needs: [b, c]}\n- {name: b, image: a, needs: [c]}\n- {name: c, image: a}");
    assert_eq!(podfile(&fine).services.len(), 3);
    let unknown = services("- {name: web, image: a, needs: [postgre]}\n- {name: postgres, image: a}");
    assert_eq!(
        errors(&unknown, &Files::default()),
        ["podfile.yaml:3:3: services[0].needs: there is no service \"postgre\"; did you mean postgres?"]
    );
    let circle = services(
        "- {name: a, image: a, needs: [b]}\n- {name: b, image: a, needs: [a]}\n- {name: c, image: a, needs: [a]}",
    );
    assert_eq!(
        errors(&circle, &Files::default()),
        ["podfile.yaml:3:3: services[0].needs: services wait for each other: a, b, c"]
    );
}

#[test]
fn a_removal_that_finds_nothing_is_said() {
    let base = "base: a\npackages: [go@1.22, neovim]\nservices: [{name: db, image: a}]";
    let files = Files::default().with("base.yaml", base);
    let text = "extends: base.yaml\npackages: ['!go', '!neovmi', '!x']\nservices: [{name: '!dc'}]\nenv: {A: ''}";
    let warnings: Vec<_> = resolved(text, &files).warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            r#"podfile.yaml:2:12: packages[0]: removes nothing, as "go" is not inherited; there is "go@1.22""#,
            r#"podfile.yaml:2:19: packages[1]: removes nothing, as "neovmi" is not inherited; there is "neovim""#,
            r#"podfile.yaml:2:30: packages[2]: removes nothing, as "x" is not inherited"#,
            r#"podfile.yaml:3:19: services[0].name: removes nothing, as "dc" is not inherited; there is "db""#,
            r#"podfile.yaml:4:10: env.A: removes nothing, as "A" is not inherited"#,
        ]
    );
}

#[test]
fn problems_are_counted_beyond_what_anybody_reads() {
    let text = (0..150).map(|index| format!("x{index}: 1\n")).collect::<String>();
    let invalid = resolve(&document(&text), &Files::default()).map(|resolved| resolved.podfile).unwrap_err();
    assert_eq!((invalid.errors.len(), invalid.unlisted), (100, 50));
}

#[test]
fn messages_cannot_move_the_cursor() {
    let text = "\"a\\e[2J\": 1\nmode: \"\\e[31m\\n\"\nenv: {\"x=\\x07\": 1}";
    for error in errors(text, &Files::default()) {
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

mod build_key {
    use super::*;
    use crate::image::Digest;

    fn key(text: &str) -> String {
        BuildPlan::of(&podfile(text)).key().to_string()
    }

    const TEXT: &str = "base: a\npackages: [git, jq]\nextra_commands: [make]\nenv: {A: b}\n";

    #[test]
    fn what_does_not_change_the_image_does_not_change_the_key() {
        let same = [
            "# A comment.\nbase: a\npackages:\n  - git # why\n  - jq\nextra_commands:\n  - 'make'\nenv:\n  A: b\n",
            &format!("{TEXT}on_create: x\nmode: persistent\nresources: {{cpus: 1}}\nservices: [{{name: x, image: y}}]"),
            "base: a:latest\npackages: [git, jq, git]\nextra_commands: [make]\nenv: {A: b, B: \"${PODSPAWN_USER}\"}",
        ];
        for text in same {
            assert_eq!(key(text), key(TEXT), "{text}");
        }
    }

    #[test]
    fn what_changes_the_image_changes_the_key() {
        let mut keys = vec![key(TEXT)];
        let others = [
            TEXT.replace("base: a", "base: b"),
            TEXT.replace("git, jq", "jq, git"),
            TEXT.replace("git, jq", "git, jq@1"),
            TEXT.replace("[make]", "[make, make]"),
            TEXT.replace("A: b", "A: c"),
            format!("{TEXT}shell: /bin/zsh"),
            "base: a\npackages: [git, jq]\nenv: {A: b}".to_owned(),
            "base: a\nextra_commands: [make]\nenv: {A: b}".to_owned(),
        ];
        for text in others {
            let key = key(&text);
            assert!(!keys.contains(&key), "{text}");
            keys.push(key);
        }
    }

    #[test]
    fn steps_have_the_keys_of_before_up_to_the_first_one_that_changes() {
        let (base, other) = (Digest::of(b"base"), Digest::of(b"another"));
        let keys = |text: &str| BuildPlan::of(&podfile(text)).keys(&base, 1);
        let before = keys(TEXT);
        assert_eq!(before.len(), 3);
        let changed = keys(&TEXT.replace("jq", "jq@1"));
        assert_eq!(changed[0], before[0]);
        assert!(changed[1] != before[1] && changed[2] != before[2]);
        let plan = BuildPlan::of(&podfile(TEXT));
        for different in [plan.keys(&other, 1), plan.keys(&base, 2)] {
            assert!(different.iter().all(|key| !before.contains(key)));
        }
        // The base's name is not what counts.
        assert_eq!(keys(&TEXT.replace("base: a", "base: b")), before);
    }
}
