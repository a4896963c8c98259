//! A document as a tree in which every node knows its line and column, whatever language it was written in.

/// A position in a document; line and column count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

impl Mark {
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub mark: Mark,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    /// Text, a number or a truth value, as it is written: whoever reads a field knows which it is to be, so that
    /// `go: 1.20` does not become 1.2.
    Scalar(String),
    List(Vec<Node>),
    /// In the order of the document; a key may be there twice.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub mark: Mark,
    pub name: String,
}

/// Why a text is not a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyntaxError {
    pub mark: Mark,
    pub message: String,
}

/// More levels than any Podfile has; the readers are recursive.
pub(super) const MAX_DEPTH: usize = 16;
