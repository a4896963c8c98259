//! IPv4 networks, and the choice of the one that sessions' addresses come from.

use std::{fmt, net::Ipv4Addr};

use sha2::{Digest, Sha256};

use crate::names::InstanceTag;

/// The pool of the default instance, if nothing on the host uses it.
const DEFAULT_POOL: Subnet = Subnet { base: 0x0ad5_0000, prefix: 16 }; // 10.213.0.0/16
/// Where other instances' pools are taken from, best first. 10.128.0.0/9 is the half of 10/8 that cloud and office
/// networks, which count up from 10.0, use least; the others are for hosts that have a route for all of 10/8.
const SPACES: [Subnet; 3] = [
    Subnet { base: 0x0a80_0000, prefix: 9 },  // 10.128.0.0/9
    Subnet { base: 0xac10_0000, prefix: 12 }, // 172.16.0.0/12
    Subnet { base: 0xc0a8_0000, prefix: 16 }, // 192.168.0.0/16
];
/// Size of a pool from [`SPACES`]: 4,093 sessions.
const POOL_PREFIX: u8 = 20;

/// An IPv4 network; bits outside its prefix are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// The network of `prefix` bits that `address` is in; `None` if there are no such networks.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { base: u32::from(address) & mask(prefix), prefix })
    }

    /// Bits that all addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is one of this network's.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    /// Whether any address is in both networks.
    pub fn overlaps(&self, other: &Self) -> bool {
        let common = mask(self.prefix.min(other.prefix));
        self.base & common == other.base & common
    }

    /// The address at `offset` that a machine may have: neither the network's own nor its broadcast address.
    pub fn host(&self, offset: u32) -> Option<Ipv4Addr> {
        let last = !mask(self.prefix);
        (offset > 0 && offset < last).then(|| Ipv4Addr::from(self.base + offset))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        Self::new(address.parse().map_err(|_| ())?, prefix.parse().map_err(|_| ())?).ok_or(())
    }
}

/// Chooses the network that an instance's sessions get their addresses from, free of everything in `occupied`.
///
/// The default instance gets 10.213.0.0/16 where that is free. Every other one gets a /20 whose place is computed from
/// its tag, so that it is the same after each restart, and the next free one if that is taken. `None` if the host uses
/// all private networks.
pub fn pick_pool(tag: &InstanceTag, occupied: &[Subnet]) -> Option<Subnet> {
    let free = |candidate: &Subnet| !occupied.iter().any(|other| other.overlaps(candidate));
    let default = *tag == InstanceTag::of_root(std::path::Path::new("/"));
    if default && free(&DEFAULT_POOL) {
        return Some(DEFAULT_POOL);
    }
    let hash = Sha256::digest(tag.as_str());
    let hash = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    SPACES.iter().find_map(|space| {
        let count = 1 << (POOL_PREFIX - space.prefix);
        let pools = (0..count).map(|step| {
            let place = hash.wrapping_add(step) % count;
            Subnet { base: space.base + (place << (32 - POOL_PREFIX)), prefix: POOL_PREFIX }
        });
        // The default instance may be started later than this one and must find its pool free.
        pools.filter(|pool| !pool.overlaps(&DEFAULT_POOL)).find(free)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn tag(root: &str) -> InstanceTag {
        InstanceTag::of_root(std::path::Path::new(root))
    }

    #[test]
    fn overlap_is_symmetric() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.213.0.0/16", true),
            ("10.213.0.0/16", "10.213.255.255/32", true),
            ("10.212.0.0/16", "10.213.0.0/16", false),
            ("0.0.0.0/0", "1.2.3.4/32", true),
            ("192.0.2.0/25", "192.0.2.128/25", false),
        ] {
            assert_eq!(subnet(a).overlaps(&subnet(b)), expected, "{a} {b}");
            assert_eq!(subnet(b).overlaps(&subnet(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn hosts_leave_out_network_and_broadcast() {
        let pool = subnet("10.1.2.3/30");
        assert_eq!(pool.to_string(), "10.1.2.0/30");
        let hosts: Vec<_> = (0..5).map(|n| pool.host(n).map(|a| a.to_string())).collect();
        assert_eq!(hosts, [None, Some("10.1.2.1".into()), Some("10.1.2.2".into()), None, None]);
    }

    #[test]
    fn text_that_is_no_network_is_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/-1", "::/0"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_instance_has_a_fixed_pool_and_others_keep_off_it() {
        assert_eq!(pick_pool(&tag("/"), &[]), Some(DEFAULT_POOL));
        for n in 0..2000 {
            let tag = tag(&format!("/tmp/{n}"));
            let pool = pick_pool(&tag, &[]).unwrap();
            assert!(!pool.overlaps(&DEFAULT_POOL) && pool.overlaps(&SPACES[0]), "{pool}");
            assert_eq!(pick_pool(&tag, &[]), Some(pool), "the same every time");
        }
    }

    #[test]
    fn taken_networks_are_avoided() {
        let mut taken = vec![subnet("10.0.0.0/10")];
        for n in 0..500 {
            let pool = pick_pool(&tag(&format!("/tmp/{n}")), &taken).unwrap();
            assert!(!taken.iter().any(|other| other.overlaps(&pool)), "{pool}");
            taken.push(pool);
        }
        assert_eq!(pick_pool(&tag("/"), &[subnet("10.0.0.0/8")]).unwrap().base & 0xfff0_0000, SPACES[1].base);
        assert_eq!(pick_pool(&tag("/"), &[subnet("0.0.0.0/0")]), None);
    }
}
