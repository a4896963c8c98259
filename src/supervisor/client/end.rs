//! The end of connection processes: each by itself, or else by force.

use std::os::unix::process::ExitStatusExt;

use tokio::process::Child;

use super::FAREWELL;
use crate::{session::state::ConnectionId, sys::pidfd::Held};

/// The exit status of a Rust program that has panicked.
const PANICKED: i32 = 101;

/// As [`end_child`], for a process that is not our child.
pub(super) async fn end_adopted((pid, starttime): (i32, u64), id: ConnectionId) {
    let ended = tokio::task::spawn_blocking(move || {
        let Some(process) = Held::adopt(pid, starttime) else { return Ok(()) };
        if process.wait(FAREWELL) {
            return Ok(());
        }
        tracing::warn!(connection = id, "the connection process does not end; killing it");
        process.kill()
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(connection = id, "killing the connection process: {error}"),
        Err(error) => tracing::error!(connection = id, "waiting for the connection process: {error}"),
    }
}

/// Waits for the process to end by itself, then makes it. Returns whether it has crashed.
pub(super) async fn end_child(child: &mut Child, id: ConnectionId) -> bool {
    let status = match tokio::time::timeout(FAREWELL, child.wait()).await {
        Ok(status) => status,
        Err(_elapsed) => {
            tracing::warn!(connection = id, "the connection process does not end; killing it");
            if let Err(error) = child.kill().await {
                tracing::error!(connection = id, "killing the connection process: {error}");
            }
            return false;
        }
    };
    match status {
        Ok(status) => {
            if !status.success() {
                tracing::warn!(connection = id, "the connection process ended with {status}");
            }
            status.signal().is_some() || status.code() == Some(PANICKED)
        }
        Err(error) => {
            tracing::error!(connection = id, "waiting for the connection process: {error}");
            false
        }
    }
}
