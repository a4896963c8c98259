//! Ctrl-C while something is being unpacked: nothing of it is left behind.

use std::{
    io::{self, Write},
    process,
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

use crate::image::{ImageError, Store};

/// Does `work`, which fills the store. A signal that asks us to end has what is unfinished removed first.
pub(super) fn interruptible<T>(store: &Arc<Store>, work: impl FnOnce() -> Result<T, ImageError>) -> anyhow::Result<T> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Also for the threads that are started from here on; one of them takes the signals.
    signals.thread_block().context("cannot block signals")?;
    let watched = store.clone();
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            watched.cancel();
            // Nowhere is left to report that standard error is closed.
            let _ = writeln!(io::stderr(), "podspawn: interrupted");
            process::exit(128 + signal as i32);
        }
    });
    let done = work();
    while store.is_cancelled() {
        thread::park(); // the other thread ends the process
    }
    done.map_err(explained)
}

/// Says what to do about a full disk.
fn explained(error: ImageError) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    let full = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(full) {
        error.context("no space is left for images (podspawn image prune frees what no image needs)")
    } else {
        error
    }
}
