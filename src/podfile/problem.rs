//! What is wrong with a Podfile, and where.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::node::Mark;
use crate::errors::printable;

/// Problems that are kept; a file with more of them is not a Podfile, and the rest is only counted.
const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong, or that is not what its author may think.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// Such as `services[0].image`; empty if it is about the file.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Where a value is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub document: Arc<str>,
    pub mark: Mark,
    pub field: String,
}

/// A value and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At<T> {
    pub value: T,
    pub place: Place,
}

/// Collects what is found while a Podfile is read, so that everything is told at once.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Problems beyond `MAX_PROBLEMS`.
    pub unlisted: usize,
}

impl Report {
    pub(super) fn error(&mut self, place: &Place, message: impl fmt::Display) {
        push(&mut self.errors, &mut self.unlisted, place, &message);
    }

    pub(super) fn warning(&mut self, place: &Place, message: impl fmt::Display) {
        push(&mut self.warnings, &mut self.unlisted, place, &message);
    }

    /// Puts the problems into the order of the documents, which is that in which somebody mends them.
    pub(super) fn sort(&mut self, documents: &[String]) {
        for problems in [&mut self.errors, &mut self.warnings] {
            problems.sort_by_key(|problem| {
                let document = documents.iter().position(|name| printable(name) == problem.file);
                (document, problem.line, problem.column)
            });
        }
    }
}

fn push(problems: &mut Vec<Problem>, unlisted: &mut usize, place: &Place, message: &dyn fmt::Display) {
    if problems.len() >= MAX_PROBLEMS {
        *unlisted += 1;
        return;
    }
    // Names of fields and messages repeat what a stranger wrote.
    problems.push(Problem {
        file: printable(&place.document),
        line: place.mark.line,
        column: place.mark.column,
        field: printable(&place.field),
        message: printable(&message.to_string()),
    });
}

/// The one of `known` that was probably meant by `name`.
pub(super) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // No name of ours is nearly as long, and the comparison takes the product of both lengths.
    if name.len() > 64 {
        return None;
    }
    let distance = |candidate: &&str| strsim::damerau_levenshtein(candidate, name);
    let best = known.into_iter().min_by_key(distance)?;
    // Half of the letters, or it is another word.
    (distance(&best) * 2 <= name.chars().count().max(2)).then_some(best)
}

/// A value as messages repeat it: in quotes, and not all of it if it is long.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() { format!("{shown:?}...") } else { format!("{shown:?}") }
}
