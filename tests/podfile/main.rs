//! Podfiles good and bad, as `podspawn podfile check` and `podspawn init` see them.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod devcontainer;
mod init;

use std::{fs, path::PathBuf};

use common::{Output, Run, binary};
use serde_json::Value;

/// A project's directory.
struct Project(tempfile::TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = project.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn podspawn(&self, arguments: &[&str]) -> Run {
        let mut run = Run::new(binary()).args(arguments);
        run.command.current_dir(self.0.path());
        run
    }

    fn check(&self) -> Output {
        self.podspawn(&["podfile", "check"]).run()
    }
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

/// A table in a file: `### TITLE`, the input, `>>>`, and what is expected.
struct Case<'t> {
    title: &'t str,
    input: &'t str,
    expected: &'t str,
}

fn cases(table: &str) -> Vec<Case<'_>> {
    let case = |text| {
        let (title, rest): (&str, &str) = str::split_once(text, '\n').unwrap();
        let (input, expected) = rest.split_once("\n>>>\n").unwrap_or_else(|| panic!("{title}"));
        Case { title, input, expected: expected.trim_end() }
    };
    table.split("### ").skip(1).map(case).collect()
}
