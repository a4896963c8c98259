//! Links, addresses and routes by rtnetlink (rtnetlink(7)), in typed verbs over one socket.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::{
    NetworkError,
    netlink::{Answer, Attributes, Channel, Request, text},
    subnet::Subnet,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// The loopback interface is the first of every network namespace.
const LOOPBACK: u32 = 1;
/// The session's interface, inside its namespace.
const INSIDE: &str = "eth0";

/// What TCP hands a link at a time where packets go from container to container. Larger ones leave the processor's caches.
const LARGE_PACKET_BYTES: u32 = 185_000;

/// The hardware address of every host's end; each is alone with its peer, so they may be equal. Locally administered.
///
/// Both ends' addresses are set by us: those that the kernel draws are replaced by udev on many hosts, some moments
/// later, when the peer has learned them.
const OUTSIDE_MAC: [u8; 6] = [2, b'p', 0, 0, 0, 1];

/// The hardware address of a session's end.
fn inside_mac(session: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = session.octets();
    [2, b'p', a, b, c, d]
}

/// The links, addresses and routes of one network namespace.
pub(super) struct Links(Channel);

/// An interface as a listing shows it.
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    running: bool,
    pub(super) traffic: Traffic,
}

/// Bytes that an interface has received and sent since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}
/// A network that the host has a route to.
pub(super) struct Route {
    pub(super) destination: Subnet,
    /// The outgoing interface, if it has exactly one.
    pub(super) oif: Option<u32>,
}

impl Links {
    /// Those of the namespace that the calling thread is in.
    pub(super) fn open() -> Result<Self, NetworkError> {
        Channel::open(NETLINK_ROUTE).map(Self).map_err(|source| NetworkError::Socket { source })
    }

    fn call(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>, what: &str) -> Result<Vec<Answer>, NetworkError> {
        let requests: Vec<_> =
            messages.into_iter().map(|(m, flags)| Request::acknowledged(m.message_type(), flags, emit(&m))).collect();
        self.0.call(&requests).map_err(|e| failed(what, e))
    }

    /// Makes a veth pair: one end here, called `name`, the other in the namespace `netns`. Both are down.
    ///
    /// The peer is born where it belongs: moving it later would hold the kernel's rtnl lock for 15 to 35 ms. One queue
    /// each, because every queue costs memory and time, and a session is one machine.
    ///
    /// With `large_packets` TCP may hand the link more than 64 KiB at a time (BIG TCP), which pays between containers; a
    /// network card would have such packets cut by the kernel.
    pub(super) fn add_veth(
        &mut self,
        name: &str,
        netns: BorrowedFd<'_>,
        session: Ipv4Addr,
        large_packets: bool,
    ) -> Result<(), NetworkError> {
        let mut of_both = vec![LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        if large_packets {
            // Kernels before 6.3 do not know them and ignore them.
            of_both.extend([
                LinkAttribute::GsoIpv4MaxSize(LARGE_PACKET_BYTES),
                LinkAttribute::GroIpv4MaxSize(LARGE_PACKET_BYTES),
            ]);
        }
        let mut peer = LinkMessage::default();
        peer.attributes = vec![LinkAttribute::IfName(INSIDE.into()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
        peer.attributes.push(LinkAttribute::Address(inside_mac(session).into()));
        peer.attributes.extend(of_both.clone());
        let mut veth = LinkMessage::default();
        veth.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(OUTSIDE_MAC.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        veth.attributes.extend(of_both);
        let message = (RouteNetlinkMessage::NewLink(veth), NLM_F_CREATE | NLM_F_EXCL);
        self.call(vec![message], &format!("create veth {name}")).map(|_| ())
    }

    /// Gives the host's end its addresses and brings it up.
    pub(super) fn start_outside(
        &mut self,
        name: &str,
        gateway: Ipv4Addr,
        session: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let index = self.index(name)?.ok_or_else(|| failed(&format!("find veth {name}"), Errno::ENODEV))?;
        self.forbid_ipv6(index)?;
        let messages =
            vec![address(index, gateway, session), up(index), neighbour(index, session, inside_mac(session))];
        self.call(messages, &format!("configure veth {name}")).map(|_| ())
    }

    /// Brings up the loopback and the session's interface, whose default route is `gateway`. For a `Links` that was
    /// opened inside the session's namespace.
    pub(super) fn start_inside(&mut self, gateway: Ipv4Addr, session: Ipv4Addr) -> Result<(), NetworkError> {
        let what = "configure the session's interface";
        let index = self.index(INSIDE)?.ok_or_else(|| failed(what, Errno::ENODEV))?;
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: AddressFamily::Inet,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            // The gateway is in no network of this interface, whose prefix is 32.
            flags: RouteFlags::Onlink,
            ..RouteHeader::default()
        };
        route.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        self.forbid_ipv6(index)?;
        let messages = vec![
            up(LOOPBACK),
            address(index, session, session),
            up(index),
            neighbour(index, gateway, OUTSIDE_MAC),
            (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL),
        ];
        self.call(messages, what).map(|_| ())
    }

    /// Forbids the kernel to make IPv6 addresses for the link. Must be done while it is down. The sysctl `disable_ipv6`
    /// would do the same, but its handler spins on the rtnl lock and brings 32 concurrent creations down to 22 a
    /// second.
    fn forbid_ipv6(&mut self, index: u32) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])];
        match self.call(vec![(RouteNetlinkMessage::SetLink(link), 0)], "turn IPv6 off for a veth") {
            // The whole kernel is without IPv6 (`ipv6.disable=1`).
            Err(NetworkError::Netlink { source: Errno::EAFNOSUPPORT, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Whether the link carries packets. After its peer comes up, a link drops what it is to send until a worker of the
    /// kernel (linkwatch) has run; then its operational state is up. From Linux 6.8 on the question itself makes that
    /// so.
    pub(super) fn is_running(&mut self, name: &str) -> Result<bool, NetworkError> {
        let link = self.find(name)?.ok_or_else(|| failed(&format!("find veth {name}"), Errno::ENODEV))?;
        Ok(link.running)
    }

    /// Takes the addresses off the host's end, and with them the route to the session. The link itself goes with its
    /// namespace, some milliseconds later; until then it must not stand in the way of the address's next owner.
    pub(super) fn stop_outside(
        &mut self,
        name: &str,
        gateway: Ipv4Addr,
        session: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let Some(index) = self.index(name)? else { return Ok(()) };
        let (RouteNetlinkMessage::NewAddress(message), _) = address(index, gateway, session) else { return Ok(()) };
        match self.call(vec![(RouteNetlinkMessage::DelAddress(message), 0)], &format!("stop veth {name}")) {
            // Gone since we looked, or never started.
            Err(NetworkError::Netlink { source: Errno::ENODEV | Errno::EADDRNOTAVAIL, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Deletes a link; none is fine. Takes 12 to 28 ms for a veth, so this is not for a session's ordinary end.
    pub(super) fn delete(&mut self, name: &str) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.into())];
        match self.call(vec![(RouteNetlinkMessage::DelLink(link), 0)], &format!("delete veth {name}")) {
            Err(NetworkError::Netlink { source: Errno::ENODEV, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn index(&mut self, name: &str) -> Result<Option<u32>, NetworkError> {
        Ok(self.find(name)?.map(|link| link.index))
    }

    fn find(&mut self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.into())];
        let answers = match self.call(vec![(RouteNetlinkMessage::GetLink(link), 0)], &format!("look up {name}")) {
            Err(NetworkError::Netlink { source: Errno::ENODEV, .. }) => return Ok(None),
            other => other?,
        };
        Ok(answers.iter().find_map(parse_link))
    }

    /// All links of the namespace.
    pub(super) fn list(&mut self) -> Result<Vec<Link>, NetworkError> {
        let request = emit(&RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let answers = self.0.dump(RTM_GETLINK, &request).map_err(|e| failed("list interfaces", e))?;
        Ok(answers.iter().filter_map(parse_link).collect())
    }

    /// All IPv4 routes of all tables, default routes excepted.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, NetworkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let request = emit(&RouteNetlinkMessage::GetRoute(request));
        let answers = self.0.dump(RTM_GETROUTE, &request).map_err(|e| failed("list routes", e))?;
        Ok(answers.iter().filter_map(parse_route).collect())
    }
}

fn emit(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn up(index: u32) -> (RouteNetlinkMessage, u16) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(link), 0)
}

/// A point-to-point address: `local` is ours, `peer` what is reached through the link.
fn address(index: u32, local: Ipv4Addr, peer: Ipv4Addr) -> (RouteNetlinkMessage, u16) {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(IpAddr::V4(local)), AddressAttribute::Address(IpAddr::V4(peer))];
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Who is at the other end. Told rather than asked (ARP), which saves the first packet a round trip, and permanent,
/// because the kernel's table of those it found out itself is shared by all namespaces and full with 1,024
/// (`gc_thresh3`).
fn neighbour(index: u32, destination: Ipv4Addr, mac: [u8; 6]) -> (RouteNetlinkMessage, u16) {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)),
        NeighbourAttribute::LinkLayerAddress(mac.into()),
    ];
    (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Reads what we need and nothing else, so that attributes newer than our library do not matter.
fn parse_link(answer: &Answer) -> Option<Link> {
    const IFINFOMSG: usize = 16;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_STATS64: u16 = 23;
    const IF_OPER_UP: u8 = 6;
    if answer.kind != RTM_NEWLINK {
        return None;
    }
    let index = u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?);
    let (mut name, mut running, mut traffic) = (None, false, Traffic::default());
    for (kind, value) in Attributes(answer.payload.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_OPERSTATE => running = value.first() == Some(&IF_OPER_UP),
            IFLA_STATS64 => traffic = parse_traffic(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(Link { index, name: name?, running, traffic })
}

/// Reads `struct rtnl_link_stats64`, which begins with received and sent packets, then bytes.
fn parse_traffic(value: &[u8]) -> Option<Traffic> {
    let word = |index: usize| value.get(index * 8..)?.first_chunk().copied().map(u64::from_ne_bytes);
    Some(Traffic { rx_bytes: word(2)?, tx_bytes: word(3)? })
}

/// Reads destination and interface of an IPv4 route.
fn parse_route(answer: &Answer) -> Option<Route> {
    const RTMSG: usize = 12;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    if answer.kind != RTM_NEWROUTE {
        return None;
    }
    let prefix = *answer.payload.get(1)?;
    let attributes: Vec<_> = Attributes(answer.payload.get(RTMSG..)?).collect();
    let word = |wanted: u16| {
        let (_, value) = attributes.iter().find(|(kind, _)| *kind == wanted)?;
        value.first_chunk::<4>().copied()
    };
    let destination = Subnet::new(Ipv4Addr::from(word(RTA_DST)?), prefix)?;
    (destination.prefix() > 0).then(|| Route { destination, oif: word(RTA_OIF).map(u32::from_ne_bytes) })
}

fn failed(what: &str, source: Errno) -> NetworkError {
    NetworkError::Netlink { what: what.to_owned(), source }
}
