//! The network of each session: a namespace, a routed point-to-point veth pair, and rules that let it reach the outside
//! and nothing else.
//!
//! ```text
//! container                          host
//!   eth0  10.x.y.z/32  ───veth───  ps<tag><id>  gateway/32 peer 10.x.y.z/32  ── forward, masquerade ──▶ outside
//!   default via gateway                          gateway:53 is our DNS forwarder
//! ```
//!
//! No bridge: there is no neighbour to spoof, and the cost of a session does not grow with the number of others. One nft
//! table per instance is loaded when the server starts; a session is two set elements in it, added and removed in one
//! netlink transaction. The veth pair lives and dies with the namespace, and that with the container's processes.

pub mod dns;
mod elements;
mod link;
mod pool;
mod rules;

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use nix::sched::{CloneFlags, unshare};

pub use self::pool::Pool;
use crate::{
    config::Egress,
    names::{InstanceTag, SessionId},
};

/// What the instance's network is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    pub tag: InstanceTag,
    pub pool: Pool,
    pub egress: Egress,
}

/// A session's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub session: SessionId,
    pub address: Ipv4Addr,
}

/// Why a network could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("nft is not installed; run: apt-get install nftables")]
    NftMissing,
    #[error("cannot run nft")]
    NftRun(#[source] io::Error),
    #[error("nft refuses the rules: {0}")]
    Nft(String),
    #[error("cannot change the set {set} of table {table}")]
    Elements { table: String, set: &'static str, source: io::Error },
    #[error("cannot {what} of {name}")]
    Link { what: &'static str, name: String, source: io::Error },
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot set {0}")]
    Sysctl(&'static str, #[source] io::Error),
    #[error("the network {0} (network.pool) overlaps {1}, which the host routes elsewhere")]
    PoolTaken(Pool, String),
    #[error("no network is free for sessions; set network.pool")]
    NoPool,
    #[error("cannot serve DNS on {0}:53")]
    Dns(Ipv4Addr, #[source] io::Error),
}

/// The network of one instance.
pub struct Network {
    settings: Settings,
    elements: elements::Elements,
    links: link::Links,
}

/// A session's network, ready for its container.
#[derive(Debug)]
pub struct Segment {
    /// The namespace, owned by the initial user namespace: the container's root has no rights over it.
    pub netns: OwnedFd,
}

impl Network {
    /// Chooses the instance's pool: the configured one, or one that nothing on this host uses. Comes with the DNS sockets
    /// on its gateway, which also keep other instances from choosing the same.
    pub fn choose_pool(
        tag: &InstanceTag,
        configured: Option<(Ipv4Addr, u8)>,
        remembered: Option<Pool>,
    ) -> Result<(Pool, dns::Sockets), NetworkError> {
        pool::choose(tag, configured, remembered)
    }

    /// Loads the instance's rules, with the leases of sessions that live already, in one transaction. Switches on IPv4
    /// forwarding if it is off.
    pub fn open(settings: Settings, live: &[Lease]) -> Result<Self, NetworkError> {
        rules::load(&settings, live)?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        let on = fs::read_to_string(forward).map_err(|error| NetworkError::Sysctl("net.ipv4.ip_forward", error))?;
        if on.trim() == "0" {
            fs::write(forward, "1").map_err(|error| NetworkError::Sysctl("net.ipv4.ip_forward", error))?;
            tracing::info!("switched on IPv4 forwarding (net.ipv4.ip_forward)");
        }
        let links = link::Links::open().map_err(|source| NetworkError::Link {
            what: "open a netlink socket for links",
            name: "the host".to_owned(),
            source,
        })?;
        let elements = elements::Elements::open(&settings.tag)?;
        Ok(Self { settings, elements, links })
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.settings.pool.gateway()
    }

    /// The address of the session with this slot; `None` beyond the end of the pool.
    pub fn address(&self, slot: u32) -> Option<Ipv4Addr> {
        self.settings.pool.address(slot)
    }

    /// Makes the session's network; nothing is left after a failure.
    pub fn create(&self, lease: &Lease) -> Result<Segment, NetworkError> {
        let name = self.settings.tag.veth_name(&lease.session);
        let (netns, inside) = new_namespace()?;
        // Before the pair can carry a packet.
        self.elements.add(&name, lease.address)?;
        let made = self.connect(&name, lease, &netns, &inside);
        if let Err(error) = made {
            // The first error is the one to tell; the pair goes with the namespace.
            let _ = self.destroy(lease);
            return Err(error);
        }
        Ok(Segment { netns })
    }

    fn connect(
        &self,
        name: &str,
        lease: &Lease,
        netns: &OwnedFd,
        inside: &link::Links,
    ) -> Result<(), NetworkError> {
        let failed = |what| move |source| NetworkError::Link { what, name: name.to_owned(), source };
        let gateway = self.gateway();
        self.links.add_veth(name, "eth0", netns.as_fd()).map_err(failed("make the veth pair"))?;
        let outer = self.links.index(name).map_err(failed("find the host's end"))?;
        self.links.add_address(outer, gateway, lease.address).map_err(failed("set the address"))?;
        self.links.set_up(outer).map_err(failed("switch on the host's end"))?;
        let inner = inside.index("eth0").map_err(failed("find the container's end"))?;
        inside.set_up(link::LOOPBACK).map_err(failed("switch on the loopback device"))?;
        inside.add_address(inner, lease.address, lease.address).map_err(failed("set the inner address"))?;
        inside.set_up(inner).map_err(failed("switch on the container's end"))?;
        inside.add_link_route(inner, gateway).map_err(failed("add the route to the gateway"))?;
        inside.add_default_route(inner, gateway).map_err(failed("add the default route"))
    }

    /// Removes the session's rules. The veth pair goes with the namespace, when the last process in it has ended.
    pub fn destroy(&self, lease: &Lease) -> Result<(), NetworkError> {
        self.elements.remove(&self.settings.tag.veth_name(&lease.session), lease.address)
    }

    /// Removes the instance's rules; they may be gone already.
    pub fn close(&self) -> Result<(), NetworkError> {
        rules::unload(&self.settings.tag)
    }

    /// Names of veth devices, the nft table and its elements that belong to the instance.
    pub fn listing(tag: &InstanceTag) -> Result<Vec<String>, NetworkError> {
        let failed = |source| NetworkError::Link { what: "list the links", name: "the host".to_owned(), source };
        let prefix = format!("ps{}", tag.as_str());
        let mut found = link::Links::open().and_then(|links| links.names()).map_err(failed)?;
        found.retain(|name| name.starts_with(&prefix));
        found.extend(rules::listing(tag)?);
        Ok(found)
    }
}

/// Makes a namespace and a netlink socket in it, on a thread that ends in there and is never used for anything else.
fn new_namespace() -> Result<(OwnedFd, link::Links), NetworkError> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Namespace(errno.into()))?;
        let netns = fs::File::open("/proc/thread-self/ns/net").map_err(NetworkError::Namespace)?;
        // The container's root has no capability in this namespace, so what it expects of root and of ping is allowed to all.
        for (name, value) in
            [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")]
        {
            fs::write(format!("/proc/sys/{name}"), value).map_err(|error| NetworkError::Sysctl(name, error))?;
        }
        // No IPv6 on what comes into the namespace; loopback is there already and keeps ::1. Of these switches `default` is
        // the one that does not take the kernel's lock on all networks. A kernel without IPv6 has none.
        let no_ipv6 = "net/ipv6/conf/default/disable_ipv6";
        match fs::write(format!("/proc/sys/{no_ipv6}"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(NetworkError::Sysctl(no_ipv6, error)),
            _ => {}
        }
        let links = link::Links::open().map_err(NetworkError::Namespace)?;
        Ok((netns.into(), links))
    };
    match thread::Builder::new().name("netns".to_owned()).spawn(make) {
        Err(error) => Err(NetworkError::Namespace(error)),
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// `/etc/hosts` of a container.
pub fn hosts_file(hostname: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n")
}

/// `/etc/resolv.conf` of a container: our forwarder on the gateway.
pub fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\noptions timeout:3 attempts:3\n")
}

#[cfg(test)]
mod tests;
