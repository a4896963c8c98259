//! What a client of the control API waits for and hears of while it goes on.

use std::error::Error;

use tokio::sync::mpsc;

use crate::{api::types::Job, errors::chain, image::Progress};

/// Tells the client; what it does not read in time is left out.
pub(super) struct Telling<T>(pub mpsc::Sender<Job<T>>);

impl<T: Send> Progress for Telling<T> {
    fn line(&self, line: &str) {
        // Left out, or there is nobody to hear it.
        let _ = self.0.try_send(Job::Progress(line.to_owned()));
    }

    fn is_unwanted(&self) -> bool {
        self.0.is_closed()
    }
}

/// Why there is no result.
pub(super) struct Failure {
    /// In one line.
    pub error: String,
    /// Lines that say more.
    pub output: Vec<String>,
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: chain(error), output: Vec::new() }
    }
}

/// Does `work`, which blocks, on a thread that may, and tells the client how it has ended.
pub(super) async fn run<T: Send + 'static>(
    client: mpsc::Sender<Job<T>>,
    work: impl FnOnce(&Telling<T>) -> Result<T, Failure> + Send + 'static,
) {
    let telling = Telling(client.clone());
    let done = tokio::task::spawn_blocking(move || work(&telling)).await;
    end(client, done.unwrap_or_else(|panicked| Err(panicked.into()))).await;
}

/// Tells the client how it has ended.
pub(super) async fn end<T>(client: mpsc::Sender<Job<T>>, done: Result<T, Failure>) {
    let last = match done {
        Ok(done) => Job::Done(done),
        Err(Failure { error, output }) => Job::Failed { error, output },
    };
    // Whoever asked may have gone in this moment.
    let _ = client.send(last).await;
}
