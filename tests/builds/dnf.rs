//! A real dnf, and a repository of its kind.

use std::{fs, path::Path};

use crate::{
    common::{Image, Internet, Run},
    packages::{debian, in_image},
    podfile, prebuild,
    shared::{kept, sum},
};

/// Makes a package with a program of its name, which says its version.
fn package(repository: &Path, name: &str, version: &str) {
    let work = tempfile::tempdir().unwrap();
    let spec = format!(
        "Name: {name}
Version: {version}
Release: 1.el9
Summary: {name}
License: MIT
BuildArch: noarch
AutoReqProv: no
%description
{name}
%install
mkdir -p %{{buildroot}}/usr/bin
printf '#!/bin/sh\\necho this is {name} {version}\\n' > %{{buildroot}}/usr/bin/{name}
chmod 755 %{{buildroot}}/usr/bin/{name}
%files
/usr/bin/{name}
"
    );
    let file = work.path().join("spec");
    fs::write(&file, spec).unwrap();
    let top = format!("_topdir {}", work.path().display());
    let to = format!("_rpmdir {}", repository.display());
    Run::new("rpmbuild").args(["-bb", "--define", &top, "--define", &to]).arg(file).run().ok();
}

#[test]
fn dnf_installs_the_version_that_is_wanted_and_shares_what_it_downloads() {
    let mut internet = Internet::start();
    let files = tempfile::tempdir().unwrap();
    let repository = files.path().join("repository");
    for (name, version) in
        [("hello", "1.0"), ("hello", "2.0"), ("nodejs", "20.9.0"), ("nodejs", "22.10.1"), ("nodejs-npm", "10.1.0")]
    {
        package(&repository, name, version);
    }
    Run::new("createrepo_c").arg("--quiet").arg(&repository).run().ok();
    let mirror = internet.serve_files(files.path());
    let mut host = debian();
    host.serve();
    // Debian has dnf, and would be asked for its own packages first.
    let text = format!(
        "base: {}
packages: [dnf]
extra_commands:
  - rm /usr/bin/apt-get; mkdir -p /etc/yum.repos.d
  - printf '[test]\\nname=test\\nbaseurl={mirror}/repository\\ngpgcheck=0\\n' > /etc/yum.repos.d/test.repo
",
        Image::Debian.reference()
    );
    prebuild(&host, &podfile(&host, "dnf", &text), &["--tag", "localhost/dnf:1"]).ok();
    let debs = kept(&host).len();
    let build = |packages: &str, more: &str, name: &str| {
        let text = format!("base: localhost/dnf:1\npackages: [{packages}]\n{more}");
        prebuild(&host, &podfile(&host, "packages", &text), &["--tag", name])
    };

    build("hello@1, nodejs@20", "", "localhost/made:1").ok().stderr_has("step 2/2: install nodejs@20");
    let seen = in_image(&host, "localhost/made:1", "hello; nodejs; nodejs-npm; find /var/cache/dnf | wc -l");
    seen.ok().stdout("this is hello 1.0\nthis is nodejs 20.9.0\nthis is nodejs-npm 10.1.0\n0\n");
    let noarch = repository.join("noarch");
    let sums: Vec<String> = kept(&host);
    assert_eq!(sums.len(), debs + 3);
    assert!(sums.contains(&sum(&noarch.join("hello-1.0-1.el9.noarch.rpm"))));

    build("hello@3", "", "localhost/no:1")
        .status(1)
        .stderr_has("no version 3 of hello; there are: 1.0-1.el9 2.0-1.el9");
    build("nosuchpackage", "", "localhost/no:1").status(1).stderr_has("nosuchpackage");

    // What was downloaded once is there; what was not is not.
    for rpm in fs::read_dir(&noarch).unwrap() {
        fs::remove_file(rpm.unwrap().path()).unwrap();
    }
    build("nodejs@20, hello@1.0", "", "localhost/made:2").ok().stderr_has("step 1/2: install nodejs@20");
    in_image(&host, "localhost/made:2", "hello; nodejs").ok().stdout("this is hello 1.0\nthis is nodejs 20.9.0\n");
    build("hello", "", "localhost/no:1").status(1).stderr_has("hello-2.0-1.el9.noarch.rpm");
    host.assert_no_session_left();
}
