//! Which repositories are mirrored, and where they are.
//!
//! A mirror is found by the text of the URL, so a URL must mean one server to all sessions. It does not if it leads into the
//! session itself, or to its services: those addresses are left out, by what the name resolves to as well. The addresses that
//! were looked at are then the only ones that git knows the name by.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs},
};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// A repository that can have a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    url: String,
    host: String,
}

/// Why a repository has no mirror.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    #[error("the name {0} is not known")]
    Unknown(String),
    #[error("{0} is within the session")]
    Inside(String),
}

impl Source {
    /// Of a URL that names a repository without saying who asks: https, http or git, with no user in it. Whatever needs an
    /// identity (ssh, `https://TOKEN@host/...`) is cloned with that, inside, and by nobody else.
    pub fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, _) = rest.split_once('/')?;
        if !matches!(scheme, "https" | "http" | "git") || authority.contains(['@', '[']) {
            return None;
        }
        let host = authority.split_once(':').map_or(authority, |(host, _port)| host);
        // Names without a dot are those of services, or of one machine's own.
        let named = host.contains('.') && !host.ends_with(".localhost") && !host.ends_with('.');
        named.then(|| Self { url: url.to_owned(), host: host.to_ascii_lowercase() })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The text for `/etc/hosts` by which git finds the server. `of_sessions` knows the addresses that sessions have.
    ///
    /// Looks the name up, so it blocks, for some seconds at most.
    pub fn hosts(&self, of_sessions: impl Fn(Ipv4Addr) -> bool) -> Result<String, Unsuitable> {
        let unknown = || Unsuitable::Unknown(self.host.clone());
        // Also of the old forms of an address, such as 127.1.
        let found = (self.host.as_str(), 0).to_socket_addrs().map_err(|_| unknown())?;
        let addresses = found.filter_map(|address| match address.ip() {
            // Sessions have no other.
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let addresses: Vec<Ipv4Addr> = addresses.take(MAX_ADDRESSES).collect();
        if addresses.iter().any(|address| is_inside(*address) || of_sessions(*address)) {
            return Err(Unsuitable::Inside(self.host.clone()));
        }
        let mut hosts = String::new();
        for address in &addresses {
            // Writing to a string does not fail.
            let _ = writeln!(hosts, "{address}\t{}", self.host);
        }
        if hosts.is_empty() { Err(unknown()) } else { Ok(hosts) }
    }
}

/// Whether an address is another machine for everybody who has it.
fn is_inside(address: Ipv4Addr) -> bool {
    address.is_loopback()
        || address.is_link_local()
        || address.octets()[0] == 0
        || address.is_multicast()
        || address.is_broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_an_identity_or_has_no_name_of_its_own_is_not_mirrored() {
        for url in ["https://github.com/a/b.git", "http://r.example:8080/a", "git://198.51.100.2/a"] {
            assert_eq!(Source::of(url).map(|source| source.url), Some(url.to_owned()));
        }
        let not = [
            "git@github.com:a/b.git",
            "ssh://git@github.com/a/b",
            "https://token@github.com/a/b",
            "https://user:password@github.com/a/b",
            "http://db/a",
            "git://localhost/a",
            "http://x.localhost/a",
            "http://db./a",
            "http://[2001:db8::1]/a",
            "https://github.com",
            "file:///srv/a.git",
        ];
        for url in not {
            assert_eq!(Source::of(url), None, "{url}");
        }
    }

    #[test]
    fn a_server_is_at_addresses_that_are_the_same_machine_for_all_sessions() {
        let pool = |address: Ipv4Addr| address.octets()[..2] == [10, 9];
        let hosts = |host: &str| Source::of(&format!("http://{host}/a")).unwrap().hosts(pool);
        assert_eq!(hosts("198.51.100.2"), Ok("198.51.100.2\t198.51.100.2\n".to_owned()));
        assert_eq!(hosts("10.8.0.1"), Ok("10.8.0.1\t10.8.0.1\n".to_owned()));
        for inside in ["10.9.0.7", "127.0.0.1", "127.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(hosts(inside), Err(Unsuitable::Inside(inside.to_owned())));
        }
    }
}
