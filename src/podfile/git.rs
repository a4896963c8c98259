//! Names of git's: where a repository is cloned from, and which branch.

use super::value::{ValueError, shape};

/// A git branch or tag (git-check-ref-format), which cannot be taken for an option.
pub fn branch(text: &str) -> Result<String, ValueError> {
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
pub fn url(text: &str) -> Result<String, ValueError> {
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

/// Whether two URLs are of one repository, by whatever transport.
pub fn same_repository(a: &str, b: &str) -> bool {
    place(a) == place(b)
}

/// Host and path of a valid URL.
fn place(url: &str) -> (String, &str) {
    let (authority, path) = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/').unwrap_or((rest, "")),
        None => url.split_once(':').unwrap_or((url, "")),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.trim_matches('/');
    (host.to_ascii_lowercase(), path.strip_suffix(".git").unwrap_or(path))
}

/// What the directory of a clone is called: the last part of the URL.
pub fn directory_name(url: &str) -> String {
    let (_, path) = place(url);
    let last = path.rsplit(['/', ':']).next().unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = last.trim_start_matches('.').chars().take(100).map(safe).collect();
    if name.is_empty() { "repository".to_owned() } else { name }
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
    fn a_repository_is_the_same_by_each_transport_and_its_clone_is_called_after_it() {
        let forms = [
            "https://github.com/a/b",
            "https://u:p@GitHub.com/a/b.git/",
            "git@github.com:a/b.git",
            "ssh://git@github.com/a/b",
        ];
        for form in forms {
            assert!(same_repository(form, forms[0]), "{form}");
            assert_eq!(directory_name(form), "b");
        }
        assert!(!same_repository("https://github.com/a/b", "https://github.com/a/c"));
        assert!(!same_repository("https://github.com/a/b", "https://gitlab.com/a/b"));
        assert_eq!(directory_name("git@host:.git"), "repository");
        assert_eq!(directory_name("https://host/ü b/..x y"), "x-y");
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
