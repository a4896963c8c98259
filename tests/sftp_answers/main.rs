//! Our SFTP server and OpenSSH's give the same answers to the same requests.
//!
//! Both run side by side in directories of the same shape; what a request does to files is compared through later answers.
//! Needs Debian's openssh-sftp-server.

mod protocol;
mod random;
mod servers;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use protocol::*;
use servers::{Both, Peer};

#[test]
fn the_greeting_is_the_same() {
    let greeting = |make: fn(PathBuf) -> Peer, root: &Path| {
        let mut peer = make(root.to_owned());
        peer.stream.write_all(b"\0\0\0\x05\x01\0\0\0\x06").unwrap(); // a second one, from a newer client
        peer.packet().unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let (ours, openssh) = (greeting(Peer::ours, directory.path()), greeting(Peer::openssh, directory.path()));
    let (ours, openssh) = (ours.escape_ascii().to_string(), openssh.escape_ascii().to_string());
    assert!(ours.contains("copy-data") && ours.contains("statvfs@openssh.com"), "{ours}");
    assert_eq!(ours, openssh);
}

#[test]
fn requests_about_paths_are_answered_alike() {
    let mut both = Both::new();
    let paths: [&[u8]; 20] = [
        b"f",
        b"d",
        b"d/",
        b"d/big",
        b"to-file",
        b"to-directory",
        b"to-directory/..",
        b"loop",
        b"dangling",
        b"nowhere",
        b"nowhere/at/all",
        b"f/below",
        b"",
        b".",
        b"..",
        b"/",
        b"latin-\xe9 and\nnewline",
        &[b'x'; 300],
        b"//tmp/../usr",
        b"f\0",
    ];
    for path in paths {
        for kind in [STAT, LSTAT, REALPATH, READLINK] {
            both.agree(&[request(kind).string(path)]);
        }
        both.agree(&[extended("statvfs@openssh.com").string(path)]);
        both.agree(&[extended("expand-path@openssh.com").string(path)]);
        let tilde = [b"~/", path].concat();
        both.agree(&[extended("expand-path@openssh.com").string(tilde)]);
    }
    for path in ["~", "~root", "~root/x/..", "~nobody-of-that-name", "~nobody-of-that-name/x"] {
        both.agree(&[extended("expand-path@openssh.com").string(path)]);
    }
    let unknown = both.agree(&[extended("expand-path@openssh.com").string("~nobody-of-that-name")]);
    assert_eq!(unknown, [status(2, "no such user")]);
    for user in ["root", "nobody-of-that-name"] {
        both.agree(&[extended("home-directory").string(user)]);
    }
}

#[test]
fn open_flags_mean_the_same() {
    let mut both = Both::new();
    let names = ["f", "new", "d", "to-file", "dangling", "loop"];
    for flags in 0..64 {
        for name in names {
            let handle = 0;
            let created = permissions(0o100_640);
            both.agree(&[
                request(OPEN).string(name).u32(flags).attributes(&created),
                write(handle, 3, "written"),
                read(handle, 0, 100),
                request(FSTAT).handle(handle),
                request(CLOSE).handle(handle),
                request(STAT).string(name),
                request(REMOVE).string("new"),
                request(REMOVE).string("nowhere"),
            ]);
        }
    }
}

#[test]
fn reads_and_writes_end_the_same_way() {
    let mut both = Both::new();
    let answers = both.agree(&[
        open("f", FOR_READING),
        open("new", FOR_READING | FOR_WRITING | CREATE | EXCLUSIVE),
        open("end", FOR_READING | FOR_WRITING | APPEND | CREATE),
        open("d", FOR_READING),
        request(OPENDIR).string("d"),
    ]);
    assert_eq!(answers.last(), Some(&Answer::Handle(vec![0, 0, 0, 4])));
    let [file, new, end, directory, listing, unknown] = [0, 1, 2, 3, 4, 5];
    for handle in [file, new, end, directory, listing, unknown] {
        for offset in [0, 5, 19, 100, i64::MAX as u64, 1 << 63, u64::MAX] {
            both.agree(&[
                write(handle, offset.min(1 << 40), "data"),
                write(handle, offset, ""),
                read(handle, offset, 4),
                read(handle, offset, 0),
                read(handle, offset, u32::MAX),
            ]);
        }
        both.agree(&[
            request(FSTAT).handle(handle),
            extended("fsync@openssh.com").handle(handle),
            extended("fstatvfs@openssh.com").handle(handle),
            request(FSETSTAT).handle(handle).attributes(&permissions(0o600)),
        ]);
    }
    let read_past_the_end = both.agree(&[read(file, 19, 4), read(file, 15, 100)]);
    assert_eq!(read_past_the_end, [status(1, "End of file"), Answer::Data(b"ile\n".to_vec())]);
    for wrong in [&b""[..], b"\0", b"\0\0\0\0\0", b"\xff\xff\xff\xff", &[0; 300]] {
        both.agree(&[request(CLOSE).string(wrong), request(FSTAT).string(wrong), request(READDIR).string(wrong)]);
    }
}

#[test]
fn handles_are_numbered_alike() {
    let mut both = Both::new();
    let opened: Vec<_> = (0..10).map(|_| open("f", FOR_READING)).collect();
    both.agree(&opened);
    both.agree(&[3, 7, 0, 3].map(|handle| request(CLOSE).handle(handle)));
    both.agree(&[open("f", FOR_READING), request(OPENDIR).string("."), open("f", FOR_READING), open("f", FOR_READING)]);
}

#[test]
fn copies_within_the_server_end_alike() {
    let mut both = Both::new();
    both.agree(&[
        open("d/big", FOR_READING),
        open("copy", FOR_READING | FOR_WRITING | CREATE),
        open("end", FOR_WRITING | APPEND | CREATE),
        open("d/big", FOR_READING | FOR_WRITING),
    ]);
    let size = |name: &str| request(STAT).string(name);
    let cases = [
        ((0, 0), 0, (1, 0)),
        ((0, 0), 100, (1, 300_000)),
        ((0, 199_999), 100, (1, 0)),
        ((0, 200_000), 100, (1, 0)),
        ((0, 0), 200_001, (1, 0)),
        ((0, 0), 300_000, (1, 0)),
        ((0, 70_000), 0, (2, 5)),
        ((0, 0), 0, (0, 0)),
        ((0, 0), 0, (3, 0)),
        ((2, 0), 0, (1, 0)),
        ((1, 0), 0, (0, 0)),
        ((0, 0), 0, (9, 0)),
        ((9, 0), 0, (1, 0)),
        ((0, 1 << 63), 0, (1, 0)),
        ((0, 0), 0, (1, 1 << 63)),
    ];
    for (from, length, to) in cases {
        both.agree(&[copy_data(from, length, to), size("copy"), size("end"), read(1, 0, 300_000)]);
    }
    // Where OpenSSH's server says that all went well.
    let hidden = [copy_data((2, 0), 10, (1, 0)), copy_data((0, 0), 10, (9, 0)), copy_data((1, 0), 10, (0, 0))];
    assert_eq!(both.ours.ask(&hidden), [status(2, "No such file"), status(4, "Failure"), status(2, "No such file")]);
}

#[test]
fn attributes_are_set_and_refused_alike() {
    let mut both = Both::new();
    let sets = [
        Attributes::default(),
        Attributes { size: Some(5), ..Attributes::default() },
        Attributes { size: Some(u64::MAX), ..permissions(0o600) },
        permissions(0o107_777),
        permissions(0o40),
        Attributes { owner: Some((1000, 1001)), ..Attributes::default() },
        Attributes { owner: Some((u32::MAX, 5)), times: Some((1, 2)), ..permissions(0o4755) },
        Attributes { times: Some((u32::MAX, 0)), ..Attributes::default() },
    ];
    for attributes in sets {
        for name in ["f", "d", "to-file", "dangling", "loop", "nowhere", "f/below", ""] {
            both.agree(&[
                request(SETSTAT).string(name).attributes(&attributes),
                extended("lsetstat@openssh.com").string(name).attributes(&attributes),
                request(STAT).string(name),
                request(LSTAT).string(name),
            ]);
        }
        both.agree(&[
            open("f", FOR_READING | FOR_WRITING),
            request(FSETSTAT).handle(0).attributes(&attributes),
            request(FSTAT).handle(0),
            request(CLOSE).handle(0),
            open("f", FOR_READING),
            request(FSETSTAT).handle(0).attributes(&attributes),
            request(CLOSE).handle(0),
        ]);
    }
    // Not even root may change the mode of that.
    let denied = both.agree(&[request(SETSTAT).string("/proc/1/stat").attributes(&permissions(0o600))]);
    assert_eq!(denied, [status(3, "Permission denied")]);
    // A vendor's attribute.
    let vendor = request(SETSTAT).string("f").u32(1 << 31).u32(1).string("name@vendor").string("value");
    both.agree(&[vendor]);
}

#[test]
fn names_move_alike() {
    let mut both = Both::new();
    let names = ["f", "d", "d/e", "to-file", "to-directory", "dangling", "nowhere", "f/below", "", "other"];
    for from in names {
        for to in names {
            both.agree(&[
                request(RENAME).string(from).string(to),
                extended("hardlink@openssh.com").string(from).string(to),
                request(SYMLINK).string(from).string(to),
                request(READLINK).string(to),
                request(OPENDIR).string("."),
                request(READDIR).handle(0),
                request(CLOSE).handle(0),
            ]);
        }
    }
    for from in names {
        for to in names {
            both.agree(&[extended("posix-rename@openssh.com").string(from).string(to), request(LSTAT).string(to)]);
        }
    }
    for name in names {
        both.agree(&[
            request(MKDIR).string(name).u32(0),
            request(MKDIR).string(name).attributes(&permissions(0o102_710)),
            request(LSTAT).string(name),
            request(REMOVE).string(name),
            request(RMDIR).string(name),
        ]);
    }
}

#[test]
fn listings_are_the_same() {
    let mut both = Both::new();
    let set = |name: &str, attributes: Attributes| request(SETSTAT).string(name).attributes(&attributes);
    // January 2001, and after now.
    both.agree(&[
        set("f", Attributes { times: Some((0, 980_000_000)), owner: Some((1, 7)), ..permissions(0o6755) }),
        set("d/e", Attributes { times: Some((0, u32::MAX)), owner: Some((54321, 54321)), ..permissions(0o1770) }),
        set("d/big", Attributes { size: Some(5_000_000_000), ..Attributes::default() }),
    ]);
    for directory in [".", "d", "to-directory", "/etc", "nowhere", "f"] {
        // /etc is longer than one answer.
        let mut requests = vec![request(OPENDIR).string(directory)];
        requests.extend((0..4).map(|_| request(READDIR).handle(0)));
        requests.push(request(CLOSE).handle(0));
        both.agree(&requests);
    }
}

#[test]
fn names_of_users_and_groups_are_the_same() {
    let mut both = Both::new();
    let ids = |ids: &[u32]| ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<_>>();
    let by_id =
        |uids: &[u32], gids: &[u32]| extended("users-groups-by-id@openssh.com").string(ids(uids)).string(ids(gids));
    let answers = both.agree(&[by_id(&[0, 1, 60_000], &[5, 0, 60_001]), by_id(&[], &[]), by_id(&[0], &[])]);
    assert_eq!(answers[2], Answer::Extended(b"\0\0\0\x08\0\0\0\x04root\0\0\0\0".to_vec()));
}

#[test]
fn limits_and_unknown_extensions_are_the_same() {
    let mut both = Both::new();
    let answers = both.agree(&[extended("limits@openssh.com"), extended("unheard@of").string("x"), extended("")]);
    assert_eq!(answers[1], status(8, "Operation unsupported"));
}

#[test]
fn what_does_not_parse_ends_both_with_the_same_status() {
    let garbage: [(&str, &[u8]); 6] = [
        ("nothing", b""),
        ("half a packet", b"\0\0\0\x09\x11\0\0"),
        ("a packet that is too long", b"\0\x04\0\x01\x11"),
        ("a packet without a type", b"\0\0\0\0\x11\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("a path that is longer than its packet", b"\0\0\0\x0a\x11\0\0\0\0\0\0\x01\0a"),
        ("a NUL in a path", b"\0\0\0\x0c\x11\0\0\0\0\0\0\0\x03a\0b"),
    ];
    for (what, bytes) in garbage {
        let Both { ours, openssh, directory: _kept } = Both::new();
        assert_eq!(ours.end_with(bytes), openssh.end_with(bytes), "{what}");
    }
}

#[test]
fn requests_of_an_unknown_type_are_refused() {
    // OpenSSH's server says nothing, and its client waits for ever.
    let mut both = Both::new();
    assert_eq!(both.ours.ask(&[request(77), request(101)]), vec![status(8, "Operation unsupported"); 2]);
}

#[test]
fn a_thousand_requests_ahead_are_answered_in_order() {
    let mut both = Both::new();
    let mut requests = vec![open("d/big", FOR_READING), open("new", FOR_WRITING | CREATE | TRUNCATE)];
    for n in 0..500_u64 {
        requests.push(read(0, n * 400 % 200_000, 32_768));
        requests.push(write(1, n * 1000, vec![n as u8; 3000]));
    }
    requests.push(read(0, 0, 1 << 20));
    requests.push(write(1, 7, vec![1; 256 * 1024 - 100]));
    both.agree(&requests);
    let [ours, openssh] = [&both.ours, &both.openssh].map(|peer| std::fs::read(peer.root.join("new")).unwrap());
    assert!(ours == openssh, "the files that were written differ");
}
