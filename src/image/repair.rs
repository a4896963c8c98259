//! Links that lead from one layer to another.
//!
//! An archive may have `lib/tool` without saying anything of `lib`, which in a layer below is a link to `usr/lib`. Unpacked
//! alone, `lib` becomes a directory and would hide the link. And a hard link may be to a file of a layer below. For both a
//! layer is made that goes right above: it shows the link again, with what was in `lib` where the link leads, and has the
//! hard links. All files in it are further names of those in the other layers; nothing is copied.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::{
    Contents,
    layer::{
        TreeError,
        tree::{self, Tree},
    },
    view::{Attributes, LayerFiles, View, Walk},
};

/// An entry, and why it cannot be there.
pub(super) type Failed = (PathBuf, TreeError);

/// Directories that were filled, with the times that they are to have.
pub(super) type Times = Vec<(PathBuf, (i64, u32))>;

/// A directory to be moved, and where to.
pub(super) type Move = (PathBuf, PathBuf);

/// Names the entry that an error is about.
pub(super) fn at<E: Into<TreeError>>(path: &Path) -> impl FnOnce(E) -> Failed {
    move |error| (path.to_owned(), error.into())
}

/// What of a layer has to be elsewhere.
pub(super) struct Repair<'a> {
    pub below: View,
    pub layer: LayerFiles,
    pub contents: &'a Contents,
}

impl Repair<'_> {
    /// Directories of the layer that nobody has described and that are links below, and where these lead.
    pub(super) fn moves(&self) -> Result<Vec<Move>, Failed> {
        let mut moves: Vec<Move> = Vec::new();
        let mut walk = Walk::new(&self.below);
        for path in self.contents.implied.iter().map(|path| &**path) {
            // In order, a directory comes before what is in it.
            if moves.last().is_some_and(|(moved, _)| path.starts_with(moved)) {
                continue;
            }
            if !walk.find(path).map_err(at(path))?.is_some_and(|shown| shown.is_symlink()) {
                continue;
            }
            let failed = |error| (self.first_below(path), error);
            let target = self.below.resolve(path).map_err(failed)?;
            let there = self.below.find(&target).map_err(at(path))?;
            if !there.is_some_and(|there| there.is_directory()) {
                return Err(failed(TreeError::Hostile("through a link that leads nowhere, or to the outside")));
            }
            moves.push((path.to_owned(), target));
        }
        Ok(moves)
    }

    /// The name of an entry in a directory that has none itself, for a message.
    fn first_below(&self, directory: &Path) -> PathBuf {
        let mut path = directory.to_owned();
        while self.contents.implies(&path)
            && let Some(name) = self.layer.names(&path).ok().and_then(|names| names.first().cloned())
        {
            path.push(name);
        }
        let whiteout = self.layer.stat(&path).is_ok_and(|stat| stat.is_some_and(|stat| tree::is_whiteout(&stat)));
        if whiteout && let Some(name) = path.file_name() {
            let mut shown = OsString::from(".wh.");
            shown.push(name);
            path.set_file_name(shown);
        }
        path
    }

    /// Fills the layer that puts things right.
    pub(super) fn fill(&self, tree: &mut Tree, moves: &[Move]) -> Result<Times, Failed> {
        let mut times = Times::new();
        for (from, to) in moves {
            self.move_directory(tree, from, to, &mut times)?;
            let link = self.below.find(from).map_err(at(from))?.ok_or(io::ErrorKind::NotFound.into());
            let link = link.map_err(at::<io::Error>(from))?;
            adopt(tree, from, self.below.layer(link.layers[0]), from)?;
        }
        for (path, target) in &self.contents.outer_links {
            let target = self.below.resolve(target).map_err(at(path))?;
            let own = self.layer.stat(&target).map_err(at(path))?;
            let shown = self.below.find(&target).map_err(at(path))?;
            let owner = match &shown {
                _ if own.is_some_and(|stat| tree::is_file(&stat)) => &self.layer,
                Some(shown) if !shown.is_directory() => self.below.layer(shown.layers[0]),
                _ => return Err((path.to_path_buf(), TreeError::Hostile("a hard link to a file that is not there"))),
            };
            let moved = moves.iter().find_map(|(from, to)| Some(to.join(path.strip_prefix(from).ok()?)));
            adopt(tree, moved.as_deref().unwrap_or(path), owner, &target)?;
        }
        Ok(times)
    }

    /// Puts what the layer has in `from` into `to`.
    fn move_directory(&self, tree: &mut Tree, from: &Path, to: &Path, times: &mut Times) -> Result<(), Failed> {
        let mut pending = vec![PathBuf::new()];
        while let Some(inner) = pending.pop() {
            let (old, new) = (from.join(&inner), to.join(&inner));
            if self.contents.implies(&old) {
                tree.make_implied(&new).map_err(at(&old))?;
            } else {
                let attributes = self.layer.attributes(&old).map_err(at(&old))?;
                tree.make_directory(&new).map_err(at(&old))?;
                set(tree, &new, &attributes).map_err(at(&old))?;
                times.push((new.clone(), attributes.mtime));
            }
            if self.layer.is_opaque(&old).map_err(at(&old))? {
                tree.make_opaque(&new).map_err(at(&old))?;
            }
            for name in self.layer.names(&old).map_err(at(&old))? {
                let (old, inner) = (old.join(&name), inner.join(&name));
                if self.layer.stat(&old).map_err(at(&old))?.is_some_and(|stat| tree::is_directory(&stat)) {
                    pending.push(inner);
                } else {
                    adopt(tree, &to.join(&inner), &self.layer, &old)?;
                }
            }
        }
        Ok(())
    }
}

/// Gives a file of another layer a name in `tree`.
fn adopt(tree: &mut Tree, path: &Path, layer: &LayerFiles, file: &Path) -> Result<(), Failed> {
    let (parent, name) = layer.parent(file).map_err(at(path))?;
    tree.adopt(path, &parent, name).map_err(at(path))
}

/// Gives a directory of `tree` these attributes.
pub(super) fn set(tree: &mut Tree, path: &Path, attributes: &Attributes) -> Result<(), TreeError> {
    let Attributes { mode, uid, gid, mtime, xattrs } = attributes;
    let given = tree::Attributes { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime };
    tree.set_attributes(path, &given, xattrs.iter())
}
