use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

/// What came of a run: the bytes that it sent, and its status.
#[derive(Debug, PartialEq)]
struct Outcome {
    sent: String,
    status: i32,
}

fn ours(arguments: &[&OsStr], input: &[u8]) -> Outcome {
    let words: Vec<_> = arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
    let (options, paths) = Options::parse(&words).unwrap();
    let mut sent = Vec::new();
    let status = run(options, paths, input, &mut sent);
    Outcome { sent: sent.escape_ascii().to_string(), status: i32::from(status) }
}

fn openssh(arguments: &[&OsStr], input: &[u8]) -> Outcome {
    let mut child = Command::new("scp")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("scp of Debian's openssh-client");
    // Fails if it has given up before.
    if let Err(_ended) = child.stdin.take().unwrap().write_all(input) {}
    let output = child.wait_with_output().unwrap();
    Outcome { sent: output.stdout.escape_ascii().to_string(), status: output.status.code().unwrap() }
}

/// Everything below `root`: kind and mode, size or target, time if it is old, contents.
fn tree(root: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_encoded_bytes().escape_ascii().to_string();
            let time = Some(metadata.mtime()).filter(|time| *time < 1_700_000_000);
            let contents = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            entries.push(format!("{name} {:o} {time:?} {}", metadata.mode(), contents.escape_ascii()));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    entries.sort();
    entries
}

/// Runs both with the same input in directories of the same shape, which have to look alike afterwards.
#[track_caller]
fn agree(arguments: &[&str], input: &[u8]) -> Outcome {
    let [(ours, our_tree), (openssh, their_tree)] = [ours, openssh].map(|scp| {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("d/e")).unwrap();
        fs::write(at("f"), "contents\n").unwrap();
        fs::write(at("d/in"), "x".repeat(100)).unwrap();
        fs::set_permissions(at("f"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("f", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        let root = directory.path().to_str().unwrap();
        let arguments: Vec<_> = arguments.iter().map(|word| word.replace("ROOT", root)).collect();
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        let mut outcome = scp(&arguments, input);
        outcome.sent = outcome.sent.replace(root, "ROOT");
        (outcome, tree(directory.path()))
    });
    assert_eq!(ours, openssh, "ours first, {arguments:?}, {}", input.escape_ascii());
    assert_eq!(our_tree, their_tree, "ours first, {arguments:?}, {}", input.escape_ascii());
    ours
}

#[test]
fn files_are_sent_as_openssh_sends_them() {
    let all_is_well = [0; 100];
    for path in
        ["ROOT/f", "ROOT/link", "ROOT/dangling", "ROOT/d", "ROOT/d///", "ROOT/nothing", "ROOT/f/x", "/dev/null", ""]
    {
        agree(&["-f", path], &all_is_well);
        agree(&["-r", "-f", "--", path], &all_is_well);
    }
    let sent = agree(&["-f", "ROOT/f", "ROOT/nothing", "ROOT/f"], &all_is_well);
    let file = "C0751 9 f\\ncontents\\n\\x00";
    assert_eq!(sent.sent, format!("{file}\\x01scp: ROOT/nothing: No such file or directory\\n{file}"));
    assert_eq!(sent.status, 1);
}

#[test]
fn times_are_sent_before_what_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    fs::write(&file, "").unwrap();
    assert!(Command::new("touch").args(["-d", "@1000000000"]).arg(&file).status().unwrap().success());
    let arguments = [OsStr::new("-p"), OsStr::new("-f"), file.as_os_str()];
    let sent = ours(&arguments, &[0; 10]);
    assert_eq!(sent, openssh(&arguments, &[0; 10]));
    assert!(sent.sent.starts_with("T1000000000 0 1000000000 0\\nC0644 0 f\\n"), "{sent:?}");
}

#[test]
fn a_peer_that_does_not_want_a_file_does_not_get_it() {
    for answers in
        [&b""[..], b"\0", b"\x01no\n", b"\x02no\n", b"\0\x01no\n\0\0\0", b"\0\x02no\n", b"what\n", b"\0what\n\0\0"]
    {
        agree(&["-f", "ROOT/f", "ROOT/d/in"], answers);
    }
}

#[test]
fn names_with_newlines_are_sent_encoded() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(OsStr::from_bytes(b"a\nb \\\x01\x7f\xe9\x81"));
    fs::write(&file, "").unwrap();
    let arguments = [OsStr::new("-f"), file.as_os_str()];
    let sent = ours(&arguments, &[0; 10]);
    assert_eq!(sent, openssh(&arguments, &[0; 10]));
    assert!(sent.sent.starts_with("C0644 0 a\\\\^Jb "), "{sent:?}");
}

#[test]
fn files_are_received_as_openssh_receives_them() {
    for input in [
        &b""[..],
        b"C0644 5 new\nhello\0",
        b"C0600 5 f\nhello\0",
        b"C0444 0 new\n\0",
        b"C7777 1 new\nx\0",
        b"T1000000000 0 1100000000 0\nC0644 5 new\nhello\0",
        b"T99999999999999999999 0 0 0\nC0644 5 new\nhello\0",
        b"C0644 5 one\nhello\0C0644 3 two\nyou\0",
        b"C0644 5 new\nhello\x01went wrong\n",
        b"C0644 5 new\nhello\x02went wrong\n",
        b"C0644 5 new\nhello",
        b"C0644 5 new",
        b"C0644 0 d\n\0",
        b"C0644 5 link\nhello\0",
        b"C0644 5 dangling\nhello\0",
        b"C0644 5 ../up\nhello\0",
        b"C0644 5 d/x\nhello\0",
        b"C0644 5 ..\nhello\0",
        b"C0644 5 \nhello\0",
        b"C0644 99999999999999999999 x\n",
        b"D0755 0 new\nC0644 2 x\nhi\0E\n",
        b"D0555 0 new\nC0644 2 x\nhi\0D0700 0 below\nE\nE\nC0600 1 after\n!\0",
        b"D0711 0 d\nT1000000000 0 1000000000 0\nC0644 2 in\nhi\0E\n",
        b"D0755 0 f\nE\n",
        b"T1000000000 0 1000000000 0\nD0755 0 old\nE\n",
        b"D0755 0 new\n",
        b"D0755 0 ..\nE\n",
        b"\x01scp: not there\n",
        b"\x02fatal\n",
        b"E\n",
        b"\n",
        b"csh: No match.\n",
        b"C0644 0 new\n\0garbage\n",
        b"Cxxxx 0 new\n\0",
    ] {
        for arguments in [
            &["-t", "ROOT"][..],
            &["-t", "ROOT/f"],
            &["-t", "ROOT/new"],
            &["-t", "ROOT/nowhere/new"],
            &["-d", "-t", "ROOT/f"],
            &["-r", "-t", "ROOT"],
            &["-r", "-t", "ROOT/new"],
            &["-r", "-p", "-t", "ROOT"],
            &["-rptd", "ROOT/nothing"],
            &["-p", "-t", "ROOT/new"],
            &["-t", "ROOT", "ROOT/f"],
        ] {
            agree(arguments, input);
        }
    }
}

#[test]
fn a_peer_that_leaves_in_mid_file_is_told_why_it_failed() {
    // OpenSSH means to say this too, and says what errno has.
    let directory = tempfile::tempdir().unwrap();
    let sent = ours(&[OsStr::new("-t"), directory.path().as_os_str()], b"C0644 5 new\nhe");
    assert_eq!(sent, Outcome { sent: "\\x00\\x00\\x01scp: dropped connection\\n".to_owned(), status: 1 });
}

#[test]
fn a_full_disk_is_told_when_the_file_has_been_read() {
    let sent = agree(&["-t", "/dev/full"], b"C0644 5 new\nhello\0C0644 2 new\nhi\0");
    assert_eq!(sent.sent.matches("No space left on device").count(), 2, "{sent:?}");
}

#[test]
fn options_are_those_of_the_server_s_side() {
    let parse = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Options::parse(&words).map(|(options, paths)| (options, paths.to_vec()))
    };
    let (options, paths) = parse(&["-v", "-rp", "-d", "-q", "-t", "--", "-f"]).unwrap();
    assert!(options.verbose && options.recursive && options.preserve && options.into_directory);
    assert_eq!((options.direction, paths), (Direction::To, vec![b"-f".to_vec()]));
    assert_eq!(parse(&["-f", "-"]).unwrap().1, [b"-".to_vec()]);
    for words in [&["-r", "a"][..], &["a", "-t"], &["-t", "-S", "x"], &[]] {
        assert!(parse(words).is_none(), "{words:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_peer_sends_stays_in_its_directory(
        input in proptest::collection::vec(
            prop_oneof![
                Just(b"D0755 0 d\n".to_vec()), Just(b"D0700 0 ..\n".to_vec()), Just(b"E\n".to_vec()), Just(b"\0".to_vec()),
                Just(b"C0644 3 f\nabc\0".to_vec()), Just(b"C0644 3 ../f\nabc\0".to_vec()), Just(b"T1 0 1 0\n".to_vec()),
                Just(b"C0644 3 d\nabc\0".to_vec()), "[CDTE/.0-9 \n]{0,12}".prop_map(String::into_bytes),
            ],
            0..12,
        ),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        ours(&["-r", "-p", "-t", target.to_str().unwrap()].map(OsStr::new), &input.concat());
        prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
