//! The instance's nftables table: made once as text by nft(8), its set of leases changed by nfnetlink.
//!
//! Invariant: the number of rules does not depend on the number of sessions. All that a session adds is one element of
//! the set `leases`, so that a packet's way through the table costs the same with one session and with a thousand.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
};

use netlink_packet_core::NLM_F_CREATE;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    Egress, Lease, NetworkError,
    netlink::{Answer, Attributes, Channel, Request, text},
    subnet::Subnet,
};
use crate::names::InstanceTag;

/// Never reachable, whatever the administrator allows: this host, link-local with the cloud's metadata service,
/// multicast, reserved and broadcast. (RFC 6890)
const NEVER: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3";
/// Not public: RFC 1918, shared address space (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544), 6to4
/// relays (RFC 7526), and the host agent of Azure, which has a public address.
const PRIVATE: &str = "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.0.0.0/24, 192.88.99.0/24, 192.168.0.0/16, \
                       198.18.0.0/15, 168.63.129.16/32";
/// What nft shows as the table's comment, in front of the pool: how instances see each other's pools.
const COMMENT: &str = "podspawn pool ";

// linux/netfilter/nfnetlink.h and nf_tables.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NFT_MSG_GETTABLE: u16 = NFT_MSG_NEWTABLE + 1;
const NFT_MSG_DELTABLE: u16 = NFT_MSG_NEWTABLE + 2;
const NFT_MSG_NEWSETELEM: u16 = NFT_MSG_NEWTABLE + 12;
const NFT_MSG_GETSETELEM: u16 = NFT_MSG_NEWTABLE + 13;
const NFT_MSG_DELSETELEM: u16 = NFT_MSG_NEWTABLE + 14;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const IFNAMSIZ: usize = 16;

/// What the table is made from.
pub(super) struct Policy<'a> {
    pub(super) tag: &'a InstanceTag,
    pub(super) pool: Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) egress: &'a Egress,
}

impl Policy<'_> {
    /// The whole table as one transaction, with `live` in its set: whatever was there before is replaced, and at no
    /// moment is a live session without rules.
    pub(super) fn script(&self, live: &[Lease]) -> String {
        let Self { tag, pool, gateway, egress } = self;
        let table = tag.object_name();
        let ours = format!("\"ps{}*\"", tag.as_str());
        let leases = elements(live.iter().map(|l| format!("\"{}\" . {}", tag.veth_name(&l.session), l.address)));
        let blocked = match egress {
            Egress::Public => format!("{NEVER}, {PRIVATE}"),
            Egress::None | Egress::Open | Egress::Only(_) => NEVER.to_owned(),
        };
        let allowed = match egress {
            Egress::Only(networks) => elements(networks.iter().map(ToString::to_string)),
            Egress::Public | Egress::None | Egress::Open => String::new(),
        };
        let verdict = match egress {
            Egress::Public | Egress::Open => "accept",
            Egress::Only(_) => "ip daddr @allowed accept\n    goto refuse",
            Egress::None => "goto refuse",
        };
        // A name lookup carries data to whoever owns the name, so "none" has no names either.
        let dns = match egress {
            Egress::None => String::new(),
            _ => format!("ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        };
        // What is refused is answered, so that a program that tries fails at once instead of after minutes (TCP by a
        // reset, since the kernel sends few ICMP errors a second); what is forged is dropped. `from_session` runs
        // before connection tracking and before anybody's DNAT, so that the ports that other software publishes on the
        // host's addresses are as closed as the host's own. Connection tracking therefore does not know the refusals
        // that it sends, and `output` lets them pass by their look.
        format!(
            r#"table inet {table} {{ }}
delete table inet {table}
table inet {table} {{
  comment "{COMMENT}{pool}"
  set leases {{
    typeof iifname . ip saddr
{leases}  }}
  set blocked {{
    type ipv4_addr
    flags interval
    elements = {{ {blocked} }}
  }}
  set allowed {{
    type ipv4_addr
    flags interval
    auto-merge
{allowed}  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain host {{
    {dns}
    goto refuse
  }}
  chain from_session {{
    meta nfproto != ipv4 drop
    iifname . ip saddr != @leases drop
    fib daddr type {{ local, broadcast, anycast, multicast }} goto host
  }}
  chain to_session {{
    meta nfproto != ipv4 drop
    ct state established,related accept
    drop
  }}
  chain egress {{
    ct state invalid drop
    ip daddr @blocked goto refuse
    {verdict}
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
    iifname {ours} oifname {ours} goto refuse
    oifname {ours} goto to_session
    iifname {ours} goto egress
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

/// An `elements` line, or nothing where there are none.
fn elements(items: impl Iterator<Item = String>) -> String {
    let list: Vec<_> = items.collect();
    if list.is_empty() { String::new() } else { format!("    elements = {{ {} }}\n", list.join(", ")) }
}

/// Another table of podspawn's, or our own.
pub(super) struct Table {
    pub(super) name: String,
    /// Grows with each table that is made in the namespace.
    pub(super) handle: u64,
    /// `None` if its comment is not ours.
    pub(super) pool: Option<Subnet>,
}

/// The table of one instance.
pub(super) struct Nft {
    channel: Channel,
    table: String,
    tag: InstanceTag,
}

impl Nft {
    /// Opens the socket, in the namespace that the calling thread is in. Makes nothing.
    pub(super) fn open(tag: &InstanceTag) -> Result<Self, NetworkError> {
        let channel = Channel::open(NETLINK_NETFILTER).map_err(|source| NetworkError::Socket { source })?;
        Ok(Self { channel, table: tag.object_name(), tag: tag.clone() })
    }

    /// Runs nft(8) with `script` as one transaction.
    pub(super) fn install(script: &str) -> Result<(), NetworkError> {
        let mut child = Command::new(program()?)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| NetworkError::RunNft { source })?;
        // nft reads everything before it does or prints anything, so the pipes cannot block each other.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
        let output = child.wait_with_output().map_err(|source| NetworkError::RunNft { source })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let reason = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").to_owned();
            return Err(NetworkError::Nft { reason });
        }
        written.map_err(|source| NetworkError::RunNft { source })
    }

    /// All tables of podspawn instances.
    pub(super) fn tables(&mut self) -> Result<Vec<Table>, NetworkError> {
        let answers = self.channel.dump(NFT_MSG_GETTABLE, &nfgenmsg(NFPROTO_INET, 0));
        let answers = answers.map_err(|e| failed("list nft tables", e))?;
        Ok(answers.iter().filter_map(parse_table).collect())
    }

    /// Removes our table; none is fine.
    pub(super) fn remove_table(&mut self) -> Result<(), NetworkError> {
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_TABLE_NAME, &c_string(&self.table));
        match self.batch(NFT_MSG_DELTABLE, 0, payload) {
            Err(Errno::ENOENT) | Ok(()) => Ok(()),
            Err(e) => Err(failed(&format!("delete nft table {}", self.table), e)),
        }
    }

    /// Lets a session's packets pass; already there is fine.
    pub(super) fn add(&mut self, lease: &Lease) -> Result<(), NetworkError> {
        let payload = self.element(lease);
        self.batch(NFT_MSG_NEWSETELEM, NLM_F_CREATE, payload)
            .map_err(|e| failed(&format!("add session {} to nft table {}", lease.session, self.table), e))
    }

    /// Drops a session's packets from now on; already gone, with or without the table, is fine.
    pub(super) fn remove(&mut self, lease: &Lease) -> Result<(), NetworkError> {
        let payload = self.element(lease);
        match self.batch(NFT_MSG_DELSETELEM, 0, payload) {
            Err(Errno::ENOENT) | Ok(()) => Ok(()),
            Err(e) => Err(failed(&format!("remove session {} from nft table {}", lease.session, self.table), e)),
        }
    }

    /// The leases that the kernel knows, as (veth name, address).
    pub(super) fn leases(&mut self) -> Result<Vec<(String, Ipv4Addr)>, NetworkError> {
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_SET_ELEM_LIST_TABLE, &c_string(&self.table));
        attribute(&mut payload, NFTA_SET_ELEM_LIST_SET, &c_string("leases"));
        match self.channel.dump(NFT_MSG_GETSETELEM, &payload) {
            Err(Errno::ENOENT) => Ok(Vec::new()),
            Err(e) => Err(failed(&format!("list leases of nft table {}", self.table), e)),
            Ok(answers) => Ok(answers.iter().flat_map(parse_leases).collect()),
        }
    }

    /// The message that names one element of `leases`.
    fn element(&self, lease: &Lease) -> Vec<u8> {
        let mut key = self.tag.veth_name(&lease.session).into_bytes();
        key.resize(IFNAMSIZ, 0);
        key.extend(lease.address.octets());
        let mut data = Vec::new();
        attribute(&mut data, NFTA_DATA_VALUE, &key);
        let mut element = Vec::new();
        attribute(&mut element, NFTA_SET_ELEM_KEY | NLA_F_NESTED, &data);
        let mut list = Vec::new();
        attribute(&mut list, NFTA_LIST_ELEM | NLA_F_NESTED, &element);
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_SET_ELEM_LIST_TABLE, &c_string(&self.table));
        attribute(&mut payload, NFTA_SET_ELEM_LIST_SET, &c_string("leases"));
        attribute(&mut payload, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, &list);
        payload
    }

    /// One message as a transaction: nf_tables takes changes in no other form.
    fn batch(&mut self, kind: u16, flags: u16, payload: Vec<u8>) -> Result<(), Errno> {
        let bracket = nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        let requests = [
            Request::silent(NFNL_MSG_BATCH_BEGIN, bracket.clone()),
            Request::acknowledged(kind, flags, payload),
            Request::silent(NFNL_MSG_BATCH_END, bracket),
        ];
        self.channel.call(&requests).map(|_| ())
    }
}

/// Finds nft(8). The directories of system programs are searched even if `PATH` lacks them, as a plain user's does.
pub(super) fn program() -> Result<PathBuf, NetworkError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|d| d.join("nft")).find(|p| p.is_file()).ok_or(NetworkError::NoNft)
}

fn nfgenmsg(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are names and keys of less than a hundred bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn c_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn parse_table(answer: &Answer) -> Option<Table> {
    if answer.kind != NFT_MSG_NEWTABLE {
        return None;
    }
    let (mut name, mut handle, mut pool) = (None, 0, None);
    for (kind, value) in Attributes(answer.payload.get(4..)?) {
        match kind {
            NFTA_TABLE_NAME => name = Some(text(value)),
            NFTA_TABLE_HANDLE => handle = value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)),
            NFTA_TABLE_USERDATA => pool = parse_comment(value),
            _ => {}
        }
    }
    let name = name.filter(|name| name.starts_with("podspawn-"))?;
    Some(Table { name, handle, pool })
}

/// The pool in a table's comment. User data is a list of (type, length, value) of which a comment has type 0.
fn parse_comment(mut data: &[u8]) -> Option<Subnet> {
    const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == NFTNL_UDATA_TABLE_COMMENT {
            return text(value).strip_prefix(COMMENT)?.parse().ok();
        }
        data = &rest[value.len()..];
    }
    None
}

fn parse_leases(answer: &Answer) -> Vec<(String, Ipv4Addr)> {
    if answer.kind != NFT_MSG_NEWSETELEM {
        return Vec::new();
    }
    let attributes = |bytes, wanted| Attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    let body = answer.payload.get(4..).unwrap_or_default();
    attributes(body, NFTA_SET_ELEM_LIST_ELEMENTS)
        .flat_map(|list| attributes(list, NFTA_LIST_ELEM))
        .flat_map(|element| attributes(element, NFTA_SET_ELEM_KEY))
        .flat_map(|key| attributes(key, NFTA_DATA_VALUE))
        .filter_map(|value| {
            let (name, address) = value.split_at_checked(IFNAMSIZ)?;
            Some((text(name), Ipv4Addr::from(*address.first_chunk::<4>()?)))
        })
        .collect()
}

fn failed(what: &str, source: Errno) -> NetworkError {
    NetworkError::Netlink { what: what.to_owned(), source }
}
