//! A tar of a root file system becomes an image with one layer.

use std::io::Read;

use oci_spec::image::Arch;
use serde_json::json;

use super::{
    ConfigError, Digest, Image, ImageError, Reference, Store, assemble,
    layer::Budget,
    manifest::{Layer, Resolved},
    store::check_env,
};

/// What the image's configuration is to say.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// `Cmd`
    pub command: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
}

impl ImportOptions {
    /// Checks each value on its own.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_env(&self.env)
    }
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Store {
    /// Unpacks the tar `stream` (gzip, zstd or plain) into an image that is called `reference`. One of this name that is
    /// there already is replaced. `source` is for messages.
    pub fn import(
        &self,
        stream: impl Read,
        source: &str,
        reference: &Reference,
        options: &ImportOptions,
    ) -> Result<Image, ImageError> {
        let budget = Budget::new(self.settings.limits);
        let layer = self.unpack_unknown_layer(stream, source, &budget)?;
        let diff_id = layer.diff_id.clone();
        let mut env = options.env.clone();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.insert(0, PATH.to_owned());
        }
        let config = json!({
            "architecture": Arch::default(),
            "os": "linux",
            "config": {"Env": env, "Cmd": options.command},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = config.to_string().into_bytes();
        let config_digest = Digest::of(&config);
        let size = layer.contents.bytes;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size}],
        });
        let manifest = manifest.to_string().into_bytes();
        let resolved = Resolved {
            digest: Digest::of(&manifest),
            manifest,
            config_digest,
            config,
            layers: vec![Layer { digest: diff_id.clone(), size, diff_id }],
        };
        let stack = assemble::stack(self, source, vec![layer])?;
        self.commit(reference, (&resolved, false), &stack)
    }
}
