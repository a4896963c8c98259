//! Answers: their values and their bytes.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use nix::{
    errno::Errno,
    sys::statvfs::{FsFlags, Statvfs},
};

use super::{attributes::Attributes, request::EXTENSIONS};

/// The version of the protocol that is spoken, whatever the client says.
const VERSION: u32 = 3;

/// Status codes (draft, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    OpUnsupported = 8,
}

impl Status {
    /// What clients show, some of them also look for; OpenSSH's words.
    fn message(self) -> &'static str {
        match self {
            Self::Ok => "Success",
            Self::Eof => "End of file",
            Self::NoSuchFile => "No such file",
            Self::PermissionDenied => "Permission denied",
            Self::Failure => "Failure",
            Self::BadMessage => "Bad message",
            Self::OpUnsupported => "Operation unsupported",
        }
    }
}

impl From<Errno> for Status {
    fn from(error: Errno) -> Self {
        match error {
            Errno::ENOENT | Errno::ENOTDIR | Errno::EBADF | Errno::ELOOP => Self::NoSuchFile,
            Errno::EPERM | Errno::EACCES | Errno::EFAULT => Self::PermissionDenied,
            Errno::ENAMETOOLONG | Errno::EINVAL => Self::BadMessage,
            Errno::ENOSYS => Self::OpUnsupported,
            _ => Self::Failure,
        }
    }
}

impl From<nix::Result<()>> for Status {
    fn from(result: nix::Result<()>) -> Self {
        result.map_or_else(Self::from, |()| Self::Ok)
    }
}

/// One file of a [`Reply::Names`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    /// The line of `ls -l`.
    pub(super) long: Vec<u8>,
    pub(super) attributes: Attributes,
}

/// An answer, but for data that was read, which is put where it is sent from ([`super::stream::Output::data`]).
#[derive(Debug)]
pub(super) enum Reply {
    Status(Status),
    /// A status with words of its own.
    Because(Status, &'static str),
    Handle(u32),
    Attributes(Attributes),
    Names(Vec<Name>),
    Statvfs(Statvfs),
    /// Numbers, the answer to `limits@openssh.com`.
    Limits([u64; 4]),
    /// User names and group names, empty where there is none.
    UsersGroups(Vec<Vec<u8>>, Vec<Vec<u8>>),
    /// Already in the output.
    Sent,
}

impl Reply {
    /// A name and nothing else about the file.
    pub(super) fn path(path: OsString) -> Self {
        let name = path.into_vec();
        Self::Names(vec![Name { long: name.clone(), name, attributes: Attributes::default() }])
    }

    /// Appends the packet to `out`, without its length.
    pub(super) fn encode(&self, id: u32, client_version: u32, out: &mut Vec<u8>) {
        let mut head = |kind: u8| {
            out.push(kind);
            out.extend(id.to_be_bytes());
        };
        match self {
            Self::Sent => {}
            Self::Status(status) => Self::Because(*status, status.message()).encode(id, client_version, out),
            Self::Because(status, message) => {
                head(101);
                out.extend((*status as u32).to_be_bytes());
                if client_version >= 3 {
                    string(out, message.as_bytes());
                    string(out, b""); // the message's language
                }
            }
            Self::Handle(handle) => {
                head(102);
                string(out, &handle.to_be_bytes());
            }
            Self::Names(names) => {
                head(104);
                out.extend((names.len() as u32).to_be_bytes());
                for Name { name, long, attributes } in names {
                    string(out, name);
                    string(out, long);
                    attributes.encode(out);
                }
            }
            Self::Attributes(attributes) => {
                head(105);
                attributes.encode(out);
            }
            Self::Statvfs(stat) => {
                head(201);
                out.extend(statvfs_numbers(stat).into_iter().flat_map(u64::to_be_bytes));
            }
            Self::Limits(numbers) => {
                head(201);
                out.extend(numbers.iter().copied().flat_map(u64::to_be_bytes));
            }
            Self::UsersGroups(users, groups) => {
                head(201);
                for names in [users, groups] {
                    let length: usize = names.iter().map(|name| name.len() + 4).sum();
                    out.extend((length as u32).to_be_bytes());
                    for name in names {
                        string(out, name);
                    }
                }
            }
        }
    }
}

/// Appends the answer to the greeting, without its length.
pub(super) fn encode_version(out: &mut Vec<u8>) {
    out.push(2);
    out.extend(VERSION.to_be_bytes());
    for (name, version) in EXTENSIONS {
        string(out, name.as_bytes());
        string(out, version.as_bytes());
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// In the order of the extension's answer.
fn statvfs_numbers(stat: &Statvfs) -> [u64; 11] {
    const READ_ONLY: u64 = 1;
    const NO_SETUID: u64 = 2;
    let flag = |flag, number| if stat.flags().contains(flag) { number } else { 0 };
    [
        stat.block_size(),
        stat.fragment_size(),
        stat.blocks(),
        stat.blocks_free(),
        stat.blocks_available(),
        stat.files(),
        stat.files_free(),
        stat.files_available(),
        stat.filesystem_id(),
        flag(FsFlags::ST_RDONLY, READ_ONLY) | flag(FsFlags::ST_NOSUID, NO_SETUID),
        stat.name_max(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, version: u32) -> Vec<u8> {
        let mut out = Vec::new();
        reply.encode(7, version, &mut out);
        out
    }

    #[test]
    fn a_status_carries_words_only_for_clients_of_version_3() {
        let status = Reply::Status(Status::Eof);
        assert_eq!(encoded(&status, 3), b"\x65\0\0\0\x07\0\0\0\x01\0\0\0\x0bEnd of file\0\0\0\0");
        assert_eq!(encoded(&status, 2), b"\x65\0\0\0\x07\0\0\0\x01");
    }

    #[test]
    fn lists_of_names_are_strings_within_a_string() {
        let reply = Reply::UsersGroups(vec![b"ada".to_vec(), vec![]], vec![]);
        assert_eq!(encoded(&reply, 3), b"\xc9\0\0\0\x07\0\0\0\x0b\0\0\0\x03ada\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn errors_become_the_codes_that_openssh_gives() {
        for (error, status) in [
            (Errno::ENOENT, Status::NoSuchFile),
            (Errno::EBADF, Status::NoSuchFile),
            (Errno::EACCES, Status::PermissionDenied),
            (Errno::EINVAL, Status::BadMessage),
            (Errno::ENOSYS, Status::OpUnsupported),
            (Errno::EEXIST, Status::Failure),
            (Errno::EOPNOTSUPP, Status::Failure),
            (Errno::ENOSPC, Status::Failure),
        ] {
            assert_eq!(Status::from(error), status, "{error}");
        }
    }
}
