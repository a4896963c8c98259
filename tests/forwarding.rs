//! Forwarding: targets and listeners are the container's, and behave as with a real sshd.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
};

use common::{DEADLINE, Host, Image, Master, Run, Sshd, eventually};

/// A server inside that answers with what it gets.
const ECHO: &str = "socat TCP-LISTEN:3000,fork,reuseaddr,backlog=64 EXEC:cat";
const LISTENS_3000: &str = "nc -z localhost 3000";

fn debian() -> Host {
    Host::new().image(Image::Debian).user("ada").start()
}

/// Starts something inside that goes on in the background, and waits for `ready`.
#[track_caller]
fn background(master: &Master<'_>, command: &str, ready: &str) {
    let script = format!("setsid {command} >/dev/null 2>&1 </dev/null & until {ready}; do sleep 0.05; done");
    master.ssh(&script).run().ok();
}

/// A server of the test's own on a socket file, for `-R`: answers each connection with its name and what it got.
fn outside(host: &Host, name: &'static str) -> String {
    let path = host.scratch().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        // Until the test's process ends.
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                // One who has gone does not hear it.
                let _ = stream.write_all(&[name.as_bytes(), b" got ", &got].concat());
            });
        }
    });
    path.to_str().unwrap().to_owned()
}

/// Waits for the socket file that ssh makes for `-L`, and connects to it.
#[track_caller]
fn connect(path: &Path) -> UnixStream {
    let mut stream = None;
    eventually("ssh listens", || {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    let stream: UnixStream = stream.unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn local(host: &Host, name: &str) -> PathBuf {
    host.scratch().join(name)
}

#[test]
fn a_local_forward_reaches_the_containers_loopback_and_names() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, "socat TCP6-LISTEN:3000,ipv6only=0,fork,reuseaddr EXEC:cat", LISTENS_3000);
    for target in ["localhost", "127.0.0.1", "::1", "ada", "LOCALHOST"] {
        let target = format!("[{target}]:3000");
        let output = host.ssh("ada", "").args(["-W", &target]).input("there and back\n").run();
        output.ok().stdout("there and back\n");
    }
    let path = local(&host, "l");
    let forward = format!("{}:localhost:3000", path.display());
    master.control(&["forward", "-L", &forward]).ok();
    let mut stream = connect(&path);
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn a_proxy_reaches_servers_inside_by_name() {
    let host = debian();
    let proxy = format!("{}:1080", host.address);
    let master = Master::start(&host, "ada", &["-D", &proxy]);
    let serve = "socat TCP-LISTEN:3000,fork,reuseaddr SYSTEM:'echo HTTP/1.0 200 OK; echo; cat /etc/hostname'";
    background(&master, serve, LISTENS_3000);
    let get = |url: &str| Run::new("curl").args(["-sS", "--socks5-hostname", &proxy, url]).run();
    get("http://ada:3000/").ok().stdout("ada\n");
    get("http://localhost:3000/").ok().stdout("ada\n");
    assert_ne!(get("http://localhost:3001/").status, Some(0));
}

#[test]
fn failures_are_told_at_once_in_the_words_of_sshd() {
    let host = debian();
    let sshd = Sshd::start(&host);
    // Nobody listens on port 1, there or here.
    for target in ["127.0.0.1:1", "localhost:1", "nosuch.invalid:80"] {
        let fails = |ssh: common::Ssh| {
            let output = ssh.args(["-o", "LogLevel=INFO", "-W", target]).run();
            (output.status, output.stderr)
        };
        assert_eq!(fails(host.ssh("ada", "")), fails(host.ssh("ada", "").at(sshd.address)), "{target}");
    }
    // sshd has the same reason for socket files, but no more words.
    for (target, text) in [
        ("/nosuch/socket", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/root/socket", "Permission denied"),
    ] {
        let theirs = dial_socket_file(&host, Some(sshd.address), target);
        assert_eq!(
            dial_socket_file(&host, None, target),
            theirs.replace("failed: open failed", &format!("failed: {text}"))
        );
    }
}

/// What the client says of a channel to a socket file that is not opened.
fn dial_socket_file(host: &Host, address: Option<std::net::Ipv4Addr>, target: &str) -> String {
    let master = Master::start_at(host, "ada", address, &["-o", "LogLevel=INFO"]);
    let path = local(host, "dial");
    master.control(&["forward", "-L", &format!("{}:{target}", path.display())]).ok();
    // No data, only the end.
    let ended = connect(&path).read(&mut [0; 1]);
    assert!(matches!(ended, Ok(0)), "{target}: {ended:?}");
    fs::remove_file(&path).unwrap();
    let said = master.end();
    said.split_once(": ").unwrap_or_default().1.to_owned() // without the number of the channel
}

/// A server that ends its own direction before the other one begins.
const SAYS_THEN_COUNTS: &str = "python3 -c '
import socket
c = socket.create_server((\"127.0.0.1\", 3001)).accept()[0]
c.sendall(b\"hello\\n\")
c.shutdown(socket.SHUT_WR)
count = 0
while True:
    data = c.recv(65536)
    if not data: break
    count += len(data)
print(count, file=open(\"/tmp/counted\", \"w\"))
'";

#[test]
fn each_direction_ends_by_itself() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, "socat -t 60 TCP-LISTEN:3000,fork,reuseaddr SYSTEM:'wc -c; cat /etc/hostname'", LISTENS_3000);
    let much = vec![b'x'; 3_000_000];
    host.ssh("ada", "").args(["-W", "localhost:3000"]).input(much.clone()).run().ok().stdout("3000000\nada\n");

    // The other end first: it has said all, and still listens.
    background(&master, SAYS_THEN_COUNTS, "ss -ltn | grep -q :3001");
    let path = local(&host, "l");
    master.control(&["forward", "-L", &format!("{}:localhost:3001", path.display())]).ok();
    let mut stream = connect(&path);
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello\n");
    stream.write_all(&much).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    master.ssh("until grep -q . /tmp/counted; do sleep 0.05; done; cat /tmp/counted").run().ok().stdout("3000000\n");
}

#[test]
fn what_was_sent_arrives_though_the_sender_has_closed() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    // Slow, so that most of it is still on its way when the channel closes.
    background(
        &master,
        "socat -t 60 TCP-LISTEN:3000,reuseaddr SYSTEM:'sleep 1; wc -c >/tmp/counted'",
        "ss -ltn | grep -q :3000",
    );
    let path = local(&host, "l");
    master.control(&["forward", "-L", &format!("{}:localhost:3000", path.display())]).ok();
    let mut stream = connect(&path);
    stream.write_all(&vec![b'x'; 8_000_000]).unwrap();
    drop(stream);
    master.ssh("until grep -q . /tmp/counted; do sleep 0.05; done; cat /tmp/counted").run().ok().stdout("8000000\n");
}

#[test]
fn a_remote_forward_listens_inside_on_a_free_port() {
    let host = debian();
    let server = outside(&host, "server");
    let master = Master::start(&host, "ada", &[]);
    let allocated = master.control(&["forward", "-R", &format!("0:{server}")]);
    let port = allocated.ok().text().trim().to_owned();
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{allocated}");
    for address in ["127.0.0.1", "::1", "localhost"] {
        let output = master.ssh(&format!("echo hi | nc -N {address} {port}")).run();
        output.ok().stdout("server got hi\n");
    }
    // Loopback only, and the container's.
    master.ssh(&format!("nc -z $(hostname -i | cut -d' ' -f1) {port}")).run().status(1);
    assert!(std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err(), "it listens on the host");

    let said = host.ssh("ada", "true").args(["-o", "LogLevel=INFO", "-R", &format!("0:{server}")]).run();
    said.ok().stderr_has("Allocated port ");
}

#[test]
fn remote_forwards_listen_where_they_are_told_to() {
    let host = debian();
    let server = outside(&host, "server");
    let master = Master::start(&host, "ada", &[]);
    // What is asked for, and on what it is then listened.
    let cases = [
        ("8001:", "127.0.0.1:8001 [::1]:8001"),
        ("localhost:8002:", "127.0.0.1:8002 [::1]:8002"),
        ("127.0.0.1:8003:", "127.0.0.1:8003"),
        ("[::1]:8004:", "[::1]:8004"),
        ("0.0.0.0:8005:", "0.0.0.0:8005"),
        ("*:8006:", "0.0.0.0:8006 [::]:8006"),
        (":8007:", "0.0.0.0:8007 [::]:8007"),
        // Ports below 1024 too, as every user may inside.
        ("127.0.0.2:80:", "127.0.0.2:80"),
    ];
    for (asked, listens) in cases {
        master.control(&["forward", "-R", &format!("{asked}{server}")]).ok();
        let port = listens.rsplit(':').next().unwrap();
        let show = format!("ss -Hltn 'sport = :{port}' | awk '{{print $4}}' | sort | xargs");
        master.ssh(&show).run().ok().stdout(&format!("{listens}\n"));
        master.control(&["cancel", "-R", &format!("{asked}{server}")]).ok();
        master.ssh(&show).run().ok().stdout("\n");
        // Free again at once.
        master.control(&["forward", "-R", &format!("{asked}{server}")]).ok();
    }
}

#[test]
fn a_listener_that_cannot_be_is_refused_as_by_sshd() {
    let host = debian();
    let sshd = Sshd::start(&host);
    let server = outside(&host, "server");
    let refused = |ssh: common::Ssh, forward: &str| {
        let output = ssh.args(["-o", "LogLevel=INFO", "-o", "ExitOnForwardFailure=yes", "-R"]).args([forward]).run();
        (output.status, output.stderr)
    };
    let _master = Master::start(&host, "ada", &["-R", &format!("127.0.0.1:8001:{server}")]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = taken.local_addr().unwrap().port();
    let ours = refused(host.ssh("ada", "true"), &format!("127.0.0.1:8001:{server}"));
    let theirs = refused(host.ssh("ada", "true").at(sshd.address), &format!("127.0.0.1:{number}:{server}"));
    assert_eq!(ours, (theirs.0, theirs.1.replace(&number.to_string(), "8001")));
    for bad in ["192.0.2.1:8002:", "nosuch.invalid:8002:"] {
        let forward = format!("{bad}{server}");
        let theirs = refused(host.ssh("ada", "true").at(sshd.address), &forward);
        assert_eq!(refused(host.ssh("ada", "true"), &forward), theirs, "{bad}");
    }
}

#[test]
fn socket_files_are_forwarded_both_ways() {
    let host = debian();
    let server = outside(&host, "server");
    let master = Master::start(&host, "ada", &[]);
    background(&master, "socat UNIX-LISTEN:/tmp/echo,fork EXEC:cat", "test -S /tmp/echo");
    let path = local(&host, "l");
    master.control(&["forward", "-L", &format!("{}:/tmp/echo", path.display())]).ok();
    let mut stream = connect(&path);
    stream.write_all(b"there and back").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "there and back");

    let forward = format!("/home/ada/r.sock:{server}");
    master.control(&["forward", "-R", &forward]).ok();
    master.ssh("stat -c '%F %a %U' r.sock").run().ok().stdout("socket 600 ada\n");
    master.ssh("echo hi | nc -NU r.sock").run().ok().stdout("server got hi\n");
    // What is there stays, as with sshd.
    master.ssh("echo mine >file").run().ok();
    assert_ne!(master.control(&["forward", "-R", &format!("/home/ada/file:{server}")]).status, Some(0));
    master.ssh("cat file").run().ok().stdout("mine\n");
    assert_ne!(master.control(&["forward", "-R", &format!("/etc/r.sock:{server}")]).status, Some(0));

    master.control(&["cancel", "-R", &forward]).ok();
    master.ssh("ls").run().ok().stdout("file\n");
    master.control(&["forward", "-R", &forward]).ok();
    master.ssh("echo again | nc -NU r.sock").run().ok().stdout("server got again\n");
}

#[test]
fn listeners_end_with_their_connection() {
    let host = debian();
    let server = outside(&host, "server");
    let other = Master::start(&host, "ada", &[]);
    let listeners = [&format!("8001:{server}"), &format!("/tmp/r.sock:{server}")];
    let killed = Master::start(&host, "ada", &["-A", "-R", listeners[0], "-R", listeners[1]]);
    other.ssh("ss -Hltn 'sport = :8001' | wc -l; ls /tmp").run().ok().stdout("2\nr.sock\n");
    killed.kill();
    let gone = "ss -Hltn 'sport = :8001' | wc -l; ls /tmp";
    eventually("the listeners are gone", || other.ssh(gone).run().text() == "0\n");
}

#[test]
fn a_slow_reader_holds_up_nobody_else() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, ECHO, LISTENS_3000);
    background(&master, "socat -u EXEC:yes TCP-LISTEN:3001,fork,reuseaddr", "ss -ltn | grep -q :3001");
    background(&master, "socat TCP-LISTEN:3002,fork,reuseaddr EXEC:'sleep 600'", "ss -ltn | grep -q :3002");
    let (echo, yes, sink) = (local(&host, "echo"), local(&host, "yes"), local(&host, "sink"));
    for (path, port) in [(&echo, 3000), (&yes, 3001), (&sink, 3002)] {
        master.control(&["forward", "-L", &format!("{}:localhost:{port}", path.display())]).ok();
    }
    // One that sends without end and is not read, one that is sent much and does not read.
    let mut unread = connect(&yes);
    unread.read_exact(&mut [0; 2]).unwrap();
    let mut stuffed = connect(&sink);
    stuffed.write_all(&vec![0; 20_000_000]).unwrap();

    let mut stream = connect(&echo);
    for round in 0..20 {
        let message = format!("round {round}");
        stream.write_all(message.as_bytes()).unwrap();
        let mut answer = vec![0; message.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, message.as_bytes());
    }
    master.ssh("echo still here").run().ok().stdout("still here\n");
}

/// Many clients in one thread: an echo server that starts no process for each.
const MANY: &str = "python3 -c '
import selectors, socket
s = selectors.DefaultSelector()
l = socket.create_server((\"127.0.0.1\", 3000), backlog=512)
s.register(l, 1)
while True:
    for key, _ in s.select():
        if key.fileobj is l:
            s.register(l.accept()[0], 1)
        else:
            data = key.fileobj.recv(65536)
            if data: key.fileobj.sendall(data)
            else: s.unregister(key.fileobj); key.fileobj.close()
'";

#[test]
fn five_hundred_connections_hold_at_once() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, MANY, LISTENS_3000);
    let path = local(&host, "l");
    master.control(&["forward", "-L", &format!("{}:localhost:3000", path.display())]).ok();
    let mut streams: Vec<UnixStream> = (0..500).map(|_| connect(&path)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        write!(stream, "{number:09}").unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("{number:09}").as_bytes());
    }
    master.ssh("ss -Htn state established 'sport = :3000' | wc -l").run().ok().stdout("500\n");
    drop(streams);
    eventually("they end", || master.ssh("ss -Htn state established 'sport = :3000' | wc -l").run().text() == "0\n");
}

#[test]
fn much_data_passes_intact_both_ways() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, ECHO, LISTENS_3000);
    let path = local(&host, "l");
    master.control(&["forward", "-L", &format!("{}:localhost:3000", path.display())]).ok();
    let stream = connect(&path);
    let block: Vec<u8> = (0..1_000_003_u32).map(|i| (i * 31 % 251) as u8).collect();
    const BLOCKS: usize = 100;
    let mut sender = stream.try_clone().unwrap();
    let sent = block.clone();
    let sending = thread::spawn(move || {
        for _ in 0..BLOCKS {
            sender.write_all(&sent).unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = stream;
    let mut got = vec![0; block.len()];
    for number in 0..BLOCKS {
        reader.read_exact(&mut got).unwrap();
        assert!(got == block, "block {number} differs");
    }
    assert_eq!(reader.read(&mut got).unwrap(), 0, "there is more");
    sending.join().unwrap();
}

/// A name server that knows web.example.test, and a server to find there.
const NAMES: &str = "python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"127.0.0.1\", 53))
while True:
    q, a = s.recvfrom(512)
    end = q.index(0, 12) + 5
    known = q[12:end - 4].lower() == b\"\\x03web\\x07example\\x04test\\x00\"
    is_a = q[end - 4:end - 2] == b\"\\x00\\x01\"
    n = known and is_a
    code = 0 if known else 3
    head = q[:2] + bytes([0x85, 0x80 | code, 0, 1, 0, n, 0, 0, 0, 0])
    answer = b\"\\xc0\\x0c\\x00\\x01\\x00\\x01\\x00\\x00\\x00\\x05\\x00\\x04\\x7f\\x00\\x00\\x01\" if n else b\"\"
    s.sendto(head + q[12:end] + answer, a)
'";

#[test]
fn names_are_looked_up_with_the_containers_own_name_servers() {
    let host = debian();
    let master = Master::start(&host, "ada", &[]);
    background(&master, ECHO, LISTENS_3000);
    background(&master, NAMES, "ss -lun | grep -q :53");
    master.ssh("printf 'nameserver 127.0.0.1\nsearch example.test\n' | sudo tee /etc/resolv.conf").run().ok();
    for name in ["web.example.test", "WEB.example.test.", "web"] {
        let target = format!("{name}:3000");
        host.ssh("ada", "").args(["-W", &target]).input("found\n").run().ok().stdout("found\n");
    }
    let unknown = host.ssh("ada", "").args(["-o", "LogLevel=INFO", "-W", "other.example.test:3000"]).run();
    unknown.stderr_has("open failed: connect failed: Name or service not known");
    // The file of names comes first.
    master.ssh("echo 127.0.0.1 other.example.test | sudo tee -a /etc/hosts").run().ok();
    host.ssh("ada", "").args(["-W", "other.example.test:3000"]).input("found\n").run().ok().stdout("found\n");
}

#[test]
fn forwarding_needs_nothing_in_the_image() {
    let host = Host::new().user("ada").start();
    let server = outside(&host, "server");
    let master = Master::start(&host, "ada", &["-R", &format!("8001:{server}"), "-R", &format!("/tmp/r:{server}")]);
    background(&master, "nc -ll -p 3000 -e cat", "netstat -lnt | grep -q :3000");
    host.ssh("ada", "").args(["-W", "ada:3000"]).input("there and back\n").run().ok().stdout("there and back\n");
    master.ssh("echo hi | nc -w 5 localhost 8001").run().ok().stdout("server got hi\n");
    master.ssh("test -S /tmp/r && netstat -lnt | grep -c :8001").run().ok().stdout("2\n");
}

#[test]
fn keys_that_may_not_forward_cannot() {
    let host = debian();
    let server = outside(&host, "server");
    let keys = host.root.join("etc/podspawn/keys/ada");
    let key = fs::read_to_string(&keys).unwrap();
    let with_options = |options: &str| fs::write(&keys, format!("{options} {key}")).unwrap();
    let open = |target: &str| host.ssh("ada", "").args(["-o", "LogLevel=INFO", "-W", target]).run();
    let listen = |forward: &str| {
        let forward = format!("{forward}:{server}");
        host.ssh("ada", "true").args(["-o", "ExitOnForwardFailure=yes", "-R", &forward]).run().status
    };
    const PROHIBITED: &str = "open failed: administratively prohibited: open failed";

    with_options("no-port-forwarding");
    open("127.0.0.1:1").stderr_has(PROHIBITED);
    assert!(dial_socket_file(&host, None, "/tmp/socket").contains(PROHIBITED));
    assert_eq!(listen("8001"), Some(255));
    assert_eq!(listen("/tmp/socket"), Some(255));

    with_options("permitopen=\"127.0.0.1:1\",permitlisten=\"localhost:8001\"");
    open("127.0.0.1:1").stderr_has("open failed: connect failed: Connection refused");
    open("127.0.0.1:2").stderr_has(PROHIBITED);
    open("localhost:1").stderr_has(PROHIBITED);
    assert!(dial_socket_file(&host, None, "/tmp/socket").contains(PROHIBITED));
    assert_eq!(listen("8001"), Some(0));
    assert_eq!(listen("8002"), Some(255));
    assert_eq!(listen("*:8001"), Some(255));
}

#[test]
fn forwards_are_in_the_audit_log() {
    let host = debian();
    let server = outside(&host, "server");
    {
        let master = Master::start(&host, "ada", &["-R", &format!("8001:{server}"), "-R", &format!("/tmp/r:{server}")]);
        background(&master, ECHO, LISTENS_3000);
        host.ssh("ada", "").args(["-W", "localhost:3000"]).input("x").run().ok();
        host.ssh("ada", "").args(["-W", "localhost:1"]).run().status(255);
    }
    let forwards = || {
        let of_kind = |event: &serde_json::Value| event["event"] == "forward.open";
        let shown = |event: serde_json::Value| format!("{} {} {}", event["user"], event["kind"], event["target"]);
        let mut shown: Vec<_> = host.audit().into_iter().filter(of_kind).map(shown).collect();
        shown.sort();
        shown
    };
    let expected = [
        r#""ada" "direct-tcpip" "localhost:3000""#,
        r#""ada" "streamlocal-forward" "/tmp/r""#,
        r#""ada" "tcpip-forward" "localhost:8001""#,
    ];
    eventually("all are logged", || forwards().len() >= expected.len());
    assert_eq!(forwards(), expected);
}
