//! Places at which a test can have the server fail or die: one before each step of making and of removing a session.
//!
//! Only in debug builds, and only if the server was started with `PODSPAWN_FAULT` set, to the path of a file. In that a test
//! writes lines of `kill POINT N` or `fail POINT N` at any time: the Nth time that the point is reached from then on, the server
//! kills itself, or the step fails. The line is gone when that has happened, and with the last one the file.

use std::fmt;

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Where something can happen.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $name),* }

        impl Point {
            /// All of them, in the order in which a session with services reaches them first.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is called in the file.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

points! {
    /// Before a server takes clients; all others are of sessions.
    Start = "start",
    /// Before anything of a session is there.
    Record = "record",
    /// Once for each container.
    Address = "address",
    Cgroup = "cgroup",
    /// Once for each container.
    CgroupPart = "cgroup-part",
    Egress = "egress",
    /// From here on each once for each container.
    Directories = "directories",
    InitSocket = "init-socket",
    CgroupJoin = "cgroup-join",
    Network = "network",
    /// What the container is made from, in a file.
    Description = "description",
    Init = "init",
    InitRecord = "init-record",
    /// All containers are there.
    Services = "services",
    /// They are ready.
    Ready = "ready",
    /// On the way back.
    StoppingRecord = "stopping-record",
    ContainersEnd = "containers-end",
    CgroupEnd = "cgroup-end",
    /// Once for each container.
    NetworkEnd = "network-end",
    Evidence = "evidence",
    /// Twice: below the run and the state directory.
    DirectoriesEnd = "directories-end",
    RecordEnd = "record-end",
    /// Nothing is there any more.
    Gone = "gone",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step before which the point is, failed because a test wanted that.
#[derive(Debug, thiserror::Error)]
#[error("a test makes {0} fail")]
pub struct Injected(pub Point);

/// The point is reached.
///
/// # Errors
/// If a test wants the step behind it to fail.
#[cfg(not(debug_assertions))]
#[inline]
pub fn at(_point: Point) -> Result<(), Injected> {
    Ok(())
}

/// The point is reached.
///
/// # Errors
/// If a test wants the step behind it to fail.
#[cfg(debug_assertions)]
pub fn at(point: Point) -> Result<(), Injected> {
    use std::{
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };
    static FILE: LazyLock<Option<Mutex<PathBuf>>> =
        LazyLock::new(|| std::env::var_os("PODSPAWN_FAULT").map(|path| Mutex::new(path.into())));
    let Some(file) = &*FILE else { return Ok(()) };
    // One after the other, as each counts.
    let file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(wanted) = std::fs::read_to_string(&*file) else { return Ok(()) };
    let mut lines: Vec<Vec<&str>> = wanted.lines().map(|line| line.split_whitespace().collect()).collect();
    let is_it = |line: &Vec<&str>| line.len() == 3 && line[1] == point.as_str();
    let Some(place) = lines.iter().position(is_it) else { return Ok(()) };
    let (what, left) = (lines[place][0], lines[place][2].parse::<u32>().unwrap_or(1).saturating_sub(1));
    let counted = left.to_string();
    if left == 0 {
        lines.remove(place);
    } else {
        lines[place][2] = &counted;
    }
    let text = lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>().join("\n");
    let noted = if lines.is_empty() { std::fs::remove_file(&*file) } else { std::fs::write(&*file, text) };
    if left > 0 || noted.is_err() {
        return Ok(());
    }
    if what == "kill" {
        // It cannot fail, and does not return.
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
    Err(Injected(point))
}
