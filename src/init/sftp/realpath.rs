//! The absolute path without symbolic links, `.` and `..`, of something that need not exist.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::readlink,
    sys::stat::{SFlag, lstat},
    unistd::getcwd,
};

/// Links that are followed until a loop is suspected.
const MAX_LINKS: usize = 32;

const PATH_MAX: usize = libc::PATH_MAX as usize;

/// Resolves `path` as OpenSSH's server does: all but its last component must exist.
///
/// # Errors
/// Of lstat(2), readlink(2) and getcwd(3); `ELOOP`; `ENAMETOOLONG` if any path on the way has [`PATH_MAX`] bytes.
pub(super) fn realpath(path: &Path) -> nix::Result<OsString> {
    let mut left = path.as_os_str().as_bytes().to_vec();
    let mut reached = if left.is_empty() {
        return Err(Errno::ENOENT);
    } else if left[0] == b'/' {
        left.remove(0);
        b"/".to_vec()
    } else {
        getcwd()?.into_os_string().into_vec()
    };
    let mut links = 0;
    while !left.is_empty() {
        if left.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let end = left.iter().position(|&byte| byte == b'/');
        let rest = end.map(|end| left.split_off(end + 1));
        let component = &left[..end.unwrap_or(left.len())];
        if !reached.ends_with(b"/") {
            reached.push(b'/');
        }
        let parent = reached.len();
        match component {
            b"" | b"." => {}
            b".." => {
                reached.truncate(containing(&reached));
            }
            name => {
                reached.extend_from_slice(name);
                if reached.len() >= PATH_MAX {
                    return Err(Errno::ENAMETOOLONG);
                }
                let here = Path::new(std::ffi::OsStr::from_bytes(&reached));
                match lstat(here) {
                    Err(Errno::ENOENT) if rest.is_none() => break,
                    Err(error) => return Err(error),
                    Ok(stat) if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() => {
                        links += 1;
                        if links > MAX_LINKS + 1 {
                            return Err(Errno::ELOOP);
                        }
                        let mut target = readlink(here)?.into_vec();
                        reached.truncate(if target.starts_with(b"/") { 1 } else { parent });
                        if let Some(rest) = rest {
                            if !target.ends_with(b"/") {
                                target.push(b'/');
                            }
                            target.extend_from_slice(&rest);
                        }
                        left = target;
                        continue;
                    }
                    Ok(_) => {}
                }
            }
        }
        left = rest.unwrap_or_default();
    }
    if reached.len() > 1 && reached.ends_with(b"/") {
        reached.pop();
    }
    Ok(OsString::from_vec(reached))
}

/// The length of `path`, which ends with a slash, without its last component.
fn containing(path: &[u8]) -> usize {
    path[..path.len() - 1].iter().rposition(|&byte| byte == b'/').map_or(1, |slash| slash + 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_lose_links_and_dots() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("relative")).unwrap();
        symlink(root.join("a"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("/", root.join("root")).unwrap();
        let root = root.to_str().unwrap();
        for (path, expected) in [
            ("a//b/./", "/a/b"),
            ("relative", "/a/b"),
            ("relative/..", "/a"),
            ("absolute/b/../new", "/a/new"),
            ("new", "/new"),
            ("dangling", "/nowhere"),
        ] {
            let resolved = realpath(Path::new(&format!("{root}/{path}")));
            assert_eq!(resolved, Ok(OsString::from(format!("{root}{expected}"))), "{path}");
        }
        for (path, expected) in [("/", "/"), ("//..//", "/"), ("/..", "/"), ("/proc/..", "/")] {
            assert_eq!(realpath(Path::new(path)), Ok(expected.into()), "{path}");
        }
        assert_eq!(realpath(Path::new(&format!("{root}/root/tmp"))), Ok("/tmp".into()));
        let long = "x".repeat(300);
        let far = "a/".repeat(2100);
        for (path, error) in [
            ("new/new", Errno::ENOENT),
            ("new/", Errno::ENOENT),
            ("loop", Errno::ELOOP),
            ("dangling/new", Errno::ENOENT),
            (&long, Errno::ENAMETOOLONG),
            (&far, Errno::ENAMETOOLONG),
        ] {
            assert_eq!(realpath(Path::new(&format!("{root}/{path}"))), Err(error), "{path}");
        }
        assert_eq!(realpath(Path::new("")), Err(Errno::ENOENT));
    }
}
