//! What a person sees: sessions in a real terminal, which tmux plays.

mod common;

use common::{GitServer, Host, Image, Output, Run, Stream};

/// A terminal of 80 columns and 24 rows.
struct Terminal {
    /// Its socket is in there: one that a server of tmux's is still about to leave is not taken over.
    directory: tempfile::TempDir,
}

impl Terminal {
    /// Opens one with `ssh ada@host COMMAND` running in it.
    fn ssh(host: &Host, command: &str) -> Self {
        Self::of(host, &host.ssh("ada", command).args(["-t"]).command())
    }

    /// Opens one in which this runs.
    fn of(host: &Host, command: &std::process::Command) -> Self {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")))
            .collect();
        let terminal = Self { directory: tempfile::tempdir_in(host.scratch()).unwrap() };
        let line = format!("{}; echo \"status $?\"; exec sleep 1000", words.join(" "));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &line]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().text()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.path().join("tmux");
        let tmux = Run::new("tmux").arg("-S").arg(socket).args(arguments);
        tmux.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").run()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let mut screen = String::new();
        let shown = common::within(common::DEADLINE, || {
            screen = self.screen();
            screen.contains(text)
        });
        assert!(shown, "{text:?} does not come up in:\n{screen}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended by itself where a test has failed.
        self.run(&["kill-server"]);
    }
}

fn host() -> Host {
    Host::new().image(Image::Debian).user("ada").start()
}

#[test]
fn a_shell_has_job_control() {
    let host = host();
    let terminal = Terminal::ssh(&host, "");
    terminal.shows("ada@ada:~$");
    // What is waited for is not what is typed.
    terminal.keys(&["sh -c 'echo run''ning; exec sleep 1000'", "Enter"]);
    terminal.shows("running");
    terminal.keys(&["C-z"]);
    terminal.shows("Stopped");
    terminal.keys(&["bg; jobs; fg", "Enter"]);
    terminal.shows("Running");
    terminal.keys(&["C-c"]);
    terminal.keys(&["echo status=$?", "Enter"]);
    terminal.shows("status=130");
    terminal.keys(&["exit 3", "Enter"]);
    terminal.shows("status 3");
}

#[test]
fn a_terminal_knows_its_size_and_hears_of_its_changes() {
    let host = host();
    let terminal = Terminal::ssh(&host, "stty size; trap 'stty size' WINCH; while :; do sleep 0.1; done");
    terminal.shows("24 80");
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.shows("30 100");
}

#[test]
fn an_editor_and_tmux_work_inside() {
    let host = host();
    let terminal = Terminal::ssh(&host, "");
    terminal.shows("$");
    terminal.keys(&["vi note", "Enter"]);
    // Not the prompt's.
    terminal.shows("\n~");
    terminal.keys(&["iäöü written", "Escape"]);
    terminal.shows("äöü written");
    terminal.keys(&[":wq", "Enter"]);
    terminal.shows("$ vi note");
    terminal.keys(&["clear; LC_ALL=C.UTF-8 tmux -u new-session 'cat note; tty; exec sh'", "Enter"]);
    terminal.shows("äöü written");
    terminal.shows("[0] 0:");
    terminal.keys(&["exit", "Enter"]);
    terminal.shows("[exited]");
}

#[test]
fn a_person_is_told_why_the_session_ends() {
    let host = host();
    let terminal = Terminal::ssh(&host, "");
    terminal.shows("$");
    host.podspawn(["stop", "ada"]).run().ok();
    terminal.shows("podspawn: the session was stopped by the administrator");
    terminal.shows("status 255");
}

#[test]
fn an_administrator_has_a_terminal_in_a_session_and_in_its_services() {
    let host = Host::new().user("ada").start();
    let git = GitServer::start();
    let podfile = "base: localhost/busybox:test\nservices:\n  - {name: db, image: localhost/busybox:test, command: sleep 1000, user: '7:8'}\n";
    let repository = git.repository("shop", &[("podfile.yaml", podfile)]);
    host.podspawn(["add-project", "shop", "--repo", &repository.url]).run().ok();
    let stream = Stream::start(&host, "ada+shop");
    let exec = |arguments: &[&str]| {
        let mut command = std::process::Command::new(common::binary());
        command.arg("--root").arg(&host.root).args(["exec", "-it", "ada@shop"]).args(arguments);
        command
    };
    for (arguments, who) in [(&["--", "sh"][..], "ada"), (&["--service", "db", "--", "sh"], "7")] {
        let terminal = Terminal::of(&host, &exec(arguments));
        terminal.shows("$");
        terminal.keys(&["stty size; tty; id -un || id -u", "Enter"]);
        terminal.shows("24 80\n/dev/pts/0");
        terminal.shows(&format!("\n{who}\n"));
        terminal.keys(&["while :; do stty size; sleep 0.3; done", "Enter"]);
        terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
        terminal.shows("30 100");
        terminal.keys(&["C-c"]);
        terminal.keys(&["echo status=$?; exit 3", "Enter"]);
        terminal.shows("status=130");
        terminal.shows("status 3");
        // It is as it was before: what is typed is seen, and whoever reads it gets whole lines.
        terminal.keys(&["typed later"]);
        terminal.shows("typed later");
    }
    // It is put right, and the program hung up, when we are made to end too.
    let terminal = Terminal::of(&host, &exec(&["--", "sh", "-c", "echo pid $$; exec sleep 1000"]));
    terminal.shows("pid ");
    let ours = common::leaks::processes(&host.root, "exec");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(ours[0]), nix::sys::signal::Signal::SIGTERM).unwrap();
    terminal.shows("status 143");
    terminal.keys(&["typed later"]);
    terminal.shows("typed later");
    drop(terminal);
    // Whoever sits at a terminal reads what becomes of a service on lines of its own.
    let terminal = Terminal::of(&host, &host.ssh("ada+shop", "").args(["-t"]).command());
    terminal.shows("$");
    host.podspawn(["exec", "ada@shop", "--service", "db", "--", "kill", "-TERM", "2"]).run();
    terminal.shows("\npodspawn: service db was ended by signal 15\n");
    terminal.keys(&["echo goes' 'on", "Enter"]);
    terminal.shows("goes on\n");
    terminal.keys(&["exit", "Enter"]);
    terminal.shows("status 0");
    common::eventually("the program is hung up", || {
        !host.ssh("ada+shop", "ps").run().ok().text().contains("sleep 1000")
    });
    stream.finish();
    host.assert_no_session_left();
}
