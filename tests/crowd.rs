//! Many users at once: each has a container of its own, and nothing is left when they have gone.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    thread,
};

use common::Host;

const USERS: [&str; 10] = ["ada", "bob", "cid", "dan", "eve", "fay", "gil", "hal", "ida", "jim"];
const EACH: usize = 3;

/// What one connection saw.
#[derive(Debug)]
struct Seen {
    session: String,
    address: String,
    checksum: String,
}

fn look_around(host: &Host, user: &str) -> Seen {
    // The last line keeps the first of a user's connections from ending the session before the others have logged in.
    let command = format!(
        "id; hostname; cat /proc/self/status; ip addr; echo session $PODSPAWN_SESSION; \
         head -c 64m /dev/urandom | sha256sum; \
         touch /tmp/here.$$; until [ $(ls /tmp/here.* | wc -l) = {EACH} ]; do sleep 0.1; done"
    );
    let output = host.ssh(user, &command).deadline(common::DEADLINE * 3).run();
    output.ok().stderr("");
    let text = output.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], format!("uid=1000({user}) gid=1000({user}) groups=1000({user})"), "{output}");
    assert_eq!(lines[1], user, "{output}");
    let after = |word: &str| {
        let line = lines.iter().find(|line| line.trim_start().starts_with(word));
        let line = line.unwrap_or_else(|| panic!("no {word:?}: {output}"));
        line.trim_start()[word.len()..].split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(after("Name:"), "cat", "{output}");
    assert_eq!((after("CapEff:"), after("Seccomp:")), ("0000000000000000".to_owned(), "2".to_owned()), "{output}");
    // The loopback's address comes first.
    let address = text.split("inet ").nth(2).and_then(|rest| rest.split(['/', ' ']).next());
    let checksum = lines.last().unwrap().strip_suffix("  -").unwrap_or_else(|| panic!("no checksum: {output}"));
    assert_eq!(checksum.len(), 64, "{output}");
    Seen {
        session: after("session "),
        address: address.unwrap_or_else(|| panic!("no address: {output}")).to_owned(),
        checksum: checksum.to_owned(),
    }
}

#[test]
fn thirty_connections_of_ten_users_at_once_share_ten_containers_and_leave_nothing() {
    let host = USERS.iter().fold(Host::new(), |host, user| host.user(user)).start();
    let seen: Mutex<BTreeMap<&str, Vec<Seen>>> = Mutex::default();
    let gate = std::sync::Barrier::new(USERS.len() * EACH);
    thread::scope(|scope| {
        for user in USERS.iter().flat_map(|user| [user; EACH]) {
            scope.spawn(|| {
                gate.wait();
                let one = look_around(&host, user);
                seen.lock().unwrap().entry(user).or_default().push(one);
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    let mut sessions = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut checksums = BTreeSet::new();
    for (user, seen) in &seen {
        assert_eq!(seen.len(), EACH);
        let own: BTreeSet<_> = seen.iter().map(|one| (&one.session, &one.address)).collect();
        assert_eq!(own.len(), 1, "{user} was in more than one container: {seen:?}");
        for one in seen {
            sessions.insert(&one.session);
            addresses.insert(&one.address);
            checksums.insert(&one.checksum);
        }
    }
    assert_eq!((sessions.len(), addresses.len()), (USERS.len(), USERS.len()), "one container each: {seen:#?}");
    assert_eq!(checksums.len(), USERS.len() * EACH, "random data is random everywhere");
    let created = host.audit().iter().filter(|event| event["event"] == "container.create").count();
    assert_eq!(created, USERS.len());
    host.assert_no_session_left();
}
