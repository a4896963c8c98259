//! Programs that administrators run in sessions over the control API, and what is written down of those that are run
//! without it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::control::Control;
use crate::{
    api::{
        Refusal,
        exec::Programs,
        types::{ExecEnd, ExecOutput, ExecReport, ExecRequest},
    },
    audit::Event,
    errors::chain,
    names::{ContainerId, SessionId},
    protocol::{ExitStatus, Identity, Variables},
    session::{
        Plan, SessionKey,
        inside::{InsideError, Line, Process, Run, Source},
        socket_of,
    },
    state::SessionRecord,
    time::millis,
};

/// How much of a program's output is passed on, in bytes. A client that reads slowly has it wait in memory.
const OUTPUT: u64 = 16 << 20;

impl Programs for Control {
    async fn exec(
        &self,
        key: SessionKey,
        request: ExecRequest,
        told: UnboundedSender<ExecOutput>,
    ) -> Result<(), Refusal> {
        if request.command.is_empty() || request.command.iter().any(|word| word.contains('\0')) {
            return Err(Refusal::Invalid("the command has no words, or one with a NUL in it".to_owned()));
        }
        let Some(view) = self.view(&key).await else {
            return Err(Refusal::Unknown(format!("there is no session of {key}")));
        };
        let record = view.record.filter(|record| record.init.is_some());
        let record = record.ok_or_else(|| Refusal::Conflict(format!("the session of {key} is just being made")))?;
        let (container, run) = placed(&key, &record, &request)?;
        let socket = socket_of(&self.0.config().paths.run_dir.join("sessions"), &container);
        let control = self.clone();
        tokio::spawn(async move {
            let (service, command) = (request.service.as_deref(), request.command.join(" "));
            let record_end = |ended| {
                let (key, session, command) = (&key, &record.id, command.as_str());
                control.0.audit.record(&Event::AdminExec { key, session, service, command, ended });
            };
            record_end(None);
            let begun = Instant::now();
            let passing = Arc::new(Mutex::new(Passing { to: Some(told.clone()), left: OUTPUT, complete: true }));
            let running = async {
                let mut process = Process::start(&socket, run).await?;
                let heard = passing.clone();
                process.wait(move |line| lock(&heard).pass(line)).await
            };
            // Dropped, the program is hung up.
            let ended = tokio::select! {
                ended = running => Some(ended),
                () = told.closed() => None,
            };
            // What it has left behind may go on saying things.
            let complete = lock(&passing).end();
            let time = begun.elapsed();
            let (status, last) = match ended {
                None => (None, None),
                Some(Ok(status)) => {
                    let end = ExecEnd::of(status, millis(time));
                    (Some(status), Some(ExecOutput::Ended { end, complete }))
                }
                Some(Err(error)) => {
                    let status = match &error {
                        InsideError::Refused { status, .. } => Some(ExitStatus::Code(*status)),
                        _ => None,
                    };
                    (status, Some(ExecOutput::Failed { error: chain(error) }))
                }
            };
            record_end(Some((status, time)));
            if let Some(last) = last {
                // The client may have gone in this moment.
                let _ = told.send(last);
            }
        });
        Ok(())
    }

    async fn exec_report(&self, key: SessionKey, report: ExecReport) -> bool {
        let Ok(session) = report.session.parse::<SessionId>() else { return false };
        let is_there = |record: &SessionRecord| record.id == session;
        if report.ended.is_none() && !self.view(&key).await.and_then(|view| view.record).as_ref().is_some_and(is_there)
        {
            return false;
        }
        self.0.audit.record(&Event::AdminExec {
            key: &key,
            session: &session,
            service: report.service.as_deref(),
            command: &report.command.join(" "),
            ended: report.ended.map(|end| (end.status(), Duration::from_millis(end.duration_ms))),
        });
        true
    }
}

/// Tells the client what a program says.
struct Passing {
    /// Until the program has ended.
    to: Option<UnboundedSender<ExecOutput>>,
    left: u64,
    complete: bool,
}

impl Passing {
    fn pass(&mut self, line: Line<'_>) {
        let Some(to) = &self.to else { return };
        let length = line.text.len() as u64 + 1;
        // Nothing more, so that what is passed on has no gap.
        self.complete &= length <= self.left;
        if self.complete {
            self.left -= length;
            let text = String::from_utf8_lossy(line.text).into_owned();
            // The client may have gone.
            let _ = to.send(match line.source {
                Source::Stdout => ExecOutput::Stdout(text),
                Source::Stderr => ExecOutput::Stderr(text),
            });
        }
    }

    /// Returns whether all was passed on.
    fn end(&mut self) -> bool {
        self.to = None;
        self.complete
    }
}

fn lock(passing: &Mutex<Passing>) -> MutexGuard<'_, Passing> {
    // Each statement leaves it consistent.
    passing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a program is to run, and how.
fn placed(key: &SessionKey, record: &SessionRecord, request: &ExecRequest) -> Result<(ContainerId, Run), Refusal> {
    let run = Run { output_limit: u64::MAX, ..Run::argv(request.command.iter().map(String::as_str)) };
    let Some(name) = &request.service else { return Ok((record.id.clone().into(), run)) };
    let Some(service) = record.services.iter().find(|service| service.name.eq_ignore_ascii_case(name)) else {
        return Err(Refusal::Unknown(format!("the session of {key} has no service {name:?}")));
    };
    let plan: Plan = service.plan.parse().map_err(|error| Refusal::Failed(chain(error)))?;
    let run =
        Run { identity: Identity::Named { user: plan.user }, variables: Variables::Bare, cwd: Some(plan.cwd), ..run };
    Ok((ContainerId::of_service(&record.id, service.place), run))
}
