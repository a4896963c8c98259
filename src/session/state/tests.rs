use super::*;
use proptest::prelude::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const GRACE: Policy = Policy { alone: Alone::Waits(Duration::from_secs(60)), ends_at: None, idle: None };
const STAY: Policy = Policy { alone: Alone::Stays, ends_at: None, idle: None };
const DESTROY: Policy = Policy { alone: Alone::Ends, ends_at: None, idle: None };

fn running(connections: &[ConnectionId]) -> Running {
    Running { connections: connections.iter().copied().collect() }
}

fn setting_up(connections: &[ConnectionId]) -> SettingUp {
    SettingUp { connections: connections.iter().copied().collect(), alone_until: None }
}

#[test]
fn everybody_who_waited_is_admitted_and_welcomed_when_all_is_set_up() {
    let (state, _) = Creating::new(1).attach(2);
    let State::Creating(creating) = state else { panic!() };
    let (state, actions) = creating.created(NOW, &GRACE);
    assert_eq!(actions, [Action::Admit(1), Action::Admit(2), Action::SetUp]);
    assert_eq!(state, State::SettingUp(setting_up(&[1, 2])));
    let (state, actions) = setting_up(&[1, 2]).attach(3);
    assert_eq!((&state, actions), (&State::SettingUp(setting_up(&[1, 2, 3])), vec![Action::Admit(3)]));
    let (state, actions) = setting_up(&[1, 2]).done();
    assert_eq!(actions, [Action::RecordRunning, Action::Welcome(1), Action::Welcome(2)]);
    assert_eq!(state, State::Running(running(&[1, 2])));
    assert_eq!(running(&[1]).attach(2).1, [Action::Admit(2), Action::Welcome(2)]);
}

#[test]
fn a_session_nobody_waits_for_is_set_up_within_its_grace_or_goes_away() {
    let gone = |policy| {
        let (state, _) = Creating::new(1).detach(1);
        let State::Creating(creating) = state else { panic!() };
        creating.created(NOW, policy)
    };
    let deadline = NOW + Duration::from_secs(60);
    let alone = || SettingUp { connections: BTreeSet::new(), alone_until: Some(deadline) };
    assert_eq!(gone(&GRACE), (State::SettingUp(alone()), vec![Action::SetUp]));
    assert_eq!(gone(&DESTROY).1, [Action::Destroy(Reason::Disconnect)]);

    assert_eq!(setting_up(&[1]).detach(1, NOW, &GRACE), (State::SettingUp(alone()), vec![]));
    assert_eq!(setting_up(&[1]).detach(1, NOW, &DESTROY).1, [Action::Destroy(Reason::Disconnect)]);
    assert_eq!(setting_up(&[1]).detach(2, NOW, &DESTROY).0, State::SettingUp(setting_up(&[1])));
    assert_eq!(alone().deadline(&GRACE), Some(deadline));
    assert_eq!(alone().tick(NOW, &GRACE).0, State::SettingUp(alone()));
    assert_eq!(alone().tick(deadline, &GRACE).1, [Action::Destroy(Reason::GraceExpired)]);
    assert_eq!(alone().done(), (State::Grace(Grace { deadline }), vec![Action::RecordGrace(deadline)]));
    assert_eq!(alone().attach(2).0, State::SettingUp(setting_up(&[2])));
}

#[test]
fn a_set_up_that_fails_ends_the_session_and_tells_everybody() {
    let (state, actions) = setting_up(&[1, 2]).failed("on_create failed");
    let refused = |id| Action::Refuse(id, "on_create failed".to_owned());
    assert_eq!(actions, [refused(1), refused(2), Action::Destroy(Reason::SetUpFailed)]);
    assert_eq!(state, State::Stopping(Stopping));
    let (_, actions) = setting_up(&[1]).stop(Reason::ContainerDied);
    assert!(matches!(&actions[..], [Action::Terminate(1, _), Action::Destroy(Reason::ContainerDied)]));
}

#[test]
fn after_a_restart_those_are_welcomed_who_were_not_and_those_who_came_too_early_are_told() {
    let (both, second) = (BTreeSet::from([1, 2]), BTreeSet::from([2, 9]));
    let (state, actions) = Running::adopted(both.clone(), &second, NOW, &GRACE);
    assert_eq!((state, actions), (State::Running(running(&[1, 2])), vec![Action::RecordRunning, Action::Welcome(2)]));
    let (_, actions) = Stopping::adopted(both, Reason::Reconcile);
    assert!(matches!(&actions[..], [Action::Terminate(1, text), Action::Terminate(2, _), Action::Destroy(_)]
        if text.contains("connect again")));
}

#[test]
fn zero_grace_destroys() {
    let policy = Policy { alone: Alone::Waits(Duration::ZERO), ends_at: None, idle: None };
    let (_, actions) = running(&[1]).detach(1, NOW, &policy);
    assert_eq!(actions, [Action::Destroy(Reason::Disconnect)]);
}

#[test]
fn a_persistent_session_stays_without_connections() {
    let alone = || Running { connections: BTreeSet::new() };
    let stays = (State::Running(alone()), vec![Action::RecordRunning]);
    assert_eq!(running(&[1]).detach(1, NOW, &STAY), stays);
    assert_eq!(Running::adopted(BTreeSet::new(), &BTreeSet::new(), NOW, &STAY), stays);
    assert_eq!(alone().detach(1, NOW, &STAY), (State::Running(alone()), vec![]));
    assert_eq!(alone().deadline(&STAY), None);
    assert_eq!(alone().attach(2).0, State::Running(running(&[2])));
    assert_eq!(alone().stop(Reason::Stop).1, [Action::Destroy(Reason::Stop)]);
    assert_eq!(setting_up(&[1]).detach(1, NOW, &STAY), (State::SettingUp(setting_up(&[])), vec![]));
    assert_eq!(setting_up(&[]).done(), stays);
}

#[test]
fn only_the_last_connection_counts() {
    let (state, actions) = running(&[1, 2]).detach(1, NOW, &DESTROY);
    assert_eq!((state, actions), (State::Running(running(&[2])), vec![]));
}

#[test]
fn a_reconnect_cancels_grace_and_its_expiry_ends_it() {
    let grace = || Grace::adopted(NOW + Duration::from_secs(5));
    assert_eq!(grace().attach(3).0, State::Running(running(&[3])));
    assert_eq!(grace().tick(NOW + Duration::from_secs(4), &GRACE), (State::Grace(grace()), vec![]));
    let (_, actions) = grace().tick(NOW + Duration::from_secs(5), &GRACE);
    assert_eq!(actions, [Action::Destroy(Reason::GraceExpired)]);
}

#[test]
fn the_lifetime_ends_a_session_that_is_in_use_and_says_so() {
    let policy = Policy { ends_at: Some(NOW), ..GRACE };
    let (_, actions) = running(&[1]).tick(NOW, &policy);
    assert!(matches!(&actions[..], [Action::Terminate(1, text), Action::Destroy(Reason::MaxLifetime)]
        if text.contains("maximum lifetime")));
}

#[test]
fn an_idle_session_loses_its_connections_and_goes_where_its_mode_says() {
    let told = |id| Action::Terminate(id, "idle".to_owned());
    let idle = |policy| running(&[1, 2]).idle("idle", NOW, policy);
    assert_eq!(idle(&DESTROY).1, [told(1), told(2), Action::Destroy(Reason::IdleTimeout)]);
    let deadline = NOW + Duration::from_secs(60);
    let waits = State::Grace(Grace { deadline });
    assert_eq!(idle(&GRACE), (waits, vec![told(1), told(2), Action::RecordGrace(deadline)]));
    assert_eq!(idle(&STAY), (State::Running(running(&[])), vec![told(1), told(2), Action::RecordRunning]));
}

#[test]
fn stopping_while_creating_refuses_those_who_wait() {
    let (state, _) = Creating::new(1).stop(Reason::Stop);
    let State::Creating(creating) = state else { panic!() };
    let (state, actions) = creating.created(NOW, &GRACE);
    assert!(matches!(&actions[..], [Action::Refuse(1, _), Action::Destroy(Reason::Stop)]));
    assert!(matches!(state, State::Stopping(_)));
}

#[test]
fn a_creation_that_was_given_up_is_told_as_what_it_was() {
    let (state, _) = Creating::new(1).stop(Reason::Shutdown);
    let State::Creating(creating) = state else { panic!() };
    assert_eq!(creating.failed("cut off"), [Action::Refuse(1, "the server is shutting down".to_owned())]);
    assert_eq!(Creating::new(1).failed("no image"), [Action::Refuse(1, "no image".to_owned())]);
}

proptest! {
    /// Whatever happens, a connection is answered once, and welcomed once at most and only after it was admitted; a session
    /// is set up once; one without connections never stays.
    #[test]
    fn connections_are_answered_once(
        events in proptest::collection::vec((0u8..7, 1u64..5), 1..60),
        policy in prop_oneof![Just(GRACE), Just(DESTROY), Just(STAY)],
    ) {
        let stays = policy == STAY;
        let mut now = NOW;
        let mut seen = BTreeSet::from([1]);
        let mut open = BTreeSet::from([1]);
        let (mut answered, mut admitted, mut welcomed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut destroyed, mut set_up) = (0, 0);
        let mut state = State::Creating(Creating::new(1));
        for (event, connection) in events {
            now += Duration::from_secs(7);
            let fresh = !seen.contains(&connection);
            if event == 1 && fresh {
                seen.insert(connection);
                open.insert(connection);
            }
            if event == 2 {
                open.remove(&connection);
            }
            let (next, actions) = match (state, event) {
                (State::Creating(s), 0) => s.created(now, &policy),
                (State::Creating(s), 1) if fresh => s.attach(connection),
                (State::Creating(s), 2) => s.detach(connection),
                (State::Creating(s), 3) => s.stop(Reason::Stop),
                (State::SettingUp(s), 1) if fresh => s.attach(connection),
                (State::SettingUp(s), 2) => s.detach(connection, now, &policy),
                (State::SettingUp(s), 3) => s.stop(Reason::Stop),
                (State::SettingUp(s), 4) => s.tick(now, &policy),
                (State::SettingUp(s), 5) => s.done(),
                (State::SettingUp(s), 6) => s.failed("no"),
                (State::Running(s), 1) if fresh => s.attach(connection),
                (State::Running(s), 2) => s.detach(connection, now, &policy),
                (State::Running(s), 3) => s.stop(Reason::Stop),
                (State::Running(s), 4) => s.tick(now, &policy),
                (State::Grace(s), 1) if fresh => s.attach(connection),
                (State::Grace(s), 3) => s.stop(Reason::Stop),
                (State::Grace(s), 4) => s.tick(now, &policy),
                (State::Stopping(s), 1) if fresh => s.attach(connection),
                (same, _) => (same, vec![]),
            };
            for action in &actions {
                match action {
                    Action::Admit(c) => prop_assert!(answered.insert(*c) && admitted.insert(*c)),
                    Action::Welcome(c) => prop_assert!(admitted.contains(c) && welcomed.insert(*c) && set_up == 1),
                    Action::Requeue(c) => prop_assert!(answered.insert(*c)),
                    Action::Refuse(c, _) => {
                        answered.insert(*c);
                        prop_assert!(!welcomed.contains(c));
                    }
                    Action::Terminate(c, _) => prop_assert!(answered.contains(c)),
                    Action::SetUp => set_up += 1,
                    Action::Destroy(_) => destroyed += 1,
                    Action::RecordRunning | Action::RecordGrace(_) => {}
                }
            }
            prop_assert!(set_up <= 1);
            match &next {
                State::Running(running) => {
                    prop_assert!(stays || !running.connections.is_empty());
                    prop_assert!(running.connections.is_subset(&welcomed), "somebody waits for ever");
                    prop_assert_eq!(&running.connections, &open);
                }
                State::SettingUp(setting_up) => {
                    prop_assert_eq!(setting_up.connections.is_empty() && !stays, setting_up.alone_until.is_some());
                    prop_assert_eq!(&setting_up.connections, &open);
                }
                State::Creating(_) | State::Grace(_) => {}
                State::Stopping(_) => prop_assert!(open.is_subset(&answered), "somebody was forgotten"),
            }
            prop_assert_eq!(destroyed, usize::from(matches!(next, State::Stopping(_))));
            state = next;
        }
    }
}
