//! Reading typed values out of a tree of nodes. What does not fit is reported with its place and left out, and reading
//! goes on.

use std::{collections::HashSet, fmt, sync::Arc};

use super::{
    node::{Node, Value},
    problem::{At, Place, Report, nearest, quoted},
};

/// Longer than any command or value of a variable needs to be.
const MAX_TEXT: usize = 64 << 10;

/// Longer than any name of a field or variable needs to be.
const MAX_NAME: usize = 256;

/// A node, and the field that it is the value of.
#[derive(Debug, Clone)]
pub(super) struct Item<'n> {
    pub node: &'n Node,
    pub place: Place,
}

impl<'n> Item<'n> {
    pub(super) fn root(node: &'n Node, document: &Arc<str>) -> Self {
        Self { node, place: Place { document: document.clone(), mark: node.mark, field: String::new() } }
    }

    fn child(&self, node: &'n Node, name: &str) -> Self {
        let field = if self.place.field.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place.field) };
        Self { node, place: Place { document: self.place.document.clone(), mark: node.mark, field } }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    fn expected(&self, what: &str, report: &mut Report) {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar(text) => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        report.error(&self.place, format_args!("must be {what}, not {found}"));
    }

    /// Text, or a number or truth value as it is written.
    pub(super) fn text(&self, report: &mut Report) -> Option<&'n str> {
        match &self.node.value {
            Value::Scalar(text) if text.len() > MAX_TEXT => {
                report.error(&self.place, format_args!("is longer than {} KiB", MAX_TEXT >> 10));
                None
            }
            Value::Scalar(text) if text.contains('\0') => {
                report.error(&self.place, "must not contain a NUL");
                None
            }
            Value::Scalar(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected("text", report);
                None
            }
        }
    }

    /// A text that `parse` makes something of.
    pub(super) fn parse<T, E: fmt::Display>(
        &self,
        report: &mut Report,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let text = self.text(report)?;
        match parse(text) {
            Ok(value) => Some(At { value, place: self.place.clone() }),
            Err(error) => {
                report.error(&self.place, error);
                None
            }
        }
    }

    /// The items of a list of at most `max`.
    pub(super) fn list(&self, report: &mut Report, max: usize) -> Vec<Item<'n>> {
        let Value::List(nodes) = &self.node.value else {
            self.expected("a list", report);
            return Vec::new();
        };
        if nodes.len() > max {
            report.error(&self.place, format_args!("has {} entries; the most is {max}", nodes.len()));
        }
        let item = |(index, node): (usize, &'n Node)| Item {
            node,
            place: Place { mark: node.mark, field: format!("{}[{index}]", self.place.field), ..self.place.clone() },
        };
        nodes.iter().take(max).enumerate().map(item).collect()
    }

    /// The entries of a map whose keys are anybody's, at most `max`.
    pub(super) fn entries(&self, report: &mut Report, max: usize) -> Vec<(&'n str, Item<'n>)> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map", report);
            return Vec::new();
        };
        if entries.len() > max {
            report.error(&self.place, format_args!("has {} entries; the most is {max}", entries.len()));
        }
        let mut seen = HashSet::new();
        let mut items = Vec::new();
        for (key, node) in entries.iter().take(max) {
            let item = self.child(node, &shown_name(&key.name));
            if seen.insert(&key.name) {
                items.push((key.name.as_str(), item));
            } else {
                report.error(&Place { mark: key.mark, ..item.place }, "is there twice");
            }
        }
        items
    }

    /// The fields of a map; one that is not in `known` is an error.
    pub(super) fn fields(&self, report: &mut Report, known: &[&str]) -> Fields<'n> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map", report);
            return Fields::default();
        };
        let mut fields = Fields::default();
        for (key, node) in entries {
            let mut item = self.child(node, &shown_name(&key.name));
            let key_place = Place { mark: key.mark, ..item.place.clone() };
            if !known.contains(&key.name.as_str()) {
                report.error(&key_place, unknown_field(&key.name, known));
            } else if fields.key(&key.name).is_some() {
                report.error(&key_place, "is there twice");
            } else {
                // What has a value on lines of its own is looked for where its name is.
                if matches!(node.value, Value::List(_) | Value::Map(_)) {
                    item.place.mark = key.mark;
                }
                fields.0.push((key.name.clone(), item));
            }
        }
        fields
    }
}

fn unknown_field(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("unknown field; did you mean {meant}?"),
        None => {
            let names: Vec<&str> = known.iter().copied().filter(|name| !name.ends_with('!')).collect();
            format!("unknown field; the fields here are {}", names.join(", "))
        }
    }
}

fn shown_name(name: &str) -> String {
    if name.len() <= MAX_NAME { name.to_owned() } else { quoted(name) }
}

/// The fields that a map sets.
#[derive(Debug, Default)]
pub(super) struct Fields<'n>(Vec<(String, Item<'n>)>);

impl<'n> Fields<'n> {
    /// The field, if the map has it, with a value or without.
    pub(super) fn key(&self, name: &str) -> Option<&Item<'n>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, item)| item)
    }

    /// The field, if the map sets it. One without a value, such as a list whose items are all commented out, is not set.
    pub(super) fn get(&self, name: &str) -> Option<&Item<'n>> {
        self.key(name).filter(|item| !item.is_null())
    }
}
