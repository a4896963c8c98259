//! The user's side: from a host name like `backend.pod` to a project's session on a server.
//!
//! ```text
//! ~/.ssh/config          Host *.pod, written by `podspawn setup` ([`ssh_config`])
//!    │ ProxyCommand                │ UserKnownHostsFile
//!    ▼                             ▼
//! podspawn connect ──────▶ ~/.podspawn/known_hosts, made of the next two ([`known_hosts`])
//!    │ which server?               ▲
//!    ├──▶ ~/.podspawn/config.yaml ─┤ default server, mappings ([`config`])
//!    │    ~/.podspawn/host_keys ───┘ one pinned key for each server ([`host_keys`])
//!    ▼
//! server: announce the project, then relay ([`relay`])
//! ```
//!
//! Runs as the user, needs no server on this machine, and prints nothing: that is `cli`'s.

pub mod config;
pub mod files;
pub mod host_keys;
pub mod known_hosts;
pub mod relay;
pub mod server;
pub mod ssh_config;
