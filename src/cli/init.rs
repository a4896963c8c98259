//! `init`.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context as _, bail};
use clap::{Args, builder::PossibleValuesParser};
use serde_yaml::Value;

use super::podfile::{LocalFiles, print_problems, unwritten};
use crate::podfile::{
    self, FILES, Format,
    builtin::{self, BuiltIn},
};

const FILE: &str = "podfile.yaml";

/// Longer than any sensible answer.
const MAX_ANSWER: u64 = 4096;

/// Write a podfile.yaml for the project in the current directory.
///
/// The template is chosen by what is there: go.mod, package.json, pyproject.toml, setup.py, requirements.txt, Cargo.toml. A few
/// questions follow, each with its answer if nothing is written.
#[derive(Debug, Args)]
pub struct Init {
    /// Begin with this template, whatever the directory has
    #[arg(short, long, value_name = "NAME", value_parser = template_names())]
    template: Option<String>,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

fn template_names() -> PossibleValuesParser {
    builtin::ALL
        .iter()
        .map(|template| clap::builder::PossibleValue::new(template.name).help(template.about))
        .collect::<Vec<_>>()
        .into()
}

impl Init {
    pub fn run(&self, quiet: bool) -> anyhow::Result<()> {
        let mut dialog = Dialog { input: io::stdin().lock(), asks: !self.yes };
        let replace = may_replace(&mut dialog)?;
        let template = self.choose(quiet)?;
        let text = if self.yes { template.text.to_owned() } else { ask(template, &mut dialog)? };
        match podfile::resolve(&unwritten(Path::new(FILE), text.clone())?, &LocalFiles::default()) {
            Ok(resolved) => print_problems("warning: ", &resolved.warnings)?,
            Err(invalid) => {
                print_problems("", &invalid.errors)?;
                bail!("{FILE} is not written, as it would not be valid");
            }
        }
        write(&text, replace)?;
        if !quiet {
            writeln!(io::stderr(), "Created {FILE}. To see what it means: podspawn podfile check")?;
        }
        Ok(())
    }

    fn choose(&self, quiet: bool) -> anyhow::Result<&'static BuiltIn> {
        if let Some(template) = self.template.as_deref().and_then(builtin::find) {
            return Ok(template);
        }
        let (template, markers) = builtin::detect(|name| Path::new(name).exists());
        if !quiet {
            let found = if markers.is_empty() { "no file that tells".to_owned() } else { markers.join(", ") };
            writeln!(io::stderr(), "Template {}: {} ({found})", template.name, template.about)?;
        }
        Ok(template)
    }
}

/// Whether a file that is there may be overwritten; an error if it is there and may not be.
fn may_replace(dialog: &mut Dialog<impl BufRead>) -> anyhow::Result<bool> {
    for (name, _) in FILES.iter().filter(|(_, format)| *format == Format::Podfile) {
        if !Path::new(name).exists() {
            continue;
        }
        if *name != FILE {
            bail!("{name} is there already, and goes before {FILE}");
        }
        if !dialog.ask("podfile.yaml is there already. Overwrite it?", "no")?.eq_ignore_ascii_case("yes") {
            bail!("{FILE} is there already");
        }
        return Ok(true);
    }
    Ok(false)
}

/// Asks what is usually different, and puts it into the template.
fn ask(template: &'static BuiltIn, dialog: &mut Dialog<impl BufRead>) -> anyhow::Result<String> {
    let mut text = template.text.to_owned();
    let fields: Value = serde_yaml::from_str(template.text).context("the template is not valid")?;
    let inherited = podfile::resolve(&template.document(), &LocalFiles::default())?.podfile;

    let base = inherited.base.to_string();
    let answer = dialog.ask("Base image?", &base)?;
    if answer != base {
        text = set(&text, "base", Value::from(answer))?;
    }
    let packages = words(fields.get("packages"));
    let answer = dialog.ask("Packages?", &packages)?;
    if answer != packages {
        text = set(&text, "packages", split(&answer).map(Value::from).collect())?;
    }
    let names: Vec<&str> = inherited.services.iter().map(|service| service.name.as_str()).collect();
    let services = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let answer = dialog.ask("Services (postgres, redis)?", &services)?;
    if answer != services {
        text = set(&text, "services", known_services(&answer)?)?;
    }
    let ports = words(fields.get("ports").and_then(|ports| ports.get("expose")));
    let answer = dialog.ask("Ports?", &ports)?;
    if answer != ports {
        // What is no number is left to the check of the whole.
        let ports = split(&answer).map(|port| port.parse::<u16>().map_or_else(|_| Value::from(port), Value::from));
        let expose = serde_yaml::Mapping::from_iter([(Value::from("expose"), ports.collect())]);
        text = set(&text, "ports", Value::from(expose))?;
    }
    Ok(text)
}

fn split(answer: &str) -> impl Iterator<Item = &str> {
    answer.split([',', ' ']).filter(|word| !word.is_empty())
}

fn words(list: Option<&Value>) -> String {
    let items = list.and_then(Value::as_sequence).map(Vec::as_slice).unwrap_or_default();
    let word =
        |item: &Value| item.as_str().map_or_else(|| item.as_u64().unwrap_or_default().to_string(), str::to_owned);
    items.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// The services of these names as the fullstack template has them.
fn known_services(answer: &str) -> anyhow::Result<Value> {
    let text = builtin::find("fullstack").map(|template| template.text).unwrap_or_default();
    let template: Value = serde_yaml::from_str(text).context("the template is not valid")?;
    let known = template.get("services").and_then(Value::as_sequence).map(Vec::as_slice).unwrap_or_default();
    let named = |name: &str| known.iter().find(|service| service.get("name").and_then(Value::as_str) == Some(name));
    if answer == "none" {
        return Ok(Value::Sequence(Vec::new()));
    }
    split(answer)
        .map(|name| named(name).cloned().with_context(|| format!("no service {name:?} is known here")))
        .collect()
}

/// The text with another value of a field. `text` is one of our templates: its fields begin lines.
fn set(text: &str, field: &str, value: Value) -> anyhow::Result<String> {
    let written = serde_yaml::to_string(&serde_yaml::Mapping::from_iter([(Value::from(field), value)]))?;
    let lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| line.split(':').next() == Some(field)) else {
        return Ok(format!("{text}{written}"));
    };
    let begins = |line: &&str| line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '#');
    let end = lines[start + 1..].iter().position(begins).map_or(lines.len(), |offset| start + 1 + offset);
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    Ok(format!("{}{written}{}", join(&lines[..start]), join(&lines[end..])))
}

/// Writes all of it or nothing, and over another file only if that is wanted.
fn write(text: &str, replace: bool) -> anyhow::Result<()> {
    let failed = || format!("cannot write {FILE}");
    let mut file = tempfile::NamedTempFile::new_in(".").with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).with_context(failed)?;
    if replace { file.persist(FILE).map(drop) } else { file.persist_noclobber(FILE).map(drop) }.with_context(failed)
}

/// Questions on standard error, answers from standard input.
struct Dialog<R> {
    input: R,
    asks: bool,
}

impl<R: BufRead> Dialog<R> {
    /// The answer, which is `default` if there is none, at the end of the input, or if nothing is asked.
    fn ask(&mut self, question: &str, default: &str) -> anyhow::Result<String> {
        if !self.asks {
            return Ok(default.to_owned());
        }
        write!(io::stderr(), "{question} [{default}] ")?;
        let mut line = String::new();
        (&mut self.input).take(MAX_ANSWER).read_line(&mut line).context("cannot read the answer")?;
        let answer = line.trim();
        Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_replaced_and_the_rest_stays_as_it_is() {
        let text = "# A\nbase: a\npackages:\n  - x\n\n  - y\n# B\nports:\n  expose: [1]\n";
        let list = |words: &[&str]| words.iter().copied().map(Value::from).collect::<Value>();
        assert_eq!(
            set(text, "packages", list(&["z"])).unwrap(),
            "# A\nbase: a\npackages:\n- z\n# B\nports:\n  expose: [1]\n"
        );
        assert_eq!(set(text, "base", Value::from("b")).unwrap(), text.replace("base: a", "base: b"));
        assert_eq!(set(text, "services", list(&[])).unwrap(), format!("{text}services: []\n"));
    }
}
