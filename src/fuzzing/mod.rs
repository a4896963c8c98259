//! What is done with bytes that anybody may have made: one function for each parser of strangers' input, which must neither panic
//! nor go on for ever, and what must hold for whatever it accepts.
//!
//! Not part of the program. `scripts/fuzz` runs these under cargo-fuzz for as long as wanted; the unit tests run each over its
//! corpus in `fuzz/corpus/` and over some thousand mutations of that (see `tests`).

#[cfg(test)]
mod tests;

use crate::{
    access, image, init,
    podfile::{self, Document, External, Format, Origin, Source, SourceError},
    protocol::{
        FromConnection, FromInit, FromNewborn, FromSpawner, ToConnection, ToInit, ToSpawner, announcement, wire,
    },
};

/// A parser of strangers' input, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 11] = [
    ("announcement", announcement),
    ("authorized_keys", access::fuzz::authorized_keys),
    ("certificate", access::fuzz::credential),
    ("devcontainer", devcontainer),
    ("init_protocol", messages),
    ("krl", access::fuzz::krl),
    ("layer", image::fuzz::layer),
    ("manifest", image::fuzz::manifest),
    ("podfile", podfile),
    ("reference", image::fuzz::reference),
    ("sftp", init::sftp::fuzz::packet),
];

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or if it has found a fault.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of the table");
    target(data);
}

fn announcement(data: &[u8]) {
    if let Some(project) = announcement::announced(data) {
        assert_eq!(announcement::announcement(&project).as_bytes(), data, "there is one way to say it");
    }
}

fn podfile(data: &[u8]) {
    document(data, Format::Podfile);
}

fn devcontainer(data: &[u8]) {
    document(data, Format::DevContainer);
}

/// Extends lead nowhere.
struct Nothing;

impl Source for Nothing {
    fn read(&self, _: &External, _: &Origin) -> Result<Document, SourceError> {
        Err(SourceError::Refused { what: "it".to_owned(), why: "there is nothing" })
    }
}

fn document(data: &[u8], format: Format) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let document = |text: &str, format| Document {
        name: "podfile.yaml".to_owned(),
        origin: Origin::File("/podfile.yaml".into()),
        text: text.to_owned(),
        format,
    };
    match podfile::resolve(&document(text, format), &Nothing) {
        Err(invalid) => assert!(!invalid.errors.is_empty(), "it is said what is wrong"),
        Ok(resolved) => {
            let written = serde_yaml::to_string(&resolved.podfile).expect("what is read can be written");
            let again = podfile::resolve(&document(&written, Format::Podfile), &Nothing);
            let again = again.unwrap_or_else(|invalid| panic!("{written}\nis not valid: {invalid}"));
            let again = serde_yaml::to_string(&again.podfile).expect("and again");
            assert_eq!(again, written, "what is written means the same");
        }
    }
}

/// Every message that is taken for input: what can be read can be written, and is then read the same.
fn messages(data: &[u8]) {
    fn message<T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(data: &[u8]) {
        if let Ok(message) = wire::decode::<T>(data) {
            let text = format!("{message:?}");
            // It may be larger written than read, as numbers have several forms.
            if let Ok(written) = wire::encode(&message) {
                let again = wire::decode::<T>(&written).expect("what is written can be read");
                assert_eq!(format!("{again:?}"), text);
            }
        }
    }
    message::<ToInit>(data);
    message::<FromInit>(data);
    message::<FromConnection>(data);
    message::<ToConnection>(data);
    message::<FromNewborn>(data);
    message::<FromSpawner>(data);
    message::<ToSpawner>(data);
}
