//! From a host name of the client's to a project's session on the server.

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod person;
mod programs;
mod relay;
mod routing;
mod story;
mod trust;
