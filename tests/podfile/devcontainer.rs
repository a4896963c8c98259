//! devcontainer.json, in the shapes that well-known projects have theirs: with their images, features and fields, and in our
//! words where they have their own.

use super::*;

#[test]
fn devcontainers_convert_or_say_what_is_not_supported() {
    for Case { title, input, expected } in cases(include_str!("devcontainers.txt")) {
        let (podfile, problems) = expected.split_once("---").unwrap_or(("", expected));
        let project = Project::new(&[(".devcontainer/devcontainer.json", input)]);
        let output = project.check();
        let mut lines: Vec<&str> = output.stderr.lines().collect();
        lines.pop();
        let said: Vec<String> = lines.iter().map(|line| line.replace(".devcontainer/devcontainer.json:", "")).collect();
        assert_eq!(said, problems.trim_start().lines().collect::<Vec<_>>(), "{title}");
        if podfile.is_empty() {
            output.status(1).stdout("");
        } else {
            output.ok();
            let mut expected = yaml(podfile);
            expected.as_object_mut().unwrap().insert("mount".to_owned(), "bind".into());
            assert_eq!(yaml(&output.text()), expected, "{title}");
        }
    }
}

/// What a script of a converted file does, with a shell to judge.
fn run_hook(json: &str) -> (Option<i32>, String) {
    let project = Project::new(&[(".devcontainer.json", json)]);
    let podfile = yaml(&project.check().ok().text());
    let mut shell = Run::new("/bin/sh").args(["-c", podfile["on_create"].as_str().unwrap()]);
    shell.command.current_dir(project.path(""));
    let output = shell.run();
    (output.status, output.text())
}

#[test]
fn arguments_reach_commands_as_they_are() {
    let json =
        r#"{"image": "a", "postCreateCommand": ["printf", "<%s>", "a b", "it's", "$HOME", "", "\\n", "`id`", "*"]}"#;
    assert_eq!(run_hook(json), (Some(0), r"<a b><it's><$HOME><><\n><`id`><*>".to_owned()));
}

#[test]
fn commands_run_in_order_until_one_fails() {
    let json = r#"{"image": "a",
        "onCreateCommand": "cd /; X=1; echo one",
        "updateContentCommand": {"b": "echo two; test -z \"$X\"", "a": ["echo", "three"]},
        "postCreateCommand": {"c": "echo 'four'; exit 7", "d": "echo five"}}"#;
    assert_eq!(run_hook(json), (Some(7), "one\ntwo\nthree\nfour\n".to_owned()));
}

#[test]
fn the_workspace_is_where_the_script_runs() {
    let json = r#"{"image": "a", "postCreateCommand": {
        "a": "cd / && basename ${containerWorkspaceFolder}",
        "b": ["basename", "${localWorkspaceFolder}/x y"],
        "c": "echo ${containerWorkspaceFolderBasename}"}}"#;
    let (status, said) = run_hook(json);
    assert_eq!(status, Some(0));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 3 && lines[0] == lines[2] && lines[0].starts_with(".tmp") && lines[1] == "x y", "{said}");
}
