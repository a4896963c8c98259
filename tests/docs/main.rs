//! The documentation holds: links lead somewhere, commands work and print what they are said to, files are valid.
//!
//! A ```` ```console ```` block has commands after `$ ` or `# `, which are run as they are written, one after the other, against an
//! instance of the page's own; see `sandbox`. Lines below a command are lines of its output, `...` stands for what differs.
//! `<!-- before: COMMANDS -->` before a block is run first, and not shown. `<!-- not run: WHY -->` is for what cannot be
//! run here.

#[path = "../common/mod.rs"]
mod common;
mod links;
mod monitoring;
mod pages;
mod sandbox;

use std::fs;

use common::{Host, Run, binary};
use pages::{Block, blocks, commands, pages};
use sandbox::run_page;

#[test]
fn the_commands_of_the_readme_work() {
    run_page("README.md");
}

#[test]
fn the_commands_on_the_users_machine_work() {
    run_page("docs/client.md");
}

#[test]
fn the_commands_on_images_work() {
    run_page("docs/images.md");
}

#[test]
fn the_commands_on_podfiles_work() {
    run_page("docs/podfile.md");
}

#[test]
fn the_commands_on_ssh_work() {
    run_page("docs/ssh.md");
}

#[test]
fn the_commands_of_the_quickstart_work() {
    run_page("docs/quickstart.md");
}

#[test]
fn the_commands_for_agents_work() {
    run_page("docs/agents.md");
}

#[test]
fn the_commands_of_operations_work() {
    run_page("docs/operations.md");
}

#[test]
fn the_commands_of_troubleshooting_work() {
    run_page("docs/troubleshooting.md");
}

/// Those that have a test above.
const RUN: &[&str] = &[
    "docs/quickstart.md",
    "docs/agents.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
    "README.md",
    "docs/client.md",
    "docs/images.md",
    "docs/podfile.md",
    "docs/ssh.md",
];

fn all_blocks() -> Vec<Block> {
    pages().iter().flat_map(|page| blocks(page)).collect()
}

#[test]
fn no_block_of_commands_is_left_out_but_with_a_reason() {
    let mut left_out = Vec::new();
    for block in all_blocks() {
        let at = format!("{}:{}", block.page, block.line);
        assert!(!["sh", "bash", "shell"].contains(&block.language.as_str()), "{at}: write ```console and prompts");
        if block.language != "console" {
            assert!(block.not_run.is_none(), "{at}: only commands are run");
            continue;
        }
        assert!(!commands(&block).is_empty(), "{at}: no command");
        match &block.not_run {
            Some(why) => left_out.push(format!("{at}: {why}")),
            None => assert!(RUN.contains(&block.page.as_str()), "{at}: no test runs this page"),
        }
    }
    println!("not run:\n{}", left_out.join("\n"));
    assert!(left_out.len() <= 10, "these are many: {left_out:#?}");
}

/// Whether a file is accepted as one of the three kinds that there are; what is said otherwise.
fn accepted(text: &str) -> Result<&'static str, String> {
    let host = Host::new().no_image().prepare();
    let directory = host.scratch();
    let mut said = String::new();
    let mut accepts = |kind: &'static str, run: Run| {
        let output = run.run();
        said += &format!("as {kind}: {}", output.stderr);
        (output.status == Some(0)).then_some(kind)
    };
    fs::write(directory.join("podfile.yaml"), text).unwrap();
    fs::create_dir_all(directory.join(".podspawn")).unwrap();
    fs::write(directory.join(".podspawn/config.yaml"), text).unwrap();
    let server = host.podspawn(["--config"]).arg(directory.join("podfile.yaml")).args(["config", "check"]);
    let client = Run::new(binary()).args(["config", "show"]).env("HOME", directory);
    let podfile = host.podspawn(["podfile", "check"]).arg(directory.join("podfile.yaml"));
    accepts("config.yaml of a server", server)
        .or_else(|| accepts("config.yaml of a client", client))
        .or_else(|| accepts("podfile.yaml", podfile))
        .ok_or(said)
}

#[test]
fn every_file_that_is_shown_is_valid() {
    let mut seen = 0;
    for block in all_blocks().into_iter().filter(|block| block.language == "yaml") {
        seen += 1;
        accepted(&block.text).unwrap_or_else(|said| panic!("{}:{}: {said}", block.page, block.line));
    }
    assert!(seen > 3, "{seen} files are few");
    assert!(accepted("auth: {max_startup: 1}\n").is_err() && accepted("base: x\npakages: []\n").is_err());
}
