//! Names of git's: where a repository is cloned from, and which branch.

use super::value::{ValueError, shape};

/// A git branch or tag (git-check-ref-format), which cannot be taken for an option.
pub(super) fn branch(text: &str) -> Result<String, ValueError> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let valid = !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.contains("@{")
        && !text.contains(odd)
        && text.len() <= 255
        && text.split('/').all(part);
    if valid { Ok(text.to_owned()) } else { Err(shape(text, "a name of a branch")) }
}

/// Where a git repository is cloned from: `https://`, `http://`, `ssh://`, `git://`, `user@host:path`, or `host/path`, which
/// means https. Other transports of git run programs (`ext::`) or read the server's files.
pub(super) fn url(text: &str) -> Result<String, ValueError> {
    let bad = || shape(text, "a URL of a git repository, such as https://github.com/owner/name");
    if text.starts_with('-') || text.chars().any(|c| c.is_whitespace() || c.is_control()) || text.len() > 2048 {
        return Err(bad());
    }
    let host = |host: &str| {
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        !host.is_empty() && !host.starts_with('-') && host.bytes().all(valid)
    };
    let host_and_path = |rest: &str| {
        rest.split_once('/').is_some_and(|(name, path)| host(name) && !name.starts_with('-') && !path.is_empty())
    };
    if let Some((scheme, rest)) = text.split_once("://") {
        let known = matches!(scheme, "https" | "http" | "ssh" | "git");
        return if known && host_and_path(rest) { Ok(text.to_owned()) } else { Err(bad()) };
    }
    if let Some((address, path)) = text.split_once(':') {
        // `ext::`, `fd::` and the like have no user in front of the colon.
        let valid = address.contains('@') && !address.contains('/') && host(address) && !path.is_empty();
        return if valid && !path.starts_with(['-', ':']) { Ok(text.to_owned()) } else { Err(bad()) };
    }
    // A dot tells a host from a directory.
    let dotted = text.split('/').next().is_some_and(|name| name.contains('.') && !name.starts_with('.'));
    if dotted && host_and_path(text) { Ok(format!("https://{text}")) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_urls_of_all_forms_are_taken_and_transports_that_run_programs_are_not() {
        let good = [
            ("https://github.com/a/b.git", "https://github.com/a/b.git"),
            ("github.com/a/b", "https://github.com/a/b"),
            ("ssh://git@host:2222/a/b", "ssh://git@host:2222/a/b"),
            ("git@github.com:a/b.git", "git@github.com:a/b.git"),
            ("git://10.0.0.1/a", "git://10.0.0.1/a"),
            ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ];
        for (text, meant) in good {
            assert_eq!(url(text).as_deref(), Ok(meant), "{text}");
        }
        let bad = [
            "",
            "ext::sh -c id",
            "ext::id",
            "fd::17",
            "file:///etc",
            "/srv/repo",
            "../repo",
            "--upload-pack=id",
            "ssh://-oProxyCommand=id/x",
            "-oProxyCommand=id@host:x",
            "git@-oProxyCommand=id:x",
            "git@host:-x",
            "https://host",
            "https:///x",
            "a b/c",
            "host.name",
            "relative/dir",
            "https://host/x\n",
        ];
        for text in bad {
            assert!(url(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn branches_are_those_of_git() {
        for good in ["main", "feature/x-1", "v1.2", "release_2", "ünï"] {
            assert!(branch(good).is_ok(), "{good}");
        }
        let bad = [
            "", "-x", "a..b", "a b", "a~1", "a^", "x:y", "a\\b", "/a", "a/", "a//b", ".a", "a/.b", "x.lock", "a@{1}",
            "x.",
        ];
        for text in bad {
            assert!(branch(text).is_err(), "{text:?}");
        }
    }
}
