//! How a driver has its session made and removed, in tasks of their own, and what it tells meanwhile.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Driver, Event, Mailbox, ports, services};
use crate::{
    config::Config,
    errors::chain,
    image::{self, Progress as _},
    session::{
        build,
        client::ToClient,
        environment::Environment,
        ports::Reserved,
        registry::Inner,
        state::{Action, State},
        steps::{Context, CreateError},
    },
};

impl Driver {
    pub(super) fn start_creation(&self, config: Arc<Config>) {
        let (inner, key, mailbox) = (self.inner.clone(), self.key.clone(), self.mailbox.clone());
        let (progress, stopped) = (self.progress.clone(), self.creation.clone());
        let start = Instant::now();
        tokio::spawn(async move {
            let progress = Arc::new(Progress { mailbox: mailbox.clone(), line: progress });
            let prepared = async {
                let environment = blocking(&inner, {
                    let (key, config) = (key.clone(), config.clone());
                    move |context| Environment::of(&key, &config, &context.podfiles)
                });
                let environment = Arc::new(environment.await?);
                // Whatever is removed for room meanwhile, these stay.
                let needed = blocking(&inner, {
                    let environment = environment.clone();
                    move |context| context.need_images(&environment)
                });
                let needed = needed.await;
                let services = blocking(&inner, {
                    let (environment, progress) = (environment.clone(), progress.clone());
                    move |context| context.ensure_service_images(&environment, &*progress)
                });
                let egress = environment.egress_of_builds.as_ref();
                let session = build::ensure(&inner, &environment.image, egress, &config, |line| progress.line(line));
                tokio::try_join!(session, services)?;
                services::wait_for_volumes(&inner, &key, &environment).await?;
                let ports = Reserved::take(&environment.ports).await?;
                Ok((environment, ports, needed))
            };
            // What has been begun goes on in the background, for the next one who wants the images.
            let prepared = stopped.run_until_cancelled(prepared).await;
            let result = match prepared {
                None => Err(CreateError::Stopped),
                Some(Err(error)) => Err(error),
                Some(Ok((environment, ports, _needed))) => {
                    let created = {
                        let _turn = inner.creation_turn().await;
                        blocking(&inner, move |context| context.create(&key, &environment, &config)).await
                    };
                    match created {
                        Ok(live) => {
                            let started = services::start(&inner, Box::new(live), progress, &stopped).await;
                            started.map(|live| ports::open(&inner, live, ports))
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            if result.is_ok() {
                inner.metrics().created_in(start.elapsed());
            }
            // The driver outlives its creation, except when the whole process ends.
            let _ = mailbox.send(Event::Created(result.map_err(Box::new)));
        });
    }

    pub(super) fn start_destruction(&mut self, delay: Option<Duration>) {
        let Some(record) = self.record.clone() else { return };
        let (inner, mailbox, container) = (self.inner.clone(), self.mailbox.clone(), self.container.take());
        let services = self.services.take();
        let reason = self.ending;
        self.ports = None;
        self.init = None;
        let start = *self.end_began.get_or_insert_with(Instant::now);
        tokio::spawn(async move {
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            services::stop(services).await;
            let result = blocking(&inner, move |context| match reason {
                Some(reason) => context.end(&record, container, reason),
                None => context.destroy(&record, container),
            });
            let result = result.await;
            if result.is_ok() {
                inner.metrics().removed_in(start.elapsed());
            }
            // As above.
            let _ = mailbox.send(Event::Destroyed(result));
        });
    }

    pub(super) fn creation_failed(mut self, state: State, error: CreateError) {
        Inner::retire(&self.inner, &self.key, &self.mailbox);
        tracing::error!(session = %self.key, "{}", chain(&error));
        let message = error.told();
        // From here on nobody finds the mailbox, but some may have come before.
        while let Ok(event) = self.events.try_recv() {
            if let Event::Attach(client) = event {
                client.tell(ToClient::Refused(message.clone()));
            }
        }
        if let State::Creating(creating) = state {
            for action in creating.failed(&message) {
                if let Action::Refuse(id, text) = action
                    && let Some(client) = self.clients.get(&id)
                {
                    client.tell(ToClient::Refused(text));
                }
            }
        }
    }
}

/// Runs kernel work on a thread that may block. A panic in it is passed on.
pub(in crate::session) async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Context) -> T + Send + 'static,
) -> T {
    let inner = inner.clone();
    match tokio::task::spawn_blocking(move || work(&inner.context)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending: nobody waits for the answer.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

/// Passes on what the image store says to those who wait for the session.
pub(super) struct Progress {
    pub(super) mailbox: Mailbox,
    pub(super) line: Arc<Mutex<Option<String>>>,
}

impl image::Progress for Progress {
    fn line(&self, line: &str) {
        let last = self.line.lock().unwrap_or_else(PoisonError::into_inner).replace(line.to_owned());
        // The driver has not come to the last one yet, and will find this one instead.
        if last.is_none() {
            // Nobody waits any more if the driver is gone.
            let _ = self.mailbox.send(Event::Progress);
        }
    }
}
