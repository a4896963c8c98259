//! The state of a server, and which function answers what.

use std::path::{Path, PathBuf};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit},
        statvfs::{fstatvfs, statvfs},
    },
};

use super::{
    SftpError,
    handles::Handles,
    names::Names,
    paths,
    reply::{Reply, Status},
    request::{MAX_DATA, MAX_PACKET, Request},
    stream::{self, Output},
};

/// Descriptors that are not for handles: standard ones, the stream, a spare one.
const OWN_DESCRIPTORS: u64 = 5;

/// Why there is no answer but a status, or none at all.
enum Refusal {
    Status(Status),
    Fatal(SftpError),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Status(error.into())
    }
}

impl From<SftpError> for Refusal {
    fn from(error: SftpError) -> Self {
        Self::Fatal(error)
    }
}

/// One client's server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) home: PathBuf,
    pub(super) handles: Handles,
    /// As they were when they were first needed in a listing.
    names: Option<Names>,
    max_handles: u64,
}

impl Server {
    pub(super) fn new(home: &Path) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let max_handles = descriptors.saturating_sub(OWN_DESCRIPTORS);
        Self { home: home.to_owned(), handles: Handles::new(max_handles), names: None, max_handles }
    }

    /// Does what is asked for and returns the answer; data goes to `output` right away.
    ///
    /// # Errors
    /// Only those of `output`: what else can go wrong is an answer.
    pub(super) fn perform(
        &mut self,
        id: u32,
        request: Request<'_>,
        output: &mut Output<'_>,
    ) -> Result<Reply, SftpError> {
        match self.answer(id, request, output) {
            Ok(reply) => Ok(reply),
            Err(Refusal::Status(status)) => Ok(Reply::Status(status)),
            Err(Refusal::Fatal(error)) => Err(error),
        }
    }

    fn answer(&mut self, id: u32, request: Request<'_>, output: &mut Output<'_>) -> Result<Reply, Refusal> {
        Ok(match request {
            Request::Open { path, flags, attributes } => Reply::Handle(self.open(path, flags, &attributes)?),
            Request::Close { handle } => Reply::Status(self.handles.close(handle)),
            Request::Read { handle, offset, length } => {
                output.data(id, length, |place| self.read(handle, offset, place))??;
                Reply::Sent
            }
            Request::Write { handle, offset, data } => Reply::Status(self.write(handle, offset, data)),
            Request::Fstat { handle } => self.fstat(handle)?,
            Request::Fsetstat { handle, attributes } => match self.handles.fd(handle) {
                Some(fd) => Reply::Status(attributes.set_of_file(fd)),
                None => return Err(Status::Failure.into()),
            },
            Request::Opendir { path } => Reply::Handle(self.open_directory(path)?),
            Request::Readdir { handle } => {
                let names = self.names.get_or_insert_with(Names::read);
                Reply::Names(self.handles.directory(handle).ok_or(Status::Failure)?.list(names)?)
            }
            Request::Fsync { handle } => Reply::Status(self.fsync(handle)),
            Request::Fstatvfs { handle } => Reply::Statvfs(fstatvfs(self.handles.fd(handle).ok_or(Status::Failure)?)?),
            Request::CopyData { from, from_offset, length, to, to_offset } => {
                Reply::Status(self.copy_data((from, from_offset), length, (to, to_offset)))
            }
            Request::Limits => Reply::Limits([MAX_PACKET as u64, MAX_DATA as u64, MAX_DATA as u64, self.max_handles]),
            Request::Stat { path } => paths::stat(path)?,
            Request::Lstat { path } => paths::lstat(path)?,
            Request::Setstat { path, attributes } => Reply::Status(attributes.set(path)),
            Request::Lsetstat { path, attributes } => Reply::Status(attributes.set_of_link(path)),
            Request::Remove { path } => Reply::Status(paths::remove(path)),
            Request::Mkdir { path, attributes } => Reply::Status(paths::make_directory(path, &attributes)),
            Request::Rmdir { path } => Reply::Status(paths::remove_directory(path)),
            Request::Realpath { path } => paths::real_path(path)?,
            Request::Rename { from, to } => Reply::Status(paths::rename(from, to)),
            Request::PosixRename { from, to } => Reply::Status(paths::posix_rename(from, to)),
            Request::Readlink { path } => paths::read_link(path)?,
            Request::Symlink { target, link } => Reply::Status(paths::symlink(target, link)),
            Request::Hardlink { from, to } => Reply::Status(paths::hard_link(from, to)),
            Request::Statvfs { path } => Reply::Statvfs(statvfs(path)?),
            Request::ExpandPath { path } => paths::expand(path, &self.home)?,
            Request::HomeDirectory { user } => paths::home_directory(user, &self.home)?,
            Request::UsersGroupsById { uids, gids } => users_groups(&uids, &gids)?,
            Request::Unknown => return Err(Status::OpUnsupported.into()),
        })
    }
}

/// # Errors
/// [`Status::Failure`] if the answer would be larger than a client accepts.
fn users_groups(uids: &[u32], gids: &[u32]) -> Result<Reply, Status> {
    let names = Names::read();
    let name = |name: Option<&[u8]>| name.unwrap_or_default().to_owned();
    let reply = Reply::UsersGroups(
        uids.iter().map(|&uid| name(names.user(uid))).collect(),
        gids.iter().map(|&gid| name(names.group(gid))).collect(),
    );
    let mut encoded = Vec::new();
    reply.encode(0, 3, &mut encoded);
    if stream::fits(&encoded) { Ok(reply) } else { Err(Status::Failure) }
}
