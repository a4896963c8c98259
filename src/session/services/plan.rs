//! How a service is run: what its image says, and the Podfile over it.

use std::{str::FromStr, time::Duration};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    config::Mode,
    image::Image,
    podfile::{Restart, Service},
    protocol::{Bytes, Identity, Program, Variables},
    session::{inside::Run, volumes},
    time::millis,
};

/// All that is needed to start a service in its container, to start it again and to end it. Kept in the session's record,
/// so that the next supervisor can do that too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub argv: Vec<String>,
    /// As the `User` of an image.
    pub user: String,
    pub cwd: String,
    pub stop_signal: i32,
    /// Whether it is started again when it has failed.
    pub restart: bool,
    pub ports: Vec<u16>,
    pub ready_exec: Option<Vec<String>>,
    pub ready_timeout_ms: u64,
    pub needs: Vec<String>,
    /// Whether something that it writes outlives its session, so that it is to end by itself.
    pub outlived: bool,
}

/// Why a service cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("image {0} does not say what to run; give the service a command")]
    NoCommand(String),
    #[error("the record of how it is run makes no sense: {0}")]
    Record(String),
}

impl Plan {
    /// That of `service`, which runs `image`, in a session of `mode`.
    pub fn new(service: &Service, image: &Image, mode: Mode) -> Result<Self, PlanError> {
        let config = image.config.config().clone().unwrap_or_default();
        let of_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        // As everywhere: who gives another entrypoint does not want its arguments either.
        let mut argv = service.entrypoint.clone().unwrap_or_else(|| of_image(config.entrypoint()));
        match (&service.command, &service.entrypoint) {
            (Some(command), _) => argv.extend(command.iter().cloned()),
            (None, Some(_)) => {}
            (None, None) => argv.extend(of_image(config.cmd())),
        }
        if argv.first().is_none_or(String::is_empty) {
            return Err(PlanError::NoCommand(service.image.to_string()));
        }
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let timeout = millis(service.ready.timeout);
        Ok(Self {
            argv,
            user: service.user.clone().or_else(|| named(config.user())).unwrap_or_else(|| "root".to_owned()),
            cwd: named(config.working_dir()).unwrap_or_else(|| "/".to_owned()),
            stop_signal: named(config.stop_signal()).and_then(|text| signal(&text)).unwrap_or(libc::SIGTERM),
            restart: service.restart == Restart::OnFailure,
            ports: service.ports.clone(),
            ready_exec: service.ready.exec.clone(),
            ready_timeout_ms: timeout,
            needs: service.needs.clone(),
            outlived: service.volumes.iter().any(|volume| volumes::outlives(volume, mode)),
        })
    }

    /// The service itself.
    pub(super) fn run(&self) -> Run {
        Run { output_limit: u64::MAX, stays: true, ..self.run_other(&self.argv) }
    }

    /// Another program beside it, as the same user.
    pub(super) fn run_other(&self, argv: &[String]) -> Run {
        Run {
            program: Program::Argv(argv.iter().map(|word| Bytes::from(word.as_bytes())).collect()),
            identity: Identity::Named { user: self.user.clone() },
            variables: Variables::Bare,
            cwd: Some(self.cwd.clone()),
            ..Run::argv([])
        }
    }

    pub(super) fn ready_timeout(&self) -> Duration {
        Duration::from_millis(self.ready_timeout_ms)
    }

    /// As text for the record.
    pub(in crate::session) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can be written as JSON")
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        serde_json::from_str(text).map_err(|error| PlanError::Record(error.to_string()))
    }
}

/// The number of a signal as images name it: `SIGINT`, `INT`, `2`. Real-time signals are none that init sends.
fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok().map(|signal| signal as i32);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&name).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::podfile;

    fn image(config: &str) -> Image {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[]}},"history":[]}}"#
        );
        Image {
            id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            reference: "db".to_owned(),
            layers: Vec::new(),
            config: serde_json::from_str(&text).unwrap(),
            bytes: 0,
            pulled_at: UNIX_EPOCH,
        }
    }

    const MODE: Mode = Mode::GracePeriod;

    fn service() -> Service {
        Service {
            name: "db".to_owned(),
            image: "postgres:16".parse().unwrap(),
            ports: vec![5432],
            env: std::collections::BTreeMap::new(),
            volumes: Vec::new(),
            entrypoint: None,
            command: None,
            user: None,
            resources: podfile::Resources::default(),
            ready: podfile::Ready::default(),
            needs: Vec::new(),
            restart: Restart::default(),
        }
    }

    const POSTGRES: &str = r#"{"Entrypoint":["entry.sh"],"Cmd":["postgres"],"User":"postgres","WorkingDir":"/data",
        "StopSignal":"SIGINT"}"#;

    #[test]
    fn a_service_is_run_as_its_image_says() {
        let plan = Plan::new(&service(), &image(POSTGRES), MODE).unwrap();
        assert_eq!(plan.argv, ["entry.sh", "postgres"]);
        assert_eq!((plan.user.as_str(), plan.cwd.as_str(), plan.stop_signal), ("postgres", "/data", libc::SIGINT));
        assert_eq!(plan.to_text().parse(), Ok(plan));
        let plain = Plan::new(&service(), &image(r#"{"Cmd":["x"],"User":"","WorkingDir":""}"#), MODE).unwrap();
        assert_eq!((plain.user.as_str(), plain.cwd.as_str(), plain.stop_signal), ("root", "/", libc::SIGTERM));
        assert_eq!(Plan::new(&service(), &image("{}"), MODE), Err(PlanError::NoCommand("postgres:16".to_owned())));
    }

    #[test]
    fn what_the_podfile_says_wins() {
        let words = |list: &[&str]| Some(list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let argv = |entrypoint, command| {
            let service = Service { entrypoint, command, ..service() };
            Plan::new(&service, &image(POSTGRES), MODE).map(|plan| plan.argv)
        };
        assert_eq!(argv(None, words(&["-c", "x"])).ok(), words(&["entry.sh", "-c", "x"]));
        assert_eq!(argv(words(&["sh"]), None).ok(), words(&["sh"]), "without the image's arguments");
        assert_eq!(argv(words(&["sh"]), words(&["-c"])).ok(), words(&["sh", "-c"]));
        let service = Service { user: Some("7:8".to_owned()), restart: Restart::OnFailure, ..service() };
        let plan = Plan::new(&service, &image(POSTGRES), MODE).unwrap();
        assert_eq!((plan.user.as_str(), plan.restart), ("7:8", true));
    }

    #[test]
    fn signals_have_several_names() {
        for (text, expected) in [
            ("SIGQUIT", Some(libc::SIGQUIT)),
            ("quit", Some(libc::SIGQUIT)),
            ("9", Some(9)),
            ("SIGRTMIN+3", None),
            ("37", None),
            ("", None),
        ] {
            assert_eq!(signal(text), expected, "{text}");
        }
    }
}
