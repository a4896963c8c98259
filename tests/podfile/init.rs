//! `podspawn init`.

use std::path::Path;

use super::*;

fn init(project: &Project, arguments: &[&str]) -> Run {
    project.podspawn(&[&["init"], arguments].concat())
}

#[test]
fn a_project_gets_the_template_for_its_files() {
    let table: [(&[&str], &str); 6] = [
        (&[], "minimal"),
        (&["go.mod"], "go"),
        (&["package.json"], "node"),
        (&["requirements.txt"], "python"),
        (&["Cargo.toml"], "rust"),
        (&["go.mod", "package.json"], "fullstack"),
    ];
    for (files, template) in table {
        let files: Vec<(&str, &str)> = files.iter().map(|name| (*name, "")).collect();
        let project = Project::new(&files);
        init(&project, &["--yes"]).run().ok().stdout("").stderr_has(&format!("Template {template}: "));
        project.check().ok();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("images/{template}.yaml"));
        assert_eq!(project.read("podfile.yaml"), fs::read_to_string(source).unwrap());
    }
}

#[test]
fn a_template_can_be_chosen() {
    let project = Project::new(&[("go.mod", "")]);
    init(&project, &["-y", "-t", "agent"]).run().ok();
    project.check().ok().stdout_has("- ripgrep\n");
    init(&Project::new(&[]), &["-y", "-t", "gopher"]).run().status(2).stderr_has("data-science");
}

#[test]
fn answers_change_the_template_and_silence_does_not() {
    let project = Project::new(&[("go.mod", "")]);
    init(&project, &[]).run().ok().stderr_has("Base image? [ubuntu:24.04] Packages? [go@1.24] ");
    let untouched = project.read("podfile.yaml");

    let project = Project::new(&[("go.mod", "")]);
    init(&project, &[]).input("debian:12\ngo@1.25, make\npostgres\n8080 9090\n").run().ok();
    assert_ne!(project.read("podfile.yaml"), untouched);
    let shown = yaml(&project.check().ok().text());
    assert_eq!(shown["base"], "debian:12");
    assert!(shown["packages"].as_array().unwrap().ends_with(&["go@1.25".into()]), "{shown}");
    assert_eq!(shown["services"][0]["env"]["POSTGRES_DB"], "dev");
    assert_eq!(shown["ports"]["expose"], serde_json::json!([8080, 9090]));
    assert!(shown["on_create"].as_str().unwrap().contains("go mod download"));
}

#[test]
fn answers_that_make_no_podfile_write_none() {
    let project = Project::new(&[]);
    let output = init(&project, &[]).input("UPPER\n\n\n70000\n").run();
    output.status(1).stderr_has("base: \"UPPER\" is not an image name").stderr_has("\"70000\" is not a port");
    init(&project, &[]).input("\n\nmysql\n").run().status(1).stderr_has("no service \"mysql\" is known here");
    assert_eq!(fs::read_dir(project.path("")).unwrap().count(), 0, "something was written");
}

#[test]
fn a_podfile_that_is_there_is_not_lost() {
    let project = Project::new(&[("podfile.yaml", "base: mine")]);
    init(&project, &["-y"]).run().status(1).stderr_has("podfile.yaml is there already");
    init(&project, &[]).input("\n").run().status(1);
    assert_eq!(project.read("podfile.yaml"), "base: mine");
    init(&project, &[]).input("yes\n").run().ok();
    assert!(project.read("podfile.yaml").contains("ubuntu:24.04"));
    let project = Project::new(&[(".podspawn/podfile.yaml", "base: mine")]);
    init(&project, &[]).input("yes\n").run().status(1).stderr_has("goes before podfile.yaml");
}
