//! Programs in sessions.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use super::*;

fn execs(host: &Host) -> Vec<Value> {
    host.audit().into_iter().filter(|event| event["event"] == "admin.exec").collect()
}

#[test]
fn a_program_runs_in_a_session_and_is_written_down() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    host.ssh("ada", "true").run().ok();
    let exec = |key: &str, request: Value| host.api("POST", &format!("/v1/sessions/{key}/exec"), Some(&request));
    let (status, said) = exec("ada", json!({"command": ["sh", "-c", "echo one; id -u; echo two >&2; exit 3"]}));
    let said = said.as_array().unwrap().clone();
    let of = |name: &str| -> Vec<Value> { said.iter().filter_map(|line| line.get(name).cloned()).collect() };
    assert_eq!((status, of("stdout"), of("stderr")), (200, vec![json!("one"), json!("1000")], vec![json!("two")]));
    let ended = &said.last().unwrap()["ended"];
    assert_eq!((&ended["exit_code"], &ended["signal"], &ended["complete"]), (&json!(3), &json!(null), &json!(true)));
    eventually("both lines are in the audit log", || execs(&host).len() == 2);
    let logged = execs(&host);
    assert_eq!((&logged[0]["outcome"], &logged[1]["outcome"]), (&json!("begun"), &json!("failure")));
    assert_eq!((&logged[1]["exit_code"], &logged[1]["user"]), (&json!(3), &json!("ada")));

    // What it leaves behind keeps nobody waiting.
    let left = exec("ada", json!({"command": ["sh", "-c", "sleep 86398 & echo begun"]})).1;
    assert_eq!((&left[0], &left[1]["ended"]["exit_code"]), (&json!({"stdout": "begun"}), &json!(0)), "{left}");
    let failed = last(exec("ada", json!({"command": ["/nonexistent"]})));
    assert!(failed["failed"]["error"].as_str().unwrap().contains("/nonexistent"), "{failed}");
    let (_, much) =
        exec("ada", json!({"command": ["sh", "-c", "yes 0123456789012345678901234567890 | head -c 20000000"]}));
    let ended = &much.as_array().unwrap().last().unwrap()["ended"];
    assert_eq!((&ended["exit_code"], &ended["complete"]), (&json!(0), &json!(false)));

    eventually("each has its end", || execs(&host).len() == 8);
    assert_refused(exec("bob", json!({"command": ["true"]})), 404, "there is no session of bob");
    assert_refused(exec("ada", json!({"command": []})), 400, "has no words");
    assert_refused(exec("ada", json!({"command": ["a\0b"]})), 400, "NUL");
    assert_refused(exec("ada", json!({"command": ["true"], "service": "db"})), 404, "has no service \"db\"");
    assert_eq!(exec("ada", json!({"command": ["true"], "servce": "db"})).0, 422);
    assert_eq!(execs(&host).len(), 8);
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("the session is gone", || host.sessions().is_empty());
    host.assert_no_session_left();
}

#[test]
fn a_client_that_goes_has_its_program_hung_up() {
    let host = Host::new().user("ada").config("session:\n  mode: grace-period").start();
    host.ssh("ada", "true").run().ok();
    let body = json!({"command": ["sh", "-c", "echo here; sleep 86399"]}).to_string();
    let mut client = UnixStream::connect(host.root.join("run/podspawn/podspawn.sock")).unwrap();
    let head = format!(
        "POST /v1/sessions/ada/exec HTTP/1.1\r\nHost: podspawn\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("{\"stdout\":\"here\"}") {
        let mut buffer = [0; 4096];
        let length = client.read(&mut buffer).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&buffer[..length]);
    }
    client.shutdown(Shutdown::Write).unwrap();
    eventually("it is written down that it has ended", || execs(&host).len() == 2);
    assert_eq!(execs(&host)[1]["outcome"], "unknown");
    let processes = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    eventually("the program is gone", || !host.ssh("ada", processes).run().ok().text().contains("sleep 86399\n"));
    host.podspawn(["stop", "ada"]).run().ok();
    eventually("the session is gone", || host.sessions().is_empty());
    host.assert_no_session_left();
}
