//! Packages by what an image has for them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use crate::{
    BUSYBOX,
    common::{Host, Image, Output, Run},
    podfile, prebuild,
};

/// A host with Debian's image in a store of its own, where others do not find what is built.
pub fn debian() -> Host {
    // The host's package mirror may have a private address.
    let host = Host::new().user("ada").image(Image::Debian).config("network:\n  egress: open").prepare();
    host.own_images();
    host
}

/// Runs a command in a new session of the image that was built last.
pub fn in_image(host: &Host, name: &str, command: &str) -> Output {
    let config = fs::read_to_string(host.config_file()).unwrap();
    let image = config.lines().find(|line| line.trim_start().starts_with("image:")).unwrap();
    let changed = config.replace(image, &format!("  image: {name}"));
    fs::write(host.config_file(), changed).unwrap();
    host.ssh("ada", command).run()
}

#[test]
fn packages_come_from_the_image_s_own_package_manager() {
    let mut host = debian();
    host.serve();
    let base = Image::Debian.reference();
    let text = format!("base: {base}\npackages: [tree, libcap2-bin]\nextra_commands:\n");
    let text = text + "  - setcap cap_net_bind_service+ep /usr/bin/tree\n  - apt-get remove -y libcap2-bin\n";
    let file = podfile(&host, "packages", &text);
    let output = prebuild(&host, &file, &["--tag", "localhost/made:1"]);
    output.ok().stderr_has("getting the package lists").stderr_has("step 1/4: install tree");
    assert_eq!(output.stderr.matches("package lists").count(), 1, "once for all packages: {output}");
    // Nothing of it is done again, but for what is new.
    let more = podfile(&host, "more", &text.replace("libcap2-bin]", "jq@1.6, libcap2-bin]"));
    let output = prebuild(&host, &more, &[]);
    output.ok().stderr_has("step 2/5: install jq@1.6");
    assert!(!output.stderr.contains("install tree") && !output.stderr.contains("package lists"), "{output}");

    let command =
        "tree --version >&2 && command -v setcap; getcap /usr/bin/tree; ls /var/lib/apt/lists /var/cache/apt/archives";
    let seen = in_image(&host, "localhost/made:1", command);
    let text = seen.text();
    assert!(!text.contains("setcap") && !text.contains("tree_"), "{text}");
    let capability = "python3 -c 'import os; print(os.getxattr(\"/usr/bin/tree\", \"security.capability\").hex())'";
    let seen = host.ssh("ada", capability).run();
    // Revision 2 in a layer; a container's root sees it as its own.
    seen.ok().stdout_has("000400000000000000000000000000");
    let layers = host.images().join("layers");
    let debs = Run::new("find").arg(&layers).args(["-name", "*.deb", "-newer"]).arg(host.config_file()).run();
    assert_eq!(debs.text(), "");

    for (package, why) in
        [("nosuchpackage", "Unable to locate package"), ("jq@99", "there is no version 99 of jq; there are: 1.6")]
    {
        let bad = podfile(&host, "bad", &format!("base: {base}\npackages: [tree, {package}]\n"));
        let output = prebuild(&host, &bad, &[]);
        output.status(1).stderr_has(&format!("step 2/2: install {package}")).stderr_has(why);
    }
    host.assert_no_session_left();
}

#[test]
fn an_image_without_a_package_manager_says_so() {
    let host = Host::new().start();
    let file = podfile(&host, "none", &format!("base: {BUSYBOX}\npackages: [jq]\n"));
    prebuild(&host, &file, &[]).status(1).stderr_has("the image has none of the known package managers");
}

/// What the script for packages would do in an image that has this package manager, and its exit status.
fn with_manager(manager: &str, answers: &str, package: [&str; 2]) -> (String, i32) {
    const SCRIPT: &str = include_str!("../../src/session/build/package.sh");
    let path = tempfile::tempdir().unwrap();
    for applet in ["grep", "ln", "sort", "tar", "tr"] {
        symlink("/bin/busybox", path.path().join(applet)).unwrap();
    }
    let fake = path.path().join(manager);
    fs::write(&fake, format!("#!/bin/sh\ncase \"$*\" in\n{answers}\n*) echo \"{manager} $*\" ;;\nesac\n")).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let run = Run::new("/bin/busybox").args(["sh", "-c", SCRIPT, "podspawn", "install"]).args(package);
    let output = run.env("PATH", path.path()).run();
    (output.text(), output.status.unwrap())
}

#[test]
fn apk_and_dnf_are_asked_for_the_version_that_is_wanted() {
    let apk = "'list --available nodejs') echo 'nodejs-22.11.0-r0 x86_64 {nodejs} (MIT)'; echo 'nodejs-current-23.2.0-r1 x86_64' ;;\n\
               'list --available jq') echo 'jq-1.7.1-r0 x86_64 {jq} (MIT)' ;;";
    let dnf = "'-q repoquery --queryformat %{version}-%{release}\n nodejs') printf '22.4.1-1.el9\\n22.10.2-1.el9\\n' ;;\n\
               '-q repoquery --queryformat %{version}-%{release}\n jq') echo 1.6-16.el9 ;;";
    let options = "-y --setopt=install_weak_deps=False --setopt=tsflags=nodocs --setopt=keepcache=True";
    let table = [
        ("apk", apk, ["jq", ""], "apk add jq\n".to_owned(), 0),
        ("apk", apk, ["jq", "1.7"], "apk add jq=1.7.1-r0\n".to_owned(), 0),
        ("apk", apk, ["jq", "1"], "apk add jq=1.7.1-r0\n".to_owned(), 0),
        ("apk", apk, ["jq", "1.6"], String::new(), 1),
        ("apk", apk, ["nodejs", ""], "apk add nodejs npm\n".to_owned(), 0),
        ("apk", apk, ["nodejs", "22"], "apk add nodejs=22.11.0-r0 npm\n".to_owned(), 0),
        ("apk", apk, ["nodejs", "2"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("apk", apk, ["go", "1.24"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("dnf", dnf, ["jq", ""], format!("dnf install {options} jq\n"), 0),
        ("dnf", dnf, ["jq", "1.6"], format!("dnf install {options} jq-1.6-16.el9\n"), 0),
        ("dnf", dnf, ["jq", "1.5"], String::new(), 1),
        ("dnf", dnf, ["nodejs", "22"], format!("dnf install {options} nodejs-22.10.2-1.el9 nodejs-npm\n"), 0),
        ("dnf", dnf, ["nodejs", "20"], "podspawn: elsewhere gnu\n".to_owned(), 64),
        ("dnf", dnf, ["python", ""], format!("dnf install {options} python3\n"), 0),
    ];
    for (manager, answers, package, expected, status) in table {
        assert_eq!(with_manager(manager, answers, package), (expected, status), "{manager} {package:?}");
    }
}
