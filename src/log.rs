//! The program's own log: text lines on standard error or in `log.file`.

use std::{fs::OpenOptions, io::IsTerminal, path::Path, sync::Mutex};

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `PODSPAWN_LOG` chooses levels (`debug`, `podspawn::network=trace`); the default is `info`.
///
/// # Errors
/// The file cannot be opened.
pub fn init(file: Option<&Path>) -> std::io::Result<()> {
    let filter = EnvFilter::try_from_env("PODSPAWN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_target(false);
    match file {
        Some(file) => {
            let file = OpenOptions::new().append(true).create(true).open(file)?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
        None => builder.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init(),
    }
    Ok(())
}
