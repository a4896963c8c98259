//! The image store: pulls images, unpacks their layers once, keeps them for sessions, and pushes them.
//!
//! ```text
//! STATE/images/
//!   lock                 shared: while an image is being looked up for a session; exclusive: commit, rm, prune
//!   blobs/sha256/HEX     manifests and configurations (layers are kept unpacked only)
//!   images/HEX.json      an image by the digest of its manifest: what it is made of
//!   refs/NAME.json       its names
//!   builds/HEX.json      the image that a step of a Podfile has led to, by the step's key
//!   layers/NAME/fs       an unpacked layer, a lowerdir of overlayfs; NAME is the start of its diff id
//!   layers/NAME/contents.json  what is known of it
//!   layers/NAME/packed.json    what it was pushed as, if it was
//!   locks/NAME           who makes this layer; a layer itself is locked by those who need it to stay
//!   tmp/                 what is unfinished, locked by its maker
//! ```
//!
//! A layer is unpacked in `tmp`, with every digest and size verified on the way, and becomes visible by rename; an image
//! becomes visible by the rename of its file in `refs`, after its layers. So a crash at any point leaves a store that works.
//! All of it works with several processes at once, by flock(2): the command line needs no server.
//!
//! An image that gets another content keeps its old one, without a name, until no session uses that and somebody prunes.

mod archive;
mod assemble;
mod auth;
mod bootstrap;
mod changes;
mod commit;
mod copy;
mod digest;
mod export;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod holes;
mod import;
mod kept;
mod layer;
mod manifest;
mod pack;
mod packages;
mod pull;
mod push;
mod reference;
mod registry;
mod repair;
mod side_by_side;
mod store;
mod tarball;
mod upstream;
mod view;

use std::{io, path::PathBuf};

pub use self::{
    commit::Upper,
    digest::Digest,
    import::ImportOptions,
    kept::{Kept, KeptFile},
    layer::{Contents, LayerError, Limits},
    packages::{Packages, Wanted, want},
    reference::{Reference, ReferenceError},
    store::{
        Built, ConfigChanges, ConfigError, Image, InUse, KEEP_BUILT, Needed, Pruned, Removed, Room, Settings, Store,
        StoreLease, listing,
    },
    upstream::{Libc, MAKERS, Upstream, UpstreamError},
};

/// Why an image could not be had, kept or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot use {}", .0.display())]
    Store(PathBuf, #[source] io::Error),
    #[error("{} is damaged: {what}; pull the image again", .path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("cannot read {0}")]
    Source(String, #[source] io::Error),
    #[error("{what} of {image} is not valid: {why}")]
    Invalid { image: String, what: &'static str, why: String },
    #[error("{what} {digest} does not have this digest")]
    DigestMismatch { what: &'static str, digest: Digest },
    #[error("{what} {digest} is not {expected} bytes long")]
    SizeMismatch { what: &'static str, digest: Digest, expected: u64 },
    #[error("layer {digest} unpacks to something else than the image says (diff id {expected})")]
    DiffIdMismatch { digest: Digest, expected: Digest },
    #[error("cannot unpack {layer}")]
    Layer {
        /// Its digest, or where it comes from.
        layer: String,
        #[source]
        source: LayerError,
    },
    #[error("{image} is not available for linux/{architecture}")]
    NoPlatform { image: String, architecture: String },
    #[error("{0} is not there")]
    NotFound(String),
    #[error("registry {registry} refuses access to {repository}; run: podman login {registry}")]
    Denied { registry: String, repository: String },
    #[error("registry {registry} cannot be reached")]
    Unreachable {
        registry: String,
        #[source]
        source: Box<crate::http::HttpError>,
    },
    #[error("registry {registry} answered {status} to {what}")]
    Answer { registry: String, status: u16, what: String },
    #[error("the login data in {}", .0.display())]
    Auth(PathBuf, #[source] io::Error),
    #[error("{0} is not a place to push to; write a registry's name and a tag, such as localhost:5000/name:tag")]
    NoDestination(String),
    #[error("cannot export {}", .0.display())]
    Export(PathBuf, #[source] io::Error),
    #[error("cannot copy {} of the image", .0.display())]
    Copy(PathBuf, #[source] io::Error),
    #[error("{0} is larger than images.max_size, or has more entries than images.max_entries")]
    TooLarge(String),
    #[error(
        "there is no room for it: {} MiB are free in {}, images.keep_free is {} MiB, and nothing more can be removed",
        .free >> 20, .directory.display(), .keep_free >> 20
    )]
    NoRoom { directory: PathBuf, free: u64, keep_free: u64 },
    #[error("{image} is in use by a session")]
    InUse { image: String },
    #[error("cannot find out which images are in use by sessions")]
    UseUnknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{program} is not installed; run: apt-get install mmdebstrap")]
    NoBootstrap { program: &'static str },
    #[error("mmdebstrap failed: {0}")]
    Bootstrap(String),
}

/// Hears how a pull or push goes on. Called from several threads.
pub trait Progress: Sync {
    /// A step, as one line of text.
    fn line(&self, line: &str);
    /// A layer of this many bytes is going to be transferred.
    fn start(&self, _layer: &Digest, _bytes: u64) {}
    /// More of it has come through.
    fn advance(&self, _layer: &Digest, _bytes: u64) {}
    /// It is complete, or was there already.
    fn finish(&self, _layer: &Digest) {}
    /// Nobody waits for it any more: it is to fail as soon as it can.
    fn is_unwanted(&self) -> bool {
        false
    }
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn line(&self, _line: &str) {}
}
