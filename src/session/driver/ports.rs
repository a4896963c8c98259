//! What a driver does about its session's ports on the host.

use crate::{
    audit::Event,
    errors::chain,
    names::SessionId,
    session::{
        SessionKey,
        ports::{ExposedPort, Ports, Reserved},
        registry::Inner,
        steps::Live,
    },
    state::SessionRecord,
};

/// Opens the ports of a session that is ready, and records them for the next supervisor.
pub(super) fn open(inner: &Inner, mut live: Box<Live>, reserved: Reserved) -> Box<Live> {
    let exposed = reserved.exposed();
    if exposed.is_empty() {
        return live;
    }
    let record = &mut live.record;
    let text = serde_json::to_string(&exposed).expect("numbers can be written as JSON");
    if let Err(error) = inner.context.state.set_ports(&record.id, &text) {
        tracing::error!(session = %record.id, "the session's ports are not recorded: {}", chain(error));
    }
    record.ports = Some(text);
    live.ports = Some(reserved.open(&inner.context.init_socket(&live.record.id)));
    live
}

/// Tells of the ports of a session that has just been made.
pub(super) fn tell(inner: &Inner, key: &SessionKey, session: &SessionId, ports: Option<&Ports>) {
    for &exposed in ports.map(Ports::exposed).unwrap_or_default() {
        inner.audit(&Event::PortOpen { key, session, exposed });
    }
}

/// Opens the ports again that an earlier supervisor has had open.
pub(super) async fn adopt(inner: &Inner, record: &SessionRecord) -> Option<Ports> {
    // Whoever has written it could read it.
    let exposed: Vec<ExposedPort> = record.ports.as_deref().and_then(|text| serde_json::from_str(text).ok())?;
    let reserved = Reserved::take_again(&exposed).await;
    let had = reserved.exposed();
    let key = SessionKey { user: record.user.clone(), project: record.project.clone() };
    for lost in exposed.into_iter().filter(|one| !had.contains(one)) {
        inner.audit(&Event::PortLost { key: &key, session: &record.id, exposed: lost });
    }
    Some(reserved.open(&inner.context.init_socket(&record.id)))
}
