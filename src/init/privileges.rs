//! What init and all its children give up for good.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

use crate::{
    protocol::{Rlimits, SecuritySpec},
    sys::confine::{Instruction, seccomp_set_filter},
};

/// What init itself works with: giving terminals and pipes to the user, becoming the user, signalling its processes.
const OF_INIT: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// The limits as far as they are not beyond our own, which an unprivileged root cannot raise; the daemon has said so.
pub fn possible(limits: &Rlimits) -> io::Result<Rlimits> {
    let within = |resource, limit: u64| getrlimit(resource).map(|(_, ceiling)| limit.min(ceiling));
    let nofile_hard = within(Resource::RLIMIT_NOFILE, limits.nofile_hard)?;
    Ok(Rlimits {
        nofile_soft: limits.nofile_soft.min(nofile_hard),
        nofile_hard,
        core: within(Resource::RLIMIT_CORE, limits.core)?,
        memlock: within(Resource::RLIMIT_MEMLOCK, limits.memlock)?,
    })
}

/// Sets the limits, as far as that is possible.
pub(super) fn limit(limits: &Rlimits) -> io::Result<()> {
    let Rlimits { nofile_soft, nofile_hard, core, memlock } = possible(limits)?;
    setrlimit(Resource::RLIMIT_NOFILE, nofile_soft, nofile_hard)?;
    setrlimit(Resource::RLIMIT_CORE, core, core)?;
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, memlock, memlock)?)
}

/// The capabilities of `names` (`CHOWN`, ...).
fn parse(names: &[String]) -> io::Result<CapsHashSet> {
    let parse = |name: &String| {
        let known = format!("CAP_{name}").parse();
        known.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("unknown capability {name:?}")))
    };
    names.iter().map(parse).collect()
}

/// Empties the bounding set but for the profile's capabilities, loads the filter, and drops what init does not need.
///
/// # Errors
/// With the step that failed.
pub(super) fn give_up(security: &SecuritySpec, filter: &[Instruction]) -> Result<(), (String, io::Error)> {
    let step = |name: &'static str| move |error: caps::errors::CapsError| (name.to_owned(), io::Error::other(error));
    let io_step = |name: &'static str| move |error: io::Error| (name.to_owned(), error);

    let allowed = parse(&security.capabilities).map_err(io_step("read the capability set"))?;
    // Those that this kernel knows: dropping another one is EINVAL.
    for capability in caps::runtime::thread_all_supported().difference(&allowed) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(step("limit the bounding set"))?;
    }
    caps::clear(None, CapSet::Ambient).map_err(step("clear ambient capabilities"))?;
    caps::clear(None, CapSet::Inheritable).map_err(step("clear inheritable capabilities"))?;
    if security.no_new_privileges {
        prctl::set_no_new_privs().map_err(|error| ("set no_new_privs".to_owned(), error.into()))?;
    }
    if security.seccomp {
        seccomp_set_filter(filter).map_err(io_step("load the seccomp filter"))?;
    }
    let kept: CapsHashSet = allowed.into_iter().chain(OF_INIT).collect();
    caps::set(None, CapSet::Effective, &kept).map_err(step("drop capabilities"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(step("drop capabilities"))
}

/// For a child that does not execute anything, which would do this by itself: has no more than `security` allows.
pub(super) fn drop_to_profile(security: &SecuritySpec) -> io::Result<()> {
    let allowed = parse(&security.capabilities)?;
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = allowed.intersection(&held).copied().collect();
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)
}
