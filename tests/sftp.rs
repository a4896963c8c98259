//! Files over SFTP with the real clients, in an image that has nothing for it.

mod common;

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{Host, Output, Run, Sshd, eventually, ssh, tree, write_old};

/// For transfers of what takes a while on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// `sftp -b - ada@ADDRESS` with a batch of commands, in the directory `local`.
fn sftp(host: &Host, address: std::net::Ipv4Addr, local: &Path, batch: &str) -> Output {
    let mut run = Run::new("sftp").args(["-F", "none", "-b", "-", "-i"]).arg(host.key("ada"));
    for option in ssh::options(host) {
        run = run.args(["-o", &option]);
    }
    run.command.current_dir(local).env_remove("SSH_AUTH_SOCK");
    run.arg(format!("ada@{address}")).input(batch).deadline(PATIENCE).run()
}

fn sha256(path: &Path) -> String {
    let output = Run::new("sha256sum").arg(path).deadline(PATIENCE).run();
    output.ok().text().split(' ').next().unwrap().to_owned()
}

#[test]
fn a_batch_of_everything_reads_as_from_sshd() {
    const BATCH: &str = "
        pwd
        put -p file
        ls -l file
        ls -ln file
        put -p file \"name with spaces\"
        mkdir dir
        chmod 750 dir
        put -p file dir/inner
        ls -1 dir
        rename file dir/renamed
        -rename dir/renamed dir
        -rename -l dir/renamed dir/inner
        copy dir/renamed dir/copied
        ls -l dir/renamed
        chmod 4711 dir/renamed
        ls -l dir/renamed
        ln dir/renamed hard
        ln -s dir/renamed soft
        ls -1a
        ls -l hard
        cd dir
        lpwd
        get -p renamed fetched
        -get nothing
        -put file /etc/not-mine
        -mkdir /dir
        -mkdir inner
        -rmdir inner
        -rm nothing
        -cd inner
        -ls nothing
        -chmod 600 /etc/passwd
        -chown 0 inner
        -ln -s x inner
        cd ..
        pwd
        rm dir/*
        rm hard soft \"name with spaces\"
        rmdir dir
        ls -1
        version
    ";
    let host = Host::new().user("ada").start();
    let sshd = Sshd::start(&host);
    let [ours, theirs] = [host.address, sshd.address].map(|address| {
        let local = tempfile::tempdir().unwrap();
        fs::set_permissions(local.path(), fs::Permissions::from_mode(0o755)).unwrap();
        write_old(&local.path().join("file"), "some text\n");
        // sshd's ada has the files of Debian's /etc/skel in her home, none of which match `*`.
        let batch = BATCH.replace("ls -1a", "ls -1");
        let output = sftp(&host, address, local.path(), &batch);
        let text = format!("{output}").replace(&address.to_string(), "ADDRESS");
        let transcript = text.replace(local.path().to_str().unwrap(), "LOCAL");
        (output.status, transcript, tree(local.path()))
    });
    assert!(ours == theirs, "podspawn: {}{:#?}\n\nsshd: {}{:#?}", ours.1, ours.2, theirs.1, theirs.2);
    assert_eq!(ours.0, Some(0), "{}", ours.1);
    assert!(ours.1.contains("-rw-r--r--    ? ada      ada            10 Feb 13  2009 file"), "{}", ours.1);
}

#[test]
fn a_large_file_arrives_whole_in_both_directions() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let file = local.path().join("large");
    Run::new("sh").args(["-c", "head -c 536870912 /dev/urandom >$0"]).arg(&file).deadline(PATIENCE).run().ok();
    let transfer = "put large\nget large back\ndf -h\n";
    let output = sftp(&host, host.address, local.path(), transfer);
    output.ok().stdout_has("%");
    assert!(sha256(&file) == sha256(&local.path().join("back")), "the file that came back is another one");
}

#[test]
fn two_thousand_small_files_arrive_whole_in_both_directions() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let sent = local.path().join("sent");
    for n in 0..2000 {
        let directory = sent.join(format!("{}", n % 20));
        fs::create_dir_all(&directory).unwrap();
        write_old(&directory.join(format!("file {n}")), format!("{n}\n").repeat(n % 300));
    }
    fs::create_dir(local.path().join("back")).unwrap();
    let output = sftp(&host, host.address, local.path(), "put -rp sent\nget -rp sent back\nls -1 sent/7\n");
    output.ok();
    assert_eq!(output.text().lines().filter(|line| line.starts_with("sent/7/file ")).count(), 100, "{output}");
    assert!(tree(&sent) == tree(&local.path().join("back/sent")), "the files that came back are other ones");
}

#[test]
fn names_are_bytes() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let sent = local.path().join("sent");
    fs::create_dir(&sent).unwrap();
    for name in [
        &b"a b"[..],
        b" ",
        b"new\nline",
        b"latin \xe9\xff",
        "ünï".as_bytes(),
        b"-rf",
        b"*",
        b"\\",
        b"'\"",
        &[b'x'; 255],
    ] {
        write_old(&sent.join(OsStr::from_bytes(name)), name);
    }
    fs::create_dir(local.path().join("back")).unwrap();
    sftp(&host, host.address, local.path(), "put -rp sent\nget -rp sent back\n").ok();
    assert_eq!(tree(&sent), tree(&local.path().join("back/sent")));
}

#[test]
fn broken_transfers_are_resumed() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let whole: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
    fs::write(local.path().join("file"), &whole[..1_000_000]).unwrap();
    sftp(&host, host.address, local.path(), "put file\n").ok();
    // In the same session's files only as long as it lives: the rest in one connection.
    fs::write(local.path().join("half"), &whole[..1_234_567]).unwrap();
    fs::write(local.path().join("whole"), &whole).unwrap();
    let batch = "put half file\nreput whole file\nls -l file\nlcd back\nget file\n!truncate -s 7000 file\nreget file\n";
    fs::create_dir(local.path().join("back")).unwrap();
    let output = sftp(&host, host.address, local.path(), batch);
    output.ok().stdout_has(" 3000000 ");
    assert!(fs::read(local.path().join("back/file")).unwrap() == whole, "{output}");
}

#[test]
fn an_image_without_any_program_has_sftp_and_scp() {
    let mut host = Host::new().no_image().config("defaults:\n  image: localhost/empty:test\n").user("ada").prepare();
    let local = tempfile::tempdir().unwrap();
    let tree = local.path().join("image");
    fs::create_dir_all(tree.join("etc")).unwrap();
    let tar = local.path().join("image.tar");
    Run::new("tar").args(["--owner=0", "--group=0", "-C"]).arg(&tree).arg("-cf").arg(&tar).arg(".").run().ok();
    host.podspawn(["-q", "image", "import"]).arg(&tar).arg("localhost/empty:test").run().ok();
    host.serve();
    host.ssh("ada", "true").run().status(127);

    write_old(&local.path().join("file"), "contents");
    sftp(&host, host.address, local.path(), "put file\nget file back\nls -l file\n").ok().stdout_has(" ada ");
    assert_eq!(fs::read(local.path().join("back")).unwrap(), b"contents");
    let sent = host.ssh("ada", "scp -t 'a name'; true").input("C0644 2 x\nhi\0").run();
    sent.status(127);
    let sent = host.ssh("ada", "scp -t 'a name'").input("C0644 2 x\nhi\0").run();
    sent.ok().stdout("\0\0\0");
}

#[test]
fn a_server_that_is_asked_for_by_its_path_is_ours() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    write_old(&local.path().join("file"), "contents");
    for server in ["/usr/lib/openssh/sftp-server", "internal-sftp"] {
        let greeting = host.ssh("ada", server).input(&b"\0\0\0\x05\x01\0\0\0\x03"[..]).run();
        assert!(greeting.ok().stdout.starts_with(b"\0\0"), "{greeting}");
        greeting.stdout_has("posix-rename@openssh.com");
    }
}

#[test]
fn relative_paths_start_where_commands_do() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let pwd = host.ssh("ada", "pwd").run().ok().text();
    sftp(&host, host.address, local.path(), "pwd\n").ok().stdout_has(&format!("Remote working directory: {pwd}"));
}

#[test]
fn a_client_that_is_killed_in_mid_transfer_leaves_no_server() {
    let host = Host::new().user("ada").start();
    let local = tempfile::tempdir().unwrap();
    let mut held = host.ssh("ada", "truncate -s 100G large; echo ready; cat").spawn();
    BufReader::new(held.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let processes = || host.ssh("ada", "ls -d /proc/[0-9]* | wc -l").run().ok().text();
    let before = processes();

    let mut command = Command::new("sftp");
    command.args(["-F", "none", "-b", "-", "-i"]).arg(host.key("ada"));
    for option in ssh::options(&host) {
        command.args(["-o", &option]);
    }
    command.arg(format!("ada@{}", host.address)).current_dir(local.path()).stdin(Stdio::piped());
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    client.stdin.as_mut().unwrap().write_all(b"get large\n").unwrap();
    let copy = local.path().join("large");
    eventually("data arrives", || fs::metadata(&copy).is_ok_and(|file| file.len() > 1 << 20));
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("the server has ended", || processes() == before);

    drop(held.stdin.take());
    held.wait().unwrap();
}

#[test]
fn a_mounted_session_is_a_file_system() {
    let host = Host::new().user("ada").start();
    let mount = Sshfs::mount(&host);
    let at = |name: &str| mount.directory.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "one\n").unwrap();
    let mut file = fs::File::options().append(true).open(at("dir/file")).unwrap();
    file.write_all(b"two\n").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(at("dir/file")).unwrap(), "one\ntwo\n");
    fs::write(at("other"), "x".repeat(1_000_000)).unwrap();
    fs::rename(at("other"), at("dir/file")).unwrap();
    assert_eq!(fs::metadata(at("dir/file")).unwrap().len(), 1_000_000);
    fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("file", at("dir/link")).unwrap();
    fs::hard_link(at("dir/file"), at("hard")).unwrap();
    assert_eq!(fs::read_link(at("dir/link")).unwrap(), Path::new("file"));
    fs::File::options().write(true).open(at("hard")).unwrap().set_len(5).unwrap();
    let inside = host.ssh("ada", "cd dir; cat link; stat -c ' %a %h %U' file").run();
    inside.ok().stdout("xxxxx 640 2 ada\n");
    let statistics = nix::sys::statvfs::statvfs(mount.directory.path()).unwrap();
    assert!(statistics.blocks() > 0);
    fs::remove_dir_all(at("dir")).unwrap();
    assert_eq!(
        fs::read_dir(mount.directory.path())
            .unwrap()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect::<Vec<_>>(),
        ["hard"]
    );
}

/// A mount of ada's home.
struct Sshfs {
    directory: tempfile::TempDir,
}

impl Sshfs {
    fn mount(host: &Host) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "sshfs needs /dev/fuse");
        let directory = tempfile::tempdir().unwrap();
        let mut run = Run::new("sshfs").args(["-F", "/dev/null", "-o"]);
        run = run.arg(format!("IdentityFile={}", host.key("ada").display()));
        for option in ssh::options(host) {
            run = run.args(["-o", &option]);
        }
        // It puts itself into the background when it is mounted.
        run.arg(format!("ada@{}:", host.address)).arg(directory.path()).run().ok();
        Self { directory }
    }
}

impl Drop for Sshfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "cannot unmount");
    }
}
