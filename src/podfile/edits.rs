//! A list as a Podfile writes it: changes to what the Podfile that it extends has.
//!
//! Merging concatenates changes and resolving carries them out, so that a chain of Podfiles can be merged from either end, and
//! each change keeps its place for whatever is to be said about it.

use super::problem::{At, Place};

/// Changes, or a list that replaces everything before it (`packages!`).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edits<T> {
    pub replace: bool,
    pub changes: Vec<Change<T>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change<T> {
    Add(At<T>),
    /// `"!item"`: takes away what has this key.
    Remove(At<String>),
}

/// What a list has one of for each key.
pub(super) trait Keyed {
    fn key(&self) -> String;
    /// Takes over what a later Podfile says about the same thing.
    fn update(&mut self, newer: Self);
}

/// What a list has become, and the removals that found nothing.
pub(super) struct Applied<T> {
    pub items: Vec<At<T>>,
    pub unmatched: Vec<At<String>>,
}

impl<T> Default for Edits<T> {
    fn default() -> Self {
        Self { replace: false, changes: Vec::new() }
    }
}

impl<T> Edits<T> {
    /// These changes made to what `base` makes.
    pub(super) fn over(self, base: Self) -> Self {
        if self.replace {
            return self;
        }
        let mut changes = base.changes;
        changes.extend(self.changes);
        Self { replace: base.replace, changes }
    }

    pub(super) fn add(&mut self, value: T, place: Place) {
        self.changes.push(Change::Add(At { value, place }));
    }

    pub(super) fn remove(&mut self, key: String, place: Place) {
        self.changes.push(Change::Remove(At { value: key, place }));
    }

    /// Everything that is added, for lists in which things have no key.
    pub(super) fn into_added(self) -> Vec<At<T>> {
        let added = |change| match change {
            Change::Add(item) => Some(item),
            Change::Remove(_) => None,
        };
        self.changes.into_iter().filter_map(added).collect()
    }
}

impl<T: Keyed> Edits<T> {
    /// Carries the changes out, in order. Something that is there already stays in its position.
    pub(super) fn apply(self) -> Applied<T> {
        let mut items: Vec<(String, At<T>)> = Vec::new();
        let mut unmatched = Vec::new();
        for change in self.changes {
            match change {
                Change::Add(new) => {
                    let key = new.value.key();
                    match items.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, item)) => {
                            item.value.update(new.value);
                            item.place = new.place;
                        }
                        None => items.push((key, new)),
                    }
                }
                Change::Remove(key) => {
                    let before = items.len();
                    items.retain(|(known, _)| *known != key.value);
                    if items.len() == before {
                        unmatched.push(key);
                    }
                }
            }
        }
        let items = items.into_iter().map(|(_, item)| item).collect();
        Applied { items, unmatched }
    }
}
