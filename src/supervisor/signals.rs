//! The signals that the server is told things with.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Supervisor;

/// Heard from the moment that this is opened; before, they have their default actions.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// How the server is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Sessions and connections are left to the next server.
    Alone,
    /// With every session.
    Everything,
}

impl Signals {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until one says that the server is to end.
    pub(super) async fn end(&mut self, supervisor: &Supervisor) -> End {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return End::Everything,
                _ = self.terminate.recv() => return End::Alone,
                // What daemons are sent after a change. This one sees changes by itself, but says so now.
                _ = self.hangup.recv() => {
                    supervisor.config();
                }
            }
        }
    }
}
