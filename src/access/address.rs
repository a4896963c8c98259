//! Where a login may come from: `from=` of a key line and `source-address` of a certificate.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::protocol::pattern;

/// A pattern list of ssh_config(5), for addresses only: host names would need the host's resolver, and trust in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressList(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    negated: bool,
    addresses: Addresses,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Addresses {
    Network(Network),
    /// With `*` and `?`, in lower case.
    Pattern(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    first: IpAddr,
    prefix: u8,
}

impl AddressList {
    /// `from=`: addresses, networks, and addresses with `*` and `?`, each perhaps after a `!`. `None` if one is not valid.
    pub fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|item| Item::parse(item.trim())).collect::<Option<_>>().map(Self)
    }

    /// `source-address`: addresses and networks only, as sshd has it. `None` if one is not valid.
    pub(super) fn parse_networks(text: &str) -> Option<Self> {
        let item = |text: &str| {
            Network::parse(text.trim()).map(|network| Item { negated: false, addresses: Addresses::Network(network) })
        };
        text.split(',').map(item).collect::<Option<_>>().map(Self)
    }

    /// Whether the address matches an item that is not negated, and none that is.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let mut found = false;
        for item in self.0.iter().filter(|item| item.addresses.contain(peer)) {
            if item.negated {
                return false;
            }
            found = true;
        }
        found
    }
}

impl fmt::Display for AddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Item { negated, addresses }) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            f.write_str(if *negated { "!" } else { "" })?;
            match addresses {
                Addresses::Network(Network { first, prefix }) => write!(f, "{first}/{prefix}")?,
                Addresses::Pattern(text) => f.write_str(text)?,
            }
        }
        Ok(())
    }
}

impl Item {
    fn parse(text: &str) -> Option<Self> {
        let (negated, text) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let addresses = match Network::parse(text) {
            Some(network) => Addresses::Network(network),
            None if is_pattern(text) => Addresses::Pattern(text.to_ascii_lowercase()),
            None => return None,
        };
        Some(Self { negated, addresses })
    }
}

/// Without a `*` or `?` it would be an address that is not valid, and match nothing: more likely a mistake.
fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?']) && text.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '*' | '?'))
}

impl Addresses {
    fn contain(&self, peer: IpAddr) -> bool {
        match self {
            Self::Network(network) => network.contains(peer),
            Self::Pattern(text) => pattern::matches(text, &peer.to_string()),
        }
    }
}

impl Network {
    /// `address` or `address/prefix`, without bits beyond the prefix: sshd refuses those too, as one of both is wrong.
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().ok()?;
        let longest = if first.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(longest);
        (prefix <= longest && network_of(first, prefix) == first).then_some(Self { first, prefix })
    }

    fn contains(self, peer: IpAddr) -> bool {
        peer.is_ipv4() == self.first.is_ipv4() && network_of(peer, self.prefix) == self.first
    }
}

/// The address with the bits beyond the prefix, which fits it, set to 0.
pub fn network_of(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => (v4 & Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - prefix).unwrap_or(0))).into(),
        IpAddr::V6(v6) => (v6 & Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - prefix).unwrap_or(0))).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contains(list: &str, peer: &str) -> bool {
        AddressList::parse(list).unwrap_or_else(|| panic!("{list}")).contains(peer.parse().unwrap())
    }

    #[test]
    fn addresses_match_as_sshd_has_it() {
        let list = "10.0.0.0/8,!10.9.*,2001:db8::/32,192.0.2.?,FE80::1";
        for peer in ["10.1.2.3", "2001:db8::7", "192.0.2.5", "fe80::1"] {
            assert!(contains(list, peer), "{peer}");
        }
        for peer in ["10.9.2.3", "192.0.2.55", "203.0.113.1", "fe80::2", "::1"] {
            assert!(!contains(list, peer), "{peer}");
        }
        assert!(!contains("!10.0.0.1", "10.0.0.2"), "a negated item alone permits nothing");
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "::1") && !contains("::/0", "10.0.0.1"));
        let shown = AddressList::parse("10.0.0.1,!10.9.*,2001:DB8::/32").unwrap().to_string();
        assert_eq!(shown, "10.0.0.1/32,!10.9.*,2001:db8::/32");
        assert!(contains("*", "::1") && contains("2001:0DB8:0::1", "2001:db8::1"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let table = [
            "",
            ",",
            "10.0.0.1,",
            "host.example.org",
            "10.0.0.0/33",
            "10.1.0.0/8",
            "::/129",
            "10.0.0",
            "!",
            "1.2.3.4/",
        ];
        for bad in table {
            assert_eq!(AddressList::parse(bad), None, "{bad:?}");
        }
        for bad in ["10.0.0.*", "!10.0.0.0/8", "", "10.1.0.0/8"] {
            assert_eq!(AddressList::parse_networks(bad), None, "{bad:?}");
        }
        assert!(AddressList::parse_networks("10.0.0.0/8,::1").is_some());
    }

    proptest! {
        #[test]
        fn a_network_holds_its_own_addresses(bits: u32, prefix in 0u8..=32, other: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let network = Network { first: network_of(address.into(), prefix), prefix };
            prop_assert!(network.contains(address.into()));
            let same = prefix == 0 || bits >> (32 - prefix) == other >> (32 - prefix);
            prop_assert_eq!(network.contains(Ipv4Addr::from_bits(other).into()), same);
        }

        #[test]
        fn nothing_makes_the_parser_panic(text in ".{0,60}") {
            AddressList::parse(&text);
            AddressList::parse_networks(&text);
        }
    }
}
