//! YAML to a tree of nodes.
//!
//! Built from the events of a parser, as serde_yaml gives the place of some errors only and stops at the first one. YAML of
//! a stranger: nodes, nesting and what aliases repeat are bounded, so that a file of a few lines cannot become gigabytes.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::node::{Key, MAX_DEPTH, Mark, Node, SyntaxError, Value};

/// Nodes of a document, those that aliases repeat included.
const MAX_NODES: usize = 20_000;

/// Bytes of all scalars, those that aliases repeat included: four times the largest file.
const MAX_BYTES: usize = 4 << 20;

/// Reads a text that has one document in it, or none.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut tree = Tree { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, bytes: 0 };
    let mut root = None;
    loop {
        let (event, mark) = tree.next()?;
        match event {
            Event::StreamEnd => return Ok(root.unwrap_or(Node { mark: Mark::START, value: Value::Null })),
            Event::DocumentStart(_) if root.is_some() => {
                return Err(error(mark, "a second document begins here; a file is one document"));
            }
            Event::DocumentStart(_) => {
                let (event, mark) = tree.next()?;
                root = Some(tree.node(event, mark, 0)?);
            }
            // The start of the stream and the end of a document.
            _ => {}
        }
    }
}

struct Tree<'t> {
    parser: Parser<'t, StrInput<'t>>,
    /// What an alias stands for.
    anchors: HashMap<usize, Node>,
    nodes: usize,
    bytes: usize,
}

impl<'t> Tree<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Mark), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, mark_of(span.start))),
            Some(Err(scan)) => Err(scan_error(&scan)),
            None => Err(error(Mark::START, "the text ends too early")),
        }
    }

    /// The node that begins with `event`.
    fn node(&mut self, event: Event<'t>, mark: Mark, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(error(mark, &format!("more than {MAX_DEPTH} levels")));
        }
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let aliased = self.anchors.get(&anchor).cloned();
                let node = aliased.ok_or_else(|| error(mark, "this alias is part of what it stands for"))?;
                self.count_all(&node, mark, depth)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tagged = check_tag(tag.as_deref(), mark)?;
                let plain = style == ScalarStyle::Plain && !tagged;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                (anchor, if null { Value::Null } else { Value::Scalar(text.into_owned()) })
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), mark)?;
                (anchor, Value::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), mark)?;
                (anchor, Value::Map(self.map(depth)?))
            }
            other => return Err(error(mark, &format!("unexpected {other:?}"))),
        };
        let node = Node { mark, value };
        self.count(&node, mark)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, mark) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            items.push(self.node(event, mark, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, SyntaxError> {
        let mut own = Vec::new();
        let mut inherited: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, mark) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, 0, None) if text == "<<");
            let Value::Scalar(name) = self.node(event, mark, depth + 1)?.value else {
                return Err(error(mark, "a key must be text"));
            };
            let (event, value_mark) = self.next()?;
            let value = self.node(event, value_mark, depth + 1)?;
            if merge {
                inherited.extend(merged(value)?);
            } else {
                own.push((Key { mark, name }, value));
            }
        }
        // What the map says itself goes before what it merges in, and what is merged first before the rest.
        let mut known: HashSet<String> = own.iter().map(|(key, _)| key.name.clone()).collect();
        own.extend(inherited.into_iter().filter(|(key, _)| known.insert(key.name.clone())));
        Ok(own)
    }

    fn count(&mut self, node: &Node, mark: Mark) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if let Value::Scalar(text) = &node.value {
            self.bytes += text.len();
        }
        if self.nodes > MAX_NODES || self.bytes > MAX_BYTES {
            return Err(error(mark, "the document is too large, counting what its aliases repeat"));
        }
        Ok(())
    }

    fn count_all(&mut self, node: &Node, mark: Mark, depth: usize) -> Result<(), SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(error(mark, &format!("more than {MAX_DEPTH} levels")));
        }
        self.count(node, mark)?;
        match &node.value {
            Value::Null | Value::Scalar(_) => Ok(()),
            Value::List(items) => items.iter().try_for_each(|item| self.count_all(item, mark, depth + 1)),
            Value::Map(entries) => entries.iter().try_for_each(|(_, value)| self.count_all(value, mark, depth + 1)),
        }
    }
}

/// The entries that `<<` brings: of one map, or of a list of them.
fn merged(node: Node) -> Result<Vec<(Key, Node)>, SyntaxError> {
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::List(maps) => {
            let mut all = Vec::new();
            for map in maps {
                match map.value {
                    Value::Map(entries) => all.extend(entries),
                    _ => return Err(error(map.mark, "<< merges maps only")),
                }
            }
            Ok(all)
        }
        Value::Null | Value::Scalar(_) => Err(error(node.mark, "<< merges maps only")),
    }
}

/// Whether the tag makes a text of what it tags.
fn check_tag(tag: Option<&Tag>, mark: Mark) -> Result<bool, SyntaxError> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(true),
        Some(tag) if tag.handle == "!" => {
            Err(error(mark, &format!("write quotes around \"!{}\", as YAML gives ! a meaning of its own", tag.suffix)))
        }
        Some(_) => Err(error(mark, "tags are not supported")),
    }
}

fn mark_of(marker: Marker) -> Mark {
    Mark { line: marker.line(), column: marker.col() + 1 }
}

fn scan_error(scan: &ScanError) -> SyntaxError {
    error(mark_of(*scan.marker()), scan.info())
}

fn error(mark: Mark, message: &str) -> SyntaxError {
    SyntaxError { mark, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree as text without places.
    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".to_owned(),
            Value::Scalar(text) => text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{}:{}", key.name, shown(value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn documents_become_trees() {
        let table = [
            ("", "~"),
            ("# nothing\n", "~"),
            ("---\na: 1\n...\n", "{a:1}"),
            ("\u{feff}a: 1.20", "{a:1.20}"),
            ("a:\nb: ~\nc: null\nd: 'null'\ne: \"~\"\nf: !!str", "{a:~ b:~ c:~ d:null e:~ f:}"),
            ("a: [yes, 0x1f, \"1\"]", "{a:[yes 0x1f 1]}"),
            ("a: 1\na: 2", "{a:1 a:2}"),
            ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", "{a:{b:1 c:2} d:{c:3 b:1}}"),
            ("a: {<<: [&x {b: 1}, {b: 2, c: 3}]}", "{a:{b:1 c:3}}"),
            ("a: &x [1]\nb: *x\nc: {\"<<\": 1}", "{a:[1] b:[1] c:{<<:1}}"),
            ("a: |\n  x\n   y\nb: >-\n  u\n  v\n", "{a:x\n y\n b:u v}"),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).map(|node| shown(&node)).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        let table = [
            ("a: b: c", 1, 5, "mapping values are not allowed in this context"),
            ("a: 'b", 1, 4, "while scanning a quoted scalar, found unexpected end of stream"),
            ("a:\n\t- b", 2, 2, "tabs disallowed within this context (block indentation)"),
            ("a: *b", 1, 4, "while parsing node, found unknown anchor"),
            ("a: &b [*b]", 1, 8, "this alias is part of what it stands for"),
            ("a: 1\n---\nb: 2", 2, 1, "a second document begins here; a file is one document"),
            ("a:\n- !git", 2, 3, "write quotes around \"!git\", as YAML gives ! a meaning of its own"),
            ("a: !!binary aGk=", 1, 4, "tags are not supported"),
            ("? [a]\n: b", 1, 3, "a key must be text"),
            ("~: b", 1, 1, "a key must be text"),
            ("a: {<<: b}", 1, 9, "<< merges maps only"),
        ];
        for (text, line, column, message) in table {
            let error = SyntaxError { mark: Mark { line, column }, message: message.to_owned() };
            assert_eq!(parse(text).map(|node| shown(&node)), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_small_file_cannot_become_a_large_tree() {
        // A billion laughs, of nodes and of bytes; nesting, written in three ways.
        let mut nodes = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..=9 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            nodes += &format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", "));
        }
        let bytes = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(500));
        let aliases = (1..=20).map(|level| format!("a{level}: &a{level} [*a{}]\n", level - 1)).collect::<String>();
        let texts = [
            nodes,
            bytes,
            format!("a0: &a0 x\n{aliases}"),
            "[".repeat(100),
            "- ".repeat(100) + "x",
            (0..100).map(|depth| " ".repeat(depth) + "a:\n").collect(),
            "- x\n".repeat(MAX_NODES + 1),
        ];
        for text in texts {
            let error = parse(&text).map(|_| ()).unwrap_err();
            let bounded = error.message.contains("too large") || error.message.contains("levels");
            assert!(bounded, "{}: {}", text.chars().take(40).collect::<String>(), error.message);
        }
    }
}
