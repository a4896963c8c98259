//! What init does for forwarding: it looks names up, connects and listens, and gives the sockets away.
//!
//! A connection process cannot do that itself: it is in the host's namespaces, and may not make sockets at all. It accepts
//! from a listener that it was given, so a listener ends with it.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::{
    errands::{Answer, Asker, Job},
    resolve,
    serve::Init,
    sockets,
};
use crate::protocol::{Address, FailReason, FromInit, Listen, ListeningAt};

impl Init {
    pub(super) fn resolve(&mut self, asker: Asker, host: String) {
        let addresses = resolve::known(&host);
        if addresses.is_empty() {
            self.send_on_errand(asker, Job::Resolve(host));
        } else {
            self.send(asker.client, &FromInit::Resolved { id: asker.id, addresses }, Vec::new());
        }
    }

    pub(super) fn connect(&mut self, asker: Asker, to: Address) {
        match to {
            Address::Unix(path) => self.send_on_errand(asker, Job::Connect(path)),
            Address::Tcp(address) => {
                let connecting = |socket| (FromInit::Connecting { id: asker.id }, vec![socket]);
                self.answer(asker, sockets::connect_tcp(address).map(connecting));
            }
        }
    }

    pub(super) fn listen(&mut self, asker: Asker, on: Listen) {
        let listening = |at, sockets| (FromInit::Listening { id: asker.id, at }, sockets);
        match on {
            Listen::Unix(path) => self.send_on_errand(asker, Job::Listen(path)),
            Listen::Agent => self.send_on_errand(asker, Job::ListenAgent),
            Listen::Tcp { addresses, port } => {
                let made = sockets::listen_tcp(&addresses, port);
                self.answer(asker, made.map(|(port, sockets)| listening(ListeningAt::Port(port), sockets)));
            }
            Listen::Display => match sockets::xauth() {
                None => {
                    let message = "the image has no xauth".to_owned();
                    self.tell(Answer::failed(asker, FailReason::Error, message));
                }
                Some(xauth) => {
                    let display = |number| ListeningAt::Display { number, xauth: xauth.to_owned() };
                    let made = sockets::listen_display();
                    self.answer(asker, made.map(|(number, sockets)| listening(display(number), sockets)));
                }
            },
        }
    }

    fn answer(&mut self, asker: Asker, made: nix::Result<(FromInit, Vec<OwnedFd>)>) {
        match made {
            Ok((message, fds)) => self.send(asker.client, &message, fds),
            Err(errno) => {
                let short = matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM);
                let reason = if short { FailReason::Shortage } else { FailReason::Error };
                self.tell(Answer::failed(asker, reason, errno.desc().to_owned()));
            }
        }
    }

    fn send_on_errand(&mut self, asker: Asker, job: Job) {
        if let Some(refusal) = self.errands.add(&self.surroundings, asker, job) {
            self.tell(refusal);
        }
    }

    pub(super) fn finish_errands(&mut self) {
        // Those without an answer yet are found to have none.
        for answer in self.errands.finish(&self.surroundings, &mut self.buffer) {
            self.tell(answer);
        }
    }

    fn tell(&mut self, answer: Answer) {
        self.send(answer.client, &answer.message, answer.fds);
    }
}
