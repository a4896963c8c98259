//! The session's account in the image's files, its home directory, and the files that name things.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat},
    unistd::{Gid, Uid, fchownat, symlinkat},
};

use super::{
    account::{Account, AccountFiles},
    files::{self, Ownership},
};
use crate::{protocol::ContainerSpec, sys::mount_api::move_mount};

/// The largest account file that is read.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// What is copied from /etc/skel at most.
const MAX_SKEL_ENTRIES: usize = 1024;
const MAX_SKEL_BYTES: u64 = 16 << 20;

/// Writes /etc/hosts, /etc/resolv.conf and /etc/hostname, replacing whatever the image has there.
pub(super) fn write_names(spec: &ContainerSpec) -> io::Result<()> {
    files::write("/etc", "hosts", spec.hosts.as_bytes(), Ownership::ROOT_PUBLIC)?;
    files::write("/etc", "resolv.conf", spec.resolv_conf.as_bytes(), Ownership::ROOT_PUBLIC)?;
    files::write("/etc", "hostname", format!("{}\n", spec.hostname).as_bytes(), Ownership::ROOT_PUBLIC)
}

/// The shell that processes get: the one that was asked for, or /bin/sh if the image lacks it.
pub(super) fn shell(account: &Account) -> &str {
    if files::is_executable(&account.shell) { &account.shell } else { "/bin/sh" }
}

/// Whether a home directory that outlives sessions is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    New,
    Used,
}

/// Mounts the home directory that outlives sessions. A home has one owner: what is below it is left as it is, since it may be
/// in use by another session of the same user.
pub(super) fn mount(account: &Account, home: &OwnedFd) -> io::Result<Kept> {
    let target = files::volume_point(&account.home)?;
    move_mount(home.as_fd(), target.as_fd())?;
    let top = openat(home, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    if files::is_empty(&top)? {
        return Ok(Kept::New);
    }
    let before = Ownership::of(&fstat(&top)?);
    if (before.uid, before.gid) != (account.uid, account.gid) {
        Ownership { uid: account.uid, gid: account.gid, ..before }.apply(top.as_fd())?;
    }
    Ok(Kept::Used)
}

/// Makes the account exist: entries, home directory, sudo. Tools of the image are not needed, nor is /etc. `kept` is the
/// home directory that has been mounted, if one was.
pub(super) fn set_up(account: &Account, kept: Option<Kept>, warnings: &mut Vec<String>) -> io::Result<()> {
    let passwd = files::read("/etc/passwd", MAX_FILE)?;
    let group = files::read("/etc/group", MAX_FILE)?;
    let (no_passwd, no_group) = (passwd.is_none(), group.is_none());
    let (passwd, passwd_owner) = passwd.unwrap_or((AccountFiles::BARE_PASSWD.to_owned(), Ownership::ROOT_PUBLIC));
    let (group, group_owner) = group.unwrap_or((AccountFiles::BARE_GROUP.to_owned(), Ownership::ROOT_PUBLIC));
    if account.is_root() {
        // What a build changes is kept, so nothing is that need not be.
        if no_passwd {
            files::write("/etc", "passwd", &passwd, passwd_owner)?;
        }
        if no_group {
            files::write("/etc", "group", &group, group_owner)?;
        }
        if kept == Some(Kept::New) {
            make_home(account, kept, warnings)?;
        } else if !files::directory_exists(&account.home) {
            let home = files::make_directories(&account.home)?;
            own(&home, Ownership { uid: 0, gid: 0, mode: 0o700 })?;
        }
        return Ok(());
    }
    let (shadow, shadow_owner) = files::read("/etc/shadow", MAX_FILE)?.unzip();
    let (gshadow, gshadow_owner) = files::read("/etc/gshadow", MAX_FILE)?.unzip();
    let before = AccountFiles { passwd, group, shadow, gshadow };
    let after = account.enter(&before, shell(account));
    files::write("/etc", "passwd", &after.passwd, passwd_owner)?;
    files::write("/etc", "group", &after.group, group_owner)?;
    if let (Some(shadow), Some(owner)) = (after.shadow, shadow_owner) {
        files::write("/etc", "shadow", &shadow, owner)?;
    }
    if let (Some(gshadow), Some(owner)) = (after.gshadow, gshadow_owner) {
        files::write("/etc", "gshadow", &gshadow, owner)?;
    }
    if account.sudo && (files::directory_exists("/etc/sudoers.d") || files::is_executable("/usr/bin/sudo")) {
        // By id: nothing in a name can be special to sudoers(5).
        let rule = format!("#{} ALL=(ALL:ALL) NOPASSWD: ALL\n", account.uid);
        let ownership = Ownership { uid: 0, gid: 0, mode: 0o440 };
        files::write("/etc/sudoers.d", "podspawn", rule.as_bytes(), ownership)?;
    }
    make_home(account, kept, warnings)
}

fn make_home(account: &Account, kept: Option<Kept>, warnings: &mut Vec<String>) -> io::Result<()> {
    let existed = match kept {
        None => files::directory_exists(&account.home),
        Some(Kept::New) => false,
        // Its mode is its user's to say.
        Some(Kept::Used) => return Ok(()),
    };
    let home = files::make_directories(&account.home)?;
    if !existed && let Err(error) = copy_skel(&home, account) {
        warnings.push(format!("cannot copy all of /etc/skel: {error}"));
    }
    own(&home, Ownership { uid: account.uid, gid: account.gid, mode: 0o755 })
}

fn own(directory: &OwnedFd, ownership: Ownership) -> io::Result<()> {
    // chown and chmod do not work on the O_PATH descriptors of a lookup.
    let directory = openat(directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(ownership.apply(directory.as_fd())?)
}

/// Copies files, directories and symbolic links of /etc/skel; anything else there is left out.
fn copy_skel(home: &OwnedFd, account: &Account) -> io::Result<()> {
    if !files::directory_exists("/etc/skel") {
        return Ok(());
    }
    let skel = files::make_directories("/etc/skel")?;
    let (mut entries, mut bytes) = (0, 0);
    let mut directories = vec![PathBuf::from(".")];
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    while let Some(relative) = directories.pop() {
        let from = openat(&skel, &relative, flags, Mode::empty())?;
        let to = openat(home, &relative, flags, Mode::empty())?;
        for entry in nix::dir::Dir::openat(&from, ".", flags, Mode::empty())?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            entries += 1;
            if entries > MAX_SKEL_ENTRIES {
                return Err(io::Error::other(format!("it has more than {MAX_SKEL_ENTRIES} entries")));
            }
            let stat = fstatat(&from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let name = Path::new(std::ffi::OsStr::new(name.to_str().map_err(|_| Errno::EILSEQ)?));
            match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => {
                    if !is_new(mkdirat(&to, name, Mode::S_IRWXU))? {
                        continue;
                    }
                    let made = openat(&to, name, flags, Mode::empty())?;
                    as_users(account, &stat).apply(made.as_fd())?;
                    directories.push(relative.join(name));
                }
                SFlag::S_IFREG => bytes += copy_file(&from, &to, name, account, MAX_SKEL_BYTES - bytes)?,
                SFlag::S_IFLNK => {
                    if !is_new(symlinkat(readlinkat(&from, name)?.as_os_str(), &to, name))? {
                        continue;
                    }
                    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
                    fchownat(&to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Another session may be making the same home, and has made the same thing.
fn is_new(made: nix::Result<()>) -> nix::Result<bool> {
    match made {
        Err(Errno::EEXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

fn as_users(account: &Account, original: &FileStat) -> Ownership {
    Ownership { uid: account.uid, gid: account.gid, mode: original.st_mode & 0o777 }
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &Path, account: &Account, limit: u64) -> io::Result<u64> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let source = openat(from, name, read, Mode::empty())?;
    let ownership = as_users(account, &fstat(&source)?);
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copy = match openat(to, name, write, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EEXIST) => return Ok(0),
        other => other?,
    };
    let mut copy = std::fs::File::from(copy);
    let copied = io::copy(&mut std::fs::File::from(source).take(limit + 1), &mut copy)?;
    if copied > limit {
        return Err(io::Error::other(format!("it has more than {MAX_SKEL_BYTES} bytes")));
    }
    ownership.apply(copy.as_fd())?;
    Ok(copied)
}
