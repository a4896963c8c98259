//! Which servers a client may be sent to: by the name in an address, and by what that name resolves to.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Where a client may go.
#[derive(Debug, Clone)]
pub(crate) enum Reach {
    /// Where a server that the administrator has chosen may send us: to this machine or its links only if it is there
    /// itself.
    From { server: String, inward: Arc<AtomicBool> },
    /// Where a stranger may send us: to public addresses, and to these hosts.
    Public { but: Vec<String> },
}

impl Reach {
    /// That of the host of a server.
    pub(super) fn from_server(host: &str) -> Self {
        Self::From { server: host.to_owned(), inward: Arc::new(AtomicBool::new(host.is_empty() || is_inward(host))) }
    }

    /// Whether the host may be the right one, by its name.
    pub(super) fn allows(&self, host: &str) -> bool {
        match self {
            Self::From { inward, .. } => !is_inward(host) || inward.load(Ordering::Relaxed),
            Self::Public { but } => match bare(host).parse::<IpAddr>() {
                Ok(address) => is_public(address) || named(but, host),
                Err(_) => !is_inward(host) || named(but, host),
            },
        }
    }

    /// Whether the host may be at this address.
    pub(super) fn allows_at(&self, host: &str, address: IpAddr) -> bool {
        match self {
            Self::From { inward, .. } => !is_inward_address(address) || inward.load(Ordering::Relaxed),
            Self::Public { but } => is_public(address) || named(but, host),
        }
    }

    /// Takes note of where a host is.
    pub(super) fn resolved(&self, host: &str, addresses: &[IpAddr]) {
        match self {
            Self::From { server, inward } if server == host => {
                inward.fetch_or(addresses.iter().any(|address| is_inward_address(*address)), Ordering::Relaxed);
            }
            Self::From { .. } | Self::Public { .. } => {}
        }
    }
}

fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

fn named(hosts: &[String], host: &str) -> bool {
    let host = bare(host);
    hosts.iter().any(|known| bare(known) == host)
}

/// Whether a host is by its name this machine, or right beside it.
fn is_inward(host: &str) -> bool {
    let host = bare(host);
    match host.parse::<IpAddr>() {
        Ok(address) => is_inward_address(address),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn is_inward_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified(),
    }
}

/// Whether an address is anybody's on the internet (IANA's registries of special addresses). What embeds an IPv4 address
/// (6to4, Teredo, NAT64) could lead to any, so it is not.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|(network, prefix)| {
            let mask = u32::MAX << (32 - prefix);
            address.to_bits() & mask == network.to_bits()
        }),
        IpAddr::V6(address) => {
            let global = address.segments()[0] & 0xe000 == 0x2000;
            let special = SPECIAL_V6.iter().any(|(network, prefix)| {
                let mask = u128::MAX << (128 - prefix);
                address.to_bits() & mask == network.to_bits()
            });
            global && !special
        }
    }
}

const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, and everything above it.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_reaches_the_internet_and_what_was_allowed() {
        let reach = Reach::Public { but: vec!["git.corp.example".to_owned(), "10.0.0.7".to_owned()] };
        for host in ["r.example", "8.8.8.8", "[2606:4700::1]", "10.0.0.7", "git.corp.example", "GIT.corp.example."] {
            assert!(reach.allows(host), "{host}");
        }
        let private = [
            "10.0.0.8",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:10.0.0.8]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "localhost",
            "x.localhost",
        ];
        for host in private {
            assert!(!reach.allows(host), "{host}");
            if let Ok(address) = bare(host).parse() {
                assert!(!reach.allows_at("r.example", address), "{host}");
                assert!(reach.allows_at("git.corp.example", address), "{host}");
            }
        }
        assert!(reach.allows_at("r.example", "172.32.0.1".parse().unwrap()));
    }

    #[test]
    fn a_server_leads_to_this_machine_only_if_it_is_here() {
        let reach = Reach::from_server("r.example");
        let (here, private) = ("127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap());
        assert!(!reach.allows("localhost") && !reach.allows_at("cdn.example", here));
        assert!(reach.allows("cdn.example") && reach.allows_at("cdn.example", private));
        reach.resolved("cdn.example", &[here]);
        assert!(!reach.allows("localhost"));
        reach.resolved("r.example", &[here]);
        assert!(reach.allows("localhost") && reach.allows_at("cdn.example", here));
    }
}
