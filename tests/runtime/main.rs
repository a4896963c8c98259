//! Containers for real: the spawner of the built binary, on a busybox layer made here.
//!
//! One level below `podspawn serve`: no SSH, no network, no image store. Each test has an instance of its own.

#[path = "../common/guardian.rs"]
mod guardian;
mod host;
mod hostile;
mod inside;
mod life;
mod profile;
