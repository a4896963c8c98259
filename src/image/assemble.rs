//! Stacking layers that were unpacked each on its own.
//!
//! A layer's archive may have `usr/bin/tool` without saying anything of `usr` and `usr/bin`. Unpacked on top of the layers
//! below, these would keep the owner and mode that they have there. Unpacked alone they have to be made up, and in an
//! overlay the uppermost directory's attributes count. So where they differ, one more layer with nothing but those
//! directories, as they should be, is put right above.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use nix::sys::{stat::UtimensatFlags, time::TimeSpec};

use super::{Contents, Digest, ImageError, Store, store::layer_name};
use crate::sys::remove_tree::remove_tree;

/// Owner and mode of a directory that nobody has described.
const MADE_UP: (u32, u32, u32) = (0, 0, 0o755);

/// The directories to stack for these layers (lowest first), uppermost first; `None` if one is not there.
pub(super) fn lowerdirs(store: &Store, diff_ids: &[Digest]) -> Result<Option<Vec<String>>, ImageError> {
    let mut below: Vec<(String, Contents)> = Vec::new();
    let mut stack = Vec::new();
    let mut chain = String::new();
    for diff_id in diff_ids {
        let name = layer_name(diff_id);
        if !store.has_layer(&name) {
            return Ok(None);
        }
        chain = Digest::of(format!("{chain} {diff_id}").as_bytes()).hex().to_owned();
        below.push((name.clone(), store.read_contents(&name)?));
        stack.push(name);
        stack.extend(correction(store, &below, &chain)?);
    }
    stack.reverse();
    Ok(Some(stack))
}

/// The layer that puts the uppermost one's made-up directories right, made now if need be.
fn correction(store: &Store, layers: &[(String, Contents)], chain: &str) -> Result<Option<String>, ImageError> {
    let Some((_, (_, top))) = layers.split_last().map(|(top, below)| (below, top)) else { return Ok(None) };
    let mut wrong = false;
    let mut directories: Vec<(&Path, Metadata)> = Vec::new();
    for path in &top.implied {
        if let Some(meta) = described(store, layers, path)? {
            wrong |= (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777) != MADE_UP;
            directories.push((path, meta));
        }
    }
    if !wrong {
        return Ok(None);
    }
    let name = layer_name(
        &format!("sha256:{}", Digest::of(format!("directories {chain}").as_bytes()).hex()).parse().map_err(
            |error: super::digest::DigestError| ImageError::Damaged {
                path: store.layers_root(),
                what: error.to_string(),
            },
        )?,
    );
    if !store.has_layer(&name) {
        let _turn = store.lock_layer(&name)?;
        if !store.has_layer(&name) {
            make(store, &name, layers, &directories)?;
        }
    }
    Ok(Some(name))
}

/// What the uppermost layer that describes this directory says of it.
fn described(store: &Store, layers: &[(String, Contents)], path: &Path) -> Result<Option<Metadata>, ImageError> {
    for (name, contents) in layers.iter().rev() {
        let full = store.layers_root().join(name).join(path);
        match fs::symlink_metadata(&full) {
            Ok(meta) if meta.is_dir() => {
                if !contents.implied.iter().any(|implied| implied == path) {
                    return Ok(Some(meta));
                }
            }
            // A file, or a whiteout: what is further below does not show.
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(error) => return Err(ImageError::Store(full, error)),
        }
    }
    Ok(None)
}

fn make(
    store: &Store,
    name: &str,
    layers: &[(String, Contents)],
    directories: &[(&Path, Metadata)],
) -> Result<(), ImageError> {
    let root = store.temporary_path();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| ImageError::Store(path, error)
    };
    fs::create_dir(&root).map_err(failed(&root))?;
    let made = (|| {
        // All the directories above them show too, so they need attributes as well.
        let mut all: Vec<PathBuf> = vec![PathBuf::new()];
        for (path, _) in directories {
            all.extend(path.ancestors().filter(|part| !part.as_os_str().is_empty()).map(Path::to_owned));
        }
        all.sort();
        all.dedup();
        for path in &all {
            let full = root.join(path);
            if !path.as_os_str().is_empty() {
                fs::DirBuilder::new().mode(0o755).create(&full).map_err(failed(&full))?;
            }
        }
        // From below, so that what is made in a directory does not change its time afterwards.
        for path in all.iter().rev() {
            if let Some(meta) = described(store, layers, path)? {
                let full = root.join(path);
                copy_attributes(&meta, &full).map_err(failed(&full))?;
            }
        }
        let contents = Contents { entries: all.len() as u64, ..Contents::default() };
        store.commit_layer(name, &root, &contents)
    })();
    // Gone already if it was committed.
    remove_tree(&root).map_err(failed(&root))?;
    made
}

fn copy_attributes(from: &Metadata, to: &Path) -> io::Result<()> {
    chown(to, Some(from.uid()), Some(from.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(from.permissions().mode() & 0o7777))?;
    let time = TimeSpec::new(from.mtime(), from.mtime_nsec());
    Ok(nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, to, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}
