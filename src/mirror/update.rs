//! Making a mirror and bringing it up to date.

use std::{
    fs, io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    time::Duration,
};

use super::{
    Limits, Mirror, MirrorError, REFUSED_FOR, Source,
    limits::{MAX_ENTRIES, measure},
    listing::Listing,
    recently,
    snapshot::packed_refs,
};
use crate::{
    git::{self, Git, GitError, Network},
    sys::remove_tree::remove_tree,
};

/// What the server has said, when that was what the mirror has.
const REFS: &str = "refs";

/// How long each command of git's may take.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Each update that finds something new adds a pack; beyond so many they become one.
const MAX_PACKS: usize = 24;

/// A pack for whatever arrives, since loose objects would be a file each; and a server that has nothing more to say is not
/// waited for.
const SETTINGS: [&str; 6] =
    ["-c", "fetch.unpackLimit=1", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30"];

/// By which way git gets to the server.
pub struct Reach<'a> {
    /// As whom.
    pub uid: u32,
    /// The network of the session that it is for.
    pub netns: BorrowedFd<'a>,
    pub resolv_conf: &'a str,
    /// The server's name and addresses.
    pub hosts: &'a str,
    /// Its cgroup.
    pub tasks: &'a [OwnedFd],
    /// Whether the session is still there.
    pub wanted: &'a dyn Fn() -> bool,
}

impl Mirror {
    /// Makes it what its server has now, and returns what that is, unless it has become something else meanwhile.
    pub(super) fn update(
        &self,
        source: &Source,
        reach: &Reach<'_>,
        limits: Limits,
    ) -> Result<Option<Listing>, MirrorError> {
        if recently(&self.path.join("refused"), REFUSED_FOR) {
            return Err(MirrorError::GivenUp);
        }
        self.unmark("refused").map_err(|error| self.failed(error))?;
        if !self.is_good(reach.uid, limits) {
            self.clear()?;
        }
        let was_there = self.repository().exists();
        let mut said = None;
        if was_there {
            let now = self.ask(source, reach, limits).inspect_err(|error| {
                if matches!(error, MirrorError::Refused(GitError::TimedOut { .. })) {
                    // Without the mark it is waited for again, and nothing else.
                    let _ = self.mark("refused");
                }
            })?;
            if fs::read_to_string(self.path.join(REFS)).is_ok_and(|before| before == now) {
                return Ok(Listing::of_server(&now));
            }
            said = Some(now);
        }
        let mut updated = self.fetch(source, reach, limits);
        if was_there && matches!(updated, Err(MirrorError::Git(GitError::Failed { .. }))) {
            match self.ask(source, reach, limits) {
                // So it is not the server.
                Ok(_) => {
                    self.clear()?;
                    updated = self.fetch(source, reach, limits);
                }
                Err(error) => {
                    self.unmark("writing").map_err(|error| self.failed(error))?;
                    return Err(error);
                }
            }
        }
        if let Err(error) = updated {
            self.clear()?;
            if matches!(error, MirrorError::TooLarge(_) | MirrorError::Git(GitError::TimedOut { .. })) {
                self.mark("refused").map_err(|error| self.failed(error))?;
            }
            return Err(of_server(error));
        }
        self.unmark("writing").map_err(|error| self.failed(error))?;
        let said = match said {
            Some(said) => said,
            None => self.ask(source, reach, limits)?,
        };
        self.agree(reach.uid, &said).map_err(|error| self.failed(error))
    }

    /// Asks the server what it has, and so whether it would give it. Writes nothing, so that nobody needs to be kept out meanwhile.
    pub(super) fn ask(&self, source: &Source, reach: &Reach<'_>, limits: Limits) -> Result<String, MirrorError> {
        // By its own protocol git writes the newer kind of question in pieces, and waits 40 ms for the server's word on the first
        // of them (Nagle's algorithm and a delayed acknowledgement).
        let version = if source.url().starts_with("git://") { "protocol.version=0" } else { "protocol.version=2" };
        let ask = ["ls-remote", "--quiet", "--symref", "--", source.url(), "HEAD", "refs/heads/*", "refs/tags/*"];
        self.git(reach, limits, &[&SETTINGS[..], &["-c", version], &ask].concat()).map_err(of_server)
    }

    /// Keeps what the server has said, if that is what the mirror has.
    fn agree(&self, uid: u32, said: &str) -> io::Result<Option<Listing>> {
        let listing = Listing::of_server(said);
        let packed = packed_refs(&self.repository(), uid)?;
        let listing = listing.filter(|listing| packed.is_some_and(|packed| listing.is_that_of(&packed)));
        if listing.is_some() {
            fs::write(self.path.join(REFS), said)?;
        }
        Ok(listing)
    }

    /// Whether it can be gone on with.
    fn is_good(&self, uid: u32, limits: Limits) -> bool {
        let young = super::age_of(&self.path.join("url")).is_some_and(|made| !limits.is_too_old(made));
        let own = fs::symlink_metadata(self.repository()).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
        young && own && !self.marked("writing")
    }

    /// Removes what it has.
    fn clear(&self) -> Result<(), MirrorError> {
        remove_tree(&self.repository()).map_err(|error| self.failed(error))?;
        for name in ["url", "used", "writing", REFS] {
            self.unmark(name).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn fetch(&self, source: &Source, reach: &Reach<'_>, limits: Limits) -> Result<(), MirrorError> {
        self.mark("writing").map_err(|error| self.failed(error))?;
        self.unmark(REFS).map_err(|error| self.failed(error))?;
        if !self.repository().exists() {
            git::make_directory(&self.repository(), reach.uid).map_err(MirrorError::Git)?;
            self.git(reach, limits, &["init", "--quiet", "--bare", "."])?;
            fs::write(self.path.join("url"), source.url()).map_err(|error| self.failed(error))?;
        }
        let refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let fetch = ["fetch", "--quiet", "--prune", "--no-tags", "--no-recurse-submodules", "--", source.url()];
        self.git(reach, limits, &[&SETTINGS[..], &fetch, &refs].concat())?;
        self.git(reach, limits, &["pack-refs", "--all", "--prune"])?;
        let packs = fs::read_dir(self.repository().join("objects/pack")).into_iter().flatten().count() / 2;
        if packs > MAX_PACKS {
            self.git(reach, limits, &["repack", "-a", "-d", "--quiet"])?;
        }
        Ok(())
    }

    /// Runs git in it for as long as it gets neither too large nor useless, and returns what it has written.
    fn git(&self, reach: &Reach<'_>, limits: Limits, arguments: &[&str]) -> Result<String, MirrorError> {
        let repository = self.repository();
        let git = Git {
            uid: reach.uid,
            directory: &repository,
            network: Network::Namespace {
                netns: reach.netns,
                resolv_conf: reach.resolv_conf,
                hosts: Some(reach.hosts),
            },
            tasks: reach.tasks,
            limit: LIMIT,
        };
        let fits = || {
            let size = measure(&repository, MAX_ENTRIES);
            size.bytes <= limits.of_one() && size.entries <= MAX_ENTRIES
        };
        let ran = git.run_while(arguments, &mut || (reach.wanted)() && fits());
        match ran {
            // Also if it has been quick.
            _ if !fits() => Err(MirrorError::TooLarge(limits.of_one())),
            Err(GitError::Stopped { .. }) => Err(MirrorError::Ended),
            ran => ran.map_err(MirrorError::Git),
        }
    }
}

/// What git says of a server is no fault of the mirror.
fn of_server(error: MirrorError) -> MirrorError {
    match error {
        MirrorError::Git(error @ (GitError::Failed { .. } | GitError::TimedOut { .. })) => MirrorError::Refused(error),
        other => other,
    }
}
