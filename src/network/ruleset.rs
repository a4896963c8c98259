//! The instance's nftables table: what is in it, and that it stays.
//!
//! Invariant: the number of rules does not depend on the number of sessions. All that a container adds is one element of
//! the set `leases`, one of the map `egress` from its address to the chain that decides where it may connect to, one of the set
//! `resolving` if it may look names up, and one of the set `pairs` for either direction to each other container of its
//! session. So a packet's way through the table costs the same with one session and with a thousand. There is a chain for each
//! list of networks that is in use; administrators write these, and most sessions have the same.
//!
//! Other software may remove the table at any time (`nft flush ruleset` is how many firewall scripts begin), and then
//! nothing keeps sessions from the host and from each other. So a [`Ruleset`] remembers what it has made, and makes it
//! anew when it is told to look and finds something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    Egress, Lease, NetworkError,
    nft::{COMMENT, Elements, Nft},
    subnet::Subnet,
};
use crate::names::{ContainerId, InstanceTag};

/// Never reachable, whatever the administrator allows: this host, link-local with the cloud's metadata service,
/// multicast, reserved and broadcast. (RFC 6890)
const NEVER: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3";
/// Not public: RFC 1918, shared address space (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544), 6to4
/// relays (RFC 7526), and the host agent of Azure, which has a public address.
const PRIVATE: &str = "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.0.0.0/24, 192.88.99.0/24, 192.168.0.0/16, \
                       198.18.0.0/15, 168.63.129.16/32";

/// In the order of their sessions.
type Leases = BTreeMap<ContainerId, Lease>;

/// The table in the kernel, as it should be.
pub(super) struct Ruleset {
    nft: Nft,
    policy: Policy,
    leases: Leases,
    made: Made,
    /// The lists of networks that the table has chains for; a chain's name has the place of its list.
    lists: Lists,
    /// The table was removed for good.
    closed: bool,
}

/// All different ones.
type Lists = Vec<Vec<Subnet>>;

/// By what a table is known to be the one that we made.
#[derive(PartialEq, Eq)]
struct Made {
    handle: u64,
    rules: usize,
}

impl Ruleset {
    /// Makes the table, with the leases in `live`, or replaces it in one transaction.
    pub(super) fn make(mut nft: Nft, policy: Policy, live: &[Lease]) -> Result<Self, NetworkError> {
        let leases = live.iter().map(|lease| (lease.container.clone(), lease.clone())).collect();
        let (made, lists) = install(&mut nft, &policy, &leases)?;
        Ok(Self { nft, policy, leases, made, lists, closed: false })
    }

    /// Takes it down again, keeping the socket.
    pub(super) fn unmake(mut self) -> Result<Nft, NetworkError> {
        self.nft.remove_table()?;
        Ok(self.nft)
    }

    /// Lets a container's packets pass, also to and from the other containers of its session; already there is fine.
    pub(super) fn add(&mut self, lease: &Lease) -> Result<(), NetworkError> {
        let elements = chain(self.policy.egress_of(lease), &self.lists).map(|chain| self.elements(lease, Some(chain)));
        self.leases.insert(lease.container.clone(), lease.clone());
        let added = match elements {
            Some(elements) => self.nft.add(&elements).and_then(|added| if added { Ok(()) } else { self.restore() }),
            // It is the first that has this list of networks.
            None => self.install(),
        };
        if added.is_err() {
            self.leases.remove(&lease.container);
        }
        added
    }

    /// Drops a container's packets from now on; already gone, with or without the table, is fine.
    pub(super) fn remove(&mut self, lease: &Lease) -> Result<(), NetworkError> {
        self.leases.remove(&lease.container);
        // Where an element leads to does not matter any more.
        let elements = self.elements(lease, None);
        self.nft.remove(&elements)
    }

    /// What stands for a container in the table's sets; `chain` decides where it may connect to.
    fn elements(&self, lease: &Lease, chain: Option<String>) -> Elements {
        let others = others(&self.leases, lease);
        Elements {
            container: lease.container.clone(),
            address: lease.address,
            egress: chain,
            resolves: resolves(self.policy.egress_of(lease)),
            // Both ways between it and each other one of its session.
            pairs: others.flat_map(|other| [(lease.address, other.address), (other.address, lease.address)]).collect(),
        }
    }

    /// Changes where containers may connect to that have nothing of their own, those that are there included. Does nothing if
    /// that is so already.
    pub(super) fn set_egress(&mut self, egress: &Egress) -> Result<(), NetworkError> {
        if self.policy.egress == *egress {
            return Ok(());
        }
        let former = std::mem::replace(&mut self.policy.egress, egress.clone());
        self.install().inspect_err(|_| self.policy.egress = former)
    }

    fn install(&mut self) -> Result<(), NetworkError> {
        (self.made, self.lists) = install(&mut self.nft, &self.policy, &self.leases)?;
        Ok(())
    }

    /// Looks whether the table is still as it was made, and makes it anew otherwise.
    pub(super) fn check(&mut self) -> Result<(), NetworkError> {
        let there = find(&mut self.nft, &self.policy.tag)?;
        if self.closed || there.as_ref() == Some(&self.made) { Ok(()) } else { self.restore() }
    }

    fn restore(&mut self) -> Result<(), NetworkError> {
        tracing::warn!(
            sessions = self.leases.len(),
            "somebody has changed or removed the nft table {}; making it anew",
            self.policy.tag.object_name()
        );
        self.install()
    }

    /// Removes the table for good.
    pub(super) fn close(&mut self) -> Result<(), NetworkError> {
        self.closed = true;
        self.nft.remove_table()
    }
}

fn install(nft: &mut Nft, policy: &Policy, leases: &Leases) -> Result<(Made, Lists), NetworkError> {
    let lists = policy.lists(leases);
    Nft::install(&policy.script(leases, &lists))?;
    // Removed in this moment: 0 is no table's handle, so the next look finds a difference.
    let made = find(nft, &policy.tag)?.unwrap_or(Made { handle: 0, rules: 0 });
    Ok((made, lists))
}

fn find(nft: &mut Nft, tag: &InstanceTag) -> Result<Option<Made>, NetworkError> {
    let name = tag.object_name();
    let Some(table) = nft.tables()?.into_iter().find(|table| table.name == name) else { return Ok(None) };
    Ok(Some(Made { handle: table.handle, rules: nft.rules()? }))
}

/// What the table is made from.
pub(super) struct Policy {
    pub(super) tag: InstanceTag,
    pub(super) pool: Subnet,
    pub(super) gateway: Ipv4Addr,
    /// Of the containers that have none of their own.
    pub(super) egress: Egress,
}

impl Policy {
    fn egress_of<'a>(&'a self, lease: &'a Lease) -> &'a Egress {
        lease.egress.as_ref().unwrap_or(&self.egress)
    }

    /// The lists of networks that are in use.
    fn lists(&self, live: &Leases) -> Lists {
        let all = live.values().map(|lease| self.egress_of(lease)).chain([&self.egress]);
        let lists = all.filter_map(|egress| match egress {
            Egress::Only(networks) => Some(networks.clone()),
            Egress::Public | Egress::None | Egress::Open => None,
        });
        lists.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The elements of the map `egress`, and those of the set `resolving`.
    fn reach(&self, live: &Leases, lists: &Lists) -> (String, String) {
        let egress = elements(live.values().filter_map(|lease| {
            let chain = chain(self.egress_of(lease), lists)?;
            Some(format!("{} : goto {chain}", lease.address))
        }));
        let resolving = live.values().filter(|lease| resolves(self.egress_of(lease)));
        let resolving = elements(resolving.map(|lease| lease.address.to_string()));
        (egress, resolving)
    }

    /// The whole table as one transaction, with `live` in its sets: whatever was there before is replaced, and at no
    /// moment is a live session without rules.
    fn script(&self, live: &Leases, lists: &Lists) -> String {
        let Self { tag, pool, gateway, egress: _ } = self;
        let table = tag.object_name();
        let ours = format!("\"ps{}*\"", tag.as_str());
        let leases = elements(live.values().map(|l| format!("\"{}\" . {}", tag.veth_name(&l.container), l.address)));
        let pairs =
            live.values().flat_map(|from| others(live, from).map(|to| format!("{} . {}", from.address, to.address)));
        let pairs = elements(pairs);
        let (egress, resolving) = self.reach(live, lists);
        let of_lists: String = lists.iter().enumerate().map(|(place, networks)| of_list(place, networks)).collect();
        // What is refused is answered, so that a program that tries fails at once instead of after minutes (TCP by a
        // reset, since the kernel sends few ICMP errors a second); what is forged is dropped. `from_session` runs
        // before connection tracking and before anybody's DNAT, so that the ports that other software publishes on the
        // host's addresses are as closed as the host's own. Connection tracking therefore does not know the refusals
        // that it sends, and `output` lets them pass by their look. It does not see what a session's containers say to
        // each other either: no state of it is needed, and a database's connections are many.
        format!(
            r#"table inet {table} {{ }}
delete table inet {table}
table inet {table} {{
  comment "{COMMENT}{pool}"
  set leases {{
    typeof iifname . ip saddr
{leases}  }}
  set pairs {{
    type ipv4_addr . ipv4_addr
{pairs}  }}
  set never {{
    type ipv4_addr
    flags interval
    elements = {{ {NEVER} }}
  }}
  set private {{
    type ipv4_addr
    flags interval
    elements = {{ {PRIVATE} }}
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain public {{
    ip daddr @private goto refuse
    accept
  }}
  chain open {{
    accept
  }}
  chain none {{
    goto refuse
  }}
{of_lists}  map egress {{
    type ipv4_addr : verdict
{egress}  }}
  set resolving {{
    type ipv4_addr
{resolving}  }}
  chain host {{
    ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 ip saddr @resolving accept
    goto refuse
  }}
  chain from_session {{
    meta nfproto != ipv4 drop
    iifname . ip saddr != @leases drop
    ip saddr . ip daddr @pairs notrack accept
    fib daddr type {{ local, broadcast, anycast, multicast }} goto host
  }}
  chain to_session {{
    meta nfproto != ipv4 drop
    ct state established,related accept
    drop
  }}
  chain from_session_to_world {{
    ct state invalid drop
    ip daddr @never goto refuse
    ip saddr vmap @egress
    goto refuse
  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {ours} goto from_session
  }}
  chain input {{
    type filter hook input priority filter - 5; policy accept;
    iifname {ours} goto host
  }}
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname {ours} oifname {ours} ip saddr . ip daddr @pairs accept
    iifname {ours} oifname {ours} goto refuse
    oifname {ours} goto to_session
    iifname {ours} goto from_session_to_world
  }}
  chain output {{
    type filter hook output priority filter - 5; policy accept;
    oifname {ours} tcp flags rst accept
    oifname {ours} icmp type destination-unreachable accept
    oifname {ours} goto to_session
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {ours} oifname != {ours} masquerade
  }}
}}
"#
        )
    }
}

/// The set of the list of networks that has this place, and the chain that goes by it.
fn of_list(place: usize, networks: &[Subnet]) -> String {
    let networks = elements(networks.iter().map(ToString::to_string));
    format!(
        "  set networks_{place} {{
    type ipv4_addr
    flags interval
    auto-merge
{networks}  }}
  chain only_{place} {{
    ip daddr @networks_{place} accept
    goto refuse
  }}
"
    )
}

/// The chain that decides for those with `egress`; `None` if there is none for its networks.
fn chain(egress: &Egress, lists: &Lists) -> Option<String> {
    Some(match egress {
        Egress::Public => "public".to_owned(),
        Egress::None => "none".to_owned(),
        Egress::Open => "open".to_owned(),
        Egress::Only(networks) => format!("only_{}", lists.iter().position(|list| list == networks)?),
    })
}

/// A name lookup carries data to whoever owns the name, so "none" has no names either.
fn resolves(egress: &Egress) -> bool {
    *egress != Egress::None
}

/// The other containers of the session that has `lease`.
fn others<'a>(leases: &'a Leases, lease: &'a Lease) -> impl Iterator<Item = &'a Lease> {
    let session = &lease.container.session;
    let from_first = leases.range(ContainerId::from(session.clone())..).map(|(_, other)| other);
    let of_session = from_first.take_while(move |other| other.container.session == *session);
    of_session.filter(move |other| other.container != lease.container)
}

/// An `elements` line, or nothing where there are none.
fn elements(items: impl Iterator<Item = String>) -> String {
    let list: Vec<_> = items.collect();
    if list.is_empty() { String::new() } else { format!("    elements = {{ {} }}\n", list.join(", ")) }
}
