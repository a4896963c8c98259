//! `pull`, and how pulls show their progress.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Session, interrupt::interruptible};
use crate::{
    audit::{Audit, Event},
    image::{Digest, Progress, Reference, Removed, Store},
    session::room,
};

#[derive(Debug, Args)]
pub struct PullArgs {
    /// What to fetch: ubuntu:24.04, localhost:5000/x, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE,
    /// bootstrap:debian/SUITE
    #[arg(value_name = "REF")]
    reference: String,
}

impl PullArgs {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let reference: Reference = self.reference.parse()?;
        let store = open(session)?;
        let progress = Shown::new(session.quiet);
        let image = interruptible(&store, || {
            let image = store.pull(&reference, &progress);
            progress.clear();
            image
        })?;
        writeln!(std::io::stdout(), "{}", image.id)?;
        Ok(())
    }
}

/// Opens the store of the configuration.
pub(super) fn open(session: &Session<'_>) -> anyhow::Result<Arc<Store>> {
    let config = session.config;
    let store = Store::open(&config.paths.state_dir.join("images"), (&config.images).into())?;
    let (quiet, log) = (session.quiet, config.log.audit_log.clone());
    let told = move |removed: &Removed| {
        if !quiet {
            // Whoever has closed standard error does not want to know.
            let _ = writeln!(std::io::stderr(), "podspawn: removed for images.keep_free: {removed}");
        }
        match Audit::open(log.as_deref()) {
            Ok(audit) => audit.record(&Event::ImagesRemoved { removed }),
            Err(error) => tracing::error!("the audit log cannot be written: {error}"),
        }
    };
    Ok(Arc::new(store.with_room(room(config, told))))
}

/// Bars on a terminal, lines elsewhere, nothing when quiet.
pub(super) struct Shown {
    quiet: bool,
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Shown {
    pub(super) fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { quiet, bars, layers: Mutex::default() }
    }

    /// Takes the bars off the screen.
    pub(super) fn clear(&self) {
        if let Some(bars) = &self.bars {
            // A terminal that is gone has no bars.
            let _ = bars.clear();
        }
    }

    fn with(&self, layer: &Digest, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(layer) {
            act(bar);
        }
    }
}

impl Progress for Shown {
    fn line(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None if self.quiet => {}
            // Whoever has closed standard error does not want to know.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    fn start(&self, layer: &Digest, bytes: u64) {
        let Some(bars) = &self.bars else { return };
        let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {bytes_per_sec}");
        let bar = bars.add(ProgressBar::new(bytes));
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(layer.short().to_owned());
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.clone(), bar);
    }

    fn advance(&self, layer: &Digest, bytes: u64) {
        self.with(layer, |bar| bar.inc(bytes));
    }

    fn finish(&self, layer: &Digest) {
        self.with(layer, indicatif::ProgressBar::finish);
        if self.bars.is_none() {
            self.line(&format!("layer {} done", layer.short()));
        }
    }
}
