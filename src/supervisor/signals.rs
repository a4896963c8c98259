//! The signals that the server is told things with.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Supervisor, upgrade::Program};
use crate::errors::chain;

/// Heard from the moment that this is opened; before, they have their default actions.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    upgrade: Signal,
}

/// How the server is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Sessions and connections are left to the next server.
    Alone,
    /// With every session.
    Everything,
    /// As alone, and this process becomes the next server.
    Upgrade,
}

impl Signals {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits until one says that the server is to end.
    pub(super) async fn end(&mut self, supervisor: &Supervisor, program: &Program) -> End {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return End::Everything,
                _ = self.terminate.recv() => return End::Alone,
                // What daemons are sent after a change. This one sees changes by itself, but says so now.
                _ = self.hangup.recv() => {
                    supervisor.config();
                }
                _ = self.upgrade.recv() => match program.check_next().await {
                    Ok(()) => return End::Upgrade,
                    Err(error) => tracing::error!("not upgraded: {}", chain(error)),
                },
            }
        }
    }
}
