//! When a service is ready: its command succeeds, or each of its ports accepts a connection, or it just runs.
//!
//! Asked from inside its container, where its own clients' way to it begins: from the host there is none.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Member, ServiceError,
    keeper::{Keeper, Life},
};
use crate::{
    protocol::ExitStatus,
    session::inside::{self, InsideError},
};

/// How long to wait before asking again, at first; doubles up to [`POLL_MAX`].
const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(500);

/// How long a port may take to accept a connection that comes from its own machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Waits until the service is ready.
///
/// # Errors
/// That it has ended for good, or has had its time.
pub(super) async fn wait(member: &Member, keeper: &Keeper) -> Result<(), ServiceError> {
    let limit = member.plan.ready_timeout();
    let mut life = keeper.life();
    let ended = async {
        // The keeper tells before it ends.
        match life.wait_for(|life| matches!(life, Life::Ended(_))).await.as_deref() {
            Ok(Life::Ended(how)) => how.clone(),
            Ok(_) | Err(_) => "is not kept any more".to_owned(),
        }
    };
    let mut last = None;
    let asked = ask(member, keeper, &mut last);
    let outcome = tokio::select! {
        // What has ended is not ready, whoever answered on its ports.
        biased;
        how = ended => Some(how),
        answer = timeout_at(Instant::now() + limit, asked) => match answer {
            Ok(()) => None,
            Err(_elapsed) => Some(format!("is not ready after {}", humantime::format_duration(limit))),
        },
    };
    match outcome {
        None => Ok(()),
        Some(why) => {
            let why = last.map_or(why.clone(), |last| format!("{why} ({last})"));
            Err(member.failed(why, keeper.last_lines()))
        }
    }
}

/// Asks until the answer is yes; `last` is why it was not.
async fn ask(member: &Member, keeper: &Keeper, last: &mut Option<String>) {
    let mut life = keeper.life();
    let mut poll = POLL_MIN;
    loop {
        // Gone only with the keeper.
        drop(life.wait_for(|life| *life == Life::Running).await);
        match once(member).await {
            Ok(()) => return,
            Err(why) => *last = Some(why),
        }
        sleep(poll).await;
        poll = (poll * 2).min(POLL_MAX);
    }
}

async fn once(member: &Member) -> Result<(), String> {
    if let Some(argv) = &member.plan.ready_exec {
        let run = member.plan.run_other(argv);
        return match inside::run(&member.init, run, member.plan.ready_timeout(), |_| {}).await {
            Ok(ExitStatus::Code(0)) => Ok(()),
            Ok(ExitStatus::Code(code)) => Err(format!("its check ends with exit status {code}")),
            Ok(ExitStatus::Signal { signal, .. }) => Err(format!("its check is ended by signal {signal}")),
            Err(InsideError::Refused { message, .. }) => Err(format!("its check cannot be run: {message}")),
            Err(error) => Err(error.to_string()),
        };
    }
    for port in &member.plan.ports {
        let to = SocketAddr::from((member.address, *port));
        match inside::connect(&member.init, to, CONNECT_LIMIT).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("port {port}: {error}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
