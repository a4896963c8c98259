//! Events for who listens now. Each listener has a queue of its own; who does not keep up is let go, and told so.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::mpsc;

/// Listeners that there may be. Each has one connection to the control socket, which has more of them.
const LISTENERS: usize = 16;

/// Events that a listener may be behind.
const BEHIND: usize = 256;

/// One event.
#[derive(Debug)]
pub struct Told {
    pub name: &'static str,
    /// As in the log, without the end of the line.
    pub line: String,
}

#[derive(Default)]
pub(super) struct Feed(Mutex<Vec<Queue>>);

struct Queue {
    events: mpsc::Sender<Arc<Told>>,
    lagged: Arc<AtomicBool>,
}

/// Somebody who listens, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    events: mpsc::Receiver<Arc<Told>>,
    lagged: Arc<AtomicBool>,
}

/// What a listener hears.
#[derive(Debug)]
pub enum Heard {
    Event(Arc<Told>),
    /// Events were lost, and there will be no more.
    Lagged,
}

impl Feed {
    fn queues(&self) -> std::sync::MutexGuard<'_, Vec<Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to listen; `None` if too many do.
    pub(super) fn listen(&self) -> Option<Listener> {
        let mut queues = self.queues();
        queues.retain(|queue| !queue.events.is_closed());
        if queues.len() >= LISTENERS {
            return None;
        }
        let (sender, events) = mpsc::channel(BEHIND);
        let lagged = Arc::new(AtomicBool::new(false));
        queues.push(Queue { events: sender, lagged: lagged.clone() });
        Some(Listener { events, lagged })
    }

    pub(super) fn has_listeners(&self) -> bool {
        !self.queues().is_empty()
    }

    pub(super) fn tell(&self, told: Told) {
        let told = Arc::new(told);
        self.queues().retain(|queue| match queue.events.try_send(told.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                queue.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }
}

impl Listener {
    /// What comes next; `None` after the last.
    pub fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.events.poll_recv(context).map(|event| match event {
            Some(told) => Some(Heard::Event(told)),
            None => self.lagged.swap(false, Ordering::Acquire).then_some(Heard::Lagged),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn heard(listener: &mut Listener) -> Option<Heard> {
        match listener.poll_heard(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(heard) => heard,
            Poll::Pending => panic!("nothing to hear"),
        }
    }

    #[test]
    fn who_does_not_keep_up_is_told_and_let_go() {
        let feed = Feed::default();
        let (mut slow, mut fast) = (feed.listen().unwrap(), feed.listen().unwrap());
        for number in 0..=BEHIND {
            feed.tell(Told { name: "x", line: number.to_string() });
            assert!(matches!(heard(&mut fast), Some(Heard::Event(told)) if told.line == number.to_string()));
        }
        for number in 0..BEHIND {
            assert!(matches!(heard(&mut slow), Some(Heard::Event(told)) if told.line == number.to_string()));
        }
        assert!(matches!(heard(&mut slow), Some(Heard::Lagged)));
        assert!(heard(&mut slow).is_none());
        feed.tell(Told { name: "x", line: "last".to_owned() });
        assert!(matches!(heard(&mut fast), Some(Heard::Event(told)) if told.line == "last"));
    }

    #[test]
    fn there_are_so_many_listeners_and_no_more() {
        let feed = Feed::default();
        let mut all: Vec<_> = (0..LISTENERS).map(|_| feed.listen().unwrap()).collect();
        assert!(feed.listen().is_none());
        all.pop();
        assert!(feed.listen().is_some());
    }
}
