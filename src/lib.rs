//! podspawn: `ssh user@host` lands in a fresh container and leaves nothing behind.
//!
//! One binary, three kinds of process (see `ARCHITECTURE.md`): the root `supervisor`, one unprivileged `connection`
//! per SSH connection, and `init`, PID 1 of every container. They meet only in [`protocol`] and [`sys`].
//!
//! ```text
//! main ─▶ cli ─▶ { api  client }
//! main ─▶ supervisor ─▶ session ─▶ { runtime  image  network  cgroup  state } ─▶ sys
//! main ─▶ connection ─▶ protocol ─▶ sys        main ─▶ init ─▶ protocol ─▶ sys
//! ```
//!
//! `project` holds the repositories that `cli` adds and `session` makes sessions from, `git` clones them without rights, `mirror`
//! keeps the public ones that sessions clone.
//! `config`, `podfile` and `names` hold plain values that any of them may read, `access` says who may log in; none of them
//! knows a process or a kernel object.

pub mod access;
pub mod api;
pub mod audit;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod config;
pub mod connection;
pub mod doctor;
pub mod errors;
pub mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
mod generated;
pub mod git;
pub(crate) mod http;
pub mod image;
pub mod init;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod names;
pub mod network;
pub mod podfile;
pub mod project;
pub mod protocol;
pub mod runtime;
pub mod session;
pub mod state;
pub mod supervisor;
pub mod sys;
pub mod time;
pub mod transcript;
