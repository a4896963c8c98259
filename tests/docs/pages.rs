//! The documentation as text: its pages, and the blocks in them.

use std::{fs, path::PathBuf};

pub fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page, relative to the repository.
pub fn pages() -> Vec<String> {
    let mut pages: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned).into();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

/// What is between two lines of three backticks, or an HTML comment that is about the next such.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    pub page: String,
    /// Of its first line.
    pub line: usize,
    pub language: String,
    pub text: String,
    /// `<!-- not run: WHY -->` before it.
    pub not_run: Option<String>,
    /// `<!-- before: COMMANDS -->` before it.
    pub before: String,
}

/// The blocks of a page, in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let text = read(page);
    let mut found = Vec::new();
    let (mut not_run, mut before) = (None, String::new());
    let mut lines = text.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        let line = line.trim_start();
        if let Some(start) = line.strip_prefix("<!--") {
            let mut comment = start.to_owned();
            while !comment.contains("-->") {
                comment.push('\n');
                comment += lines.next().expect("a comment ends").1;
            }
            let comment = comment.split("-->").next().unwrap().trim().to_owned();
            match comment.split_once(": ") {
                Some(("not run", why)) => not_run = Some(why.to_owned()),
                Some(("before", commands)) => before = commands.to_owned(),
                _ => {}
            }
        } else if let Some(language) = line.strip_prefix("```") {
            let mut block = Block {
                page: page.to_owned(),
                line: 0,
                language: language.to_owned(),
                text: String::new(),
                not_run: not_run.take(),
                before: std::mem::take(&mut before),
            };
            for (number, line) in lines.by_ref() {
                if line.trim_start().starts_with("```") {
                    break;
                }
                if block.line == 0 {
                    block.line = number + 1;
                }
                block.text += line;
                block.text.push('\n');
            }
            found.push(block);
        }
    }
    found
}

/// A command of a block, and what the page shows of its output.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub command: String,
    pub output: Vec<String>,
}

/// The commands of a block that begin with `$ ` or `# `, with their here-documents.
pub fn commands(block: &Block) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let mut until: Option<String> = None;
    for line in block.text.lines() {
        if let Some(end) = &until {
            let shown = found.last_mut().unwrap();
            shown.command.push('\n');
            shown.command += line;
            if line == end {
                until = None;
            }
        } else if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")) {
            let word = command.split_once("<< ").and_then(|(_, rest)| rest.split_whitespace().next());
            until = word.map(|word| word.trim_matches('\'').to_owned());
            found.push(Shown { command: command.to_owned(), output: Vec::new() });
        } else {
            let shown =
                found.last_mut().unwrap_or_else(|| panic!("{}:{}: output of no command", block.page, block.line));
            shown.output.push(line.to_owned());
        }
    }
    found
}

/// Whether `line` is what `pattern` says, where `...` stands for any text.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut open = false;
    for part in parts {
        open = true;
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || (open && pattern.ends_with("..."))
}

#[test]
fn output_is_compared_with_dots_for_what_differs() {
    assert!(matches("a b", "a b") && matches("a ... c", "a b c") && matches("a...", "abc") && matches("... c", "a c"));
    assert!(!matches("a", "ab") && !matches("a ... d", "a b c") && !matches("b...", "abc"));
}
