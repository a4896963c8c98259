//! Links between pages, as GitHub shows them and as the book has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    common::Run,
    pages::{pages, read, root},
};

/// The lines of a page that are not in a block.
fn prose(page: &str) -> Vec<(usize, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in read(page).lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            found.push((number + 1, line.to_owned()));
        }
    }
    found
}

/// The anchors of a page's headings: lower case, without punctuation, `-` for spaces, and numbers for repetitions.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(page) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
        let slug: String = title.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let mut anchor = slug.clone();
        let mut number = 0;
        while !found.insert(anchor.clone()) {
            number += 1;
            anchor = format!("{slug}-{number}");
        }
    }
    found
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> Vec<String> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages() {
        for (number, line) in prose(&page) {
            for target in targets(&line).into_iter().filter(|target| !target.contains("://")) {
                seen += 1;
                let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
                let path =
                    if file.is_empty() { root().join(&page) } else { root().join(&page).parent().unwrap().join(file) };
                let leads = path.exists() && {
                    let inside = path.canonicalize().unwrap();
                    let inside = inside.strip_prefix(root().canonicalize().unwrap()).unwrap().to_str().unwrap();
                    anchor.is_empty() || anchors(inside).contains(anchor)
                };
                if !leads {
                    wrong.push(format!("{page}:{number}: {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 30, "{seen} links are few");
}

#[test]
fn every_page_is_in_the_book() {
    let summary: BTreeSet<String> = targets(&read("docs/SUMMARY.md").replace('\n', " ")).into_iter().collect();
    let there = pages().into_iter().filter_map(|page| page.strip_prefix("docs/").map(str::to_owned));
    let there: BTreeSet<String> = there.filter(|page| page != "SUMMARY.md").collect();
    assert_eq!(summary, there);
}

/// The values of an attribute in a page of the book.
fn attributes(html: &str, name: &str) -> Vec<String> {
    let start = format!(" {name}=\"");
    html.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

/// The book's pages by path.
fn built(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "html") {
            found.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
    found
}

#[test]
fn the_book_is_built_and_its_links_lead_somewhere() {
    let directory = tempfile::tempdir().unwrap();
    let book = Run::new(root().join("scripts/book")).arg("--dest-dir").arg(directory.path());
    // The first call builds mdBook.
    book.deadline(std::time::Duration::from_secs(1200)).run().ok();
    let pages = built(directory.path());
    assert!(pages.len() > 10, "{} pages", pages.len());
    let mut wrong = Vec::new();
    for (path, html) in &pages {
        // mdBook's page for whatever is not there, and the one for printers, name no files of ours.
        if path.ends_with("404.html") || path.ends_with("print.html") {
            continue;
        }
        for target in attributes(html, "href") {
            if target.contains("://") || target.starts_with("mailto:") || target.starts_with("../") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = if file.is_empty() { path.clone() } else { directory.path().join(file) };
            let leads = to.exists()
                && (anchor.is_empty() || pages.get(&to).is_some_and(|html| html.contains(&format!("id=\"{anchor}\""))));
            if !leads {
                wrong.push(format!("{}: {target}", path.file_name().unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
