//! The control API: HTTP and JSON over a Unix socket that only root can reach.
//!
//! [`types`] are what both sides exchange; [`server`] is generic over a [`Backend`], which the supervisor is; [`client`] is
//! what the command line uses.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /metrics` | text for Prometheus |
//! | `GET /v1/sessions` | list of [`types::Session`] |
//! | `GET /v1/events` | the audit log's events as they happen, server-sent |
//! | `GET /v1/stats` | list of [`types::Stats`] |
//! | `GET /v1/status` | [`types::Status`] |
//! | `GET /v1/sessions/{user}[@project]` | [`types::Inspection`] |
//! | `GET /v1/sessions/{user}[@project]/oci?service=NAME` | its container, or a service's, as a configuration of the OCI runtime specification |
//! | `GET /v1/sessions/{user}[@project]/logs?source=NAME&follow=true` | lines, each a [`types::LogLine`], for as long as the session lives if `follow` |
//! | `GET /v1/sessions/{user}[@project]/diff` | [`types::Changes`] |
//! | `GET /v1/records` | list of [`types::RecordSummary`]: sessions that are gone |
//! | `GET /v1/records/{id}` | [`types::Record`] |
//! | `POST /v1/sessions/{user}[@project]/stop` | 204, or 404 if there is no such session |
//! | `POST /v1/sessions/{user}[@project]/down?clean=true` | [`types::Down`], when the session is gone, and its volumes too if `clean` |
//! | `POST /v1/sessions/{user}[@project]/exec` with a [`types::ExecRequest`] | lines, each a [`types::ExecOutput`] |
//! | `POST /v1/sessions/{user}[@project]/exec-reports` with a [`types::ExecReport`] | 204, or 404 if the session is not there |
//! | `GET /v1/users` | list of [`types::User`] |
//! | `POST /v1/users/{name}` with [`types::NewKeys`] | [`types::AddedKeys`] |
//! | `DELETE /v1/users/{name}?force=true&purge=true` | [`types::RemovedUser`]; 404 if there is none, 409 if there are sessions and no `force` |
//! | `GET /v1/projects` | list of [`types::Project`] |
//! | `POST /v1/projects/{name}` with a [`types::NewProject`] | lines, each a [`types::Job`] that leads to a [`types::ProjectChange`] |
//! | `POST /v1/projects/{name}/update` | likewise |
//! | `DELETE /v1/projects/{name}?force=true` | 204; 404 if there is none, 409 if there are sessions and no `force` |
//! | `POST /v1/stop-all` | 204 |
//! | `POST /v1/cleanup` | [`types::Cleaned`] |
//! | `POST /v1/builds` with a [`types::BuildRequest`] | lines, each a [`types::Job`] that leads to a [`types::ImageId`] |
//! | `GET /v1/images?all=true` | list of [`types::Image`] |
//! | `GET /v1/images/{reference}` | [`types::ImageDetails`] |
//! | `DELETE /v1/images/{reference}` | 204; 404 if there is none, 409 if a session uses it |
//! | `POST /v1/images/{reference}/pull` | lines, as of a build |
//! | `POST /v1/images/{reference}/push?to=REFERENCE` | lines, as of a build |
//! | `POST /v1/images/{reference}/import?cmd=WORD&env=NAME=VALUE` with a tar | [`types::ImageId`] |
//! | `GET /v1/images/{reference}/export` | a tar |
//! | `POST /v1/images/{reference}/config?tag=REFERENCE` with [`crate::image::ConfigChanges`] | [`types::ImageId`] |
//! | `POST /v1/prune?all=true` | [`types::Pruned`] |
//! | `GET /v1/cache` | list of [`types::CachedFile`] |
//! | `GET /v1/config` | list of [`types::Setting`] |
//! | `GET /v1/config/check` | [`types::ConfigCheck`] |
//! | `GET /v1/doctor` | [`types::DoctorReport`] |

pub mod bodies;
pub mod builds;
pub mod client;
mod events;
pub mod exec;
pub mod host;
pub mod images;
pub mod metrics;
pub mod projects;
mod refusal;
pub mod server;
pub mod types;
pub mod users;

pub use self::refusal::Refusal;

use std::future::Future;

use tokio::sync::mpsc;

use crate::{audit::Listener, names::SessionId, session::SessionKey};

/// What the server asks of the process that it runs in, about sessions.
pub trait Backend:
    builds::Builds + exec::Programs + host::Host + images::Images + projects::Projects + users::Users
{
    /// All sessions, in the order of their users and projects.
    fn sessions(&self) -> impl Future<Output = Vec<types::Session>> + Send;
    /// What each session uses now, in the same order.
    fn stats(&self) -> impl Future<Output = Vec<types::Stats>> + Send;
    /// Begins to listen to events; `None` if too many do already.
    fn events(&self) -> Option<Listener>;
    /// Everything that is counted, as text for Prometheus.
    fn metrics(&self) -> impl Future<Output = String> + Send;
    /// What is said in a session, by `source` alone if that is given, and from now on too with `follow`; `None` if there is
    /// no session.
    fn logs(
        &self,
        key: SessionKey,
        source: Option<String>,
        follow: bool,
    ) -> impl Future<Output = Option<std::io::Result<mpsc::Receiver<types::LogLine>>>> + Send;
    /// All that is known of a session; `None` if there is none. The error is one line.
    fn inspect(&self, key: SessionKey) -> impl Future<Output = Option<Result<types::Inspection, String>>> + Send;
    /// A session's container, or that of one of its services, for another runtime; likewise.
    fn oci(
        &self,
        key: SessionKey,
        service: Option<String>,
    ) -> impl Future<Output = Option<Result<serde_json::Value, String>>> + Send;
    /// Which files of a session are not as in its image, or why that is not known; `None` if there is no session.
    fn changes(&self, key: SessionKey) -> impl Future<Output = Option<Result<types::Changes, String>>> + Send;
    /// Sessions that are gone, the latest first.
    fn records(&self) -> impl Future<Output = std::io::Result<Vec<types::RecordSummary>>> + Send;
    /// What is kept of one of them, if it is.
    fn record(&self, id: SessionId) -> impl Future<Output = std::io::Result<Option<types::Record>>> + Send;
    /// Ends a session; false if there is none.
    fn stop(&self, key: SessionKey) -> impl Future<Output = bool> + Send;
    /// Ends a session and waits until it is gone; with `clean` its volumes go too. An error is one line for people.
    fn down(&self, key: SessionKey, clean: bool) -> impl Future<Output = Result<types::Down, String>> + Send;
    /// Ends all sessions.
    fn stop_all(&self) -> impl Future<Output = ()> + Send;
    /// Removes what belongs to no session.
    fn clean_up(&self) -> impl Future<Output = types::Cleaned> + Send;
}
