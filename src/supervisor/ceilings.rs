//! Our own resource limits, which nobody below us can exceed.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::protocol::Rlimits;

/// Descriptors that the server itself may have open: a handful for each connection and session.
const OWN_NOFILE: u64 = 65_536;

/// Raises our hard limits to what sessions get, where they are lower and we may: a container's init cannot, as its root
/// has no power outside. Warns of what stays lower, once for all the sessions that will get less.
pub(super) fn raise(sessions: &Rlimits) {
    let wanted = [
        ("open files (nofile)", Resource::RLIMIT_NOFILE, sessions.nofile_hard),
        ("locked memory (memlock)", Resource::RLIMIT_MEMLOCK, sessions.memlock),
    ];
    for (name, resource, wanted) in wanted {
        // Cannot fail for a resource that exists.
        let Ok((soft, hard)) = getrlimit(resource) else { continue };
        if hard < wanted && setrlimit(resource, soft, wanted).is_err() {
            tracing::warn!(
                "sessions get {hard} instead of {wanted} as their limit of {name}, since the server has no more"
            );
        }
    }
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let own = hard.min(OWN_NOFILE);
        if soft < own
            && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, own, hard)
        {
            tracing::warn!("the server itself can have no more than {soft} open files: {error}");
        }
    }
}
