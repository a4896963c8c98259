//! `podspawn podfile check`.

use super::*;

/// What some of the good ones extend.
const BASE: &str = "base: ubuntu:24.04\nname: base\nshell: /bin/zsh\nenv: {A: a, B: b}\nmode: persistent\n\
    services: [{name: postgres, image: 'postgres:16', ports: [5432]}, {name: redis, image: 'redis:7'}]\n\
    repos: [{url: github.com/a/b, path: /b}, {url: github.com/c/d}]\nports: {expose: [1, 2], strategy: manual}\n\
    resources: {cpus: 2, memory: 8g}\non_create: base\nextra_commands: [x]\ndotfiles: {repo: h.x/theirs, install: make}\n";

#[test]
fn good_podfiles_mean_what_they_say() {
    for Case { title, input, expected } in cases(include_str!("good.txt")) {
        let project = Project::new(&[("podfile.yaml", input), ("base.yaml", BASE)]);
        let output = project.check();
        output.ok();
        let mut expected = yaml(expected);
        // Each of them has a mount.
        expected.as_object_mut().unwrap().entry("mount").or_insert("bind".into());
        assert_eq!(yaml(&output.text()), expected, "{title}");
        // It is a Podfile again, and means the same.
        let again = Project::new(&[("podfile.yaml", &output.text())]).check();
        again.ok().stdout(&output.text());
    }
}

#[test]
fn bad_podfiles_are_refused_with_everything_that_is_wrong_and_where() {
    for Case { title, input, expected } in cases(include_str!("bad.txt")) {
        let output = Project::new(&[("podfile.yaml", input)]).check();
        output.status(1).stdout("");
        let mut lines: Vec<&str> = output.stderr.lines().collect();
        let expected: Vec<&str> = expected.lines().collect();
        let errors = if expected.len() == 1 { "error" } else { "errors" };
        let sum = format!("podspawn: podfile.yaml is not valid: {} {errors}", expected.len());
        assert_eq!(lines.pop(), Some(sum.as_str()), "{title}");
        assert_eq!(lines, expected, "{title}");
    }
}

#[test]
fn the_tables_are_as_long_as_they_should_be() {
    let [good, bad] = [include_str!("good.txt"), include_str!("bad.txt")].map(cases);
    assert!(good.len() >= 20 && bad.len() >= 40, "{} and {}", good.len(), bad.len());
    // What people have from the original: its documentation, and its registry of templates.
    for origin in ["documentation: ", "registry: "] {
        let of_it = |cases: &[Case<'_>]| cases.iter().filter(|case| case.title.starts_with(origin)).count();
        assert!(of_it(&good) >= 5 && of_it(&bad) >= 2, "{origin}");
    }
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let blocks: Vec<&str> = include_str!("../../docs/podfile.md").split("```yaml\n").skip(1).collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let (text, _) = block.split_once("```").unwrap();
        Project::new(&[("podfile.yaml", text)]).check().ok();
    }
}

#[test]
fn the_first_file_of_the_search_order_counts() {
    let files = [
        (".podspawn/podfile.yaml", "base: first"),
        ("podfile.yaml", "base: second"),
        (".devcontainer/devcontainer.json", "{\"image\": \"third\"}"),
        (".devcontainer.json", "{\"image\": \"fourth\"}"),
    ];
    for (index, image) in ["first", "second", "third", "fourth"].into_iter().enumerate() {
        let project = Project::new(&files[index..]);
        project
            .check()
            .ok()
            .stdout_has(&format!("base: {image}:latest\n"))
            .stderr_has(&format!("{}: valid", files[index].0));
    }
    Project::new(&[]).check().status(1).stderr_has("write one with: podspawn init");
}

#[test]
fn a_file_can_be_named_and_is_shown_as_json() {
    let project =
        Project::new(&[("deep/pod.yaml", "extends: ../base.yaml\npackages: [\"!x\"]"), ("base.yaml", "base: a")]);
    let output = project.podspawn(&["podfile", "check", "--json", "deep/pod.yaml"]).run();
    let shown: Value = serde_json::from_slice(&output.ok().stdout).unwrap();
    assert_eq!(shown["valid"], true);
    assert_eq!(shown["podfile"]["base"], "a:latest");
    assert_eq!(shown["documents"][0], "deep/pod.yaml");
    assert_eq!(shown["warnings"][0]["line"], 2);
    assert_eq!(shown["warnings"][0]["field"], "packages[0]");
    assert!(shown["build_key"].as_str().unwrap().starts_with("sha256:"));

    fs::write(project.path("deep/pod.yaml"), "bas: a").unwrap();
    let output = project.podspawn(&["podfile", "check", "--json", "deep"]).run();
    output.status(1).stdout("").stderr_has("has none of");
    let output = project.podspawn(&["podfile", "check", "--json", "deep/pod.yaml"]).run();
    let shown: Value = serde_json::from_slice(&output.status(1).stdout).unwrap();
    assert_eq!(shown["valid"], false);
    assert_eq!(shown["errors"][0]["message"], "unknown field; did you mean base?");
    assert_eq!((&shown["errors"][0]["line"], &shown["errors"][0]["column"]), (&1.into(), &1.into()));
}

#[test]
fn what_is_no_podfile_is_not_read() {
    let project = Project::new(&[("big.yaml", &format!("base: a #{}", "x".repeat(1 << 20)))]);
    project.podspawn(&["podfile", "check", "big.yaml"]).run().status(1).stderr_has("it is larger than 1 MiB");
    project.podspawn(&["podfile", "check", "/dev/zero"]).run().status(1).stderr_has("it is not a file");
    project.podspawn(&["podfile", "check", "gone.yaml"]).run().status(1).stderr_has("cannot read gone.yaml");
    fs::write(project.path("latin.yaml"), b"base: \xe4").unwrap();
    project.podspawn(&["podfile", "check", "latin.yaml"]).run().status(1).stderr_has("UTF-8");
}
