//! What a person sees: sessions in a real terminal, which tmux plays.

mod common;

use common::{Host, Image, Run};

/// A terminal of 80 columns and 24 rows.
struct Terminal<'a> {
    host: &'a Host,
}

impl<'a> Terminal<'a> {
    /// Opens one with `ssh ada@host COMMAND` running in it.
    fn ssh(host: &'a Host, command: &str) -> Self {
        let ssh = host.ssh("ada", command).args(["-t"]).command();
        let words: Vec<String> = std::iter::once(ssh.get_program())
            .chain(ssh.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")))
            .collect();
        let terminal = Self { host };
        let line = format!("{}; echo \"status $?\"; exec sleep 1000", words.join(" "));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &line]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Run::new("tmux")
            .arg("-S")
            .arg(self.host.scratch().join("tmux"))
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .run();
        output.ok().text()
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

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
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
    terminal.shows("~");
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
