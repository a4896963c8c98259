//! What the protocol tells about a file, and setting it.

use std::{os::fd::AsFd, path::Path};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, ftruncate, truncate},
};

use super::reply::Status;

/// Attributes of a file, those that were given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    /// `st_mode`, type and all.
    pub(super) permissions: Option<u32>,
    /// Of access and of modification, in seconds; later ones than 2106 do not fit.
    pub(super) times: Option<(u32, u32)>,
}

impl From<&FileStat> for Attributes {
    fn from(stat: &FileStat) -> Self {
        Self {
            size: Some(stat.st_size.cast_unsigned()),
            owner: Some((stat.st_uid, stat.st_gid)),
            permissions: Some(stat.st_mode),
            times: Some((stat.st_atime as u32, stat.st_mtime as u32)),
        }
    }
}

/// Permission bits without the type.
pub(super) fn mode(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions & 0o7777)
}

impl Attributes {
    /// Appends the wire's form.
    pub(super) fn encode(&self, packet: &mut Vec<u8>) {
        let flags = u32::from(self.size.is_some())
            | u32::from(self.owner.is_some()) << 1
            | u32::from(self.permissions.is_some()) << 2
            | u32::from(self.times.is_some()) << 3;
        packet.extend(flags.to_be_bytes());
        packet.extend(self.size.iter().flat_map(|size| size.to_be_bytes()));
        let pair = |(first, second): (u32, u32)| [first, second];
        let words = self.owner.map(pair).into_iter().flatten().chain(self.permissions);
        packet.extend(words.chain(self.times.map(pair).into_iter().flatten()).flat_map(u32::to_be_bytes));
    }

    /// Gives the file `path`, behind symbolic links, these attributes.
    pub(super) fn set(&self, path: &Path) -> Status {
        let follow = AtFlags::empty();
        self.apply(
            |size| truncate(path, size),
            |mode| fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink),
            |access, modified| utimensat(AT_FDCWD, path, access, modified, UtimensatFlags::FollowSymlink),
            |uid, gid| fchownat(AT_FDCWD, path, uid, gid, follow),
        )
    }

    /// Gives `path` itself these attributes, also if it is a symbolic link.
    pub(super) fn set_of_link(&self, path: &Path) -> Status {
        if self.size.is_some() {
            return Status::BadMessage; // a link has no size to set
        }
        self.apply(
            |_| Ok(()),
            |mode| fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink),
            |access, modified| utimensat(AT_FDCWD, path, access, modified, UtimensatFlags::NoFollowSymlink),
            |uid, gid| fchownat(AT_FDCWD, path, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW),
        )
    }

    /// Gives an open file these attributes.
    pub(super) fn set_of_file(&self, file: impl AsFd + Copy) -> Status {
        self.apply(
            |size| ftruncate(file, size),
            |mode| fchmod(file, mode),
            |access, modified| futimens(file, access, modified),
            |uid, gid| fchown(file, uid, gid),
        )
    }

    /// Sets what is given, one after the other in spite of failures, of which the last one is told. Writing a size or an
    /// owner changes times and mode, but that is the order that clients are used to from OpenSSH.
    fn apply(
        &self,
        set_size: impl FnOnce(i64) -> nix::Result<()>,
        set_mode: impl FnOnce(Mode) -> nix::Result<()>,
        set_times: impl FnOnce(&TimeSpec, &TimeSpec) -> nix::Result<()>,
        set_owner: impl FnOnce(Option<Uid>, Option<Gid>) -> nix::Result<()>,
    ) -> Status {
        let seconds = |time: u32| TimeSpec::new(i64::from(time), 0);
        let results: [Result<(), Errno>; 4] = [
            self.size.map_or(Ok(()), |size| set_size(size.cast_signed())),
            self.permissions.map_or(Ok(()), |permissions| set_mode(mode(permissions))),
            self.times.map_or(Ok(()), |(access, modified)| set_times(&seconds(access), &seconds(modified))),
            // An id of all ones means "leave it", as in chown(2).
            self.owner.map_or(Ok(()), |(uid, gid)| set_owner(Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))),
        ];
        results.into_iter().filter_map(Result::err).next_back().map_or(Status::Ok, Status::from)
    }
}
