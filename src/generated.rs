//! Pages of docs/ that are made from the program, which a test compares with it.

use std::{fs, path::Path};

/// Fails if docs/`page` is not `text`; with `PODSPAWN_WRITE_DOCS` in the environment it writes the page instead.
pub(crate) fn page_is(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os("PODSPAWN_WRITE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, text)| found != text);
    assert!(
        found == text,
        "docs/{page} is not what the program says (page, program): {differs:?}; \
         PODSPAWN_WRITE_DOCS=1 cargo test --lib reference writes it anew"
    );
}

/// For a cell of a table.
pub(crate) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
