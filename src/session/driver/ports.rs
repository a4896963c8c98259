//! What a driver does about its session's ports on the host.

use crate::{
    errors::chain,
    session::{
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

/// Opens the ports again that an earlier supervisor has had open.
pub(super) async fn adopt(inner: &Inner, record: &SessionRecord) -> Option<Ports> {
    // Whoever has written it could read it.
    let exposed: Vec<ExposedPort> = record.ports.as_deref().and_then(|text| serde_json::from_str(text).ok())?;
    let reserved = Reserved::take_again(exposed).await;
    Some(reserved.open(&inner.context.init_socket(&record.id)))
}
