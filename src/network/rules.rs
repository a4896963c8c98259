//! The instance's nft table: loaded once, by `nft`, in one transaction.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Output, Stdio},
};

use super::{Lease, NetworkError, Settings};
use crate::{config::Egress, names::InstanceTag};

/// The set of (interface, source address) pairs that may send.
pub(super) const LEASES: &str = "leases";
/// The set of all sessions' addresses.
pub(super) const ADDRESSES: &str = "addresses";

/// Never a destination: this network, loopback, link-local and cloud metadata, protocol assignments, multicast, reserved.
const NEVER: &str = "0.0.0.0/8, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/3";

/// Networks of somebody's own, closed with `egress: public`: RFC 1918, shared address space, benchmarking.
const PRIVATE: &str = "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15";

/// Loads the table with the leases of sessions that live; an earlier table of the same name is replaced in the same
/// transaction, so that there is no moment without rules.
pub(super) fn load(settings: &Settings, live: &[Lease]) -> Result<(), NetworkError> {
    run(&["-f", "-"], &table(settings, live)).map(|_| ())
}

pub(super) fn unload(tag: &InstanceTag) -> Result<(), NetworkError> {
    let name = tag.object_name();
    // Adding it first makes removing it succeed when it is not there.
    run(&["-f", "-"], &format!("table inet {name}\ndelete table inet {name}\n")).map(|_| ())
}

/// The table's name and the interface of each element in it; nothing if there is no table.
pub(super) fn listing(tag: &InstanceTag) -> Result<Vec<String>, NetworkError> {
    let tables = run(&["-j", "list", "tables"], "")?;
    let name = tag.object_name();
    if !parse(&tables)?.iter().any(|object| object["table"]["name"] == name.as_str()) {
        return Ok(Vec::new());
    }
    let mut found = vec![format!("nft table inet {name}")];
    let set = run(&["-j", "list", "set", "inet", &name, LEASES], "")?;
    for object in parse(&set)? {
        for element in object["set"]["elem"].as_array().into_iter().flatten() {
            let interface = element["concat"][0].as_str().unwrap_or("?");
            found.push(format!("nft element of {name} for {interface}"));
        }
    }
    Ok(found)
}

fn parse(json: &[u8]) -> Result<Vec<serde_json::Value>, NetworkError> {
    let parsed: serde_json::Value =
        serde_json::from_slice(json).map_err(|error| NetworkError::NftRun(io::Error::other(error)))?;
    Ok(parsed["nftables"].as_array().cloned().unwrap_or_default())
}

fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
    let child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NetworkError::NftMissing),
        other => other.map_err(NetworkError::NftRun)?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(NetworkError::NftRun)?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(NetworkError::NftRun)?;
    if status.success() {
        Ok(stdout)
    } else {
        Err(NetworkError::Nft(String::from_utf8_lossy(&stderr).trim().replace('\n', "; ")))
    }
}

fn table(settings: &Settings, live: &[Lease]) -> String {
    let name = settings.tag.object_name();
    let sessions = format!("\"ps{}*\"", settings.tag.as_str());
    let gateway = settings.pool.gateway();
    let leases = elements(live.iter().map(|lease| {
        format!("\"{}\" . {}", settings.tag.veth_name(&lease.session), lease.address)
    }));
    let addresses = elements(live.iter().map(|lease| lease.address.to_string()));
    let (extra_set, egress) = egress(&settings.egress);
    format!(
        r#"table inet {name}
delete table inet {name}
table inet {name} {{
  set {LEASES} {{ type ifname . ipv4_addr; {leases} }}
  set {ADDRESSES} {{ type ipv4_addr; {addresses} }}
  set never {{ type ipv4_addr; flags interval; elements = {{ {NEVER} }} }}
  {extra_set}

  # A session sends IPv4 only, and only from its own address.
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {sessions} jump from_session
  }}
  chain from_session {{
    meta nfproto != ipv4 drop
    iifname . ip saddr != @{LEASES} drop
  }}

  # To the host itself: nothing but DNS on the gateway.
  chain input {{
    type filter hook input priority filter - 5; policy accept;
    iifname != {sessions} accept
    ip daddr {gateway} udp dport 53 accept
    ip daddr {gateway} tcp dport 53 accept
    drop
  }}

  # Through the host: never to another session, and inwards only what a session has asked for.
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname {sessions} oifname {sessions} drop
    iifname {sessions} jump egress
    oifname {sessions} ct state established,related accept
    oifname {sessions} drop
  }}
  chain egress {{
    ip daddr @never drop
    {egress}
  }}

  # The host does not connect to sessions either: nothing on it has a reason to.
  chain output {{
    type filter hook output priority filter - 5; policy accept;
    oifname != {sessions} accept
    meta l4proto icmp accept
    ct state established,related accept
    drop
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @{ADDRESSES} oifname != {sessions} masquerade
  }}
}}
"#
    )
}

fn egress(egress: &Egress) -> (String, String) {
    let interval = |name: &str, networks: &str| {
        format!("set {name} {{ type ipv4_addr; flags interval; elements = {{ {networks} }} }}")
    };
    match egress {
        Egress::Public => (interval("private", PRIVATE), "ip daddr @private drop\n    accept".to_owned()),
        Egress::None => (String::new(), "drop".to_owned()),
        Egress::Open => (String::new(), "accept".to_owned()),
        Egress::Only(networks) if networks.is_empty() => (String::new(), "drop".to_owned()),
        Egress::Only(networks) => {
            let networks: Vec<_> = networks.iter().map(|(network, prefix)| cidr(*network, *prefix)).collect();
            let set = format!(
                "set allowed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}",
                networks.join(", ")
            );
            (set, "ip daddr @allowed accept\n    drop".to_owned())
        }
    }
}

fn cidr(network: Ipv4Addr, prefix: u8) -> String {
    format!("{network}/{prefix}")
}

fn elements(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { String::new() } else { format!("elements = {{ {} }}", items.join(", ")) }
}
