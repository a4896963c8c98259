//! What OpenSSH defines: one table of calls that are made to a real sshd and to podspawn, which have to answer alike.

mod common;

use std::io::{Read, Write};

use common::{Host, Image, Ssh, Sshd};

/// A call of ssh: options, command, standard input.
struct Call {
    options: &'static [&'static str],
    command: &'static str,
    input: &'static [u8],
    /// Whether the input is typed when the command has said that it is ready.
    waits: bool,
}

const fn call(command: &'static str) -> Call {
    Call { options: &[], command, input: b"", waits: false }
}

const fn with(options: &'static [&'static str], command: &'static str) -> Call {
    Call { options, command, input: b"", waits: false }
}

const fn fed(options: &'static [&'static str], command: &'static str, input: &'static [u8]) -> Call {
    Call { options, command, input, waits: false }
}

const fn typed(command: &'static str, input: &'static [u8]) -> Call {
    Call { options: TTY, command, input, waits: true }
}

const TTY: &[&str] = &["-tt"];
/// The client's own remarks are part of the answer.
const LOUD: &[&str] = &["-o", "LogLevel=INFO"];

const CALLS: &[Call] = &[
    // Exit statuses and signals.
    call("true"),
    call("exit 42"),
    call("exit 255"),
    call("(exit 3); echo $?"),
    call("exec sh -c 'exit 9'"),
    call("nosuchcommand"),
    call("/etc/passwd"),
    call("/nosuch/path"),
    with(LOUD, "kill -TERM $$"),
    with(LOUD, "kill -KILL $$"),
    with(LOUD, "kill -HUP $$"),
    with(LOUD, "kill -USR1 $$"),
    with(LOUD, "kill -SEGV $$"),
    with(LOUD, "kill -RTMIN $$"),
    call("kill -TERM $$ & wait; echo not reached"),
    // Streams.
    call("echo out; echo err >&2"),
    call("echo err >&2; exit 5"),
    call("printf 'no newline'"),
    call("printf '\\377\\000\\001binary'"),
    call("head -c 3000000 /dev/zero | cksum"),
    call("head -c 3000000 /dev/zero"),
    call("cat; echo after the end"),
    fed(&[], "cat", b"some\x00bytes\xff\n"),
    fed(&[], "wc -c", &[b'x'; 300_000]),
    fed(&[], "head -c 3; exit 4", &[b'x'; 300_000]),
    fed(&[], "read line; echo \"got $line\"", b"one\ntwo\n"),
    fed(&["-n"], "cat; echo nothing", b"not sent"),
    fed(&[], "exec 0<&-; echo ok", b"unread"),
    call("exec 1>&- 2>&-; exit 3"),
    call("exec 1>&-; echo lost; echo kept >&2"),
    call("yes | head -1; echo ${PIPESTATUS[0]}"),
    call("(sleep 0.3; echo late) & echo early"),
    call("sleep 60 >/dev/null 2>&1 </dev/null & echo at once"),
    call("nohup sleep 60 >/dev/null 2>&1 & echo at once"),
    call("echo a >/dev/stdout; echo b >/dev/stderr; echo c >/proc/self/fd/1"),
    call("test -p /dev/stdin && echo pipe; test -t 0 || echo no terminal"),
    // Shells and scripts.
    fed(&["-T"], "", b"echo script; shopt -q login_shell && echo login; exit 6\n"),
    fed(&["-T"], "", b"echo $-\n"),
    call("shopt -q login_shell || echo no login shell"),
    call("echo $0 $#"),
    call("echo 'quotes \"and\" $HOME' \"$HOME\" *.nothing"),
    call("for i in 1 2 3\ndo echo $i\ndone"),
    call("umask; pwd; id -un; id -u; id -g"),
    call("[ $(ps -o sid= -p $$) = $$ ] && [ $(ps -o pgid= -p $$) = $$ ] && echo leader"),
    call("trap | wc -l; grep SigBlk /proc/self/status; grep SigIgn /proc/self/status | tail -c 8"),
    call("ls -l /proc/self/fd | wc -l"),
    // Environment. Nobody delivers mail into a container, so MAIL is not set.
    call("echo $USER $LOGNAME $HOME $SHELL"),
    call("echo ${SSH_TTY-unset} ${SSH_AUTH_SOCK-unset} ${DISPLAY-unset} ${TERM-unset} ${SSH_ORIGINAL_COMMAND-unset}"),
    call("env | cut -d= -f1 | grep -v -e ^PODSPAWN_ -e ^MAIL$ | sort"),
    call("set -- $SSH_CONNECTION; echo $# $1 $4; set -- $SSH_CLIENT; echo $# $1 $3"),
    with(&["-o", "SetEnv=LANG=C.UTF-8 LC_X=1 OTHER=2"], "echo $LANG $LC_X ${OTHER-unset}"),
    // Terminals.
    with(TTY, "tty | sed 's/[0-9]*$//'; test -t 0 && test -t 1 && test -t 2 && echo terminal"),
    with(TTY, "echo out; echo err >&2; exit 7"),
    with(TTY, "stty -a | sed 's/speed [0-9]* baud; //'"),
    with(TTY, "stty size; echo $TERM; basename $(dirname $SSH_TTY)"),
    with(TTY, "stty raw; echo raw"),
    with(TTY, "sleep 60 & echo not kept waiting"),
    with(&["-tt", "-o", "LogLevel=INFO"], "kill -TERM $$"),
    fed(TTY, "cat", b"typed\n\x04"),
    fed(TTY, "read -r line; echo \"<$line>\"", b"a\x7fb\n"),
    typed("echo ready; sleep 60; echo not reached", b"\x03"),
    typed("trap 'echo interrupted; exit 8' INT; echo ready; while :; do :; done", b"\x03"),
    typed("trap 'echo quit; exit 9' QUIT; echo ready; while :; do :; done", b"\x1c"),
    typed("echo ready; cat; echo ended", b"x\n\x04"),
    typed("stty -echo; echo ready; read -r word; echo \"<$word>\"", b"secret\n"),
    // Requests that fail.
    with(&["-s"], "nosuchsubsystem"),
    with(&["-W", "127.0.0.1:1"], ""),
    with(&["-W", "nosuch.invalid:80"], ""),
    with(&["-o", "LogLevel=INFO", "-o", "ExitOnForwardFailure=yes", "-R", "/nosuch/dir/socket:127.0.0.1:1"], "echo"),
];

type Answer = (Option<i32>, String, String);

fn answer(ssh: Ssh, call: &Call) -> Answer {
    let ssh = ssh.args(call.options);
    if call.waits {
        return answer_when_ready(ssh, call.input);
    }
    let output = ssh.input(call.input).run();
    (output.status, output.text(), output.stderr)
}

fn answer_when_ready(ssh: Ssh, input: &[u8]) -> Answer {
    let mut child = ssh.spawn();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let mut chunk = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let length = stdout.read(&mut chunk).unwrap();
        assert_ne!(length, 0, "it ended before it was ready: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..length]);
    }
    stdin.write_all(input).unwrap();
    stdout.read_to_end(&mut seen).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), String::from_utf8_lossy(&seen).into_owned(), stderr)
}

#[test]
fn podspawn_answers_as_sshd_does() {
    let host = Host::new().image(Image::Debian).user("ada").config("session:\n  mode: grace-period").start();
    let sshd = Sshd::start(&host);
    let mut different = Vec::new();
    for call in CALLS {
        let right = answer(host.ssh("ada", call.command).at(sshd.address), call);
        let ours = answer(host.ssh("ada", call.command), call);
        // Addresses are the only thing that may differ.
        let place = |(status, stdout, stderr): Answer, address: std::net::Ipv4Addr| {
            let address = address.to_string();
            (status, stdout.replace(&address, "SERVER"), stderr.replace(&address, "SERVER"))
        };
        let (right, ours) = (place(right, sshd.address), place(ours, host.address));
        if right != ours {
            let cut = |answer: Answer| {
                let first = |text: String| text.chars().take(1500).collect::<String>();
                (answer.0, first(answer.1), first(answer.2))
            };
            different.push(format!(
                "{:?} {:?}\n  sshd: {:?}\n  ours: {:?}",
                call.options,
                call.command,
                cut(right),
                cut(ours)
            ));
        }
    }
    assert!(different.is_empty(), "{} calls are answered differently:\n{}", different.len(), different.join("\n"));
}
