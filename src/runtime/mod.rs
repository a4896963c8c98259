//! One container from a [`ContainerSpec`]: its namespaces, root file system, `/dev`, and security profile.
//!
//! ```text
//! supervisor (threads) ── Spawner::create ──▶ spawner (one thread) ── clone3 ──▶ init, PID 1 of the container
//!   Container { pid, pidfd }  ◀── Created ──   mounts, id maps        ◀─ Ready ─  set-up from the inside (init/setup.rs)
//! ```
//!
//! The supervisor has threads and descriptors, so it must not fork. The [`Spawner`] is its one helper: the same program,
//! executed from a sealed copy in memory, so that no container ever executes (or can reach) a file of the host. Init is
//! a clone of the spawner and never executes anything itself.
//!
//! What belongs to a container and how it is found: a process whose name is `ps` + tag + container id and that is PID 1 of
//! a pid namespace (all others in that namespace die with it); the directories that [`rootfs`] makes. All its mounts live
//! in its own mount namespace and die with init. See [`listing()`].
//!
//! [`ContainerSpec`]: crate::protocol::ContainerSpec

pub mod changes;
mod container;
pub mod disk;
pub mod disk_image;
mod listing;
mod mounts;
pub mod oci;
mod role;
pub mod rootfs;
mod seccomp;
mod spawner;

pub use crate::init::possible;
pub use container::Container;
pub use listing::{Listing, kill_session, listing};
pub use role::spawner_main;
pub use spawner::{RuntimeError, Spawner};

/// The name (`comm`) of the spawner.
fn spawner_name(instance: &str) -> String {
    format!("ps{instance}spawner")
}

/// The name (`comm`) of a container's init: 14 or 15 bytes, and the kernel keeps 15.
fn init_name(instance: &str, container: &str) -> String {
    format!("ps{instance}{container}")
}
