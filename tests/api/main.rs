//! The control API does what the commands do: with curl, and judged by the commands.

#[path = "../common/mod.rs"]
mod common;

mod builds;
mod host;
mod images;
mod people;
mod projects;
mod sessions;

use common::{Host, eventually};
use serde_json::{Value, json};

/// The last line of an answer that goes on.
fn last(answer: (u16, Value)) -> Value {
    assert_eq!(answer.0, 200, "{answer:?}");
    match answer.1 {
        Value::Array(mut lines) => lines.pop().unwrap(),
        one => one,
    }
}

/// The answer is a refusal with this status, and says why.
#[track_caller]
fn assert_refused(answer: (u16, Value), status: u16, why: &str) {
    let error = answer.1["error"].as_str().unwrap_or_default();
    assert!(answer.0 == status && error.contains(why), "{answer:?}");
}
