//! Who a session's processes run as, and the text of passwd(5), group(5), shadow(5) and gshadow(5).
//!
//! These files are the image's and later the container's, so they are taken as bytes: lines that do not parse are left as
//! they are, and nothing in them decides about more than names and groups inside the container.

use crate::protocol;

/// The id of the session's user, and of its group.
const USER_ID: u32 = 1000;

/// Groups that mean "may use sudo", in the order of preference.
const SUDO_GROUPS: [&[u8]; 3] = [b"sudo", b"wheel", b"admin"];

/// Supplementary groups that a process gets at most; the kernel allows 65,536.
pub(super) const MAX_GROUPS: usize = 256;

/// The user that everything in the session runs as.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
    /// The shell that was asked for; the image may not have it.
    pub(super) shell: String,
    pub(super) sudo: bool,
    pub(super) owner: String,
    pub(super) project: Option<String>,
}

impl Account {
    /// The container's root for `user: None`, and for a user who is called that.
    pub(super) fn new(account: &protocol::Account) -> Self {
        let name = account.user.as_ref().map_or("root", |user| user.as_str()).to_owned();
        let (id, home) = if name == "root" { (0, "/root".to_owned()) } else { (USER_ID, format!("/home/{name}")) };
        Self {
            name,
            uid: id,
            gid: id,
            home,
            shell: account.shell.clone(),
            sudo: account.sudo,
            owner: account.owner.to_string(),
            project: account.project.as_ref().map(ToString::to_string),
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The account files with the user in them: as the only one called so, and the only one with its ids. Whoever had
    /// the ids before is renamed, keeping memberships.
    pub(super) fn enter(&self, files: &AccountFiles, shell: &str) -> AccountFiles {
        let name = self.name.as_bytes();
        let id = self.uid.to_string();
        let old_user = names_with_id(&files.passwd, id.as_bytes());
        let old_group = names_with_id(&files.group, id.as_bytes());
        let password = if files.shadow.is_some() { "x" } else { "*" };
        let is_old = |olds: &[&[u8]], line_name: &[u8]| line_name == name || olds.contains(&line_name);

        let mut passwd = keep_lines(&files.passwd, |fields| !is_old(&old_user, fields[0]));
        passwd.extend(format!("{}:{password}:{id}:{id}::{}:{shell}\n", self.name, self.home).bytes());

        let sudo_group = SUDO_GROUPS
            .into_iter()
            .find(|group| self.sudo && lines(&files.group).any(|line| fields(line)[0] == *group));
        let members = |group: &[u8], list: &[u8]| self.members(group, list, &old_user, sudo_group);
        let mut group = map_lines(&files.group, 4, |fields| {
            (!is_old(&old_group, fields[0])).then(|| members(fields[0], fields[3]))
        });
        group.extend(format!("{}:x:{id}:\n", self.name).bytes());

        let shadow = files.shadow.as_ref().map(|shadow| {
            let mut shadow = keep_lines(shadow, |fields| !is_old(&old_user, fields[0]));
            // No password is valid, which is not the same as locked; no last change, so nothing ever expires.
            shadow.extend(format!("{}:*::0:99999:7:::\n", self.name).bytes());
            shadow
        });
        let gshadow = files.gshadow.as_ref().map(|gshadow| {
            let mut gshadow =
                map_lines(gshadow, 4, |fields| (!is_old(&old_group, fields[0])).then(|| members(fields[0], fields[3])));
            gshadow.extend(format!("{}:!::\n", self.name).bytes());
            gshadow
        });
        AccountFiles { passwd, group, shadow, gshadow }
    }

    /// The member list of `group`: the old users under the new name, and in the sudo group or not as it should be.
    fn members(&self, group: &[u8], list: &[u8], old_users: &[&[u8]], sudo_group: Option<&[u8]>) -> Vec<u8> {
        let name = self.name.as_bytes();
        let mut belongs = false;
        let mut kept: Vec<&[u8]> = Vec::new();
        for member in list.split(|&b| b == b',').filter(|member| !member.is_empty()) {
            if member == name || old_users.contains(&member) { belongs = true } else { kept.push(member) }
        }
        if SUDO_GROUPS.contains(&group) {
            belongs = sudo_group == Some(group);
        }
        if belongs {
            kept.push(name);
        }
        kept.join(&b',')
    }

    /// The ids of the groups that `group`, the contents of /etc/group, puts the user into, its own among them.
    pub(super) fn groups(&self, group: &[u8]) -> Vec<u32> {
        let mut ids = vec![self.gid];
        for entry in entries(group).filter(|entry| entry.has_member(self.name.as_bytes())) {
            if !ids.contains(&entry.id) && ids.len() < MAX_GROUPS {
                ids.push(entry.id);
            }
        }
        ids
    }
}

/// The contents of the four files. The first two are made if they are missing, the others are not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AccountFiles {
    pub(super) passwd: Vec<u8>,
    pub(super) group: Vec<u8>,
    pub(super) shadow: Option<Vec<u8>>,
    pub(super) gshadow: Option<Vec<u8>>,
}

impl AccountFiles {
    /// What an image without any of them gets.
    pub(super) const BARE_PASSWD: &[u8] = b"root:*:0:0:root:/root:/bin/sh\n";
    pub(super) const BARE_GROUP: &[u8] = b"root:x:0:\ntty:x:5:\n";
}

/// A line of passwd(5) or group(5).
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    /// The user's or the group's.
    pub(super) id: u32,
    fields: Vec<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// The home directory, if it is a user's.
    pub(super) fn home(&self) -> Option<&'a [u8]> {
        self.fields.get(5).copied()
    }

    /// The id of its group, if it is a user's.
    pub(super) fn group(&self) -> Option<u32> {
        parse_id(self.fields.get(3)?)
    }

    /// Whether `name` is listed in it, if it is a group's.
    pub(super) fn has_member(&self, name: &[u8]) -> bool {
        self.fields.get(3).is_some_and(|list| list.split(|&b| b == b',').any(|member| member == name))
    }
}

/// The lines of `file`, /etc/passwd or /etc/group, that name somebody.
pub(super) fn entries(file: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    lines(file).filter_map(|line| {
        let fields = fields(line);
        let id = parse_id(fields.get(2)?)?;
        (!fields[0].is_empty()).then(|| Entry { name: fields[0], id, fields })
    })
}

/// A decimal id that the container's id map has. No sign, no overflow (CVE-2024-40635).
pub(super) fn parse_id(text: &[u8]) -> Option<u32> {
    let digits = (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let id = digits.then(|| text.iter().fold(0, |id, digit| id * 10 + u32::from(digit - b'0')))?;
    (id < 65_536).then_some(id)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// At least one field, which may be empty.
fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&b| b == b':').collect()
}

/// The names in the first field of lines whose third one is `id`.
fn names_with_id<'a>(file: &'a [u8], id: &[u8]) -> Vec<&'a [u8]> {
    let named = |line: &'a [u8]| {
        let fields = fields(line);
        (fields.get(2) == Some(&id)).then(|| fields[0])
    };
    lines(file).filter_map(named).collect()
}

/// `file` without the lines that `keep` does not want.
fn keep_lines(file: &[u8], keep: impl Fn(&[&[u8]]) -> bool) -> Vec<u8> {
    let mut kept = Vec::with_capacity(file.len() + 128);
    for line in lines(file).filter(|line| keep(&fields(line))) {
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
    kept
}

/// `file` with the last of `count` fields of each line replaced by what `last` makes of the line, or the line left out
/// for `None`. Lines with another number of fields stay.
fn map_lines(file: &[u8], count: usize, last: impl Fn(&[&[u8]]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut mapped = Vec::with_capacity(file.len() + 128);
    for line in lines(file) {
        let parts = fields(line);
        if parts.len() == count {
            let Some(last) = last(&parts) else { continue };
            mapped.extend_from_slice(&parts[..count - 1].join(&b':'));
            mapped.push(b':');
            mapped.extend_from_slice(&last);
        } else {
            mapped.extend_from_slice(line);
        }
        mapped.push(b'\n');
    }
    mapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(user: Option<&str>, sudo: bool) -> Account {
        Account::new(&protocol::Account {
            user: user.map(|user| user.parse().unwrap()),
            shell: "/bin/bash".to_owned(),
            sudo,
            owner: "ada".parse().unwrap(),
            project: None,
        })
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    /// The account files of ubuntu:24.04, shortened.
    fn ubuntu() -> AccountFiles {
        AccountFiles {
            passwd: b"root:x:0:0:root:/root:/bin/bash\ngames:x:5:60:games:/usr/games:/usr/sbin/nologin\n\
                ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n"
                .to_vec(),
            group: b"root:x:0:\nadm:x:4:syslog,ubuntu\ntty:x:5:\nsudo:x:27:ubuntu\nubuntu:x:1000:\n".to_vec(),
            shadow: Some(b"root:*:19000:0:99999:7:::\nubuntu:!:19000:0:99999:7:::\n".to_vec()),
            gshadow: Some(b"root:*::\nadm:*::syslog,ubuntu\nsudo:*::ubuntu\nubuntu:!::\n".to_vec()),
        }
    }

    #[test]
    fn the_image_s_user_1000_is_renamed() {
        let files = account(Some("ada"), true).enter(&ubuntu(), "/bin/bash");
        assert_eq!(
            text(&files.passwd),
            "root:x:0:0:root:/root:/bin/bash\ngames:x:5:60:games:/usr/games:/usr/sbin/nologin\n\
             ada:x:1000:1000::/home/ada:/bin/bash\n"
        );
        assert_eq!(text(&files.group), "root:x:0:\nadm:x:4:syslog,ada\ntty:x:5:\nsudo:x:27:ada\nada:x:1000:\n");
        let shadow = files.shadow.unwrap();
        assert_eq!(text(&shadow), "root:*:19000:0:99999:7:::\nada:*::0:99999:7:::\n");
        assert_eq!(text(&files.gshadow.unwrap()), "root:*::\nadm:*::syslog,ada\nsudo:*::ada\nada:!::\n");
    }

    #[test]
    fn without_sudo_nobody_is_left_in_its_group() {
        let files = account(Some("ada"), false).enter(&ubuntu(), "/bin/bash");
        assert!(text(&files.group).contains("sudo:x:27:\n"), "{}", text(&files.group));
    }

    #[test]
    fn a_user_named_like_a_system_account_takes_its_name() {
        let files = account(Some("games"), true).enter(&ubuntu(), "/bin/sh");
        assert_eq!(
            text(&files.passwd).lines().filter(|line| line.starts_with("games:")).count(),
            1,
            "{}",
            text(&files.passwd)
        );
        assert!(text(&files.passwd).ends_with("games:x:1000:1000::/home/games:/bin/sh\n"));
    }

    #[test]
    fn entering_twice_changes_nothing_more() {
        let ada = account(Some("ada"), true);
        let once = ada.enter(&ubuntu(), "/bin/bash");
        assert_eq!(ada.enter(&once, "/bin/bash"), once);
    }

    #[test]
    fn hostile_lines_stay_what_they_are() {
        let files = AccountFiles {
            passwd: b"no colon\n::::::\n\xff\xfe:x:1000\nx:x:+1000:1::/:/bin/sh\nlast:x:7:7::/:/x".to_vec(),
            group: b"a:x:1\n:::::::\nsudo:x\n".to_vec(),
            shadow: None,
            gshadow: None,
        };
        let after = account(Some("ada"), true).enter(&files, "/bin/sh");
        // `\xff\xfe` claims our id and is renamed away; the rest parses to nothing.
        assert_eq!(
            after.passwd,
            b"no colon\n::::::\nx:x:+1000:1::/:/bin/sh\nlast:x:7:7::/:/x\nada:*:1000:1000::/home/ada:/bin/sh\n"
        );
        assert_eq!(text(&after.group), "a:x:1\n:::::::\nsudo:x\nada:x:1000:\n");
    }

    #[test]
    fn groups_are_parsed_strictly() {
        let group = b"ada:x:1000:\na:x:4:ada\nb:x:-1:ada\nc:x:65536:ada\nd:x:4294967296:ada\ne:x: 5:ada\n\
            f:x:7:bada,adab\ng:x:27:x,ada,y\nh:x:27:ada\n";
        assert_eq!(account(Some("ada"), true).groups(group), [1000, 4, 27]);
        let many: String = (2000..4000).map(|id| format!("g{id}:x:{id}:ada\n")).collect();
        assert_eq!(account(Some("ada"), true).groups(many.as_bytes()).len(), MAX_GROUPS);
    }

    #[test]
    fn entries_are_those_with_a_name_and_an_id() {
        let passwd = b"root:*:0:0:root:/root:/bin/sh\n:x:7:7::/:\nx:x:-1:1::/x:\nno\na:b\nada:x:1000:1000::/home/ada:";
        let found: Vec<_> = entries(passwd).map(|entry| (entry.name, entry.id, entry.home())).collect();
        assert_eq!(found, [(&b"root"[..], 0, Some(&b"/root"[..])), (b"ada", 1000, Some(b"/home/ada"))]);
        assert_eq!(entries(b"tty:x:5:").next().unwrap().home(), None);
    }

    #[test]
    fn root_is_root_by_either_name() {
        for user in [None, Some("root")] {
            let account = account(user, true);
            assert_eq!((account.uid, account.home.as_str()), (0, "/root"));
        }
    }
}
