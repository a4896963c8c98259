//! Which algorithms are offered, judged by ssh-audit and by what the real ssh agrees on.

mod common;

use std::path::Path;

use common::{Host, Run};
use serde_json::Value;

/// What ssh-audit has against the host's algorithms: `[fail or warn] algorithm: complaint`.
fn complaints(host: &Host) -> Vec<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/python/bin/ssh-audit");
    assert!(program.exists(), "{} is not there; run scripts/test-deps", program.display());
    let output = Run::new(program).args(["--json", "--skip-rate-test"]).arg(format!("{}:2222", host.address)).run();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    let mut found: Vec<String> = Vec::new();
    for kind in ["kex", "key", "enc", "mac"] {
        let algorithms = report[kind].as_array().unwrap();
        assert!(!algorithms.is_empty(), "{report}");
        for algorithm in algorithms {
            for level in ["fail", "warn"] {
                let notes = algorithm["notes"][level].as_array().into_iter().flatten();
                let name = algorithm["algorithm"].as_str().unwrap();
                found.extend(notes.map(|note| format!("[{level}] {name}: {}", note.as_str().unwrap())));
            }
        }
    }
    assert_eq!(report["cves"], Value::Array(Vec::new()), "{report}");
    found
}

#[test]
fn ssh_audit_complains_only_of_the_key_exchange_of_clients_before_openssh_9_9() {
    let host = Host::new().no_image().start();
    let not_post_quantum = "does not provide protection against post-quantum attacks";
    assert_eq!(
        complaints(&host),
        ["curve25519-sha256", "curve25519-sha256@libssh.org"].map(|name| format!("[warn] {name}: {not_post_quantum}"))
    );
}

#[test]
fn ssh_audit_has_no_complaint_when_the_algorithms_are_post_quantum() {
    let host = Host::new().no_image().config("auth:\n  algorithms: post-quantum").start();
    assert_eq!(complaints(&host), [] as [String; 0]);
}

/// Lines of `ssh -vvv` about what was negotiated.
fn negotiated(host: &Host, options: &[&str]) -> String {
    let options = options.iter().flat_map(|option| ["-o", option]);
    let output = host.ssh("ada", "true").args(["-o", "LogLevel=DEBUG3"]).args(options).run();
    output.ok();
    output.stderr
}

#[test]
fn strict_key_exchange_and_signature_algorithms_are_agreed_on_and_no_compression() {
    let host = Host::new().user("ada").start();
    let said = negotiated(&host, &["Compression=yes"]);
    for expected in [
        "host key algorithms: ssh-ed25519\n",
        "will use strict KEX ordering",
        "compression: none",
        "server-sig-algs=<ssh-ed25519,sk-ssh-ed25519@openssh.com,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,\
         ecdsa-sha2-nistp521,sk-ecdsa-sha2-nistp256@openssh.com,rsa-sha2-512,rsa-sha2-256>",
    ] {
        assert!(said.replace('\r', "").contains(expected), "{expected}\n{said}");
    }
}

#[test]
fn each_algorithm_that_is_offered_carries_a_session() {
    let host = Host::new().user("ada").start();
    for cipher in [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes192-ctr",
        "aes256-ctr",
    ] {
        negotiated(&host, &[&format!("Ciphers={cipher}")]);
    }
    for mac in ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"] {
        negotiated(&host, &["Ciphers=aes128-ctr", &format!("MACs={mac}")]);
    }
    for weak in
        ["KexAlgorithms=diffie-hellman-group14-sha256", "Ciphers=aes256-cbc", "MACs=hmac-sha2-256,umac-64@openssh.com"]
    {
        let ssh = host.ssh("ada", "true").args(["-o", weak, "-o", "Ciphers=aes128-ctr", "-o", "LogLevel=INFO"]);
        ssh.run().status(255).stderr_has("no matching");
    }
}
