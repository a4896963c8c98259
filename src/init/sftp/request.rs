//! A client's packets: from bytes to [`Request`]s that borrow from them.
//!
//! draft-ietf-secsh-filexfer-02, sections 3 to 6 and 8; the extensions are described in OpenSSH's PROTOCOL, section 4.
//! What does not parse ends the connection, as there is no telling what else was misunderstood.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use super::attributes::Attributes;

/// Bytes that a packet may have after its length field, in both directions (OpenSSH's limit too).
pub(super) const MAX_PACKET: usize = 256 * 1024;

/// The part of a packet that `limits@openssh.com` allows data to be; the rest is for what goes around it.
pub(super) const MAX_DATA: usize = MAX_PACKET - 1024;

/// A packet that is too short for its fields, or has a NUL byte in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A handle as the client has it: anything may be in there.
pub(super) type HandleText<'a> = &'a [u8];

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request<'a> {
    Open {
        path: &'a Path,
        flags: u32,
        attributes: Attributes,
    },
    Close {
        handle: HandleText<'a>,
    },
    Read {
        handle: HandleText<'a>,
        offset: u64,
        length: u32,
    },
    Write {
        handle: HandleText<'a>,
        offset: u64,
        data: &'a [u8],
    },
    Stat {
        path: &'a Path,
    },
    Lstat {
        path: &'a Path,
    },
    Fstat {
        handle: HandleText<'a>,
    },
    Setstat {
        path: &'a Path,
        attributes: Attributes,
    },
    Fsetstat {
        handle: HandleText<'a>,
        attributes: Attributes,
    },
    Opendir {
        path: &'a Path,
    },
    Readdir {
        handle: HandleText<'a>,
    },
    Remove {
        path: &'a Path,
    },
    Mkdir {
        path: &'a Path,
        attributes: Attributes,
    },
    Rmdir {
        path: &'a Path,
    },
    Realpath {
        path: &'a Path,
    },
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Readlink {
        path: &'a Path,
    },
    /// In the order that OpenSSH's client and server use, which is not the draft's.
    Symlink {
        target: &'a Path,
        link: &'a Path,
    },
    PosixRename {
        from: &'a Path,
        to: &'a Path,
    },
    Hardlink {
        from: &'a Path,
        to: &'a Path,
    },
    Fsync {
        handle: HandleText<'a>,
    },
    Statvfs {
        path: &'a Path,
    },
    Fstatvfs {
        handle: HandleText<'a>,
    },
    Lsetstat {
        path: &'a Path,
        attributes: Attributes,
    },
    Limits,
    ExpandPath {
        path: &'a Path,
    },
    CopyData {
        from: HandleText<'a>,
        from_offset: u64,
        length: u64,
        to: HandleText<'a>,
        to_offset: u64,
    },
    HomeDirectory {
        user: &'a [u8],
    },
    UsersGroupsById {
        uids: Vec<u32>,
        gids: Vec<u32>,
    },
    /// A type or an extension that this server does not know.
    Unknown,
}

/// A packet: the greeting, or a request with the id that its answer carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Init { version: u32 },
    Request { id: u32, request: Request<'a> },
}

/// The extensions with the versions that the greeting announces.
pub(super) const EXTENSIONS: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

const EXTENDED: u8 = 200;

impl<'a> Packet<'a> {
    /// Parses what follows a packet's length field. Bytes after the last field are ignored.
    pub(super) fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(packet);
        let kind = fields.u8()?;
        let number = fields.u32()?;
        if kind == 1 {
            return Ok(Self::Init { version: number });
        }
        Ok(Self::Request { id: number, request: Request::parse(kind, &mut fields)? })
    }
}

impl<'a> Request<'a> {
    fn parse(kind: u8, fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        // Fields of a struct expression are evaluated in the order they are written, which is the one on the wire.
        Ok(match kind {
            3 => Self::Open { path: fields.path()?, flags: fields.u32()?, attributes: fields.attributes()? },
            4 => Self::Close { handle: fields.string()? },
            5 => Self::Read { handle: fields.string()?, offset: fields.u64()?, length: fields.u32()? },
            6 => Self::Write { handle: fields.string()?, offset: fields.u64()?, data: fields.string()? },
            7 => Self::Lstat { path: fields.path()? },
            8 => Self::Fstat { handle: fields.string()? },
            9 => Self::Setstat { path: fields.path()?, attributes: fields.attributes()? },
            10 => Self::Fsetstat { handle: fields.string()?, attributes: fields.attributes()? },
            11 => Self::Opendir { path: fields.path()? },
            12 => Self::Readdir { handle: fields.string()? },
            13 => Self::Remove { path: fields.path()? },
            14 => Self::Mkdir { path: fields.path()?, attributes: fields.attributes()? },
            15 => Self::Rmdir { path: fields.path()? },
            16 => Self::Realpath { path: fields.path()? },
            17 => Self::Stat { path: fields.path()? },
            18 => Self::Rename { from: fields.path()?, to: fields.path()? },
            19 => Self::Readlink { path: fields.path()? },
            20 => Self::Symlink { target: fields.path()?, link: fields.path()? },
            EXTENDED => Self::parse_extended(fields.text()?, fields)?,
            _ => Self::Unknown,
        })
    }

    fn parse_extended(name: &[u8], fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        Ok(match name {
            b"posix-rename@openssh.com" => Self::PosixRename { from: fields.path()?, to: fields.path()? },
            b"statvfs@openssh.com" => Self::Statvfs { path: fields.path()? },
            b"fstatvfs@openssh.com" => Self::Fstatvfs { handle: fields.string()? },
            b"hardlink@openssh.com" => Self::Hardlink { from: fields.path()?, to: fields.path()? },
            b"fsync@openssh.com" => Self::Fsync { handle: fields.string()? },
            b"lsetstat@openssh.com" => Self::Lsetstat { path: fields.path()?, attributes: fields.attributes()? },
            b"limits@openssh.com" => Self::Limits,
            b"expand-path@openssh.com" => Self::ExpandPath { path: fields.path()? },
            b"copy-data" => Self::CopyData {
                from: fields.string()?,
                from_offset: fields.u64()?,
                length: fields.u64()?,
                to: fields.string()?,
                to_offset: fields.u64()?,
            },
            b"home-directory" => Self::HomeDirectory { user: fields.text()? },
            b"users-groups-by-id@openssh.com" => Self::UsersGroupsById { uids: fields.ids()?, gids: fields.ids()? },
            _ => Self::Unknown,
        })
    }
}

/// What is left of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A string that C can express. One NUL at its end is forgiven, as OpenSSH does.
    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let string = self.string()?;
        let text = string.strip_suffix(&[0]).unwrap_or(string);
        if text.contains(&0) { Err(Malformed) } else { Ok(text) }
    }

    fn path(&mut self) -> Result<&'a Path, Malformed> {
        Ok(Path::new(OsStr::from_bytes(self.text()?)))
    }

    /// A string that is a list of ids.
    fn ids(&mut self) -> Result<Vec<u32>, Malformed> {
        let (ids, []) = self.string()?.as_chunks() else { return Err(Malformed) };
        Ok(ids.iter().map(|id| u32::from_be_bytes(*id)).collect())
    }

    /// Section 5 of the draft.
    fn attributes(&mut self) -> Result<Attributes, Malformed> {
        const SIZE: u32 = 1;
        const UID_GID: u32 = 2;
        const PERMISSIONS: u32 = 4;
        const TIMES: u32 = 8;
        const EXTENDED: u32 = 1 << 31;

        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & UID_GID != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            attributes.permissions = Some(self.u32()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & EXTENDED != 0 {
            // No more rounds than the packet has bytes: each takes eight.
            for _ in 0..self.u32()? {
                let (_name, _data) = (self.text()?, self.string()?);
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    fn parse(packet: &[u8]) -> Result<Request<'_>, Malformed> {
        match Packet::parse(packet)? {
            Packet::Request { id: 7, request } => Ok(request),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_packet_says_what_is_wanted() {
        let open = [&[3, 0, 0, 0, 7][..], &string(b"a\xff b"), &[0, 0, 0, 0x1a, 0, 0, 0, 4, 0, 0, 1, 0xa4]].concat();
        let path = Path::new(OsStr::from_bytes(b"a\xff b"));
        let attributes = Attributes { permissions: Some(0o644), ..Attributes::default() };
        assert_eq!(parse(&open), Ok(Request::Open { path, flags: 0x1a, attributes }));

        let write =
            [&[6, 0, 0, 0, 7][..], &string(b"hand"), &5_u64.to_be_bytes(), &string(b"data"), b"ignored"].concat();
        assert_eq!(parse(&write), Ok(Request::Write { handle: b"hand", offset: 5, data: b"data" }));

        let ids =
            [&[200, 0, 0, 0, 7][..], &string(b"users-groups-by-id@openssh.com"), &string(&[0, 0, 3, 232]), &[0; 4]];
        assert_eq!(parse(&ids.concat()), Ok(Request::UsersGroupsById { uids: vec![1000], gids: vec![] }));

        let unknown = [&[200, 0, 0, 0, 7][..], &string(b"unheard@of")].concat();
        assert_eq!(parse(&unknown), Ok(Request::Unknown));
        assert_eq!(parse(&[99, 0, 0, 0, 7]), Ok(Request::Unknown));
        assert_eq!(Packet::parse(&[1, 0, 0, 0, 3]), Ok(Packet::Init { version: 3 }));
    }

    #[test]
    fn what_does_not_parse_is_malformed() {
        let stat = |path: &[u8]| [&[17, 0, 0, 0, 7][..], path].concat();
        assert_eq!(parse(&stat(&string(b"nul at the end\0"))), parse(&stat(&string(b"nul at the end"))));
        for (what, packet) in [
            ("nothing", vec![]),
            ("no id", vec![17, 0, 0, 0]),
            ("no path", stat(&[])),
            ("a path longer than the packet", stat(&[0xff, 0xff, 0xff, 0xff, b'a'])),
            ("a NUL within a path", stat(&string(b"a\0b"))),
            ("two NULs at the end of a path", stat(&string(b"a\0\0"))),
            ("attributes that are missing", [&[9, 0, 0, 0, 7][..], &string(b"a"), &[0, 0, 0, 1, 0, 0]].concat()),
            (
                "four billion extended attributes",
                [&[9, 0, 0, 0, 7][..], &string(b"a"), &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat(),
            ),
            (
                "half an id",
                [&[200, 0, 0, 0, 7][..], &string(b"users-groups-by-id@openssh.com"), &string(&[0; 6]), &[0; 4]]
                    .concat(),
            ),
        ] {
            assert_eq!(Packet::parse(&packet), Err(Malformed), "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(kind: u8, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let packet = [&[kind][..], &rest].concat();
            if let Ok(Packet::Request { request: Request::Write { data, .. }, .. }) = Packet::parse(&packet) {
                prop_assert!(data.len() <= packet.len());
            }
        }
    }
}
