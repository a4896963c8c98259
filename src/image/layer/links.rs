//! Resolving symbolic links inside an image, where no kernel can be asked: the links of one layer lead through others.

use std::{
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
};

/// Links on the way to one file, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Why an entry cannot be put where it wants to be.
#[derive(Debug)]
pub enum TreeError {
    Io(io::Error),
    /// It is not an honest one.
    Hostile(&'static str),
}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::errno::Errno> for TreeError {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Where `path` leads when every link in it is followed. `target_of` says where a path without links in it points to, if it
/// is a link. What does not exist is taken for a directory.
///
/// Absolute links start at the image's root. One that climbs above that is an error, although a container's kernel would
/// stop there: no honest image needs it.
pub fn resolve(
    path: &Path,
    mut target_of: impl FnMut(&Path) -> io::Result<Option<PathBuf>>,
) -> Result<PathBuf, TreeError> {
    let mut resolved = PathBuf::new();
    // What is still to be walked, the next component last.
    let mut pending = steps(path);
    let mut links = 0;
    while let Some(step) = pending.pop() {
        match step {
            Step::Root => resolved.clear(),
            Step::Up => {
                if !resolved.pop() {
                    return Err(TreeError::Hostile("through a link to the outside"));
                }
            }
            Step::Down(name) => {
                let next = resolved.join(name);
                match target_of(&next)? {
                    None => resolved = next,
                    Some(_) if links == MAX_LINKS => return Err(TreeError::Hostile("through a loop of links")),
                    Some(target) => {
                        links += 1;
                        pending.extend(steps(&target));
                    }
                }
            }
        }
    }
    Ok(resolved)
}

enum Step {
    Root,
    Up,
    Down(OsString),
}

fn steps(path: &Path) -> Vec<Step> {
    let step = |component| match component {
        Component::RootDir | Component::Prefix(_) => Some(Step::Root),
        Component::CurDir => None,
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.to_owned())),
    };
    path.components().rev().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_inside_only() {
        let links = [
            ("lib", "usr/lib"),
            ("usr/lib/up", "../.."),
            ("abs", "/usr/lib"),
            ("out", "../x"),
            ("far", "usr/../../x"),
            ("loop", "loop"),
            ("twice", "abs/up/etc"),
        ];
        let target =
            |path: &Path| Ok(links.iter().find(|(link, _)| Path::new(link) == path).map(|(_, target)| target.into()));
        let go = |path: &str| resolve(Path::new(path), target).ok();
        let to = |path: &str| Some(PathBuf::from(path));
        assert_eq!(go("a/b"), to("a/b"));
        assert_eq!(go("lib/x"), to("usr/lib/x"));
        assert_eq!(go("abs/x"), to("usr/lib/x"));
        assert_eq!(go("twice"), to("etc"));
        assert_eq!(go("usr/lib/up"), to(""));
        for bad in ["out", "out/x", "far/y", "loop/x", "usr/lib/up/out"] {
            assert_eq!(go(bad), None, "{bad}");
        }
    }
}
