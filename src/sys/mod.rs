//! System calls as safe functions: the only unsafe code of the crate.
//!
//! A wrapper is named after its call, takes typed arguments, returns `io::Result` and decides nothing.

pub mod async_fd;
pub mod confine;
pub mod find_process;
pub mod free_space;
pub mod inode_flags;
pub mod local_time;
pub mod loop_device;
pub mod memory;
pub mod mount_api;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod remove_tree;
pub mod seqpacket;
pub mod spawn;
pub mod tcp;
pub mod tty;
