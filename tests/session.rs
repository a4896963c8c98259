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

#[test]
fn a_limit_that_the_server_cannot_give_is_told_once_and_not_for_each_session() {
    let host = Host::new().user("ada").start();
    for _ in 0..2 {
        let limit: u64 = host.ssh("ada", "ulimit -Hn").run().ok().text().trim().parse().unwrap();
        let told = host.log().matches("limit of open files").count();
        assert_eq!(told, usize::from(limit < 65_536), "{limit}\n{}", host.log());
        host.assert_no_session_left();
    }
}
