//! One server: a registry or a mirror, how it is asked, and what it is told of who we are.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde::Deserialize;
use ureq::{
    Body,
    http::{Response, StatusCode, header},
};

use super::challenge::Challenge;
use crate::{
    http::{self, Answer, Http, HttpError},
    image::{
        ImageError,
        auth::{self, Credentials},
        store::Settings,
    },
};

const TOKEN_LIMIT: u64 = 1 << 20;

/// What is read of a server's reasons.
const MAX_ERRORS: u64 = 64 << 10;

/// How often a request is tried.
pub(super) const ATTEMPTS: u32 = 5;

/// The longest pause that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What is going to be done with the repository.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access<'a> {
    Pull,
    /// Perhaps with layers of another repository of the same registry.
    Push {
        from: Option<&'a str>,
    },
}

/// A server that has the repository, or is to have it.
pub(super) struct Host {
    registry: String,
    pub base: String,
    repository: String,
    pub http: Http,
    /// What a token is to be good for (distribution's token scopes).
    scopes: Vec<String>,
    back_off: Duration,
    credentials: Option<Credentials>,
    /// The `Authorization` that the server has wanted so far.
    authorization: Mutex<Option<String>>,
}

impl Host {
    /// `server` is a registry's name, or a mirror's with a path below which it keeps the repositories.
    pub(super) fn new(
        server: &str,
        repository: &str,
        access: Access<'_>,
        settings: &Settings,
    ) -> Result<Self, ImageError> {
        let (registry, repository) = match server.split_once('/') {
            Some((registry, prefix)) => (registry, format!("{}/{repository}", prefix.trim_end_matches('/'))),
            None => (server, repository.to_owned()),
        };
        let scheme = if settings.insecure.iter().any(|other| other == registry) { "http" } else { "https" };
        let address = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let home = format!("{scheme}://{address}");
        let unreachable = |source| ImageError::Unreachable { registry: registry.to_owned(), source: Box::new(source) };
        let scopes = match access {
            Access::Pull => vec![format!("repository:{repository}:pull")],
            Access::Push { from } => {
                let other = from.map(|from| format!("repository:{from}:pull"));
                [format!("repository:{repository}:pull,push")].into_iter().chain(other).collect()
            }
        };
        Ok(Self {
            scopes,
            registry: registry.to_owned(),
            base: format!("{home}/v2/{repository}"),
            credentials: auth::find(registry, &repository)?,
            repository,
            http: Http::new(&home, settings.timeouts).map_err(unreachable)?,
            back_off: settings.timeouts.back_off,
            authorization: Mutex::default(),
        })
    }

    pub(super) fn unexpected(&self, status: StatusCode, what: &str) -> ImageError {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::Denied { registry: self.registry.clone(), repository: self.repository.clone() }
            }
            _ => ImageError::Answer { registry: self.registry.clone(), status: status.as_u16(), what: what.to_owned() },
        }
    }

    /// As [`Host::unexpected`], with what the server says about it (OCI distribution spec, "Error Codes").
    pub(super) fn refused(&self, answer: Response<Body>, what: &str) -> ImageError {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Error>,
        }
        #[derive(Deserialize)]
        struct Error {
            code: String,
            #[serde(default)]
            message: String,
        }
        let status = answer.status();
        // A server that says nothing, or says it in another form, has said no.
        let said = http::body(answer, MAX_ERRORS).ok().and_then(|body| serde_json::from_slice::<Errors>(&body).ok());
        match said.and_then(|said| said.errors.into_iter().next()) {
            None => self.unexpected(status, what),
            Some(Error { code, message }) => {
                let said: String = format!("{code} {message}").chars().take(200).collect();
                self.unexpected(status, &format!("{what} ({})", said.trim()))
            }
        }
    }

    pub(super) fn unreachable(&self, source: HttpError) -> ImageError {
        ImageError::Unreachable { registry: self.registry.clone(), source: Box::new(source) }
    }

    /// The pause before the next attempt: twice as long each time.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        self.back_off * 2_u32.pow(failures.saturating_sub(1).min(10))
    }

    /// Gets a document or blob; see [`Host::ask`].
    pub(super) fn get(
        &self,
        url: &str,
        answer: Answer,
        headers: &[(&str, &str)],
        what: &str,
    ) -> Result<Response<Body>, ImageError> {
        self.ask(what, |authorization| self.http.get(url, answer, authorization, headers))
    }

    /// Sends a request, with what authorization the server asks for; again after a pause while the server is unwell or out
    /// of reach.
    pub(super) fn ask(
        &self,
        what: &str,
        mut send: impl FnMut(Option<&str>) -> Result<Response<Body>, HttpError>,
    ) -> Result<Response<Body>, ImageError> {
        self.insist(what, || self.ask_once(&mut send))
    }

    /// Does `attempt` again after a pause while the server is unwell or out of reach.
    pub(super) fn insist(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<Response<Body>, ImageError>,
    ) -> Result<Response<Body>, ImageError> {
        let mut failures = 0;
        loop {
            let result = attempt();
            failures += 1;
            let pause = match &result {
                Ok(answer) if is_unwell(answer.status()) => retry_after(answer).unwrap_or(self.pause(failures)),
                Err(ImageError::Unreachable { source, .. }) if source.may_pass() => self.pause(failures),
                _ => return result,
            };
            if failures == ATTEMPTS {
                return result.and_then(|answer| Err(self.unexpected(answer.status(), what)));
            }
            thread::sleep(pause);
        }
    }

    /// Sends a request, and once more if the server wants to see an authorization that it was not shown.
    pub(super) fn ask_once(
        &self,
        mut send: impl FnMut(Option<&str>) -> Result<Response<Body>, HttpError>,
    ) -> Result<Response<Body>, ImageError> {
        let mut ask = |authorization: Option<&str>| send(authorization).map_err(|error| self.unreachable(error));
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = ask(known.as_deref())?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let Some(authorization) = self.answer_challenge(&challenges)? else { return Ok(answer) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        ask(Some(&authorization))
    }

    fn answer_challenge(&self, challenges: &[Challenge]) -> Result<Option<String>, ImageError> {
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service } => return self.token(realm, service.as_deref()).map(Some),
                Challenge::Basic => {
                    if let Some(basic) = self.credentials.as_ref().and_then(Credentials::basic) {
                        return Ok(Some(basic));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Fetches a token for the repository (distribution's token specification). Where the realm is, the
    /// registry says; whether we go there, [`Http`].
    fn token(&self, realm: &str, service: Option<&str>) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer = match &self.credentials {
            Some(Credentials::Identity(refresh_token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "podspawn"),
                    ("service", service.unwrap_or_default()),
                    ("scope", &self.scopes.join(" ")),
                    ("refresh_token", refresh_token),
                ];
                self.http.post_form(realm, &form)
            }
            other => {
                let basic = other.as_ref().and_then(Credentials::basic);
                let separator = if realm.contains('?') { '&' } else { '?' };
                let scopes: Vec<String> = self.scopes.iter().map(|scope| format!("scope={}", escape(scope))).collect();
                let mut url = format!("{realm}{separator}{}", scopes.join("&"));
                if let Some(service) = service {
                    url.push_str("&service=");
                    url.push_str(&escape(service));
                }
                self.http.get(&url, Answer::Document, basic.as_deref(), &[])
            }
        };
        let answer = answer.map_err(|error| self.unreachable(error))?;
        if answer.status() != StatusCode::OK {
            return Err(self.unexpected(answer.status(), "the request for a token"));
        }
        let damaged = |error: io::Error| ImageError::Source(format!("the token of {}", self.registry), error);
        let body = http::body(answer, TOKEN_LIMIT).map_err(damaged)?;
        let token: Token = serde_json::from_slice(&body).map_err(|error| damaged(error.into()))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        Ok(format!("Bearer {token}"))
    }
}

fn is_unwell(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// How long the server wants to be left alone (RFC 9110, 10.2.3), if it says so in seconds.
fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_PAUSE))
}

fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b'/' | b':' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
