//! System calls as safe functions: the only unsafe code of the crate.
//!
//! A wrapper is named after its call, takes typed arguments, returns `io::Result` and decides nothing.

pub mod async_fd;
pub mod seqpacket;
pub mod spawn;
