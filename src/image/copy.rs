//! A directory of an image as files of their own: what a new volume begins with.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use nix::sys::stat::SFlag;

use super::{
    Contents, Image, ImageError, Store,
    assemble::described,
    layer::{
        TreeError,
        tree::{Tree, kind},
    },
    repair::set,
    view::{Shown, View},
};

impl Store {
    /// Copies what `image` has in the directory `path` into the empty directory `into`, with owners, modes, times to the
    /// nanosecond, extended attributes and hard links, those of the directory itself too. Links on the way to `path` are
    /// followed, inside the image. Returns whether there is such a directory.
    pub fn copy_directory(&self, image: &Image, path: &Path, into: &Path) -> Result<bool, ImageError> {
        let _leases = self.lease_all(&image.layers)?;
        let contents = self.contents(image)?;
        let copied = |failed: (PathBuf, TreeError)| {
            let source = match failed.1 {
                TreeError::Io(error) => error,
                TreeError::Hostile(why) => io::Error::other(why),
            };
            ImageError::Copy(Path::new("/").join(failed.0), source)
        };
        let root = |error: io::Error| copied((PathBuf::new(), error.into()));
        let view = View::open(&self.layers_root(), image.layers.iter()).map_err(root)?;
        let top = view.resolve(path).map_err(|error| copied((path.to_owned(), error)))?;
        let Some(shown) = view.find(&top).map_err(root)?.filter(Shown::is_directory) else { return Ok(false) };
        let tree = Tree::open(into).map_err(|error| copied((PathBuf::new(), error)))?;
        let (contents, links, times) = (contents.iter().collect(), HashMap::new(), Vec::new());
        Copy { view: &view, contents, tree, top, links, times }.all(shown).map_err(copied)?;
        Ok(true)
    }
}

struct Copy<'a> {
    view: &'a View,
    contents: Vec<&'a Contents>,
    tree: Tree,
    /// What is copied, by its path in the image.
    top: PathBuf,
    /// The first name of each file that has several, by layer (whose files may be on any file system) and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories, whose times change while they are filled.
    times: Vec<(PathBuf, (i64, u32))>,
}

impl Copy<'_> {
    /// An error comes with the entry that it is about.
    fn all(mut self, shown: Shown) -> Result<(), (PathBuf, TreeError)> {
        let mut pending = vec![(self.top.clone(), shown)];
        while let Some((path, shown)) = pending.pop() {
            let inside = self.one(&path, &shown).map_err(|error| (path, error))?;
            pending.extend(inside);
        }
        for (path, mtime) in &self.times {
            self.tree.set_directory_times(path, *mtime).map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }

    /// Copies an entry; returns what is in it.
    fn one(&mut self, path: &Path, shown: &Shown) -> Result<Vec<(PathBuf, Shown)>, TreeError> {
        let to = path.strip_prefix(&self.top).map_err(|_| TreeError::Hostile("it is elsewhere"))?.to_owned();
        let layer = self.view.layer(shown.layers[0]);
        if shown.is_directory() {
            if to != Path::new("") {
                self.tree.make_directory(&to)?;
            }
            let attributes = described(self.view, &self.contents, path, shown)?;
            set(&mut self.tree, &to, &attributes)?;
            self.times.push((to, attributes.mtime));
            let mut inside = Vec::new();
            for name in self.view.names(&shown.layers, path)? {
                let inner = path.join(name);
                inside.extend(self.view.child(&shown.layers, &inner)?.map(|shown| (inner, shown)));
            }
            return Ok(inside);
        }
        if shown.stat.st_nlink > 1 {
            let first = self.links.entry((shown.stat.st_dev, shown.stat.st_ino)).or_insert_with(|| to.clone());
            if *first != to {
                self.tree.make_hard_link(&to, first)?;
                return Ok(Vec::new());
            }
        }
        match kind(&shown.stat) {
            SFlag::S_IFLNK => {
                let target = layer.link_target(path)?;
                self.tree.make_symlink(&to, target.as_os_str().as_encoded_bytes())?;
            }
            SFlag::S_IFIFO => self.tree.make_fifo(&to)?,
            _ => {
                io::copy(&mut layer.file(path)?, &mut self.tree.make_file(&to)?)?;
            }
        }
        set(&mut self.tree, &to, &layer.attributes(path)?)?;
        Ok(Vec::new())
    }
}
