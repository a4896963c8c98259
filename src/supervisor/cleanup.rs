//! `podspawn cleanup`: in the server where one runs, otherwise in the process of the command, which is then as a server that
//! leaves at once.

use std::sync::Arc;

use super::start::{self, StartError};
use crate::{
    audit::{Audit, Event},
    config::Config,
    image,
    session::{Cleaned, SessionKey},
    state::{Kind, SessionRecord},
};

/// Removes what belongs to no session, where no server runs.
///
/// # Errors
/// [`StartError::Locked`] if one does.
pub fn clean_up(config: &Config) -> Result<Cleaned, StartError> {
    start::prepare(&config.paths)?;
    let _lock = start::lock(&config.paths)?;
    let audit = Arc::new(Audit::open(config.log.audit_log.as_deref()).map_err(StartError::Audit)?);
    // Opening the store sweeps it.
    let unfinished = image::listing(&config.paths.state_dir.join("images"))?.len();
    let context = start::open_leaves(config, &audit)?;
    let mut cleaned = Cleaned { unfinished, ..Cleaned::default() };
    context.clean_up_dead(&mut cleaned, |record| tell_of(&audit, record));
    let more = context.clean_up();
    cleaned.sessions.extend(more.sessions);
    cleaned.unfinished += more.unfinished;
    cleaned.failures.extend(more.failures);
    // Connections of sessions wait for the next server; those that nobody has taken do not.
    let kept = context.state.connections()?.into_iter().map(|record| (record.id, record.process)).collect();
    if let Err(error) = start::open_pool(&config.paths).remove_leftovers(&kept) {
        cleaned.failures.push(format!("cannot look for connection processes of an earlier server: {error}"));
    }
    record(&audit, &cleaned);
    if context.state.sessions()?.is_empty() {
        start::close_leaves(&context);
    }
    Ok(cleaned)
}

/// Writes a cleanup down.
pub(super) fn record(audit: &Audit, cleaned: &Cleaned) {
    let Cleaned { sessions, unfinished, failures } = cleaned;
    audit.record(&Event::CleanedUp { strays: sessions.len(), unfinished: *unfinished, failures: failures.len() });
}

fn tell_of(audit: &Audit, record: &SessionRecord) {
    // Builds are nobody's session.
    if record.kind == Kind::Session {
        let key = SessionKey { user: record.user.clone(), project: record.project.clone() };
        audit.record(&Event::ContainerDestroy { key: &key, session: Some(&record.id), reason: "reconcile" });
    }
}
