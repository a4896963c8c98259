//! What may come before SSH, and what only looks like it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use crate::common::{DEADLINE, Host, eventually};

const SSH: &[u8] = b"SSH-2.0-test\r\n";

/// A connection whose server has said who it is.
fn greeted(host: &Host) -> TcpStream {
    let mut stream = TcpStream::connect((host.address, Host::PORT)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    assert!(line.starts_with(b"SSH-2.0-podspawn_") && line.ends_with(b"\r\n"), "{}", line.escape_ascii());
    stream
}

/// Whether the server goes on to key exchange; if not, it has closed the connection without a word.
fn goes_on(mut stream: TcpStream) -> bool {
    let mut packet = [0; 6];
    let mut got = 0;
    while got < packet.len() {
        match stream.read(&mut packet[got..]) {
            Ok(0) => break,
            Ok(some) => got += some,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
    // Length, padding, and SSH_MSG_KEXINIT.
    assert!(got == 0 || packet[5] == 20, "{packet:?}");
    got > 0
}

#[test]
fn an_announcement_is_taken_out_of_the_stream_however_it_arrives() {
    let host = Host::new().user("ada").start();
    let line = [b"PODSPAWN/1 project=web\r\n", SSH].concat();
    for size in [1, 7, line.len()] {
        let mut stream = greeted(&host);
        stream.set_nodelay(true).unwrap();
        for piece in line.chunks(size) {
            stream.write_all(piece).unwrap();
        }
        assert!(goes_on(stream), "in pieces of {size}");
    }
    // Without waiting for the server's word.
    let mut stream = TcpStream::connect((host.address, Host::PORT)).unwrap();
    stream.write_all(&line).unwrap();
    drop(stream);
}

#[test]
fn whatever_only_looks_like_an_announcement_ends_the_connection() {
    let host = Host::new().user("ada").start();
    let too_long = format!("PODSPAWN/1 project={}\r\n", "a".repeat(33));
    for bad in [
        "PODSPAWN/1 project=\r\n",
        "PODSPAWN/1 project=web\n",
        "PODSPAWN/1 project=Web\r\n",
        "PODSPAWN/1 project=../../etc\r\n",
        "PODSPAWN/1 project=web\0\r\n",
        "PODSPAWN/1 project=web user=root\r\n",
        "PODSPAWN/2 project=web\r\n",
        "PODSPAWN/1 project=web\r\nPODSPAWN/1 project=api\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "GET / HTTP/1.1\r\n",
        &too_long,
    ] {
        let mut stream = greeted(&host);
        stream.write_all(&[bad.as_bytes(), SSH].concat()).unwrap();
        assert!(!goes_on(stream), "{bad:?}");
    }
    assert!(host.sessions().is_empty());
    eventually("their processes have ended", || host.processes("connection").len() == 4);
    host.ssh("ada", "echo well").run().ok().stdout("well\n");
}

#[test]
fn an_announcement_without_an_end_is_given_up_at_its_bound_and_one_that_stops_when_the_login_time_is_up() {
    let host = Host::new().user("ada").config("auth:\n  login_grace_time: 1s").start();
    let mut endless = greeted(&host);
    // Until the server has had enough; far before that of what the sockets' buffers hold.
    let flood = [b'P'; 4096];
    let start = Instant::now();
    while endless.write_all(&flood).is_ok() {
        assert!(start.elapsed() < DEADLINE, "the server takes everything");
    }
    let mut stops = greeted(&host);
    stops.write_all(b"PODSPAWN/1 project=").unwrap();
    assert!(!goes_on(stops));
    let mut half = greeted(&host);
    half.write_all(b"PODSPAWN/1 proj").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert!(!goes_on(half));
    eventually("their processes have ended", || host.processes("connection").len() == 4);
    host.ssh("ada", "echo well").deadline(Duration::from_secs(60)).run().ok().stdout("well\n");
}
