use std::{
    fs,
    io::Write,
    process::{Child, Command},
};

use super::*;
use common::{eventually, within};

fn layers(name: &str) -> Vec<Layer> {
    let busybox = fs::read(common::images::busybox_tar()).unwrap();
    vec![Layer::new(&busybox, Form::Plain), Layer::gzip(Archive::new().file("which", name))]
}

fn layer_count(host: &Host) -> usize {
    fs::read_dir(host.images().join("layers")).unwrap().count()
}

/// A session that waits for us to end it.
struct Waiting(Child);

impl Waiting {
    /// Starts it and waits until it runs.
    fn start(host: &Host) -> Self {
        let child = host.ssh("ada", "echo started; cat >/dev/null; cat /which").spawn();
        let waiting = Self(child);
        eventually("the session runs", || host.sessions().iter().any(|session| session["status"] == "running"));
        waiting
    }

    /// Ends it. Returns what it has written.
    fn end(mut self) -> String {
        drop(self.0.stdin.take());
        String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap()
    }
}

#[test]
fn an_image_in_use_stays_whatever_is_done_to_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let config = format!("defaults:\n  image: oci:{}", path.display());
    let mut host = Host::new().no_image().config(&config).user("ada").prepare();
    let layout = Layout::of(&path, &layers("first"));
    let name = layout.reference();
    host.podspawn(["pull", &name]).run().ok();
    host.serve();
    let session = Waiting::start(&host);
    host.podspawn(["image", "rm", &name]).run().status(1).stderr_has("is in use by a session");
    // The name gets another image; the session's has none any more, and is kept all the same.
    Layout::of(&path, &layers("second"));
    host.podspawn(["pull", &name]).run().ok();
    assert_eq!(layer_count(&host), 3);
    host.podspawn(["image", "prune"]).run().ok().stderr_has("0 layers removed");
    assert_eq!(layer_count(&host), 3);
    host.podspawn(["image", "rm", &name]).run().ok();
    host.podspawn(["image", "prune"]).run().ok().stderr_has("1 layers removed");
    assert_eq!(session.end(), "started\nfirst");
    host.assert_no_session_left();
    host.podspawn(["image", "prune"]).run().ok().stderr_has("2 layers removed");
    for part in ["layers", "images", "refs", "locks", "tmp", "blobs/sha256"] {
        assert_eq!(fs::read_dir(host.images().join(part)).unwrap().count(), 0, "{part}");
    }
    // The next one fetches it again.
    host.ssh("ada", "cat /which").run().ok().stdout("second");
}

#[test]
fn a_damaged_store_shows_what_is_whole_and_a_pull_mends_it() {
    let host = host();
    let layout = Layout::of(&host.scratch().join("layout"), &layers("x"));
    let name = layout.reference();
    host.podspawn(["pull", &name]).run().ok();
    let tar = Archive::new().file("f", "x").end();
    host.podspawn(["image", "import", "-", "other"]).input(tar).run().ok();
    let files = |part: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(host.images().join(part)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let expected = snapshot::of(&exported(&host, &name, "before"));
    let damage: [(&str, &dyn Fn()); 4] = [
        ("a cut-off name", &|| {
            let record = files("refs").into_iter().find(|path| path.to_str().unwrap().contains("oci")).unwrap();
            fs::write(record, "{\"refere").unwrap();
        }),
        ("lost images", &|| files("images").iter().for_each(|path| fs::write(path, "").unwrap())),
        ("lost documents", &|| files("blobs/sha256").iter().for_each(|path| fs::write(path, "").unwrap())),
        ("lost contents", &|| {
            for layer in files("layers") {
                fs::write(layer.join("contents.json"), "").unwrap();
            }
        }),
    ];
    for (what, damage) in damage {
        damage();
        let output = host.podspawn(["image", "ls"]).run();
        output.ok();
        let exported_anyway = host.podspawn(["image", "export", &name, "/dev/null"]).run();
        assert!(exported_anyway.status == Some(1), "{what}: {exported_anyway}");
        exported_anyway.stderr_has("pull the image again");
        host.podspawn(["-q", "pull", &name]).run().ok();
        let found = snapshot::of(&exported(&host, &name, &what.replace(' ', "-")));
        snapshot::assert_same(what, &expected, &found);
    }
}

#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    // A file system of its own, in a mount namespace of its own.
    let script = "mount -t tmpfs -o size=6m none \"$1\" && shift && exec \"$@\"";
    let layout = Layout::of(
        &directory.path().join("layout"),
        &[
            Layer::gzip(Archive::new().file("small", common::oci::noise(1, 100_000))),
            Layer::gzip(Archive::new().file("big", common::oci::noise(2, 12 << 20))),
        ],
    );
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let pull = format!(
        "p='{} --root {}'; $p pull {} 2>{}/stderr; echo $?; $p image ls --json; cd {}/var/lib/podspawn/images && ls tmp refs",
        common::binary().display(),
        root.display(),
        layout.reference(),
        root.display(),
        root.display(),
    );
    let output = Run::new("unshare").args(["-m", "sh", "-c", script, "sh"]).arg(&root).args(["sh", "-c"]);
    let output = output.arg(format!("{pull}; grep -v '^layer\\|^pulling' {}/stderr >&2", root.display())).run();
    output.ok().stdout("1\n[]\nrefs:\n\ntmp:\n").stderr_has("podspawn image prune frees").stderr_has("No space left");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

#[test]
fn a_killed_import_leaves_nothing_and_an_interrupted_one_cleans_up() {
    let host = host();
    let tmp = || fs::read_dir(host.images().join("tmp")).map_or(0, Iterator::count);
    let half = &Archive::new().directory("d").file("d/f", vec![b'x'; 1 << 20]).end()[..600_000];
    for (signal, status) in [("KILL", None), ("INT", Some(130)), ("TERM", Some(143)), ("HUP", Some(129))] {
        let mut child = host.podspawn(["image", "import", "-", "x"]).spawn();
        child.stdin.as_mut().unwrap().write_all(half).unwrap();
        let unpacking = || {
            let found = Run::new("find").arg(host.images().join("tmp")).args(["-name", "f", "-size", "+0"]).run();
            !found.text().is_empty()
        };
        eventually("it unpacks", unpacking);
        Command::new("kill").args(["-s", signal]).arg(child.id().to_string()).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), status, "{signal}");
        if signal == "KILL" {
            assert_eq!(tmp(), 1);
            host.podspawn(["doctor"]).run().status(1).stdout_has("[FAIL] image without a session: ");
        } else {
            assert_eq!(tmp(), 0, "{signal}");
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "podspawn: interrupted\n");
        }
        // The next one that comes sweeps.
        host.podspawn(["image", "ls", "--json"]).run().ok().stdout("[]\n");
        assert_eq!(tmp(), 0, "{signal}");
    }
    assert!(within(common::DEADLINE, || layer_count(&host) == 0));
}

#[test]
fn a_process_that_is_killed_anywhere_leaves_a_store_that_works() {
    let host = host();
    // Its third layer needs one more that puts directories right.
    let layers = [
        Archive::new().raw(tar::EntryType::Directory, "d", "", b"", |header| header.set_mode(0o700)).file("d/a", "a"),
        Archive::new().file("d/b", common::oci::noise(1, 100_000)),
        Archive::new().file("e/c", "c"),
    ];
    let layout = Layout::of(&host.scratch().join("layout"), &layers.map(Layer::gzip));
    let name = layout.reference();
    let run = |arguments: &[&str]| host.podspawn(arguments).run();
    run(&["-q", "pull", &name]).ok();
    let expected = run(&["image", "export", &name, "-"]).stdout;
    // Pulls and prunes, each killed a little later than the one before.
    for moment in 0..40 {
        run(&["image", "rm", &name]);
        let arguments: &[&str] = if moment % 4 == 3 { &["image", "prune"] } else { &["-q", "pull", &name] };
        let mut child = host.podspawn(arguments).spawn();
        std::thread::sleep(std::time::Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        run(&["image", "ls", "--json"]).ok();
        assert_eq!(fs::read_dir(host.images().join("tmp")).unwrap().count(), 0, "moment {moment}");
        run(&["-q", "pull", &name]).ok();
        assert!(run(&["image", "export", &name, "-"]).stdout == expected, "moment {moment}");
    }
    run(&["image", "rm", &name]).ok();
    run(&["image", "prune"]).ok();
    assert_eq!(layer_count(&host), 0);
}
