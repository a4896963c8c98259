//! Pulling from registries: good ones, slow ones, broken ones and hostile ones.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod faults;
mod real;
mod room;
mod sharing;

use common::{
    Host, Output, Run,
    oci::{self, Archive, Form, Layer, Layout},
};

/// A host that speaks to these registries without TLS; `more` is more of the section on images.
fn host_of(insecure: &[&str], more: &str) -> Host {
    let config = format!("images:\n  insecure: {insecure:?}\n{more}");
    Host::new().no_image().config(&config).prepare()
}

/// Pulls without anything being said meanwhile.
fn pull(host: &Host, reference: &str) -> Output {
    quiet(host, reference).run()
}

fn quiet(host: &Host, reference: &str) -> Run {
    // Neither the login data nor the proxies of whoever runs the tests.
    let mut run = host.podspawn(["-q", "pull", reference]).env("REGISTRY_AUTH_FILE", "/nonexistent");
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        run.command.env_remove(name);
    }
    run
}

/// It failed with one line that has all of this in it.
#[track_caller]
fn assert_refused(output: &Output, parts: &[&str]) {
    output.status(1).stdout("");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    for part in parts {
        output.stderr_has(part);
    }
}

/// The files of an image, by name.
fn content(host: &Host, reference: &str) -> Vec<(String, Vec<u8>)> {
    let export = host.podspawn(["image", "export", reference, "-"]).run();
    let mut archive = tar::Archive::new(&export.ok().stdout[..]);
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
        if entry.header().entry_type().is_file() {
            found.push((entry.path().unwrap().display().to_string(), data));
        }
    }
    found
}

/// Nothing of a failed pull shows or is left.
fn assert_nothing_there(host: &Host) {
    host.podspawn(["image", "ls", "--json"]).run().ok().stdout("[]\n");
    assert_eq!(std::fs::read_dir(host.images().join("tmp")).unwrap().count(), 0);
}

/// A layout with an image of incompressible files, one layer each; they are called `f0`, `f1`, ...
fn noisy(directory: &std::path::Path, sizes: &[usize]) -> Layout {
    let layers: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(at, size)| Layer::gzip(Archive::new().file(&format!("f{at}"), oci::noise(at as u64, *size))))
        .collect();
    Layout::of(directory, &layers)
}
