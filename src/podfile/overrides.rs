//! What an administrator says about one user: some of a Podfile's fields, in its language, with the same care for mistakes.

use std::collections::BTreeMap;

use super::{
    Invalid,
    choice::{Mode, User},
    fields::{MAX_ENTRIES, dotfiles, limits, variables_of},
    problem::{At, Place, Report},
    read::Item,
    resolved::{Dotfiles, Resources},
    value::{self, ValueError},
    yaml,
};
use crate::{config::Egress, image::Reference};

const FIELDS: &[&str] =
    &["image", "cpus", "memory", "pids", "disk", "shell", "mode", "env", "dotfiles", "user", "nested", "egress"];

/// What wins over defaults and Podfiles for one user. What is `None` or empty is not said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    /// For sessions without a project.
    pub image: Option<String>,
    pub resources: Resources,
    pub shell: Option<String>,
    pub mode: Option<Mode>,
    /// An empty value takes a variable away.
    pub env: BTreeMap<String, String>,
    pub dotfiles: Option<Dotfiles>,
    pub user: Option<User>,
    /// Whether sandboxes work inside. No Podfile can say it.
    pub nested: Option<bool>,
    /// Where the user's sessions may connect to. No Podfile can say it.
    pub egress: Option<Egress>,
}

impl Overrides {
    /// Reads the text of the file that messages call `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        let mut report = Report::default();
        let overrides = match yaml::parse(text) {
            Ok(root) => Self::read(&Item::root(&root, &name.into()), &mut report),
            Err(error) => {
                let place = Place { document: name.into(), mark: error.mark, field: String::new() };
                report.error(&place, error.message);
                Self::default()
            }
        };
        report.sort(&[name.to_owned()]);
        if report.errors.is_empty() {
            return Ok(overrides);
        }
        Err(Invalid { errors: report.errors, warnings: report.warnings, unlisted: report.unlisted })
    }

    fn read(root: &Item<'_>, report: &mut Report) -> Self {
        // A file whose lines are all comments says nothing.
        if root.is_null() {
            return Self::default();
        }
        let fields = root.fields(report, FIELDS);
        let value = |at: Option<At<String>>| at.map(|at| at.value);
        Self {
            image: value(fields.get("image").and_then(|item| item.parse(report, image))),
            resources: limits(&fields, report).into(),
            shell: value(fields.get("shell").and_then(|item| item.parse(report, value::shell))),
            mode: fields.get("mode").and_then(|item| item.parse(report, Mode::parse)).map(|at| at.value),
            env: fields.get("env").map(|item| variables_of(item, report)).unwrap_or_default(),
            dotfiles: fields.get("dotfiles").and_then(|item| dotfiles(item, report)).map(|at| at.value),
            user: fields.get("user").and_then(|item| item.parse(report, User::parse)).map(|at| at.value),
            nested: fields.get("nested").and_then(|item| item.parse(report, switch)).map(|at| at.value),
            egress: fields.get("egress").and_then(|item| egress(item, report)),
        }
    }
}

/// Of an administrator's any image will do.
fn image(text: &str) -> Result<String, ValueError> {
    let parsed = text.parse::<Reference>();
    parsed.map(|_| text.to_owned()).map_err(|error| ValueError::Other(error.to_string()))
}

fn egress(item: &Item<'_>, report: &mut Report) -> Option<Egress> {
    if !item.is_list() {
        return item.parse(report, Egress::word).map(|at| at.value);
    }
    let items = item.list(report, MAX_ENTRIES);
    let networks = items.iter().filter_map(|item| item.parse(report, Egress::network)).map(|at| at.value);
    Some(Egress::Only(networks.collect()))
}

fn switch(text: &str) -> Result<bool, ValueError> {
    text.parse().map_err(|_| ValueError::Word { value: text.to_owned(), known: &["true", "false"] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podfile::Bytes;

    #[test]
    fn what_a_file_says_is_read() {
        let text = "image: debian:12\ncpus: 0.5\nmemory: 512m\npids: 99\ndisk: 5g\nshell: /bin/zsh\nmode: grace-period\nuser: root\n\
                    nested: true\negress: [10.0.0.0/8]\n\
                    env: {A: 1.20, B:}\ndotfiles: {repo: github.com/me/dots, install: ./install.sh}\n";
        let overrides = Overrides::parse("ada.yaml", text).unwrap();
        let expected = Overrides {
            image: Some("debian:12".to_owned()),
            resources: Resources {
                cpus: Some(0.5),
                memory: Some(Bytes(512 << 20)),
                pids: Some(99),
                disk: Some(Bytes(5 << 30)),
            },
            shell: Some("/bin/zsh".to_owned()),
            mode: Some(Mode::GracePeriod),
            env: [("A", "1.20"), ("B", "")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            dotfiles: Some(Dotfiles {
                repo: "https://github.com/me/dots".to_owned(),
                install: Some("./install.sh".to_owned()),
            }),
            user: Some(User::Root),
            nested: Some(true),
            egress: Some(Egress::Only(vec![("10.0.0.0".parse().unwrap(), 8)])),
        };
        assert_eq!(overrides, expected);
        for nothing in ["", "# memory: 1g\n", "memory:\n"] {
            assert_eq!(Overrides::parse("ada.yaml", nothing).unwrap(), Overrides::default(), "{nothing:?}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_places() {
        let table = [
            ("memroy: 1g", "ada.yaml:1:1: memroy: unknown field; did you mean memory?"),
            ("memory: lots", "ada.yaml:1:9: memory: \"lots\" is not a size"),
            ("\nmode: forever", "ada.yaml:2:7: mode: \"forever\" is not one of grace-period"),
            ("disk: 5", "ada.yaml:1:7: disk: \"5\" is not between 16m and 16t"),
            ("shell: zsh", "ada.yaml:1:8: shell: \"zsh\" is not an absolute path"),
            ("nested: perhaps", "ada.yaml:1:9: nested: \"perhaps\" is not one of true, false"),
            ("egress: all", "ada.yaml:1:9: egress: \"all\" is not one of public, none, open, a list"),
            ("egress: [10.0.0.0/8, a.test]", "egress[1]: \"a.test\": rules for names of hosts are not supported"),
            ("user: ada", "ada.yaml:1:7: user: \"ada\" is not one of root"),
            ("env: [A]", "ada.yaml:1:1: env: must be a map, not a list"),
            ("env: {A=B: x}", "is not a name of a variable"),
            ("dotfiles: {install: x}", "dotfiles: has no repo"),
            ("image: X Y", "ada.yaml:1:8: image: "),
            ("- a", "must be a map"),
            ("a: [", "ada.yaml:"),
        ];
        for (text, expected) in table {
            let error = Overrides::parse("ada.yaml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
