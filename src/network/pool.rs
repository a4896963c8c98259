//! Which addresses sessions have.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use super::{NetworkError, dns, link};
use crate::{config::units, names::InstanceTag};

/// Where pools are chosen from, when none is configured: `10.128.0.0/9`, the half of 10/8 that fewer networks use. Pools of
/// 4,096 addresses leave room for 2,048 instances, each starting its search at a place given by its tag.
const SPACE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const POOLS: u32 = 2048;
const PREFIX: u8 = 20;

/// How many candidates are tried.
const ATTEMPTS: u32 = 64;

/// An IPv4 network: the first address is the gateway's, the others are the sessions'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    network: Ipv4Addr,
    prefix: u8,
}

impl Pool {
    /// `network` has no bits behind the prefix, and `prefix` is at most 30.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Self {
        Self { network, prefix }
    }

    fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// The address for a slot; `None` beyond the last before the broadcast address.
    pub fn address(self, slot: u32) -> Option<Ipv4Addr> {
        let offset = u64::from(slot) + 2;
        (offset < self.size() - 1).then(|| Ipv4Addr::from_bits(self.network.to_bits() + offset as u32))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.overlaps(address, 32)
    }

    fn overlaps(self, network: Ipv4Addr, prefix: u8) -> bool {
        let shift = 32 - u32::from(self.prefix.min(prefix));
        self.network.to_bits().checked_shr(shift).unwrap_or(0) == network.to_bits().checked_shr(shift).unwrap_or(0)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Pool {
    type Err = units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        units::parse_network(text).map(|(network, prefix)| Self { network, prefix })
    }
}

/// Chooses a pool, and takes the DNS port on its gateway: that is the lock on it between instances.
///
/// `remembered` is the pool of sessions that live, which must not change under them.
pub(super) fn choose(
    tag: &InstanceTag,
    configured: Option<(Ipv4Addr, u8)>,
    remembered: Option<Pool>,
) -> Result<(Pool, dns::Sockets), NetworkError> {
    let bind = |pool: Pool| dns::Sockets::bind(pool.gateway()).map_err(|error| NetworkError::Dns(pool.gateway(), error));
    if let Some(pool) = remembered {
        return Ok((pool, bind(pool)?));
    }
    let failed = |source| NetworkError::Link { what: "list the routes", name: "the host".to_owned(), source };
    let links = link::Links::open().map_err(failed)?;
    let own = format!("ps{}", tag.as_str());
    let mut routes = links.routes().map_err(failed)?;
    // What is left of sessions that are just being removed is not in the way.
    routes.retain(|route| !route.device.starts_with(&own));
    let conflict =
        |pool: Pool| routes.iter().find(|route| route.prefix > 0 && pool.overlaps(route.network, route.prefix));
    if let Some((network, prefix)) = configured {
        let pool = Pool { network, prefix };
        return match conflict(pool) {
            Some(route) => Err(NetworkError::PoolTaken(pool, route.to_string())),
            None => Ok((pool, bind(pool)?)),
        };
    }
    for attempt in 0..ATTEMPTS {
        let pool = candidate(tag, attempt);
        if conflict(pool).is_some() {
            continue;
        }
        match dns::Sockets::bind(pool.gateway()) {
            Ok(sockets) => return Ok((pool, sockets)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(NetworkError::Dns(pool.gateway(), error)),
        }
    }
    Err(NetworkError::NoPool)
}

fn candidate(tag: &InstanceTag, attempt: u32) -> Pool {
    let start = tag.as_str().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let index = start.wrapping_add(attempt) % POOLS;
    let network = Ipv4Addr::from_bits(SPACE.to_bits() + index * (1 << (32 - u32::from(PREFIX))));
    Pool { network, prefix: PREFIX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_gateway_and_end_before_the_broadcast_address() {
        let pool: Pool = "10.213.0.0/29".parse().unwrap();
        let text = |slot| pool.address(slot).map(|address| address.to_string());
        assert_eq!(pool.gateway().to_string(), "10.213.0.1");
        assert_eq!(text(0).as_deref(), Some("10.213.0.2"));
        assert_eq!(text(4).as_deref(), Some("10.213.0.6"));
        assert_eq!(text(5), None);
        assert_eq!(text(u32::MAX), None);
    }

    #[test]
    fn overlap_goes_by_the_shorter_prefix() {
        let pool: Pool = "10.213.16.0/20".parse().unwrap();
        let table = [
            ([10, 0, 0, 0], 8, true),
            ([10, 213, 31, 7], 32, true),
            ([10, 213, 32, 0], 20, false),
            ([0, 0, 0, 0], 0, true),
            ([192, 168, 0, 0], 16, false),
        ];
        for (network, prefix, expected) in table {
            assert_eq!(pool.overlaps(network.into(), prefix), expected, "{network:?}/{prefix}");
        }
    }

    #[test]
    fn candidates_stay_in_their_space() {
        let tag = InstanceTag::of_root(std::path::Path::new("/x"));
        let space = Pool::new(SPACE, 9);
        assert!((0..POOLS).all(|attempt| space.contains(candidate(&tag, attempt).gateway())));
    }
}
