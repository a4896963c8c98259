//! An image's root file system as one tar in the POSIX format, with the layers merged as overlayfs merges them.

use std::{
    collections::HashMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::sys::stat::SFlag;

use super::{
    Contents, Image, ImageError, Store,
    assemble::described,
    layer::tree::kind,
    tarball::{Entry, TarWriter},
    view::{Shown, View},
};

impl Store {
    /// Writes the image's root file system as a tar: owners, modes, times to the nanosecond, extended attributes and hard
    /// links are kept.
    pub fn export(&self, image: &Image, to: impl Write) -> Result<(), ImageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ImageError::Export(path, error)
        };
        let _leases = self.lease_all(&image.layers)?;
        let contents = self.contents(image)?;
        let view = View::open(&self.layers_root(), image.layers.iter()).map_err(failed(Path::new("/")))?;
        let mut export =
            Export { tar: TarWriter::new(to), contents: contents.iter().collect(), view: &view, links: HashMap::new() };
        // What is in a directory comes right after it: programs that unpack set its time when they leave it.
        let mut pending = vec![(PathBuf::new(), view.root().map_err(failed(Path::new("/")))?)];
        while let Some((path, shown)) = pending.pop() {
            export.append(&path, &shown).map_err(failed(&path))?;
            if !shown.is_directory() {
                continue;
            }
            // Taken from the end.
            for name in view.names(&shown.layers, &path).map_err(failed(&path))?.into_iter().rev() {
                let inner = path.join(name);
                if let Some(shown) = view.child(&shown.layers, &inner).map_err(failed(&inner))? {
                    pending.push((inner, shown));
                }
            }
        }
        export.tar.finish().map(drop).map_err(failed(Path::new("/")))
    }
}

struct Export<'a, W: Write> {
    tar: TarWriter<W>,
    view: &'a View,
    contents: Vec<&'a Contents>,
    /// The first name of each file that has several, by layer (whose files may be on any file system) and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Export<'_, W> {
    fn append(&mut self, path: &Path, shown: &Shown) -> io::Result<()> {
        let layer = self.view.layer(shown.layers[0]);
        let stat = &shown.stat;
        let directory = shown.is_directory();
        let first = if stat.st_nlink > 1 && !directory {
            let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_owned());
            Some(first.clone()).filter(|first| first != path)
        } else {
            None
        };
        let attributes =
            if directory { described(self.view, &self.contents, path, shown)? } else { layer.attributes(path)? };
        let entry = match (first, kind(stat)) {
            (Some(first), _) => Entry::HardLink(first),
            (None, SFlag::S_IFDIR) => Entry::Directory,
            (None, SFlag::S_IFLNK) => Entry::Symlink(layer.link_target(path)?),
            (None, SFlag::S_IFIFO) => Entry::Fifo,
            (None, _) => Entry::File { size: stat.st_size.cast_unsigned(), content: layer.file(path)? },
        };
        self.tar.append(path, &attributes, entry)
    }
}
