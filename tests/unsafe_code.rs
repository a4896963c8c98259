//! How much of the code the compiler does not check, and that the documentation says so.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of the file that have the keyword, outside of comments and of names such as `unsafe_code`.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let keyword = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    };
    text.lines().enumerate().filter(|(_, line)| keyword(line)).map(|(index, _)| index).collect()
}

/// Whether a comment that says `SAFETY:` is right above the statement that the line is of.
fn is_proved(lines: &[&str], index: usize) -> bool {
    lines[..index].iter().rev().take(6).any(|line| line.contains("// SAFETY:"))
}

#[test]
fn all_unsafe_code_is_in_sys_and_proved_and_counted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 100, "{}", files.len());
    let mut count = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for index in unsafe_lines(&text) {
            let place = format!("{}:{}", file.display(), index + 1);
            assert!(file.starts_with(root.join("src/sys")), "{place} is outside of src/sys");
            assert!(is_proved(&lines, index), "{place} has no SAFETY comment");
            count += 1;
        }
    }
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    assert!(page.contains(&format!("There are {count} `unsafe` blocks")), "docs/security.md does not say {count}");
}
