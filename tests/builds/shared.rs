//! Packages that a build has downloaded are there for others, and nothing else that it has written.

use std::{fs, path::Path};

use crate::{
    BUSYBOX,
    common::{Host, Image, Internet, Run},
    packages::{debian, in_image},
    podfile, prebuild,
};

/// A repository of apt's with packages that have a program of their name, in the directory `to`. Returns the archives.
fn repository(to: &Path, names: &[&str]) -> Vec<fs::DirEntry> {
    let work = tempfile::tempdir().unwrap();
    let mut index = String::new();
    for name in names {
        let tree = work.path().join(name);
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@localhost>\nDescription: {name}\n"
        );
        fs::write(tree.join("DEBIAN/control"), &control).unwrap();
        let program = tree.join("usr/bin").join(name);
        fs::write(&program, format!("#!/bin/sh\necho this is {name}\n")).unwrap();
        Run::new("chmod").arg("755").arg(&program).run().ok();
        let file = format!("{name}_2.0-1_all.deb");
        let archive = to.join(&file);
        Run::new("dpkg-deb").args(["--build", "--root-owner-group"]).arg(&tree).arg(&archive).run().ok();
        let (size, sum) = (fs::metadata(&archive).unwrap().len(), sum(&archive));
        index.push_str(&format!("{control}Filename: ./{file}\nSize: {size}\nSHA256: {sum}\n\n"));
    }
    fs::write(to.join("Packages"), index).unwrap();
    archives(to)
}

fn archives(directory: &Path) -> Vec<fs::DirEntry> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "deb")).collect()
}

pub fn sum(file: &Path) -> String {
    Run::new("sha256sum").arg(file).run().ok().text().split(' ').next().unwrap().to_owned()
}

/// The checksums of what is kept of packages, as they say and as they are.
pub fn kept(host: &Host) -> Vec<String> {
    let listed = host.json(["image", "cache"]);
    let said =
        listed.as_array().unwrap().iter().map(|file| file["digest"].as_str().unwrap()["sha256:".len()..].to_owned());
    let mut said: Vec<String> = said.collect();
    let directory = host.root.join("var/lib/podspawn/cache/packages");
    let found = fs::read_dir(directory).into_iter().flatten().map(|entry| sum(&entry.unwrap().path()));
    let mut found: Vec<String> = found.collect();
    said.sort();
    found.sort();
    assert_eq!(said, found);
    found
}

#[test]
fn what_one_build_has_downloaded_no_other_downloads_again() {
    let mut internet = Internet::start();
    let files = tempfile::tempdir().unwrap();
    let mut sums: Vec<String> = repository(files.path(), &["one", "two"]).iter().map(|deb| sum(&deb.path())).collect();
    sums.sort();
    let mirror = internet.serve_files(files.path());
    let mut host = debian();
    host.serve();
    let base = |number: u32| {
        let sources =
            format!("rm -rf /etc/apt/sources.list.d; echo deb [trusted=yes] {mirror} ./ > /etc/apt/sources.list");
        // As images for Docker have it.
        let clean =
            "echo 'DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb\"; };' > /etc/apt/apt.conf.d/docker-clean";
        let text = format!(
            "base: {}\nextra_commands:\n  - {sources:?}\n  - {clean:?}\n  - echo {number} > /number\n",
            Image::Debian.reference()
        );
        let name = format!("localhost/base:{number}");
        prebuild(&host, &podfile(&host, "base", &text), &["--tag", &name]).ok();
        name
    };
    let packages = |number, packages: &str| {
        let text = format!("base: {}\npackages: [{packages}]\n", base(number));
        let made = format!("localhost/made:{number}");
        let output = prebuild(&host, &podfile(&host, "packages", &text), &["--tag", &made]);
        (output, made)
    };
    packages(1, "one, two@2.0").0.ok();
    assert_eq!(kept(&host), sums);

    // The index is still there, and nothing that it names.
    let hidden = tempfile::tempdir().unwrap();
    for deb in archives(files.path()) {
        fs::rename(deb.path(), hidden.path().join(deb.file_name())).unwrap();
    }
    let (output, made) = packages(2, "two, one");
    output.ok().stderr_has("step 1/2: install two");
    in_image(&host, &made, "one; two; ls /var/cache/apt/podspawn").stdout("this is one\nthis is two\n");

    // What is not as it was when it was kept is nobody's, and downloaded again.
    let damaged = host.root.join("var/lib/podspawn/cache/packages").join(&sums[0]);
    let length = usize::try_from(fs::metadata(&damaged).unwrap().len()).unwrap();
    fs::write(&damaged, vec![b'x'; length]).unwrap();
    packages(3, "one, two").0.status(1).stderr_has("404");
    for deb in fs::read_dir(hidden.path()).unwrap().map(Result::unwrap) {
        fs::rename(deb.path(), files.path().join(deb.file_name())).unwrap();
    }
    packages(3, "one, two").0.ok();
    assert_eq!(kept(&host), sums);
    host.assert_no_session_left();
}

#[test]
fn a_build_leaves_no_other_anything_but_what_has_the_checksum_it_says() {
    let files = tempfile::tempdir().unwrap();
    let debs = repository(files.path(), &["one"]);
    let (deb, good) = (debs[0].file_name().into_string().unwrap(), sum(&debs[0].path()));
    let size = debs[0].metadata().unwrap().len();
    // It says that it downloads the package, and writes something else; and something of its own, as it says.
    let own = Run::new("sh").args(["-c", "printf own | sha256sum | cut -c-64"]).run().ok().text();
    let program = format!(
        "#!/bin/sh
cd /var/cache/apt/podspawn
case \"$*\" in
*--print-uris*)
    echo \"'http://localhost/{deb}' {deb} {size} SHA256:{good}\"
    echo \"'http://localhost/own' own 3 SHA256:{own}\"
    echo \"'http://localhost/link' link 3 SHA256:{own}\"
    echo \"'http://localhost/x' ../../../../etc/passwd 3 SHA256:{own}\" ;;
*install*)
    head -c {size} /dev/zero > {deb}
    printf own > own
    ln -s own link ;;
esac
",
        own = own.trim(),
    );
    let write = format!("printf %s {} > /usr/bin/apt-get; chmod 755 /usr/bin/apt-get", quoted(&program));
    // Nor more than there may be.
    for (limit, left) in [("1m", vec![own.trim()]), ("3", vec![own.trim()]), ("2", vec![]), ("0", vec![])] {
        let host = Host::new().config(&format!("builds:\n  package_cache: {limit}")).start();
        let text = format!("base: {BUSYBOX}\nextra_commands:\n  - {write:?}\n");
        prebuild(&host, &podfile(&host, "hostile", &text), &["--tag", "localhost/hostile:1"]).ok();
        let text = "base: localhost/hostile:1\npackages: [one]\n";
        prebuild(&host, &podfile(&host, "packages", text), &[]).ok();
        assert_eq!(kept(&host), left, "of at most {limit}");
        host.assert_no_session_left();
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
