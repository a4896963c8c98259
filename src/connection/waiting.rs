//! What a session channel does until its session is ready: it tells where the client's agent is, and shows what is going on.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep_until},
};

use super::{
    channel::Line,
    control::{Attachment, Control},
    forward::Forwards,
    init_link::{InitLink, printable},
};
use crate::{protocol::Program, transcript::Reader};

/// Without a terminal, progress is of interest only when it takes longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Commands whose stderr is a file transfer's, and no place for anything else.
const TRANSFERS: [&[u8]; 6] =
    [b"scp", b"rsync", b"sftp-server", b"git-upload-pack", b"git-receive-pack", b"git-upload-archive"];

/// Whom the channel has on its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// A program that transfers files.
    None,
    Lines,
    Terminal,
}

/// A session that is ready.
pub(super) struct Ready {
    pub link: Arc<InitLink>,
    /// The path for SSH_AUTH_SOCK.
    pub agent: Option<String>,
}

impl Audience {
    pub(super) fn of(program: &Program, terminal: bool) -> Self {
        let silent = match program {
            Program::Sftp => true,
            Program::Command(command) => {
                let first = command.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).unwrap_or_default();
                let name = first.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                TRANSFERS.contains(&name)
            }
            Program::Shell | Program::Argv(_) => false,
        };
        match (silent, terminal) {
            (true, _) => Self::None,
            (false, true) => Self::Terminal,
            (false, false) => Self::Lines,
        }
    }
}

/// Waits until the session is ready.
///
/// # Errors
/// What the user is told if it never will be.
pub(super) async fn wait(
    line: &Line,
    control: &Control,
    forwards: &Arc<Forwards>,
    audience: Audience,
) -> Result<Ready, String> {
    let mut attachment = control.attachment();
    let mut stage = Stage { line, audience, output: None, progress: None };
    let mut agent = None;
    loop {
        let state = attachment.borrow_and_update().clone();
        if agent.is_none() && state.link().is_some() {
            let path = forwards.agent_path(&line.handle).await;
            control.agent(path.clone());
            agent = Some(path);
        }
        // What has been said comes before what it has led to.
        stage.show_output(control).await;
        let (since, progress) = match state {
            Attachment::Ready(link) => {
                stage.clear().await;
                return Ok(Ready { link, agent: agent.flatten() });
            }
            Attachment::Refused(message) | Attachment::Ended(message) => {
                stage.clear().await;
                return Err(message);
            }
            Attachment::Waiting { since, progress, .. } => (since, progress),
        };
        let due = if audience == Audience::Terminal { since } else { since + PATIENCE };
        let ending = |_| "the connection is ending".to_owned();
        match stage.news(progress) {
            Some(text) if due <= Instant::now() => stage.show_progress(text).await,
            Some(_) => tokio::select! {
                changed = attachment.changed() => changed.map_err(ending)?,
                () = sleep_until(due) => {}
            },
            None => attachment.changed().await.map_err(ending)?,
        }
    }
}

/// The client's stderr while it waits.
struct Stage<'a> {
    line: &'a Line,
    audience: Audience,
    /// The hooks' output, which one channel of the connection shows.
    output: Option<OwnedMutexGuard<Reader>>,
    /// The line of progress that is shown.
    progress: Option<String>,
}

impl Stage<'_> {
    /// Writes to stderr. The client is gone if that fails, and the channel's task with it.
    async fn write(&self, text: Vec<u8>) {
        let _ = self.line.write.extended_data_bytes(1, text).await;
    }

    async fn show_output(&mut self, control: &Control) {
        if self.audience == Audience::None {
            return;
        }
        if self.output.is_none() {
            // Another channel may have it, or have gone without it.
            self.output = control.output().try_lock_owned().ok();
        }
        while let Some(text) = self.output.as_mut().and_then(|output| output.try_next()) {
            self.clear().await;
            let text = match self.audience {
                Audience::Terminal => with_carriage_returns(&text),
                Audience::None | Audience::Lines => text.to_vec(),
            };
            self.write(text).await;
        }
    }

    /// The line of progress that is to be shown and is not yet.
    fn news(&self, progress: Option<String>) -> Option<String> {
        progress.filter(|text| self.audience != Audience::None && self.progress.as_ref() != Some(text))
    }

    async fn show_progress(&mut self, text: String) {
        let shown = printable(&text);
        let shape = match self.audience {
            Audience::Terminal => format!("\r\x1b[K{shown}"),
            Audience::None | Audience::Lines => format!("podspawn: {shown}\n"),
        };
        self.write(shape.into_bytes()).await;
        self.progress = Some(text);
    }

    /// Removes a live line of progress.
    async fn clear(&mut self) {
        if self.audience == Audience::Terminal && self.progress.take().is_some() {
            self.write(b"\r\x1b[K".to_vec()).await;
        }
    }
}

/// For a terminal that nobody has set up yet: a line feed does not return.
fn with_carriage_returns(text: &[u8]) -> Vec<u8> {
    let mut shaped = Vec::with_capacity(text.len() + 8);
    for piece in text.split_inclusive(|&byte| byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(line) => {
                shaped.extend_from_slice(line);
                shaped.extend_from_slice(b"\r\n");
            }
            None => shaped.extend_from_slice(piece),
        }
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_transfers_are_not_talked_to() {
        for (command, audience) in [
            ("scp -t /tmp", Audience::None),
            ("/usr/bin/rsync --server", Audience::None),
            ("git-upload-pack 'x'", Audience::None),
            ("rsyncd", Audience::Lines),
            ("echo scp", Audience::Lines),
            ("", Audience::Lines),
        ] {
            let program = Program::Command(command.as_bytes().to_vec().into());
            assert_eq!(Audience::of(&program, false), audience, "{command}");
        }
        assert_eq!(Audience::of(&Program::Sftp, false), Audience::None);
        assert_eq!(Audience::of(&Program::Shell, true), Audience::Terminal);
    }

    #[test]
    fn lines_begin_at_the_left_of_a_terminal() {
        assert_eq!(with_carriage_returns(b"a\n\nb"), b"a\r\n\r\nb");
        assert_eq!(with_carriage_returns(b""), b"");
    }
}
