//! Links, addresses and routes over rtnetlink(7).

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The index of `lo`, which is the first device of every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Links(Mutex<Socket>);

/// A route of the host.
#[derive(Debug)]
pub(super) struct Route {
    pub network: Ipv4Addr,
    pub prefix: u8,
    /// Name of the device, or nothing.
    pub device: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} dev {}", self.network, self.prefix, self.device)
    }
}

impl Links {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(Mutex::new(socket)))
    }

    /// Makes a veth pair with the peer born in `netns`: moving it there later would hold the kernel's lock on all networks
    /// for milliseconds. One queue is enough.
    pub fn add_veth(&self, name: &str, peer_name: &str, netns: BorrowedFd<'_>) -> io::Result<()> {
        let mut peer = half_of_pair(peer_name);
        peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        let mut link = half_of_pair(name);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub fn index(&self, name: &str) -> io::Result<u32> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.ask(RouteNetlinkMessage::GetLink(link), 0)?;
        let index = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
            _ => None,
        });
        index.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub fn set_up(&self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds `local`/32, with `peer`/32 reachable through the device.
    pub fn add_address(&self, index: u32, local: Ipv4Addr, peer: Ipv4Addr) -> io::Result<()> {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.prefix_len = 32;
        address.header.index = index;
        address.attributes.push(AddressAttribute::Local(IpAddr::V4(local)));
        address.attributes.push(AddressAttribute::Address(IpAddr::V4(peer)));
        self.change(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route to one address on the link itself.
    pub fn add_link_route(&self, index: u32, to: Ipv4Addr) -> io::Result<()> {
        let mut route = route(index, RouteScope::Link);
        route.header.destination_prefix_length = 32;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
        self.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut route = route(index, RouteScope::Universe);
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The names of all links.
    pub fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.links()?.into_iter().map(|(_, name)| name).collect())
    }

    fn links(&self) -> io::Result<Vec<(u32, String)>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let named = answers.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { return None };
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            Some((link.header.index, name))
        });
        Ok(named.collect())
    }

    /// The IPv4 routes of every table.
    pub fn routes(&self) -> io::Result<Vec<Route>> {
        let names = self.links()?;
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetRoute(query), NLM_F_DUMP)?;
        let mut routes = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            let mut found = Route {
                network: Ipv4Addr::UNSPECIFIED,
                prefix: message.header.destination_prefix_length,
                device: String::new(),
            };
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(network)) => found.network = network,
                    RouteAttribute::Oif(index) => {
                        let name = names.iter().find(|(other, _)| *other == index);
                        found.device = name.map(|(_, name)| name.clone()).unwrap_or_default();
                    }
                    _ => {}
                }
            }
            routes.push(found);
        }
        Ok(routes)
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(|_| ())
    }

    /// Sends one request and collects its answers until the kernel says that it is done.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = 1;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        let several = flags & NLM_F_DUMP == NLM_F_DUMP;

        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => {
                        answers.push(message);
                        if !several && flags & NLM_F_ACK == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn half_of_pair(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.push(LinkAttribute::NumTxQueues(1));
    link.attributes.push(LinkAttribute::NumRxQueues(1));
    link
}

fn route(index: u32, scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = scope;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(index));
    route
}
