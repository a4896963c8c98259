//! A session's way to the network and nobody's way to the session: namespace, veth pair, addresses, nftables, DNS.
//!
//! ```text
//!   session's namespace            host                                    world
//!   eth0 address/32  ───veth───  ps<tag><id> gateway/32 ── nft ── masquerade ──▶
//!   default via gateway              gateway:53  DNS forwarder ──▶ host's resolvers
//! ```
//!
//! Owns: network namespaces and veth pairs of sessions, the table `inet podspawn-<tag>`, the choice of the pool. Leaves
//! to others: who gets which slot of the pool, and `net.ipv4.ip_forward` once it is on.
//!
//! Invariant: a veth is only ever up while the table exists and drops whatever its session may not send. Therefore
//! rules come before the link and leave after it, and they stay in the kernel when the supervisor dies.
//!
//! All sessions share one gateway address, which every host end carries; a route to each session's address leads into
//! its veth. There is no bridge, hence no neighbour to spoof, no limit of 1,023 ports and nothing that floods.
//!
//! A service of a session is a container with a veth pair and an address like any other. What makes a segment of them is
//! that the host passes packets on between containers of one session, whose source address cannot be forged, and between
//! no others.
//!
//! Two instances on one host have different tables (by tag) and different pools ([`pick_pool`]): a pool is written into
//! the table's comment, where the next instance that looks for one sees it.

pub mod dns;
mod link;
mod netlink;
mod nft;
mod ruleset;
mod subnet;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

use self::{
    link::Links,
    nft::Nft,
    ruleset::{Policy, Ruleset},
};
pub use self::{
    link::Traffic,
    subnet::{Subnet, pick_pool},
    watch::Watch,
};
use crate::names::{ContainerId, InstanceTag};

/// How long the kernel may take until a new link carries packets; it takes less than a millisecond.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a session could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the program nft is not installed (package nftables)")]
    NoNft,
    #[error("cannot run nft")]
    RunNft { source: io::Error },
    #[error("nft refused the rules: {reason}")]
    Nft { reason: String },
    #[error("cannot open a netlink socket")]
    Socket { source: io::Error },
    #[error("cannot {what}")]
    Netlink { what: String, source: Errno },
    #[error("cannot write {path}")]
    Sysctl { path: &'static str, source: io::Error },
    #[error("cannot make a network namespace")]
    Namespace { source: io::Error },
    #[error("cannot serve DNS to sessions on {address}")]
    Dns { address: SocketAddrV4, source: io::Error },
    #[error("network.pool {pool} has no room for sessions: its prefix must be 8 to 30 bits")]
    PoolSize { pool: Subnet },
    #[error("network.pool {pool} overlaps {other}; choose a network that this host does not use")]
    PoolTaken { pool: Subnet, other: String },
    #[error("every private network is in use on this host; set network.pool")]
    NoFreePool,
    #[error("container {container} has the address {address}, which is outside of network.pool {pool}")]
    StrayLease { container: ContainerId, address: Ipv4Addr, pool: Subnet },
}

/// Where a container may connect to. None of these ever includes the host itself, other sessions or link-local addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Egress {
    /// Everything but private addresses.
    Public,
    /// Nowhere, and no DNS either.
    None,
    /// Everything.
    Open,
    /// These networks only, and DNS.
    Only(Vec<Subnet>),
}

/// What an instance's network is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    pub tag: InstanceTag,
    /// `None`: chosen by [`pick_pool`].
    pub pool: Option<Subnet>,
    /// The last supervisor's pool: the one to use while sessions live that have addresses of it.
    pub former_pool: Option<Subnet>,
    /// Of the containers that have none of their own.
    pub egress: Egress,
}

/// The address that a container has, and under whose name. Those of one session may talk to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub container: ContainerId,
    pub address: Ipv4Addr,
    /// Where it may connect to; `None` = where all may, as [`Network::set_egress`] says.
    pub egress: Option<Egress>,
}

/// A container's network namespace, connected. The namespace and both ends of its veth pair go when the last process in
/// it is gone and this descriptor is closed.
#[derive(Debug)]
pub struct Segment {
    pub netns: OwnedFd,
}

/// The network of one instance.
pub struct Network {
    tag: InstanceTag,
    pool: Subnet,
    gateway: Ipv4Addr,
    links: Mutex<Links>,
    rules: Mutex<Ruleset>,
}

impl Network {
    /// Makes the instance's table, with the leases in `live`, or replaces it in one transaction. Removes the veth pairs
    /// of sessions that are not in `live`.
    ///
    /// Turns `net.ipv4.ip_forward` on, and logs it, where it is off; it stays on, since other software may rely on it
    /// by the time we leave. Works in the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`NetworkError::NoNft`], [`NetworkError::PoolTaken`] if the configured pool overlaps one of the host's networks
    /// or another instance's pool, [`NetworkError::StrayLease`] if a live session's address is of no pool that is known.
    pub fn open(settings: &Settings, live: &[Lease]) -> Result<Self, NetworkError> {
        nft::program()?;
        let mut links = Links::open()?;
        let mut nft = Nft::open(&settings.tag)?;
        let (pool, gateway, rules) = loop {
            let pool = find_pool(settings, live, &mut links, &mut nft)?;
            let gateway = pool.host(1).ok_or(NetworkError::PoolSize { pool })?;
            if let Some(lease) = live.iter().find(|lease| !pool.contains(lease.address)) {
                return Err(NetworkError::StrayLease {
                    container: lease.container.clone(),
                    address: lease.address,
                    pool,
                });
            }
            enable_forwarding()?;
            sweep(&settings.tag, live, &mut links)?;
            let policy = Policy { tag: settings.tag.clone(), pool, gateway, egress: settings.egress.clone() };
            let rules = Ruleset::make(nft, policy, live)?;
            // Two instances that start at once may have chosen the same pool, neither seeing the other's table. Now
            // both do, and the younger one steps back. With a configured pool the next round of the loop says so.
            if !live.is_empty() || !younger_than_a_rival(&settings.tag, pool)? {
                break (pool, gateway, rules);
            }
            nft = rules.unmake()?;
        };
        Ok(Self { tag: settings.tag.clone(), pool, gateway, links: Mutex::new(links), rules: Mutex::new(rules) })
    }

    /// The sessions' default router and name server.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The network that all addresses are from.
    pub fn pool(&self) -> Subnet {
        self.pool
    }

    /// The address of a slot; `None` if the pool has no such slot.
    pub fn address(&self, slot: u32) -> Option<Ipv4Addr> {
        self.pool.host(slot.checked_add(2)?)
    }

    /// Makes a network namespace that is connected as `lease` says. Nobody else may have the lease's address. `companions`:
    /// whether the session has further containers, so that much of what is sent stays within it.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`], [`NetworkError::Sysctl`] or [`NetworkError::Netlink`]. Either way nothing is left
    /// behind.
    pub fn create(&self, lease: &Lease, companions: bool) -> Result<Segment, NetworkError> {
        let (netns, mut inside) = new_namespace()?;
        let created = self.connect(lease, companions, &netns, &mut inside);
        if created.is_err() {
            // The veth pair, if it came to that, goes with the namespace, whose last references are dropped here.
            if let Err(error) = self.destroy(lease) {
                tracing::warn!(container = %lease.container, %error, "undoing a failed network");
            }
        }
        created.map(|()| Segment { netns })
    }

    fn connect(
        &self,
        lease: &Lease,
        companions: bool,
        netns: &OwnedFd,
        inside: &mut Links,
    ) -> Result<(), NetworkError> {
        let veth = self.tag.veth_name(&lease.container);
        // First the rules, so that the link is not up for a moment without them.
        self.rules().add(lease)?;
        let mut links = self.links();
        links.add_veth(&veth, netns.as_fd(), lease.address, companions)?;
        links.start_outside(&veth, self.gateway, lease.address)?;
        drop(links);
        inside.start_inside(self.gateway, lease.address)?;
        // Without this the answer to the session's first packet may be lost, and the first connection take a second.
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.links().is_running(&veth)? {
            if Instant::now() > deadline {
                return Err(NetworkError::Netlink { what: format!("start veth {veth}"), source: Errno::ETIMEDOUT });
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Frees the lease: its address may be given to another session, and what still runs in the namespace is cut off.
    /// None of it being there is fine.
    ///
    /// # Errors
    /// [`NetworkError::Netlink`], after everything has been tried.
    pub fn destroy(&self, lease: &Lease) -> Result<(), NetworkError> {
        let ruled_out = self.rules().remove(lease);
        let unlinked = self.links().stop_outside(&self.tag.veth_name(&lease.container), self.gateway, lease.address);
        ruled_out.and(unlinked)
    }

    /// Removes the table. For when no session is left; a veth pair that is still there is removed first.
    pub fn close(&self) -> Result<(), NetworkError> {
        sweep(&self.tag, &[], &mut self.links())?;
        self.rules().close()
    }

    /// Changes where containers may connect to whose leases do not say it, those that are there included. Does nothing if that
    /// is so already.
    pub fn set_egress(&self, egress: &Egress) -> Result<(), NetworkError> {
        self.rules().set_egress(egress)
    }

    /// Begins to listen for what other software removes from nftables; after each removal [`check`](Self::check) is due.
    /// Must be called inside a tokio runtime.
    pub fn watch(&self) -> Result<Watch, NetworkError> {
        Watch::open()
    }

    /// Makes the table anew if somebody has removed it or any of its rules.
    pub fn check(&self) -> Result<(), NetworkError> {
        self.rules().check()
    }

    /// What each container has received and sent, as it sees it. One listing of the host's interfaces, on a socket of its own,
    /// so that nobody who makes a session waits for it.
    pub fn traffic(&self) -> Result<HashMap<ContainerId, Traffic>, NetworkError> {
        let links = Links::open()?.list()?.into_iter();
        let of_containers = links.filter_map(|link| {
            // The host's end receives what the container sends.
            let Traffic { rx_bytes, tx_bytes } = link.traffic;
            let traffic = Traffic { rx_bytes: tx_bytes, tx_bytes: rx_bytes };
            self.tag.container_of_veth(&link.name).map(|container| (container, traffic))
        });
        Ok(of_containers.collect())
    }

    /// What the kernel has of the instance `tag`, one line per object, each with its session's id where it has one.
    pub fn listing(tag: &InstanceTag) -> Result<Vec<String>, NetworkError> {
        let mut nft = Nft::open(tag)?;
        let mut lines: Vec<_> =
            veths(tag, &mut Links::open()?)?.into_iter().map(|name| format!("veth {name}")).collect();
        lines.extend(own_table(tag, &mut nft)?.map(|table| format!("nft table inet {}", table.name)));
        let leases = nft.leases()?.into_iter();
        lines.extend(leases.map(|(veth, address)| format!("nft lease {veth} {address} in {}", tag.object_name())));
        Ok(lines)
    }

    /// A panic while the lock was held leaves a socket with unread answers at worst, which the next call skips.
    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Ruleset> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The contents of a container's `/etc/hosts`: the names and addresses of its session's containers, of which an earlier one
/// counts where two have the same name.
pub fn hosts_file<'a>(containers: impl IntoIterator<Item = (&'a str, Ipv4Addr)>) -> String {
    let mut file = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for (name, address) in containers {
        file.push_str(&format!("{address}\t{name}\n"));
    }
    file
}

/// Where the program nft is, without which there is no network.
pub fn nft_program() -> Result<PathBuf, NetworkError> {
    nft::program()
}

/// The contents of a session's `/etc/resolv.conf`.
pub fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\n")
}

/// The pool to use: the one that live sessions are in, the configured one if it is free, or a new one.
fn find_pool(settings: &Settings, live: &[Lease], links: &mut Links, nft: &mut Nft) -> Result<Subnet, NetworkError> {
    if let Some(pool) = settings.former_pool.filter(|_| !live.is_empty()) {
        if let Some(wanted) = settings.pool.filter(|wanted| *wanted != pool) {
            tracing::warn!("network.pool is still {pool}, not {wanted}: sessions live that have addresses of it");
        }
        return Ok(pool);
    }
    let mut taken: Vec<(Subnet, String)> = Vec::new();
    let own_table = settings.tag.object_name();
    for table in nft.tables()?.into_iter().filter(|table| table.name != own_table) {
        taken.extend(table.pool.map(|pool| (pool, format!("{pool} of another podspawn (nft table {})", table.name))));
    }
    let interfaces = links.list()?;
    for route in links.routes()? {
        let oif = interfaces.iter().find(|link| Some(link.index) == route.oif).map_or("", |link| &link.name);
        if settings.tag.container_of_veth(oif).is_none() {
            taken.push((route.destination, format!("this host's route to {} {oif}", route.destination)));
        }
    }
    let occupant = |pool: &Subnet| taken.iter().find(|(other, _)| other.overlaps(pool)).map(|(_, what)| what.clone());
    if let Some(pool) = settings.pool {
        if !(8..=30).contains(&pool.prefix()) {
            return Err(NetworkError::PoolSize { pool });
        }
        return occupant(&pool).map_or(Ok(pool), |other| Err(NetworkError::PoolTaken { pool, other }));
    }
    let taken: Vec<_> = taken.iter().map(|(subnet, _)| *subnet).collect();
    pick_pool(&settings.tag, &taken).ok_or(NetworkError::NoFreePool)
}

fn own_table(tag: &InstanceTag, nft: &mut Nft) -> Result<Option<nft::Table>, NetworkError> {
    let name = tag.object_name();
    Ok(nft.tables()?.into_iter().find(|table| table.name == name))
}

/// Whether another instance's table has an overlapping pool and was made before ours.
fn younger_than_a_rival(tag: &InstanceTag, pool: Subnet) -> Result<bool, NetworkError> {
    let name = tag.object_name();
    let tables = Nft::open(tag)?.tables()?;
    let own = tables.iter().find(|table| table.name == name).map_or(u64::MAX, |table| table.handle);
    let mut rivals = tables.iter().filter(|table| table.name != name && table.pool.is_some_and(|p| p.overlaps(&pool)));
    Ok(rivals.any(|table| table.handle < own))
}

fn veths(tag: &InstanceTag, links: &mut Links) -> Result<Vec<String>, NetworkError> {
    let names = links.list()?.into_iter().map(|link| link.name);
    Ok(names.filter(|name| tag.container_of_veth(name).is_some()).collect())
}

/// Deletes the veth pairs of sessions that are not in `live`: their namespaces may be kept alive by processes that only
/// the driver can find and kill. Tries all, and returns the first failure.
fn sweep(tag: &InstanceTag, live: &[Lease], links: &mut Links) -> Result<(), NetworkError> {
    let wanted: Vec<_> = live.iter().map(|lease| tag.veth_name(&lease.container)).collect();
    let stale = veths(tag, links)?.into_iter().filter(|name| !wanted.contains(name));
    stale.map(|name| links.delete(&name)).fold(Ok(()), Result::and)
}

fn enable_forwarding() -> Result<(), NetworkError> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    let failed = |source| NetworkError::Sysctl { path: PATH, source };
    if fs::read_to_string(PATH).map_err(failed)?.trim() == "0" {
        write_sysctl(PATH, "1")?;
        tracing::warn!("turned net.ipv4.ip_forward on, which sessions need to reach the network; it stays on");
    }
    Ok(())
}

fn write_sysctl(path: &'static str, value: &str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(|source| NetworkError::Sysctl { path, source })
}

/// Makes a network namespace with the sysctls that sessions expect, and a netlink socket inside it.
///
/// Done by a thread that ends afterwards: there is no way back that cannot fail, and a thread in the wrong namespace
/// must never serve anybody else.
fn new_namespace() -> Result<(OwnedFd, Links), NetworkError> {
    let failed = |source| NetworkError::Namespace { source };
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        // Container root has no CAP_NET_BIND_SERVICE over a namespace of the host's, nor anybody CAP_NET_RAW for ping.
        write_sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
        write_sysctl("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        let netns = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        Ok((netns.into(), Links::open()?))
    };
    let maker = thread::Builder::new().name("netns".into()).spawn(make).map_err(failed)?;
    maker.join().map_err(|_| failed(io::Error::other("the thread that makes it panicked")))?
}
