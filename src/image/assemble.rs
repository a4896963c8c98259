//! Stacking layers that were unpacked each on its own.
//!
//! Applied one on top of the other, as their makers meant them to be, the layers would come out in some ways different
//! from what overlayfs makes of them. What differs is put right by small layers of our own: those of [`super::repair`], and
//! as the uppermost of all one with directories. For a directory that an archive does not describe keeps the owner, mode
//! and time that it has below; in an overlay those of the uppermost layer count.

use std::{collections::BTreeSet, io, path::Path};

use super::{
    Contents, Digest, ImageError, LayerError, Store,
    layer::{EntryPath, TreeError, tree::Tree},
    repair::{Failed, Repair, Times, at, set},
    store::Layer,
    view::{Attributes, LayerFiles, Shown, View, Walk},
};

/// As many as fit into the mount options with our names.
pub(super) const MAX_LAYERS: usize = 128;

/// What to stack for these layers (lowest first), uppermost first. `image` is for messages.
pub(super) fn stack(store: &Store, image: &str, layers: Vec<Layer>) -> Result<Vec<Layer>, ImageError> {
    let mut stack: Vec<Layer> = Vec::new();
    let mut chain = String::new();
    for layer in layers {
        chain = Digest::of(format!("{chain} {}", layer.diff_id).as_bytes()).to_string();
        // For the root of a layer overlayfs knows no mark that hides what is below.
        if layer.contents.opaque {
            stack.clear();
        }
        let repairs = repair(store, &stack, &layer, &chain)?;
        // The same layer once more hides all that it has further below, and overlayfs takes no directory twice.
        stack.retain(|below| below.lowerdir != layer.lowerdir);
        stack.insert(0, layer);
        if let Some(repairs) = repairs {
            stack.insert(0, repairs);
        }
    }
    if let Some(directories) = directories(store, &stack, &chain)? {
        stack.insert(0, directories);
    }
    if stack.len() > MAX_LAYERS {
        let why = format!("{} layers, with those that put links and directories right; {MAX_LAYERS} fit", stack.len());
        return Err(ImageError::Invalid { image: image.to_owned(), what: "the manifest", why });
    }
    Ok(stack)
}

fn view(store: &Store, stack: &[Layer]) -> Result<View, ImageError> {
    let root = store.layers_root();
    View::open(&root, stack.iter().map(|layer| &layer.lowerdir)).map_err(|error| ImageError::Store(root, error))
}

/// The layer to put above `layer`, so that its links lead to where they would lead if it was unpacked on top of `below`
/// (uppermost first).
fn repair(store: &Store, below: &[Layer], layer: &Layer, chain: &str) -> Result<Option<Layer>, ImageError> {
    let refused = |(path, error): Failed| {
        let source = match error {
            TreeError::Io(error) => LayerError::Unpack(path, error),
            TreeError::Hostile(why) => LayerError::Hostile { path, why },
        };
        ImageError::Layer { layer: format!("layer {}", layer.diff_id), source }
    };
    if below.is_empty() {
        return match layer.contents.outer_links.first() {
            Some((path, _)) => {
                Err(refused((path.to_path_buf(), TreeError::Hostile("a hard link to a file that is not there"))))
            }
            None => Ok(None),
        };
    }
    let root = store.layers_root();
    let files = LayerFiles::open(&root.join(&layer.lowerdir)).map_err(|error| ImageError::Store(root, error))?;
    let repair = Repair { below: view(store, below)?, layer: files, contents: &layer.contents };
    let moves = repair.moves().map_err(refused)?;
    if moves.is_empty() && layer.contents.outer_links.is_empty() {
        return Ok(None);
    }
    made_layer(store, &format!("links {chain}"), |tree| repair.fill(tree, &moves), refused).map(Some)
}

/// The uppermost layer, with nothing but directories, if there are any that do not show as they should.
fn directories(store: &Store, stack: &[Layer], chain: &str) -> Result<Option<Layer>, ImageError> {
    // In the lowest layer nothing is below.
    let Some((_, above)) = stack.split_last() else { return Ok(None) };
    let implied = above.iter().flat_map(|layer| &layer.contents.implied).map(|path| &**path);
    let candidates: BTreeSet<&Path> = implied.filter(|path| !path.as_os_str().is_empty()).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let view = view(store, stack)?;
    let contents: Vec<&Contents> = stack.iter().map(|layer| &layer.contents).collect();
    let failed = |(path, error): Failed| match error {
        TreeError::Io(error) => ImageError::Store(path, error),
        TreeError::Hostile(why) => ImageError::Store(path, io::Error::other(why)),
    };
    let mut walk = Walk::new(&view);
    let mut wrong = BTreeSet::new();
    for path in candidates {
        let Some(shown) = walk.find(path).map_err(at(path)).map_err(failed)?.filter(Shown::is_directory) else {
            continue;
        };
        let top = view.layer(shown.layers[0]).attributes(path).map_err(at(path)).map_err(failed)?;
        if described(&view, &contents, path, &shown).map_err(at(path)).map_err(failed)? != top {
            // Those above it come to be in the layer, too.
            wrong.extend(path.ancestors());
        }
    }
    if wrong.is_empty() {
        return Ok(None);
    }
    let fill = |tree: &mut Tree| {
        let mut times = Times::new();
        let mut walk = Walk::new(&view);
        for path in wrong {
            let shown = walk.find(path).map_err(at(path))?.ok_or(io::ErrorKind::NotFound.into());
            let shown = shown.map_err(at::<io::Error>(path))?;
            let attributes = described(&view, &contents, path, &shown).map_err(at(path))?;
            if !path.as_os_str().is_empty() {
                tree.make_directory(path).map_err(at(path))?;
            }
            set(tree, path, &attributes).map_err(at(path))?;
            times.push((path.to_owned(), attributes.mtime));
        }
        Ok(times)
    };
    made_layer(store, &format!("directories {chain}"), fill, failed).map(Some)
}

/// The layer that is called `what`, made by `fill` if it is not there.
fn made_layer(
    store: &Store,
    what: &str,
    fill: impl FnOnce(&mut Tree) -> Result<Times, Failed>,
    failed: impl Fn(Failed) -> ImageError,
) -> Result<Layer, ImageError> {
    let id = Digest::of(what.as_bytes());
    if let Some(layer) = store.layer(&id)? {
        return Ok(layer);
    }
    let _turn = store.layer_turn(&id, || {})?;
    if let Some(layer) = store.layer(&id)? {
        return Ok(layer);
    }
    let scratch = store.new_scratch()?;
    let root = scratch.layer_root()?;
    let mut tree = Tree::open(&root).map_err(at(&root)).map_err(&failed)?;
    let mut times = fill(&mut tree).map_err(&failed)?;
    times.extend(tree.timeless().map(|path| (path.clone(), (0, 0))));
    for (path, mtime) in &times {
        tree.set_directory_times(path, *mtime).map_err(at(path)).map_err(&failed)?;
    }
    let implied = tree.implied().iter().cloned().map(EntryPath::from).collect();
    store.publish_layer(&id, scratch, Contents { implied, ..Contents::default() })
}

/// The attributes that a directory should have: those of the uppermost layer with an entry for it. `contents` are those of
/// the view's layers.
pub(super) fn described(view: &View, contents: &[&Contents], path: &Path, shown: &Shown) -> io::Result<Attributes> {
    let mut shown = shown.clone();
    loop {
        if let Some(layer) = shown.layers.iter().find(|layer| !contents[**layer].implies(path)) {
            return view.layer(*layer).attributes(path);
        }
        // Where an opaque directory hides only what is in it, it is still the one from further below.
        let lowest = shown.layers.last().copied().unwrap_or_default();
        match view.find_below(lowest, path)?.filter(Shown::is_directory) {
            Some(below) if view.layer(lowest).is_opaque(path)? => shown = below,
            _ => return Ok(Attributes::made_up()),
        }
    }
}
