//! What is written is read again, and nothing is given away twice.

use super::*;
use crate::config::Mode;

fn new(id: u64, user: &str) -> NewSession {
    NewSession {
        id: SessionId::from_bits(id),
        kind: Kind::Session,
        user: user.parse().unwrap(),
        project: None,
        image: "sha256:00".to_owned(),
        image_reference: "busybox".to_owned(),
        mode: Mode::GracePeriod,
        created_at: UNIX_EPOCH + Duration::from_secs(5),
        boot_id: "boot".to_owned(),
        on_start: Some("echo hello".to_owned()),
        egress: Some("[10.0.0.0/8]".to_owned()),
    }
}

const FIRST_ID: u32 = 1_000_000;

fn slots(count: u32) -> Slots {
    Slots { count, first_id: FIRST_ID }
}

fn open() -> (tempfile::TempDir, State) {
    let directory = tempfile::tempdir().unwrap();
    let state = State::open(&directory.path().join("state.db")).unwrap();
    (directory, state)
}

#[test]
fn what_is_written_is_read_again() {
    let (directory, state) = open();
    assert_eq!(state.pool().unwrap(), None);
    state.set_pool("10.0.0.0/8").unwrap();
    let record = state.insert_session(&new(1, "ada"), &[], slots(10)).unwrap();
    let deadline = UNIX_EPOCH + Duration::from_millis(1_234_567);
    state.set_container(&record.id.clone().into(), 42, 99, 7).unwrap();
    state.set_address(&record.id.clone().into(), Ipv4Addr::new(10, 0, 0, 2)).unwrap();
    state.set_ports(&record.id, "[]").unwrap();
    state.set_grace(&record.id, deadline).unwrap();
    let connection = ConnectionRecord {
        id: 7,
        session: record.id.clone(),
        peer: "[::1]:22".parse().unwrap(),
        fingerprint: "SHA256:x".to_owned(),
        process: (43, 100),
        credential: Some(b"key".to_vec()),
        logged_in: deadline,
    };
    state.insert_connection(&connection).unwrap();
    drop(state);
    let state = State::open(&directory.path().join("state.db")).unwrap();
    let expected = SessionRecord {
        init: Some((42, 99)),
        init_version: 7,
        address: Some(Ipv4Addr::new(10, 0, 0, 2)),
        ports: Some("[]".to_owned()),
        phase: Phase::Grace,
        grace_deadline: Some(deadline),
        ..record.clone()
    };
    assert_eq!(state.sessions().unwrap(), [expected]);
    assert_eq!(state.pool().unwrap().as_deref(), Some("10.0.0.0/8"));
    assert_eq!(state.connections().unwrap(), [connection]);
    assert_eq!(state.images_in_use().unwrap(), ["sha256:00"]);
    assert_eq!(state.check().unwrap(), None);
    state.remove_session(&record.id).unwrap();
    assert!(state.sessions().unwrap().is_empty() && state.connections().unwrap().is_empty());
}

#[test]
fn slots_go_round_and_run_out() {
    let (_directory, state) = open();
    let given: Vec<_> =
        (0..3).map(|i| state.insert_session(&new(i, &format!("u{i}")), &[], slots(3)).unwrap().slot).collect();
    assert_eq!(given, [0, 1, 2]);
    assert!(matches!(state.insert_session(&new(9, "eve"), &[], slots(3)), Err(StateError::SlotsExhausted(3))));
    state.remove_session(&SessionId::from_bits(0)).unwrap();
    state.remove_session(&SessionId::from_bits(1)).unwrap();
    assert_eq!(
        state.insert_session(&new(9, "eve"), &[], slots(9)).unwrap().slot,
        3,
        "not the one that was just in use"
    );
    assert_eq!(state.insert_session(&new(10, "bob"), &[], slots(4)).unwrap().slot, 0);
}

#[test]
fn ids_of_another_configuration_are_not_given_to_a_second_session() {
    let (_directory, state) = open();
    let old: Vec<_> =
        (0..8).map(|i| state.insert_session(&new(i, &format!("old{i}")), &[], slots(100)).unwrap().id_base).collect();
    assert_eq!(old[..2], [FIRST_ID, FIRST_ID + IDS_PER_SESSION]);
    let mut taken = old;
    for (i, first_id) in [0, 1, IDS_PER_SESSION - 1, 5 * IDS_PER_SESSION].into_iter().enumerate() {
        for first_id in [FIRST_ID + first_id, FIRST_ID - first_id] {
            let id = 100 + i as u64 * 2 + u64::from(first_id < FIRST_ID);
            let base = state.insert_session(&new(id, &format!("new{id}")), &[], Slots { count: 100, first_id });
            let base = base.unwrap_or_else(|error| panic!("{first_id}: {error}")).id_base;
            assert!(taken.iter().all(|other| other.abs_diff(base) >= IDS_PER_SESSION), "{base} {taken:?}");
            assert_eq!((base - first_id) % IDS_PER_SESSION, 0);
            taken.push(base);
            if first_id == FIRST_ID {
                break;
            }
        }
    }
}

#[test]
fn a_user_has_one_session_that_is_not_being_removed() {
    let (_directory, state) = open();
    let record = state.insert_session(&new(1, "ada"), &[], slots(10)).unwrap();
    assert!(state.insert_session(&new(2, "ada"), &[], slots(10)).is_err());
    state.set_phase(&record.id, Phase::Stopping).unwrap();
    assert!(state.insert_session(&new(2, "ada"), &[], slots(10)).is_ok());
}

#[test]
fn builds_take_places_of_sessions_and_there_may_be_any_number_of_them() {
    let (_directory, state) = open();
    let build = |id| NewSession { kind: Kind::Build, ..new(id, "ada") };
    let records = [build(1), build(2), new(3, "ada")].map(|new| state.insert_session(&new, &[], slots(3)).unwrap());
    let kinds: Vec<Kind> = state.sessions().unwrap().iter().map(|record| record.kind).collect();
    assert_eq!(kinds, [Kind::Build, Kind::Build, Kind::Session]);
    assert!(matches!(state.insert_session(&build(4), &[], slots(3)), Err(StateError::SlotsExhausted(3))));
    state.remove_session(&records[0].id).unwrap();
    state.insert_session(&build(4), &[], slots(3)).unwrap();
}

#[test]
fn a_newer_or_broken_database_is_refused() {
    let (directory, state) = open();
    state.connection().pragma_update(None, "user_version", 99).unwrap();
    let path = directory.path().join("state.db");
    let error = State::open(&path).err().unwrap().to_string();
    assert!(error.contains("newer podspawn (schema 99"), "{error}");
    let broken = directory.path().join("broken.db");
    std::fs::write(&broken, "this is no database at all, but long enough to be taken for one".repeat(40)).unwrap();
    assert!(matches!(State::open(&broken), Err(StateError::Open(..))));
}

#[test]
fn a_damaged_database_is_put_aside_and_the_copy_takes_its_place() {
    let (directory, state) = open();
    let path = directory.path().join("state.db");
    state.insert_session(&new(1, "ada"), &[], slots(10)).unwrap();
    state.back_up().unwrap();
    state.insert_session(&new(2, "bob"), &[], slots(10)).unwrap();
    drop(state);
    let users = |state: &State| state.sessions().unwrap().iter().map(|s| s.user.to_string()).collect::<Vec<_>>();
    let (state, damage) = State::open_whole(&path).unwrap();
    assert_eq!((users(&state), damage), (vec!["ada".to_owned(), "bob".to_owned()], None));
    drop(state);

    let spoil = || {
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in &mut bytes[4096..] {
            *byte = 0xa5;
        }
        std::fs::write(&path, bytes).unwrap();
    };
    spoil();
    let (state, damage) = State::open_whole(&path).unwrap();
    let damage = damage.unwrap();
    assert!(damage.restored && damage.kept.exists(), "{damage}");
    assert_eq!(users(&state), ["ada"]);
    drop(state);

    spoil();
    std::fs::write(directory.path().join("state.db.backup"), "x".repeat(9000)).unwrap();
    let (state, damage) = State::open_whole(&path).unwrap();
    assert!(!damage.unwrap().restored);
    assert_eq!(users(&state), Vec::<String>::new());
    state.insert_session(&new(3, "eve"), &[], slots(10)).unwrap();
}

fn service(name: &str) -> NewService {
    NewService {
        name: name.to_owned(),
        image: format!("sha256:{name}"),
        image_reference: name.to_owned(),
        plan: format!("{{\"name\":\"{name}\"}}"),
    }
}

#[test]
fn services_come_and_go_with_their_session() {
    let (_directory, state) = open();
    let ada = state.insert_session(&new(1, "ada"), &[service("db"), service("cache")], slots(10)).unwrap();
    let bob = state.insert_session(&new(2, "bob"), &[service("db")], slots(10)).unwrap();
    let slots_of = |record: &SessionRecord| -> Vec<u32> {
        [record.slot].into_iter().chain(record.services.iter().map(|service| service.slot)).collect()
    };
    assert_eq!((slots_of(&ada), slots_of(&bob)), (vec![0, 1, 2], vec![3, 4]));
    assert_eq!(ada.services[1].id_base, FIRST_ID + 2 * IDS_PER_SESSION);
    assert_eq!(ada.services[1].place, ServicePlace::new(1).unwrap());

    let cache = ContainerId::of_service(&ada.id, ada.services[1].place);
    state.set_address(&cache, Ipv4Addr::new(10, 0, 0, 4)).unwrap();
    state.set_container(&cache, 42, 99, 7).unwrap();
    state.set_container(&bob.id.clone().into(), 43, 100, 8).unwrap();
    let mut expected = [ada.clone(), bob.clone()];
    expected[0].services[1].address = Some(Ipv4Addr::new(10, 0, 0, 4));
    (expected[0].services[1].init, expected[0].services[1].init_version) = (Some((42, 99)), 7);
    (expected[1].init, expected[1].init_version) = (Some((43, 100)), 8);
    assert_eq!(state.sessions().unwrap(), expected);
    assert_eq!(state.images_in_use().unwrap(), ["sha256:00", "sha256:cache", "sha256:db"]);

    state.remove_session(&ada.id).unwrap();
    assert_eq!(state.sessions().unwrap(), expected[1..]);
    assert_eq!(state.images_in_use().unwrap(), ["sha256:00", "sha256:db"]);
}

#[test]
fn a_session_that_does_not_fit_with_its_services_takes_no_place() {
    let (_directory, state) = open();
    let services = [service("a"), service("b"), service("c")];
    assert!(matches!(state.insert_session(&new(1, "ada"), &services, slots(3)), Err(StateError::SlotsExhausted(3))));
    assert!(state.sessions().unwrap().is_empty());
    assert_eq!(state.insert_session(&new(1, "ada"), &services[..2], slots(3)).unwrap().services[1].slot, 2);
    let many: Vec<_> = (0..53).map(|n| service(&n.to_string())).collect();
    assert!(matches!(state.insert_session(&new(2, "bob"), &many, slots(99)), Err(StateError::TooManyServices(53))));
}

#[test]
fn a_database_of_the_first_schema_gets_services() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.execute_batch(
        "INSERT INTO sessions VALUES ('2abcdefg', 'ada', NULL, 0, 1000000, 'running', 'sha256:00', 'busybox',
             'grace-period', 7, 8, NULL, 5000, '10.0.0.2', 'boot');
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let state = State::open(&path).unwrap();
    let sessions = state.sessions().unwrap();
    assert_eq!((sessions.len(), sessions[0].init, sessions[0].services.len()), (1, Some((7, 8)), 0));
    let record = state.insert_session(&new(1, "bob"), &[service("db")], slots(10)).unwrap();
    assert_eq!((record.slot, record.services[0].slot), (1, 2), "beside the one that was there");
}
