//! One container with its services for each (user, project): where the leaves meet.
//!
//! [`Environment`] is what one is made from, [`state`] decides what happens in a session's life, the driver is the one task
//! that holds a session and does it, [`steps`] is the order in which kernel objects are made and removed, `services` are
//! started and kept in theirs, [`inside`] runs processes in containers, [`registry`] knows which sessions there are and who
//! may have one.

mod agents;
pub mod belongings;
mod build;
mod cleanup;
mod client;
mod containers;
mod description;
mod down;
mod driver;
pub mod environment;
pub mod evidence;
mod homes;
mod idle;
pub mod inside;
mod leaks;
pub mod log;
mod mirrors;
mod ports;
pub mod registry;
mod remains;
mod room;
mod services;
mod set_up;
pub mod state;
pub mod steps;
mod updates;
mod variables;
mod volumes;

pub use self::{
    build::{BuildFailure, kept as kept_for_builds},
    cleanup::Cleaned,
    client::{Activity, Client, Origin, ToClient},
    containers::socket_of,
    description::{Description, DescriptionError},
    driver::View,
    environment::{Environment, limits_of_mirrors},
    leaks::{Leak, LeaksError, leaks},
    ports::ExposedPort,
    registry::Sessions,
    remains::Remains,
    room::{configure_room, images_in_use, in_use, room},
    services::Plan,
    steps::{Context, CreateError, RLIMITS, SessionKey, egress, leases},
    updates::Updates,
    variables::Variables,
};
