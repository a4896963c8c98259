//! docs/commands.md is made from the command line.

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::{Cli, GROUPS};
use crate::generated::{cell, page_is};

const HEAD: &str = "\
# Commands

`podspawn COMMAND --help` says the same. Commands exit with 0, with 1 after an error, which is told in one line on stderr, and with 2
if they do not understand their arguments; the exceptions are `ssh`, `exec` and `connect`, whose status is that of what they run.

This page is made from the program; `cargo test` compares them.
";

/// `--flag VALUE`, as it is written.
fn written(argument: &Arg) -> String {
    let value = || {
        let names = argument.get_value_names().unwrap_or_default();
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let takes = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let flags: Vec<String> =
        [argument.get_short().map(|c| format!("-{c}")), argument.get_long().map(|l| format!("--{l}"))]
            .into_iter()
            .flatten()
            .collect();
    match (flags.is_empty(), takes) {
        (true, _) => value(),
        (false, false) => flags.join(", "),
        (false, true) => format!("{} {}", flags.join(", "), value()),
    }
}

fn arguments<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut rows = String::new();
    for argument in arguments.filter(|argument| !argument.is_hide_set()) {
        // The long help begins with the short one.
        let help = argument.get_long_help().or(argument.get_help()).expect("has help").to_string();
        rows += &format!("| `{}` | {} |\n", cell(&written(argument)), cell(&help));
    }
    if rows.is_empty() { rows } else { format!("| argument | |\n|---|---|\n{rows}\n") }
}

fn describe(page: &mut String, command: &Command, path: &str) {
    let name = format!("{path} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).expect("has help");
    *page += &format!("### {}\n\n{about}", name.trim_start_matches("podspawn "));
    if !about.to_string().ends_with('.') {
        page.push('.');
    }
    page.push_str("\n\n");
    if !command.has_subcommands() {
        let usage = command.clone().render_usage().to_string();
        // Of a part of the command line clap knows the last word only.
        let usage = usage.trim_start_matches("Usage: ");
        let usage = if usage.starts_with("podspawn ") {
            usage.to_owned()
        } else {
            usage.replacen(command.get_name(), &name, 1)
        };
        *page += &format!("```text\n{usage}\n```\n\n");
        *page += &arguments(command.get_arguments().filter(|argument| !argument.is_global_set()));
    }
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help" && !inner.is_hide_set());
    inner.for_each(|inner| describe(page, inner, &name));
}

fn page() -> String {
    let command = Cli::command();
    let mut page = HEAD.to_owned();
    page += "\n## Flags of every command\n\n";
    page += &arguments(command.get_arguments());
    for line in GROUPS.lines() {
        match line.strip_prefix("  ").and_then(|line| line.split_whitespace().next()) {
            Some(name) => describe(&mut page, command.find_subcommand(name).unwrap(), "podspawn"),
            None if line.ends_with(':') => page += &format!("## {}\n\n", line.trim_end_matches(':')),
            None => {}
        }
    }
    page.trim_end().to_owned() + "\n"
}

#[test]
fn the_page_on_the_commands_is_current() {
    page_is("commands.md", &page());
}
