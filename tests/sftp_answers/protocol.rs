//! Requests as bytes, and answers as values that can be compared.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

pub(crate) const OPEN: u8 = 3;
pub(crate) const CLOSE: u8 = 4;
pub(crate) const READ: u8 = 5;
pub(crate) const WRITE: u8 = 6;
pub(crate) const LSTAT: u8 = 7;
pub(crate) const FSTAT: u8 = 8;
pub(crate) const SETSTAT: u8 = 9;
pub(crate) const FSETSTAT: u8 = 10;
pub(crate) const OPENDIR: u8 = 11;
pub(crate) const READDIR: u8 = 12;
pub(crate) const REMOVE: u8 = 13;
pub(crate) const MKDIR: u8 = 14;
pub(crate) const RMDIR: u8 = 15;
pub(crate) const REALPATH: u8 = 16;
pub(crate) const STAT: u8 = 17;
pub(crate) const RENAME: u8 = 18;
pub(crate) const READLINK: u8 = 19;
pub(crate) const SYMLINK: u8 = 20;

pub(crate) const FOR_READING: u32 = 1;
pub(crate) const FOR_WRITING: u32 = 2;
pub(crate) const APPEND: u32 = 4;
pub(crate) const CREATE: u32 = 8;
pub(crate) const TRUNCATE: u32 = 16;
pub(crate) const EXCLUSIVE: u32 = 32;

/// A request: its type and the fields after its id.
#[derive(Clone)]
pub(crate) struct Request(pub(crate) u8, pub(crate) Vec<u8>);

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.0, self.1.escape_ascii())
    }
}

pub(crate) fn request(kind: u8) -> Request {
    Request(kind, Vec::new())
}

pub(crate) fn extended(name: &str) -> Request {
    request(200).string(name)
}

impl Request {
    pub(crate) fn u32(mut self, number: u32) -> Self {
        self.1.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, number: u64) -> Self {
        self.1.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let mut with_length = self.u32(bytes.len() as u32);
        with_length.1.extend_from_slice(bytes);
        with_length
    }

    pub(crate) fn handle(self, number: u32) -> Self {
        self.string(number.to_be_bytes())
    }

    pub(crate) fn attributes(self, attributes: &Attributes) -> Self {
        let Attributes { size, owner, permissions, times } = *attributes;
        let flag = |given: bool, flag: u32| if given { flag } else { 0 };
        let flags = flag(size.is_some(), 1)
            | flag(owner.is_some(), 2)
            | flag(permissions.is_some(), 4)
            | flag(times.is_some(), 8);
        let mut with = self.u32(flags);
        with = size.map_or(with.clone(), |size| with.u64(size));
        with = owner.map_or(with.clone(), |(uid, gid)| with.u32(uid).u32(gid));
        with = permissions.map_or(with.clone(), |permissions| with.u32(permissions));
        times.map_or(with.clone(), |(access, modified)| with.u32(access).u32(modified))
    }

    pub(crate) fn packet(&self, id: u32) -> Vec<u8> {
        let length = (self.1.len() + 5) as u32;
        [&length.to_be_bytes()[..], &[self.0], &id.to_be_bytes(), &self.1].concat()
    }
}

pub(crate) fn open(path: impl AsRef<[u8]>, flags: u32) -> Request {
    request(OPEN).string(path).u32(flags).u32(0)
}

pub(crate) fn read(handle: u32, offset: u64, length: u32) -> Request {
    request(READ).handle(handle).u64(offset).u32(length)
}

pub(crate) fn write(handle: u32, offset: u64, data: impl AsRef<[u8]>) -> Request {
    request(WRITE).handle(handle).u64(offset).string(data)
}

pub(crate) fn copy_data(from: (u32, u64), length: u64, to: (u32, u64)) -> Request {
    extended("copy-data").handle(from.0).u64(from.1).u64(length).handle(to.0).u64(to.1)
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) size: Option<u64>,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) permissions: Option<u32>,
    pub(crate) times: Option<(u32, u32)>,
}

pub(crate) fn permissions(permissions: u32) -> Attributes {
    Attributes { permissions: Some(permissions), ..Attributes::default() }
}

/// An answer without what cannot be the same twice: the time of the test, the place of the directory, free space.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Status { code: u32, message: String },
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(BTreeMap<Vec<u8>, (Vec<u8>, Attributes)>),
    Attributes(Attributes),
    Extended(Vec<u8>),
    Closed,
}

pub(crate) struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.to_owned()
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    pub(crate) fn string(&mut self) -> Vec<u8> {
        let length = self.u32() as usize;
        self.take(length)
    }

    pub(crate) fn attributes(&mut self) -> Attributes {
        let flags = self.u32();
        Attributes {
            size: (flags & 1 != 0).then(|| self.u64()),
            owner: (flags & 2 != 0).then(|| (self.u32(), self.u32())),
            permissions: (flags & 4 != 0).then(|| self.u32()),
            times: (flags & 8 != 0).then(|| (self.u32(), self.u32())),
        }
    }
}

/// Files that were touched during the test have no time.
pub(crate) fn without_now(attributes: Attributes) -> Attributes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
    let old = |time: u32| if now.abs_diff(time) < 600 { 0 } else { time };
    Attributes { times: attributes.times.map(|(access, modified)| (old(access), old(modified))), ..attributes }
}

pub(crate) fn answer(packet: &[u8], expected_id: u32, parent: &[u8]) -> Answer {
    let mut fields = Fields(&packet[1..]);
    assert_eq!(fields.u32(), expected_id, "an answer is out of turn");
    let answer = match packet[0] {
        101 => {
            let code = fields.u32();
            let message = String::from_utf8(fields.string()).unwrap();
            assert_eq!(fields.string(), b"");
            Answer::Status { code, message }
        }
        102 => Answer::Handle(fields.string()),
        103 => Answer::Data(fields.string()),
        104 => {
            let count = fields.u32();
            let mut names = BTreeMap::new();
            for _ in 0..count {
                let (name, mut long) = (fields.string(), fields.string());
                let all = fields.attributes();
                let attributes = without_now(all);
                if all != attributes {
                    // `Jan 13 18:39 name`
                    let date = long.len() - name.len() - 13;
                    long.splice(date..date + 12, *b"............");
                }
                names.insert(without(&name, parent), (without(&long, parent), attributes));
            }
            assert_eq!(names.len(), count as usize, "a name comes twice");
            Answer::Names(names)
        }
        105 => Answer::Attributes(without_now(fields.attributes())),
        201 => {
            let mut body = fields.take(fields.0.len());
            if body.len() == 88 {
                for changing in [3, 4, 6, 7] {
                    body[changing * 8..][..8].fill(0);
                }
            }
            Answer::Extended(body)
        }
        other => panic!("an answer of type {other}"),
    };
    assert_eq!(fields.0, b"", "there is more in the answer");
    answer
}

pub(crate) fn without(path: &[u8], parent: &[u8]) -> Vec<u8> {
    match path.strip_prefix(parent) {
        Some(rest) => [b"PARENT", rest].concat(),
        None => path.to_owned(),
    }
}

pub(crate) fn status(code: u32, message: &str) -> Answer {
    Answer::Status { code, message: message.to_owned() }
}
