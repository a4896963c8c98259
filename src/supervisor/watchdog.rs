//! What the service manager is told about us (sd_notify(3), systemd.service(5)): nothing where there is none.

use sd_notify::NotifyState;

use super::signals::End;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager (NOTIFY_SOCKET) cannot be told how it goes: {error}");
    }
}

/// Clients are taken.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// No more clients are taken; after an upgrade they are again.
pub(super) fn leaving(end: End) {
    match end {
        End::Alone | End::Everything => tell(&[NotifyState::Stopping]),
        // The time is asked of the clock that there always is.
        End::Upgrade => {
            tell(&[NotifyState::Reloading].into_iter().chain(NotifyState::monotonic_usec_now()).collect::<Vec<_>>());
        }
    }
}

/// Says twice in each `WatchdogSec=` that tasks still run. Returns at once without one.
pub(super) async fn keep_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 2).await;
    }
}
