//! The main job: `ssh user@host` lands in a fresh container.

mod common;

use common::{Host, Image};

#[test]
fn a_command_runs_as_the_user_in_a_container_of_its_own() {
    let host = Host::new().user("ada").start();
    host.ssh("ada", "id -u; id -un; pwd; hostname; echo $PPID").run().ok().stdout("1000\nada\n/home/ada\nada\n1\n");
    host.assert_no_session_left();
}

#[test]
fn a_script_on_standard_input_runs_in_a_login_shell() {
    let host = Host::new().image(Image::Debian).user("ada").start();
    let output = host.ssh("ada", "").args(["-T"]).input("shopt -q login_shell && echo login\nexit 7\n").run();
    output.status(7).stdout("login\n");
    host.assert_no_session_left();
}
