//! Chooses the role of the process before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("spawner") => podspawn::runtime::spawner_main(),
        Some("connection") => podspawn::connection::main(),
        Some("git") => podspawn::git::main(),
        _ => podspawn::cli::main(),
    }
}
