//! What `podspawn connect` and a server say to each other in the clear, before SSH begins.
//!
//! ```text
//! server:  SSH-2.0-podspawn_0.1.0<CR><LF>
//! client:  PODSPAWN/1 project=backend<CR><LF>
//!          SSH-2.0-OpenSSH_9.2p1<CR><LF>
//! ```
//!
//! SSH lets only the server send lines before its identification (RFC 4253, 4.2), so the client's is an extension of our own,
//! and only a server that calls itself podspawn hears it: docs/ssh.md.

use crate::names::ProjectName;

/// How our servers identify themselves; the version follows.
pub const IDENTIFICATION: &str = "SSH-2.0-podspawn_";

const PREFIX: &str = "PODSPAWN/1 project=";

/// The longest announcement: that of a name with 32 characters.
pub const MAX_ANNOUNCEMENT: usize = PREFIX.len() + 32 + 2;

/// The first byte of every announcement, and of no identification.
pub const FIRST_BYTE: u8 = b'P';

/// The line that announces the project.
pub fn announcement(project: &ProjectName) -> String {
    format!("{PREFIX}{project}\r\n")
}

/// The project that a line with its end announces; `None` if it is not exactly such a line.
pub fn announced(line: &[u8]) -> Option<ProjectName> {
    std::str::from_utf8(line).ok()?.strip_prefix(PREFIX)?.strip_suffix("\r\n")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_is_read() {
        for name in ["a".to_owned(), "web.api_2-x".to_owned(), "a".repeat(32)] {
            let project = name.parse().unwrap();
            let line = announcement(&project);
            assert!(line.len() <= MAX_ANNOUNCEMENT && line.as_bytes()[0] == FIRST_BYTE);
            assert_eq!(announced(line.as_bytes()), Some(project));
        }
        for bad in [
            "PODSPAWN/1 project=\r\n",
            "PODSPAWN/1 project=web\n",
            "PODSPAWN/1 project=web",
            "PODSPAWN/1 project=Web\r\n",
            "PODSPAWN/1 project=../x\r\n",
            "PODSPAWN/1 project=web \r\n",
            "PODSPAWN/1 project=web\r\r\n",
            "PODSPAWN/1 project=web\0\r\n",
            "PODSPAWN/1  project=web\r\n",
            "PODSPAWN/2 project=web\r\n",
            "PODSPAWN/1\r\n",
            "PODSPAWN/1 project=w\u{e4}b\r\n",
            "",
        ] {
            assert_eq!(announced(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
