//! What a login may do: the options of its `authorized_keys` line or certificate.

use serde::{Deserialize, Serialize};

use super::pattern;

/// The options of the `authorized_keys` line that matched (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyOptions {
    /// `command="..."`: runs instead of whatever the client asks for; the client's request is in SSH_ORIGINAL_COMMAND.
    pub command: Option<String>,
    /// `environment="NAME=value"`.
    pub environment: Vec<(String, String)>,
    pub no_pty: bool,
    pub no_port_forwarding: bool,
    pub no_agent_forwarding: bool,
    pub no_x11_forwarding: bool,
    /// `permitopen="host:port"`: the only destinations of `-L`, `-D` and `-W`; empty if there is no such option.
    pub permit_open: Vec<Permit>,
    /// `permitlisten="[host:]port"`: the only addresses that `-R` may listen on; empty if there is no such option.
    pub permit_listen: Vec<Permit>,
}

/// An address that forwarding may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// `*` is any host. Without brackets if it is an IPv6 address.
    pub host: String,
    /// `None` is any port.
    pub port: Option<u16>,
}

impl KeyOptions {
    /// Whether a connection may be opened to `host`, as the client names it: names are compared, not looked up.
    pub fn may_open(&self, host: &str, port: u16) -> bool {
        let fits = |permit: &Permit| permit.host == "*" || permit.host == host;
        !self.no_port_forwarding && permitted(&self.permit_open, port, fits)
    }

    /// Whether a connection may be opened to the socket file `path`, which has no port to be permitted by.
    pub fn may_open_path(&self, path: &str) -> bool {
        let fits = |permit: &Permit| permit.port.is_none() && (permit.host == "*" || permit.host == path);
        !self.no_port_forwarding && (self.permit_open.is_empty() || self.permit_open.iter().any(fits))
    }

    /// Whether a listener may be made on `host`, as the client names it (`localhost` if it names none; an empty string is
    /// any address). Hosts of the option are patterns.
    pub fn may_listen(&self, host: &str, port: u16) -> bool {
        let fits = |permit: &Permit| pattern::matches(&permit.host, host);
        !self.no_port_forwarding && permitted(&self.permit_listen, port, fits)
    }
}

fn permitted(permits: &[Permit], port: u16, fits: impl Fn(&Permit) -> bool) -> bool {
    permits.is_empty() || permits.iter().any(|permit| permit.port.is_none_or(|only| only == port) && fits(permit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_keeps_to_the_permitted_addresses() {
        let permit = |host: &str, port| Permit { host: host.to_owned(), port };
        let anything = KeyOptions::default();
        assert!(anything.may_open("db", 5432) && anything.may_listen("", 8080));
        let some = KeyOptions {
            permit_open: vec![permit("db", Some(5432)), permit("*", Some(80)), permit("::1", None)],
            permit_listen: vec![permit("*", Some(8080)), permit("local*", None)],
            ..KeyOptions::default()
        };
        assert!(some.may_open("db", 5432) && some.may_open("anywhere", 80) && some.may_open("::1", 9));
        assert!(!some.may_open("db", 5433) && !some.may_open("DB", 5432) && !some.may_open("127.0.0.1", 5432));
        assert!(some.may_listen("0.0.0.0", 8080) && some.may_listen("localhost", 1) && some.may_listen("", 8080));
        assert!(!some.may_listen("0.0.0.0", 1) && !some.may_listen("", 1));
        assert!(anything.may_open_path("/run/x") && !some.may_open_path("/run/x"));
        let none = KeyOptions { no_port_forwarding: true, ..some };
        assert!(!none.may_open_path("/run/x") && !none.may_open("db", 5432) && !none.may_listen("localhost", 1));
    }
}
