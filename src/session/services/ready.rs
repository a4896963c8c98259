//! When a service is ready: its command succeeds, or each of its ports accepts a connection, or it just runs.
//!
//! Databases accept connections before they serve any. Those that say so are asked, on the ports that are known to be theirs.
//!
//! Asked from inside its container, where its own clients' way to it begins: from the host there is none.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

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

/// How long somebody who was asked may keep silent, who then is no such database.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What is asked on a port, and what in the answer says that it is too early.
struct Question {
    port: u16,
    ask: &'static [u8],
    not_yet: &'static [u8],
}

const QUESTIONS: [Question; 2] = [
    // PostgreSQL, "Message Formats": StartupMessage, and ErrorResponse with the code cannot_connect_now; as pg_isready does it.
    Question { port: 5432, ask: b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0", not_yet: b"C57P03\0" },
    // Redis serialization protocol: it reads its data from disk.
    Question { port: 6379, ask: b"PING\r\n", not_yet: b"-LOADING" },
];

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
            Ok(Ok(connection)) => {
                if is_too_early(*port, connection).await {
                    return Err(format!("port {port}: the database is starting"));
                }
            }
            Ok(Err(error)) => return Err(format!("port {port}: {error}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// Whether it is a database that says so itself. Who answers something else, or nothing, is taken as it is.
async fn is_too_early(port: u16, connection: OwnedFd) -> bool {
    let Some(question) = QUESTIONS.iter().find(|question| question.port == port) else { return false };
    let asked = async {
        let mut stream = TcpStream::from_std(connection.into())?;
        stream.write_all(question.ask).await?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).await?;
        Ok::<_, io::Error>(answer[..length].windows(question.not_yet.len()).any(|part| part == question.not_yet))
    };
    timeout(ANSWER_LIMIT, asked).await.is_ok_and(|answer| answer.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Whether a service that answers so on this port is not ready yet.
    async fn judged(port: u16, answer: &'static [u8]) -> bool {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 100];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer).await.unwrap();
            asked[..length].to_vec()
        };
        let (asked, early) = tokio::join!(served, is_too_early(port, client.into()));
        if port == 5432 {
            let length = u32::from_be_bytes(asked[..4].try_into().unwrap());
            assert_eq!(length as usize, asked.len(), "the message says how long it is");
        }
        early
    }

    #[tokio::test]
    async fn databases_that_are_starting_are_not_ready() {
        let starting = b"E\0\0\0\x60SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
        assert!(judged(5432, starting).await);
        assert!(!judged(5432, b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await);
        assert!(!judged(5432, b"E\0\0\0\x60SFATAL\0VFATAL\0C28000\0Mrole does not exist\0\0").await);
        assert!(judged(6379, b"-LOADING Redis is loading the dataset in memory\r\n").await);
        assert!(!judged(6379, b"-NOAUTH Authentication required.\r\n").await);
        assert!(!judged(6379, b"").await);
    }
}
