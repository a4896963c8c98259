//! Servers that hardly send anything, with shorter patience than the real one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use super::*;
use crate::{http::Timeouts, image::Limits};

const SIZE: u64 = 100_000;

fn settings(insecure: String) -> Settings {
    Settings {
        default_registry: "docker.io".to_owned(),
        mirrors: std::collections::BTreeMap::new(),
        insecure: vec![insecure],
        limits: Limits { max_bytes: 1 << 30, max_entries: 1000 },
        timeouts: Timeouts {
            stall: Duration::from_millis(200),
            back_off: Duration::from_millis(1),
            ..Timeouts::default()
        },
    }
}

/// Reads a blob from a server that sends it with `send`; the error, and how many connections there were.
fn read_from(send: fn(&mut TcpStream) -> std::io::Result<()>) -> (String, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    let reference = format!("{name}/x:1").parse::<crate::image::Reference>().unwrap();
    let crate::image::Reference::Registry(reference) = reference else { panic!("{reference}") };
    let connections = AtomicUsize::new(0);
    let finished = AtomicUsize::new(0);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            for stream in listener.incoming() {
                if finished.load(Ordering::Relaxed) > 0 {
                    return;
                }
                connections.fetch_add(1, Ordering::Relaxed);
                let mut stream = stream.unwrap();
                scope.spawn(move || {
                    let mut line = String::new();
                    let mut lines = BufReader::new(stream.try_clone().unwrap());
                    while lines.read_line(&mut line).is_ok_and(|length| length > 2) {
                        line.clear();
                    }
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n");
                    // Until the client has had enough.
                    stream.write_all(head.as_bytes()).and_then(|()| send(&mut stream)).unwrap_err();
                });
            }
        });
        let registry = Registry::open(&reference, &settings(name.clone())).unwrap();
        let blob = registry.blob(&Digest::of(b"x"), SIZE, 0).unwrap();
        let error = crate::errors::chain({ blob.stream }.read_to_end(&mut Vec::new()).unwrap_err());
        finished.store(1, Ordering::Relaxed);
        drop(TcpStream::connect(&name));
        server.join().unwrap();
        (error, connections.load(Ordering::Relaxed))
    })
}

#[test]
fn a_server_that_sends_nothing_is_given_up() {
    let wait_for_the_end = |stream: &mut TcpStream| match stream.read(&mut [0]) {
        Ok(0) => Err(std::io::ErrorKind::BrokenPipe.into()),
        other => other.map(drop),
    };
    let (error, connections) = read_from(wait_for_the_end);
    assert!(error.contains("timeout"), "{error}");
    assert_eq!(connections, host::ATTEMPTS as usize);
}

#[test]
fn a_server_that_hardly_sends_anything_is_given_up() {
    let drip = |stream: &mut TcpStream| loop {
        stream.write_all(b"x")?;
        thread::sleep(Duration::from_millis(20));
    };
    let (error, connections) = read_from(drip);
    assert!(error.contains("hardly sends anything"), "{error}");
    assert_eq!(connections, host::ATTEMPTS as usize);
}
