//! `auth.per_source_*`: limits for who connects from one address or network, with sshd's names, defaults and meaning
//! (sshd_config(5): PerSourceMaxStartups, PerSourceNetBlockSize, PerSourcePenalties, PerSourcePenaltyExemptList).

use std::{net::IpAddr, time::Duration};

use super::{
    effective::Fields,
    load::{ConfigError, ValueError},
    raw,
};
use crate::access::{AddressList, network_of};

#[derive(Debug, Clone)]
pub struct PerSource {
    /// Connections from one source that have not logged in; `None` = as many as from all.
    pub max_startups: Option<u32>,
    pub net_block_size: NetBlockSize,
    /// `None`: nobody is penalised.
    pub penalties: Option<Penalties>,
}

/// How many leading bits of an address make a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetBlockSize {
    pub v4: u8,
    pub v6: u8,
}

impl NetBlockSize {
    /// The source that `address` belongs to: its first address.
    pub fn source(self, address: IpAddr) -> IpAddr {
        let address = address.to_canonical();
        network_of(address, if address.is_ipv4() { self.v4 } else { self.v6 })
    }
}

/// For how long a source is refused after what; times add up, and count once they are more than `min` together.
#[derive(Debug, Clone)]
pub struct Penalties {
    pub crash: Duration,
    pub authfail: Duration,
    pub noauth: Duration,
    pub grace_exceeded: Duration,
    pub min: Duration,
    pub max: Duration,
    pub v4: Sources,
    pub v6: Sources,
    pub exempt: Option<AddressList>,
}

/// How many sources of one kind of address are remembered.
#[derive(Debug, Clone, Copy)]
pub struct Sources {
    pub max: u32,
    pub overflow: Overflow,
}

/// What happens to a source more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The penalty that would end first is forgotten for it.
    Permissive,
    /// Nobody is let in until one has ended.
    DenyAll,
}

impl Overflow {
    pub fn name(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::DenyAll => "deny-all",
        }
    }
}

pub(super) fn per_source(fields: &Fields<'_>, raw: &raw::Auth) -> Result<PerSource, ConfigError> {
    let max_startups = match &raw.per_source_max_startups {
        None => None,
        Some(raw::Limit::Word(word)) if word == "none" => None,
        Some(raw::Limit::Number(max)) if *max > 0 => Some(*max),
        Some(_) => return Err(fields.rule("auth.per_source_max_startups", "it is neither a positive number nor none")),
    };
    let net_block_size = match raw.per_source_net_block_size.as_deref() {
        None => NetBlockSize { v4: 32, v6: 128 },
        Some(text) => net_block_size(text).ok_or_else(|| {
            fields.rule("auth.per_source_net_block_size", format!("{text:?} is not bits:bits, at most 32:128"))
        })?,
    };
    let default = raw::Penalties::default();
    let penalties = penalties(fields, raw.per_source_penalties.as_ref().unwrap_or(&default))?;
    Ok(PerSource { max_startups, net_block_size, penalties })
}

/// `bits` of IPv4 addresses, or `bits:bits` of both kinds.
fn net_block_size(text: &str) -> Option<NetBlockSize> {
    let (v4, v6) = text.split_once(':').unwrap_or((text, "128"));
    let size = NetBlockSize { v4: v4.parse().ok()?, v6: v6.parse().ok()? };
    (size.v4 <= 32 && size.v6 <= 128).then_some(size)
}

fn penalties(fields: &Fields<'_>, raw: &raw::Penalties) -> Result<Option<Penalties>, ConfigError> {
    let duration =
        |name: &Option<String>, default: &str| fields.duration("auth.per_source_penalties", name.as_deref(), default);
    let overflow = |text: Option<&str>, default: Overflow| match text {
        None => Ok(default),
        Some("permissive") => Ok(Overflow::Permissive),
        Some("deny-all") => Ok(Overflow::DenyAll),
        Some(other) => {
            let known = &["permissive", "deny-all"];
            Err(fields.bad("auth.per_source_penalties", ValueError::Word { value: other.to_owned(), known }))
        }
    };
    let max_sources = |max: Option<u32>| match max.unwrap_or(65_536) {
        0 => Err(fields.rule("auth.per_source_penalties", "max_sources4 and max_sources6 are at least 1")),
        max => Ok(max),
    };
    let exempt = match raw.exempt.as_deref() {
        None | Some([]) => None,
        Some(list) => Some(AddressList::parse(&list.join(",")).ok_or_else(|| {
            fields.rule(
                "auth.per_source_penalties",
                "exempt has an item that is neither an address, a network nor a pattern",
            )
        })?),
    };
    let overflow4 = overflow(raw.overflow.as_deref(), Overflow::Permissive)?;
    let penalties = Penalties {
        crash: duration(&raw.crash, "90s")?,
        authfail: duration(&raw.authfail, "5s")?,
        noauth: duration(&raw.noauth, "1s")?,
        grace_exceeded: duration(&raw.grace_exceeded, "10s")?,
        min: duration(&raw.min, "15s")?,
        max: duration(&raw.max, "10m")?,
        v4: Sources { max: max_sources(raw.max_sources4)?, overflow: overflow4 },
        v6: Sources { max: max_sources(raw.max_sources6)?, overflow: overflow(raw.overflow6.as_deref(), overflow4)? },
        exempt,
    };
    if penalties.min > penalties.max {
        return Err(fields.rule("auth.per_source_penalties", "min is longer than max"));
    }
    Ok(raw.enabled.unwrap_or(true).then_some(penalties))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_network() {
        let size = |text| net_block_size(text).unwrap();
        for (block, address, source) in [
            ("32:128", "192.0.2.77", "192.0.2.77"),
            ("24", "192.0.2.77", "192.0.2.0"),
            ("24", "::ffff:192.0.2.77", "192.0.2.0"),
            ("0:0", "192.0.2.77", "0.0.0.0"),
            ("32:64", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("32:0", "2001:db8::1", "::"),
            ("32", "2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(size(block).source(address.parse().unwrap()).to_string(), source, "{address} by {block}");
        }
        for bad in ["", "33", "24:129", "24:", ":64", "24:64:1", "-1"] {
            assert_eq!(net_block_size(bad), None, "{bad:?}");
        }
    }
}
