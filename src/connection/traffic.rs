//! Whether anything goes between the client and its session, which tells one that is used from one that is forgotten.
//!
//! What counts are bytes in channels: signs of life, which clients and servers ask each other for, do not.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How often the supervisor hears of it at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Of one connection.
#[derive(Default)]
pub(super) struct Traffic {
    unreported: AtomicBool,
    flowed: Notify,
}

impl Traffic {
    /// There has been some.
    pub(super) fn flows(&self) {
        if !self.unreported.swap(true, Ordering::Relaxed) {
            self.flowed.notify_one();
        }
    }
}

/// When the supervisor was last told.
pub(super) struct Report {
    next: Instant,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() }
    }

    /// Waits until there is something to report: at once after a pause, else when the interval is over. So what is
    /// unreported is never older than that.
    pub(super) async fn due(&mut self, traffic: &Traffic) {
        tokio::time::sleep_until(self.next).await;
        traffic.flowed.notified().await;
        traffic.unreported.store(false, Ordering::Relaxed);
        self.next = Instant::now() + INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_come_when_there_is_something_and_no_more_often_than_the_interval() {
        let (traffic, mut report) = (Traffic::default(), Report::new());
        let start = Instant::now();
        traffic.flows();
        report.due(&traffic).await;
        for _ in 0..3 {
            traffic.flows();
        }
        report.due(&traffic).await;
        assert!(start.elapsed() >= INTERVAL);
        // Three times were one.
        let more = tokio::time::timeout(INTERVAL * 2, report.due(&traffic)).await;
        assert!(more.is_err());
        traffic.flows();
        report.due(&traffic).await;
    }
}
