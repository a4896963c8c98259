//! Elements of nft sets, added and removed in netlink transactions: no process is started for a session.
//!
//! The messages are those of the kernel's `nf_tables_netlink`: a batch begin, the changes, a batch end; either all take
//! effect or none (linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h).

use std::{
    io,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{NetworkError, rules};
use crate::names::InstanceTag;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;

const NFPROTO_INET: u8 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

const INTERFACE_NAME_BYTES: usize = 16;

/// The sets of one instance's table.
pub(super) struct Elements {
    table: String,
    socket: Mutex<Socket>,
}

impl Elements {
    pub fn open(tag: &InstanceTag) -> Result<Self, NetworkError> {
        let table = tag.object_name();
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self { table, socket: Mutex::new(socket) }),
            Err(source) => Err(NetworkError::Elements { table, set: "(all)", source }),
        }
    }

    /// Adds the interface with its address to both sets.
    pub fn add(&self, interface: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        let changes = keys(interface, address).map(|(set, key)| (NFT_MSG_NEWSETELEM, set, key));
        self.transact(&changes).map_err(|source| self.failed(rules::LEASES, source))
    }

    /// Removes them; what is not there is no error.
    pub fn remove(&self, interface: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        // One transaction each: a missing element makes the whole of one fail.
        for (set, key) in keys(interface, address) {
            match self.transact(&[(NFT_MSG_DELSETELEM, set, key)]) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| self.failed(set, source))?,
            }
        }
        Ok(())
    }

    fn failed(&self, set: &'static str, source: io::Error) -> NetworkError {
        NetworkError::Elements { table: self.table.clone(), set, source }
    }

    fn transact(&self, changes: &[(u16, &'static str, Vec<u8>)]) -> io::Result<()> {
        let mut batch = Vec::new();
        message(&mut batch, NFNL_MSG_BATCH_BEGIN, 0, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        for (sequence, (kind, set, key)) in (1..).zip(changes) {
            let create = if *kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
            message(&mut batch, *kind, NLM_F_ACK | create, sequence, NFPROTO_INET, 0, |body| {
                attribute(body, NFTA_SET_ELEM_LIST_TABLE, |body| string(body, &self.table));
                attribute(body, NFTA_SET_ELEM_LIST_SET, |body| string(body, set));
                attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, |body| {
                    attribute(body, NFTA_LIST_ELEM | NLA_F_NESTED, |body| {
                        attribute(body, NFTA_SET_ELEM_KEY | NLA_F_NESTED, |body| {
                            attribute(body, NFTA_DATA_VALUE, |body| body.extend(key));
                        });
                    });
                });
            });
        }
        let last = changes.len() as u32;
        message(&mut batch, NFNL_MSG_BATCH_END, 0, last + 1, 0, NFNL_SUBSYS_NFTABLES, |_| {});

        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.send(&batch, 0)?;
        // Every change is acknowledged, in order; the first that fails is answered with its error instead, and so may be
        // those after it.
        let mut result = Ok(());
        let mut seen = 0;
        while seen < last {
            let (datagram, _) = socket.recv_from_full()?;
            for (sequence, error) in answers(&datagram) {
                // Sequence 0 or beyond the last is the batch as a whole: then nothing else will come.
                seen = if (1..=last).contains(&sequence) { sequence } else { last };
                if error != 0 && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(-error));
                }
            }
        }
        result
    }
}

/// The element of each set that stands for a session.
fn keys(interface: &str, address: Ipv4Addr) -> [(&'static str, Vec<u8>); 2] {
    let mut lease = interface.as_bytes().to_vec();
    lease.resize(INTERFACE_NAME_BYTES, 0);
    lease.extend(address.octets());
    [(rules::LEASES, lease), (rules::ADDRESSES, address.octets().to_vec())]
}

/// Appends a netlink message with its nfgenmsg header; `resource` is in network byte order on the wire.
fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend(0_u32.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute with its padding.
fn attribute(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(0_u16.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    body(out);
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

/// Sequence number and error code (0 or negative errno) of each acknowledgement in a datagram.
fn answers(datagram: &[u8]) -> Vec<(u32, i32)> {
    let u32_at = |bytes: &[u8], at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let mut found = Vec::new();
    let mut rest = datagram;
    while let (Some(length), Some(sequence)) = (u32_at(rest, 0), u32_at(rest, 8)) {
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        if kind == NLMSG_ERROR
            && let Some(error) = u32_at(rest, 16)
        {
            found.push((sequence, error.cast_signed()));
        }
        rest = rest.get((length as usize).next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    found
}
