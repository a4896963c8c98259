//! X11: a display inside whose clients reach the user's own.
//!
//! The cookie that the client sends is a fake one of its own making; it replaces it with the real one in what comes through
//! the channel, and refuses connections that do not know it. We only see that the programs inside know it: by the image's
//! xauth(1), as sshd does.

use std::{sync::Arc, time::Duration};

use russh::server::Handle;
use tokio::time::timeout;

use super::{
    super::{
        init_link::AskError,
        pump::{self, Streams},
    },
    ForwardError, Forwards, LISTEN_LIMIT,
    listen::{Listener, Origin},
};
use crate::protocol::{Bytes, Exec, ForwardKind, FromInit, Listen, ListeningAt, Program, ToInit};

/// How long xauth may take. It waits for a lock file that another one may have left.
const XAUTH_LIMIT: Duration = Duration::from_secs(15);

/// What the client sends of a cookie at most; real ones have 32 characters.
const MAX_COOKIE: usize = 512;

/// A display, for as long as a session channel.
pub(in super::super) struct X11 {
    number: u16,
    screen: u32,
    protocol: String,
    cookie: String,
    xauth: String,
    _listener: Listener,
}

impl Forwards {
    /// Makes a display for a session channel. `once`: for one connection.
    pub(in super::super) async fn display(
        self: &Arc<Self>,
        once: bool,
        protocol: &str,
        cookie: &str,
        screen: u32,
        handle: Handle,
    ) -> Result<X11, ForwardError> {
        for text in [protocol, cookie] {
            if text.is_empty() || text.len() > MAX_COOKIE || !text.chars().all(is_plain) {
                return Err(ForwardError::Address("the cookie".to_owned()));
            }
        }
        let made =
            timeout(LISTEN_LIMIT, self.make(Listen::Display)).await.map_err(|_elapsed| ForwardError::TimedOut)??;
        let ListeningAt::Display { number, xauth } = &made.at else { return Err(AskError::Nonsense.into()) };
        let (number, xauth) = (*number, xauth.clone());
        let listener = self.accept_from(made, Origin::X11 { once }, handle)?;
        self.audit(ForwardKind::X11, format!("localhost:{number}"));
        let (protocol, cookie) = (protocol.to_owned(), cookie.to_owned());
        Ok(X11 { number, screen, protocol, cookie, xauth, _listener: listener })
    }

    /// Tells the programs inside the cookie.
    pub(in super::super) async fn authorize(&self, x11: &X11) -> Result<(), ForwardError> {
        let link = self.link().await?;
        let (mut process, mut said) = link.open();
        let command = Bytes::from(format!("exec {} -q -", x11.xauth));
        let exec = Exec::new(process.id(), Program::Command(command));
        let run = async {
            process.send(&ToInit::Exec(Box::new(exec))).await.map_err(|_gone| AskError::Gone)?;
            let fds = match said.recv().await {
                Some((FromInit::Started { .. }, fds)) => fds,
                Some((FromInit::Refused { message, .. }, _)) => return Err(ForwardError::Session(message)),
                Some(_) => return Err(AskError::Nonsense.into()),
                None => return Err(AskError::Gone.into()),
            };
            let streams = Streams::new(fds).map_err(ForwardError::Socket)?;
            pump::feed(streams.input, x11.commands().as_bytes()).await.map_err(ForwardError::Socket)?;
            // Its output is of no interest, but closing it would end it.
            let _output = (streams.output, streams.errors);
            match said.recv().await {
                Some((FromInit::Exited { .. }, _)) => Ok(()),
                Some(_) => Err(AskError::Nonsense.into()),
                None => Err(AskError::Gone.into()),
            }
        };
        timeout(XAUTH_LIMIT, run).await.map_err(|_elapsed| ForwardError::TimedOut)??;
        process.ended();
        Ok(())
    }
}

impl X11 {
    /// The value of DISPLAY.
    pub(in super::super) fn name(&self) -> String {
        format!("localhost:{}.{}", self.number, self.screen)
    }

    /// What xauth reads. Programs look a local display's cookie up by this name, whatever DISPLAY calls it.
    fn commands(&self) -> String {
        let Self { number, screen, protocol, cookie, .. } = self;
        let display = format!("unix:{number}.{screen}");
        format!("remove {display}\nadd {display} {protocol} {cookie}\n")
    }
}

/// A character that is itself to xauth.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".:/-_".contains(c)
}
