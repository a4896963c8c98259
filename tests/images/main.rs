//! The image store: what goes in comes out again exactly, also by a push, and what is in use stays.

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod exactness;
mod keeping;
mod pushing;

use std::path::{Path, PathBuf};

use common::{
    Host, Run,
    oci::{Archive, Form, Layer, Layout},
    snapshot,
};

/// A host that is only used as an image store.
fn host() -> Host {
    Host::new().no_image().prepare()
}

/// Unpacks a tar with GNU tar.
fn untar(tar: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    Run::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-xpf"])
        .arg(tar)
        .arg("-C")
        .arg(to)
        .run()
        .ok();
}

/// Exports an image and unpacks it with GNU tar.
fn exported(host: &Host, reference: &str, name: &str) -> PathBuf {
    let tar = host.scratch().join(format!("{name}.tar"));
    host.podspawn(["image", "export", reference]).arg(&tar).run().ok();
    let tree = host.scratch().join(name);
    untar(&tar, &tree);
    tree
}

/// What umoci makes of an image: it applies the layers one by one.
fn unpacked_by_umoci(host: &Host, layout: &Path, tag: &str) -> PathBuf {
    let bundle = host.scratch().join(format!("umoci-{tag}"));
    let image = format!("{}:{tag}", layout.display());
    Run::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).run().ok();
    bundle.join("rootfs")
}
