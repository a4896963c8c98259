//! nftables spoken: whole tables as text through nft(8), and the little that changes with each session by nfnetlink.
//!
//! What is in the table and why is in [`super::ruleset`].

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
    NetworkError,
    netlink::{Answer, Attributes, Channel, Request, text},
    subnet::Subnet,
};
use crate::names::{ContainerId, InstanceTag};

/// What nft shows as the table's comment, in front of the pool: how instances see each other's pools.
pub(super) const COMMENT: &str = "podspawn pool ";

// linux/netfilter/nfnetlink.h and nf_tables.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NFT_MSG_GETTABLE: u16 = NFT_MSG_NEWTABLE + 1;
const NFT_MSG_DELTABLE: u16 = NFT_MSG_NEWTABLE + 2;
const NFT_MSG_NEWRULE: u16 = NFT_MSG_NEWTABLE + 6;
const NFT_MSG_GETRULE: u16 = NFT_MSG_NEWTABLE + 7;
const NFT_MSG_DELRULE: u16 = NFT_MSG_NEWTABLE + 8;
const NFT_MSG_NEWSETELEM: u16 = NFT_MSG_NEWTABLE + 12;
const NFT_MSG_GETSETELEM: u16 = NFT_MSG_NEWTABLE + 13;
const NFT_MSG_DELSETELEM: u16 = NFT_MSG_NEWTABLE + 14;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_GOTO: i32 = -4;
const NLA_F_NESTED: u16 = 0x8000;
const IFNAMSIZ: usize = 16;
/// Elements of a set that one message names: an attribute holds 64 KiB, of which each takes 24 bytes.
const MESSAGE_ELEMENTS: usize = 256;

/// Who may send to whom.
pub(super) type Pair = (Ipv4Addr, Ipv4Addr);

/// What stands for one container in the sets of the table.
pub(super) struct Elements {
    pub(super) container: ContainerId,
    pub(super) address: Ipv4Addr,
    /// The chain that decides where it may connect to; `None` will do for removing it.
    pub(super) egress: Option<String>,
    pub(super) resolves: bool,
    pub(super) pairs: Vec<Pair>,
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

    /// How many rules our table has; 0 without a table.
    pub(super) fn rules(&mut self) -> Result<usize, NetworkError> {
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_RULE_TABLE, &c_string(&self.table));
        match self.channel.dump(NFT_MSG_GETRULE, &payload) {
            Err(Errno::ENOENT) => Ok(0),
            Err(e) => Err(failed(&format!("list rules of nft table {}", self.table), e)),
            Ok(answers) => Ok(answers.iter().filter(|answer| self.is_about_us(answer, NFT_MSG_NEWRULE)).count()),
        }
    }

    /// Whether an answer of this kind is about our table; kernels that do not know a filter send everything.
    fn is_about_us(&self, answer: &Answer, kind: u16) -> bool {
        let body = answer.payload.get(4..).unwrap_or_default();
        answer.kind == kind && Attributes(body).any(|(kind, name)| kind == NFTA_RULE_TABLE && text(name) == self.table)
    }

    /// Removes our table; none is fine.
    pub(super) fn remove_table(&mut self) -> Result<(), NetworkError> {
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_TABLE_NAME, &c_string(&self.table));
        match self.batch(NFT_MSG_DELTABLE, 0, vec![payload]) {
            Err(Errno::ENOENT) | Ok(()) => Ok(()),
            Err(e) => Err(failed(&format!("delete nft table {}", self.table), e)),
        }
    }

    /// Lets a container's packets pass; already there is fine. False if there is no table. All of it or nothing.
    pub(super) fn add(&mut self, elements: &Elements) -> Result<bool, NetworkError> {
        match self.batch(NFT_MSG_NEWSETELEM, NLM_F_CREATE, self.messages(elements, MESSAGE_ELEMENTS)) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(failed(&format!("add container {} to nft table {}", elements.container, self.table), e)),
        }
    }

    /// Drops a container's packets from now on; already gone, with or without the table, is fine.
    pub(super) fn remove(&mut self, elements: &Elements) -> Result<(), NetworkError> {
        let removed = match self.batch(NFT_MSG_DELSETELEM, 0, self.messages(elements, MESSAGE_ELEMENTS)) {
            // One that is gone keeps all the others.
            Err(Errno::ENOENT) => self.messages(elements, 1).into_iter().try_for_each(|message| {
                match self.batch(NFT_MSG_DELSETELEM, 0, vec![message]) {
                    Err(Errno::ENOENT) => Ok(()),
                    other => other,
                }
            }),
            other => other,
        };
        removed
            .map_err(|e| failed(&format!("remove container {} from nft table {}", elements.container, self.table), e))
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

    /// The messages that name a container's elements, at most `most` in each.
    fn messages(&self, elements: &Elements, most: usize) -> Vec<Vec<u8>> {
        let address = elements.address.octets();
        let chain = elements.egress.as_deref();
        let mut name = self.tag.veth_name(&elements.container).into_bytes();
        name.resize(IFNAMSIZ, 0);
        name.extend(address);
        let pairs = elements.pairs.iter().map(|(from, to)| element(&[from.octets(), to.octets()].concat(), None));
        let pairs: Vec<Vec<u8>> = pairs.collect();
        let mut messages: Vec<_> = pairs.chunks(most).map(|of_pairs| self.message("pairs", of_pairs)).collect();
        if elements.resolves {
            messages.push(self.message("resolving", &[element(&address, None)]));
        }
        messages.push(self.message("egress", &[element(&address, chain)]));
        messages.push(self.message("leases", &[element(&name, None)]));
        messages
    }

    /// The message that names elements of `set`.
    fn message(&self, set: &str, elements: &[Vec<u8>]) -> Vec<u8> {
        let mut list = Vec::new();
        for element in elements {
            attribute(&mut list, NFTA_LIST_ELEM | NLA_F_NESTED, element);
        }
        let mut payload = nfgenmsg(NFPROTO_INET, 0);
        attribute(&mut payload, NFTA_SET_ELEM_LIST_TABLE, &c_string(&self.table));
        attribute(&mut payload, NFTA_SET_ELEM_LIST_SET, &c_string(set));
        attribute(&mut payload, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, &list);
        payload
    }

    /// Messages of one kind as a transaction: nf_tables takes changes in no other form.
    fn batch(&mut self, kind: u16, flags: u16, payloads: Vec<Vec<u8>>) -> Result<(), Errno> {
        let bracket = nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        let mut requests = vec![Request::silent(NFNL_MSG_BATCH_BEGIN, bracket.clone())];
        requests.extend(payloads.into_iter().map(|payload| Request::acknowledged(kind, flags, payload)));
        requests.push(Request::silent(NFNL_MSG_BATCH_END, bracket));
        self.channel.call(&requests).map(|_| ())
    }
}

/// Finds nft(8). The directories of system programs are searched even if `PATH` lacks them, as a plain user's does.
pub(super) fn program() -> Result<PathBuf, NetworkError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|d| d.join("nft")).find(|p| p.is_file()).ok_or(NetworkError::NoNft)
}

/// Whether a message of this kind tells that a table or a rule has gone. A chain and a set cannot go without the rules that
/// are in it or use it.
pub(super) fn is_removal(kind: u16) -> bool {
    matches!(kind, NFT_MSG_DELTABLE | NFT_MSG_DELRULE)
}

fn nfgenmsg(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are names and keys of less than a hundred bytes, and lists of [`MESSAGE_ELEMENTS`] of them.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// An element of a set, or one of a map that leads to a chain.
fn element(key: &[u8], chain: Option<&str>) -> Vec<u8> {
    let nested = |kind: u16, value: &[u8]| {
        let mut nested = Vec::new();
        attribute(&mut nested, kind, value);
        nested
    };
    let mut element = nested(NFTA_SET_ELEM_KEY | NLA_F_NESTED, &nested(NFTA_DATA_VALUE, key));
    if let Some(chain) = chain {
        let mut verdict = nested(NFTA_VERDICT_CODE, &NFT_GOTO.to_be_bytes());
        attribute(&mut verdict, NFTA_VERDICT_CHAIN, &c_string(chain));
        let data = nested(NFTA_DATA_VERDICT | NLA_F_NESTED, &verdict);
        attribute(&mut element, NFTA_SET_ELEM_DATA | NLA_F_NESTED, &data);
    }
    element
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
