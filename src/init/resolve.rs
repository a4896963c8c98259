//! Names as a program of the container sees them: its own `/etc/hosts` and `/etc/resolv.conf`, never the host's and never
//! its name service modules, which would be code of the image.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use hickory_resolver::{
    Resolver, config::LookupIpStrategy, net::NetError, net::runtime::TokioRuntimeProvider, system_conf,
};

use super::files;

/// What of the two files is read at most.
const MAX_FILE: u64 = 1 << 20;

/// How long the name servers may take together.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// More addresses of one name are not tried.
const MAX_ADDRESSES: usize = 16;

/// What getaddrinfo(3) says, as users of ssh know it.
const UNKNOWN: &str = "Name or service not known";
const NO_ADDRESS: &str = "No address associated with hostname";
const LATER: &str = "Temporary failure in name resolution";

/// The addresses of `host` that are known without asking anybody.
pub(super) fn known(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let contents = files::read("/etc/hosts", MAX_FILE).ok().flatten().map(|(contents, _)| contents).unwrap_or_default();
    let mut addresses = in_hosts(&contents, host);
    if addresses.is_empty() && host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        addresses = vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]; // RFC 6761, 6.3
    }
    addresses
}

fn in_hosts(contents: &[u8], host: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut addresses = Vec::new();
    for line in contents.split(|&byte| byte == b'\n') {
        let entry = line.split(|&byte| byte == b'#').next().unwrap_or_default();
        let mut fields = entry.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let Some(address) = fields.next().and_then(|field| std::str::from_utf8(field).ok()?.parse().ok()) else {
            continue;
        };
        if fields.any(|name| name.eq_ignore_ascii_case(host.as_bytes())) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    in_order(addresses)
}

/// IPv6 first, as getaddrinfo(3) has it; where there is no route an attempt fails at once.
fn in_order(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_by_key(IpAddr::is_ipv4);
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// Asks the name servers, and waits for them: only to be called in a process that may.
///
/// The resolver needs an async runtime. This one has no other thread and ends with the question.
///
/// # Errors
/// What getaddrinfo(3) would say.
pub(super) fn ask(host: &str) -> Result<Vec<IpAddr>, &'static str> {
    let file = files::read("/etc/resolv.conf", MAX_FILE).ok().flatten();
    let (contents, _) = file.ok_or(LATER)?;
    let (config, mut options) = system_conf::parse_resolv_conf(contents).map_err(|_| LATER)?;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(|_| LATER)?;
    runtime.block_on(async {
        let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|_| LATER)?;
        let answer = tokio::time::timeout(LIMIT, resolver.lookup_ip(host)).await.map_err(|_elapsed| LATER)?;
        let addresses: Vec<IpAddr> = answer.map_err(|error| why(&error))?.iter().collect();
        if addresses.is_empty() { Err(NO_ADDRESS) } else { Ok(in_order(addresses)) }
    })
}

fn why(error: &NetError) -> &'static str {
    match error {
        // Not a name at all.
        NetError::Proto(_) | NetError::Msg(_) | NetError::Message(_) => UNKNOWN,
        error if error.is_nx_domain() => UNKNOWN,
        error if error.is_no_records_found() => NO_ADDRESS,
        _ => LATER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_knows_names_and_aliases_in_any_case() {
        let hosts = b"127.0.0.1\tlocalhost\n# 10.0.0.9 db\n10.0.0.2 db postgres # 10.0.0.3 no\n\xff\xfe db\n\
            nonsense db\nfd00::2 DB\n10.0.0.2 db\n";
        let found = |host| in_hosts(hosts, host).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(found("db"), "fd00::2 10.0.0.2");
        assert_eq!(found("Postgres."), "10.0.0.2");
        assert_eq!(found("no"), "");
        assert_eq!(found(""), "");
    }
}
