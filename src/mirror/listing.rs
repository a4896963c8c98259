//! What a server says that it has, and what a clone of it begins with: the answer to `git ls-remote --symref`
//! (git-ls-remote(1)), and files of a repository (gitrepository-layout(5)).

use std::{collections::BTreeMap, fmt::Write};

/// Longer lists are not worked with. Of git's output more is kept ([`crate::git`]), so that none of these was cut.
const MAX_BYTES: usize = 48 << 10;

/// Branches and tags of a repository. Names and ids are plain: they mean nothing to a shell, a configuration or a list of refs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    /// `refs/heads/...`
    head: String,
    /// Ids of objects by `refs/heads/...` and `refs/tags/...`.
    refs: BTreeMap<String, String>,
}

/// What a clone has beside its objects, and beside what `git init` makes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// What the configuration ends with.
    pub(super) config: String,
    /// The branch that is not born yet.
    pub(super) head: String,
    pub(super) packed_refs: String,
    /// `refs/remotes/origin/HEAD`
    pub(super) origin_head: Option<String>,
}

impl Listing {
    /// Reads what `git ls-remote --symref` writes. `None` if there is anything in it that is out of the ordinary.
    pub(super) fn of_server(text: &str) -> Option<Self> {
        let mut head = None;
        let mut refs = BTreeMap::new();
        if text.len() > MAX_BYTES {
            return None;
        }
        for line in text.lines() {
            match line.split_once('\t')? {
                (target, "HEAD") => head = head.or_else(|| target.strip_prefix("ref: ").map(str::to_owned)),
                (id, name) if is_branch_or_tag(name) && !name.ends_with("^{}") => {
                    refs.insert(plain(name)?, object_id(id)?);
                }
                _ => {}
            }
        }
        let head = head.filter(|head| head.starts_with(BRANCHES) && refs.contains_key(head))?;
        // It would be taken for the remote's.
        (!refs.contains_key("refs/heads/HEAD")).then_some(Self { head, refs })
    }

    /// Whether a repository with these `packed-refs` has just the same.
    pub(super) fn is_that_of(&self, packed_refs: &str) -> bool {
        let lines = packed_refs.lines().filter(|line| !line.starts_with(['#', '^']));
        let pairs = lines.filter_map(|line| line.split_once(' ')).filter(|(_, name)| is_branch_or_tag(name));
        let own = self.refs.iter().map(|(name, id)| (id.as_str(), name.as_str()));
        let mut theirs: Vec<_> = pairs.collect();
        theirs.sort_unstable_by_key(|(_, name)| *name);
        own.eq(theirs)
    }

    /// What `git clone URL` begins with, or `git clone --single-branch --branch BRANCH URL`. `None` for what is no branch.
    pub(super) fn beginning(&self, url: &str, branch: Option<&str>) -> Option<Beginning> {
        let head = branch.map_or_else(|| self.head.clone(), |branch| format!("{BRANCHES}{branch}"));
        if !self.refs.contains_key(&head) || url.chars().any(char::is_control) {
            return None;
        }
        let url = url.replace('\\', r"\\").replace('"', r#"\""#);
        let own = &head[BRANCHES.len()..];
        let tracked = branch.unwrap_or("*");
        let config = format!(
            "[remote \"origin\"]\n\turl = \"{url}\"\n\tfetch = \"+{BRANCHES}{tracked}:{ORIGIN}{tracked}\"\n\
             [branch \"{own}\"]\n\tremote = origin\n\tmerge = \"{head}\"\n"
        );
        let mut packed_refs = String::new();
        for (name, id) in &self.refs {
            let name = match name.strip_prefix(BRANCHES) {
                Some(_) if branch.is_some() && *name != head => continue,
                Some(branch) => format!("{ORIGIN}{branch}"),
                None => name.clone(),
            };
            // Writing to a string does not fail.
            let _ = writeln!(packed_refs, "{id} {name}");
        }
        let origin_head = (head == self.head).then(|| format!("ref: {ORIGIN}{own}\n"));
        Some(Beginning { config, head: format!("ref: {head}\n"), packed_refs, origin_head })
    }
}

const BRANCHES: &str = "refs/heads/";
const ORIGIN: &str = "refs/remotes/origin/";

fn is_branch_or_tag(name: &str) -> bool {
    name.starts_with(BRANCHES) || name.starts_with("refs/tags/")
}

/// A name of a ref (git-check-ref-format(1)), without quotes too.
fn plain(name: &str) -> Option<String> {
    let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\\"".contains(c);
    let parts = || name.split('/');
    let good = !name.contains(bad)
        && !name.contains("..")
        && !name.contains("@{")
        && parts().all(|part| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.'))
        && parts().all(|part| !part.ends_with(".lock"));
    good.then(|| name.to_owned())
}

/// One of SHA-1.
fn object_id(text: &str) -> Option<String> {
    (text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn said() -> String {
        format!(
            "ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{B}\trefs/heads/fix/it\n{A}\trefs/heads/main\n{B}\trefs/tags/v1\n\
             {A}\trefs/tags/v1^{{}}\n"
        )
    }

    #[test]
    fn a_clone_begins_with_what_git_would_have_made() {
        let listing = Listing::of_server(&said()).unwrap();
        let all = listing.beginning(r#"https://a.example/x"y\z"#, None).unwrap();
        assert_eq!(all.head, "ref: refs/heads/main\n");
        assert_eq!(all.origin_head.as_deref(), Some("ref: refs/remotes/origin/main\n"));
        assert_eq!(
            all.packed_refs,
            format!("{B} refs/remotes/origin/fix/it\n{A} refs/remotes/origin/main\n{B} refs/tags/v1\n")
        );
        assert_eq!(
            all.config,
            "[remote \"origin\"]\n\turl = \"https://a.example/x\\\"y\\\\z\"\n\tfetch = \
             \"+refs/heads/*:refs/remotes/origin/*\"\n[branch \"main\"]\n\tremote = origin\n\tmerge = \
             \"refs/heads/main\"\n"
        );
        let one = listing.beginning("git://a.example/x", Some("fix/it")).unwrap();
        assert_eq!((one.head.as_str(), one.origin_head), ("ref: refs/heads/fix/it\n", None));
        assert_eq!(one.packed_refs, format!("{B} refs/remotes/origin/fix/it\n{B} refs/tags/v1\n"));
        assert!(one.config.contains("\"+refs/heads/fix/it:refs/remotes/origin/fix/it\""), "{}", one.config);
        assert_eq!(listing.beginning("git://a.example/x", Some("v1")), None, "a tag");
        assert_eq!(listing.beginning("git://a.example/x\n[core]", None), None);
    }

    #[test]
    fn a_mirror_has_the_same_only_with_the_same_refs() {
        let listing = Listing::of_server(&said()).unwrap();
        let same =
            format!("# pack-refs with: peeled\n{A} refs/heads/main\n{B} refs/heads/fix/it\n{B} refs/tags/v1\n^{A}\n");
        assert!(listing.is_that_of(&same));
        assert!(!listing.is_that_of(&same.replace(&format!("{A} refs/heads/main"), &format!("{B} refs/heads/main"))));
        assert!(!listing.is_that_of(&format!("{same}{A} refs/heads/more\n")));
        assert!(!listing.is_that_of(&format!("{B} refs/heads/fix/it\n{B} refs/tags/v1\n")));
        assert!(!listing.is_that_of(""));
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_not_worked_with() {
        assert!(Listing::of_server(&said()).is_some());
        let more = |line: &str| Listing::of_server(&format!("{}{line}\n", said()));
        for name in
            ["a b", "../x", "a//b", "a.lock", ".a", "-a", "a^", "a\"b", "a\\b", "a.", "a@{b", "a\u{7f}b", "HEAD"]
        {
            assert_eq!(more(&format!("{A}\trefs/heads/{name}")), None, "{name}");
        }
        assert_eq!(more(&format!("{A}{A}\trefs/heads/sha256")), None);
        assert_eq!(more("no tab"), None);
        assert!(more(&format!("{A}\trefs/odd/refs/heads/x y")).is_some(), "nobody clones these");
        assert_eq!(Listing::of_server(&format!("{A}\tHEAD\n{A}\trefs/heads/main\n")), None, "no branch is checked out");
        assert_eq!(Listing::of_server(&format!("ref: refs/heads/none\tHEAD\n{A}\trefs/heads/main\n")), None);
        let long = format!("{A}\trefs/tags/{}\n", "a".repeat(100));
        assert_eq!(more(&long.repeat(MAX_BYTES / long.len())), None);
        assert_eq!(Listing::of_server(""), None);
    }
}
