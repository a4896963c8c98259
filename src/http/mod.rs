//! HTTP for what is fetched from others: `ureq` with the host's certificates, our own name resolution, and rules about
//! where to go ([`Reach`]).

pub mod github;
mod reach;

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use hickory_resolver::TokioResolver;
use ureq::{
    Agent, Body, SendBody,
    http::{Response, Uri, header},
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

pub(crate) use self::reach::Reach;

const MAX_REDIRECTS: usize = 5;

/// How long to wait for others.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a name to be resolved, and for a connection to be made.
    pub connect: Duration,
    /// For a server to begin its answer.
    pub answer: Duration,
    /// For a document to be complete.
    pub document: Duration,
    /// For a server to take in what was sent to it, which it may have to copy or to verify first.
    pub take_in: Duration,
    /// A connection that carries nothing, or hardly anything, for this long is broken.
    pub stall: Duration,
    /// The pause before the second attempt.
    pub back_off: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            document: Duration::from_secs(120),
            take_in: Duration::from_secs(600),
            stall: Duration::from_secs(60),
            back_off: Duration::from_millis(300),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Something small.
    Document,
    /// Something large, which may take any time as long as it goes on.
    Blob,
}

/// What is asked without a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    Head,
    Delete,
}

/// What is said with a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message {
    Post,
    Put,
}

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(transparent)]
    Request(#[from] ureq::Error),
    #[error("{0:?} is not an address")]
    Address(String),
    #[error("a redirect without an address")]
    NoLocation,
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooManyRedirects,
    #[error("it sends us to {0}, which is not allowed")]
    Forbidden(String),
    #[error("{0} is no public address")]
    Private(String),
}

impl HttpError {
    /// Whether another attempt may have another result.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            // A certificate that is not trusted, or an address that is not allowed, does not get better.
            Self::Request(ureq::Error::Io(error)) => {
                !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
                    && !is_interruption(error)
            }
            Self::Request(error) => matches!(
                error,
                ureq::Error::Timeout(_)
                    | ureq::Error::HostNotFound
                    | ureq::Error::ConnectionFailed
                    | ureq::Error::Protocol(_)
            ),
            _ => false,
        }
    }
}

/// The error of a body that ends because whoever sends it was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("it was interrupted")]
pub(crate) struct Interrupted;

fn is_interruption(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Interrupted>())
}

/// A client for one server, which is at `home`.
///
/// Redirects and token realms are the server's choice. They lead from https to https only, and not beyond its reach:
/// otherwise it could make us ask others that trust whoever can reach them.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    home: Uri,
    timeouts: Timeouts,
    names: Names,
}

impl Http {
    /// For a server that the administrator has chosen.
    pub(crate) fn new(home: &str, timeouts: Timeouts) -> Result<Self, HttpError> {
        let host = home.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        Self::reaching(Reach::from_server(&host), home, timeouts)
    }

    /// For a server that may be anywhere within `reach`.
    pub(crate) fn reaching(reach: Reach, home: &str, timeouts: Timeouts) -> Result<Self, HttpError> {
        let home: Uri = home.parse().map_err(|_| HttpError::Address(home.to_owned()))?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(certificates()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("podspawn/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, where it is known what may be sent where.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.answer))
            .timeout_per_read(Some(timeouts.stall))
            .timeout_per_write(Some(timeouts.stall))
            .build();
        let names = Names { reach, limit: timeouts.connect };
        let agent = Agent::with_parts(config, DefaultConnector::default(), names.clone());
        Ok(Self { agent, home, timeouts, names })
    }

    /// Gets `url`, following redirects. `authorization` is sent to that server only. The answer's status may be any.
    pub(crate) fn get(
        &self,
        url: &str,
        answer: Answer,
        authorization: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, HttpError> {
        let first = self.allowed(&self.home, url)?;
        let mut target = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let limit = (answer == Answer::Document).then_some(self.timeouts.document);
            let mut request = self.agent.get(&target).config().timeout_global(limit).build();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = authorization.filter(|_| same_server(&first, &target)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let answer = request.call()?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            target = self.follow(&target, location.ok_or(HttpError::NoLocation)?)?;
        }
        Err(HttpError::TooManyRedirects)
    }

    /// Posts a form. Redirects are not followed.
    pub(crate) fn post_form(&self, url: &str, form: &[(&str, &str)]) -> Result<Response<Body>, HttpError> {
        let target = self.allowed(&self.home, url)?;
        let request = self.agent.post(&target).config().timeout_global(Some(self.timeouts.document)).build();
        Ok(request.send_form(form.iter().copied())?)
    }

    /// Asks whether `url` is there, or to have it removed; redirects are not followed.
    pub(crate) fn ask(
        &self,
        question: Question,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, HttpError> {
        let target = self.allowed(&self.home, url)?;
        let request = match question {
            Question::Head => self.agent.head(&target),
            Question::Delete => self.agent.delete(&target),
        };
        let mut request = request.config().timeout_global(Some(self.timeouts.document)).build();
        if let Some(value) = authorization.filter(|_| same_server(&self.home, &target)) {
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(request.call()?)
    }

    /// Sends `size` bytes of `body`; redirects are not followed. `authorization` is sent to the registry only.
    pub(crate) fn send(
        &self,
        message: Message,
        url: &str,
        authorization: Option<&str>,
        media_type: &str,
        (body, size): (&mut dyn Read, u64),
    ) -> Result<Response<Body>, HttpError> {
        let target = self.allowed(&self.home, url)?;
        let request = match message {
            Message::Post => self.agent.post(&target),
            Message::Put => self.agent.put(&target),
        };
        let mut request = request.config().timeout_recv_response(Some(self.timeouts.take_in)).build();
        if let Some(value) = authorization.filter(|_| same_server(&self.home, &target)) {
            request = request.header(header::AUTHORIZATION, value);
        }
        // Registries want to know it beforehand.
        request = request.header(header::CONTENT_LENGTH, size).header(header::CONTENT_TYPE, media_type);
        Ok(request.send(SendBody::from_reader(body))?)
    }

    /// The absolute form of an address that `from` has answered with, if we may be sent there.
    pub(crate) fn location(&self, from: &str, location: &str) -> Result<String, HttpError> {
        let from = from.parse().map_err(|_| HttpError::Address(from.to_owned()))?;
        Ok(self.follow(&from, location)?.to_string())
    }

    /// Where a redirect leads.
    fn follow(&self, from: &Uri, location: &str) -> Result<Uri, HttpError> {
        let shown = || HttpError::Forbidden(location.chars().take(200).collect());
        if location.starts_with('/') && !location.starts_with("//") {
            let (scheme, authority) = from.scheme_str().zip(from.authority()).ok_or_else(shown)?;
            return self.allowed(from, &format!("{scheme}://{authority}{location}"));
        }
        self.allowed(from, location)
    }

    /// The address, if we may be sent there from `from`.
    fn allowed(&self, from: &Uri, url: &str) -> Result<Uri, HttpError> {
        let refused = || HttpError::Forbidden(url.chars().take(200).collect());
        let target: Uri = url.parse().map_err(|_| refused())?;
        let secure = |uri: &Uri| uri.scheme_str() == Some("https");
        let scheme = secure(&target) || (target.scheme_str() == Some("http") && !secure(from));
        let host = target.host().filter(|_| scheme).ok_or_else(refused)?;
        match &self.names.reach {
            reach if reach.allows(host) => Ok(target),
            Reach::From { .. } => Err(refused()),
            Reach::Public { .. } => Err(HttpError::Private(host.to_owned())),
        }
    }
}

fn same_server(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// The host's trusted certificates, read once. A host without any can reach insecure registries only.
fn certificates() -> Arc<Vec<Certificate<'static>>> {
    static CERTIFICATES: OnceLock<Arc<Vec<Certificate<'static>>>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        Arc::new(found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect())
    };
    CERTIFICATES.get_or_init(load).clone()
}

/// Names by our own resolver: in a static executable glibc's does not work.
#[derive(Debug, Clone)]
struct Names {
    reach: Reach,
    limit: Duration,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let addresses = lookup(host, self.limit.min(*timeout.after)).map_err(|_| ureq::Error::HostNotFound)?;
        self.reach.resolved(host, &addresses);
        let proxy = config.proxy().is_some_and(|proxy| proxy.host() == host);
        let mut found = self.empty();
        for address in addresses.iter().filter(|address| proxy || self.reach.allows_at(host, **address)).take(16) {
            found.push(SocketAddr::new(*address, port));
        }
        if !found.is_empty() {
            Ok(found)
        } else if addresses.is_empty() {
            Err(ureq::Error::HostNotFound)
        } else {
            let why = match &self.reach {
                Reach::From { .. } => format!("it sends us to {host}, which is this machine"),
                Reach::Public { .. } => format!("{host} has no public address"),
            };
            Err(ureq::Error::Io(io::Error::new(io::ErrorKind::PermissionDenied, why)))
        }
    }
}

fn lookup(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    if bare == "localhost" {
        return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
    }
    // Blocking code on a thread of its own: a small runtime for one question.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let resolver = TokioResolver::builder_tokio()
            .and_then(hickory_resolver::ResolverBuilder::build)
            .map_err(io::Error::other)?;
        let answer = tokio::time::timeout(limit, resolver.lookup_ip(bare)).await;
        let answer = answer.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(answer.iter().collect())
    })
}

/// At most `limit` bytes of an answer's body.
pub(crate) fn body(answer: Response<Body>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    answer.into_body().into_with_config().limit(u64::MAX).reader().take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_safe() {
        let go = |home: &str, to: &str| {
            let http = Http::new(home, Timeouts::default()).unwrap();
            let from = format!("{home}/v2/x").parse().unwrap();
            http.follow(&from, to).map(|uri| uri.to_string()).ok()
        };
        let registry = "https://r.example";
        assert_eq!(go(registry, "/y?z").as_deref(), Some("https://r.example/y?z"));
        assert_eq!(go(registry, "https://cdn.example/b").as_deref(), Some("https://cdn.example/b"));
        for bad in [
            "http://r.example/y",
            "file:///etc/passwd",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/",
            "https://[fe80::1]/",
            "https://0.0.0.0/",
            "https://localhost/",
            "https://LOCALHOST/",
            "https://localhost./",
            "https://[::ffff:127.0.0.1]/",
            "//localhost/x",
            "ftp://x/",
            "",
        ] {
            assert_eq!(go(registry, bad), None, "{bad}");
        }
        let local = "http://127.0.0.1:5000";
        assert!(go(local, "http://127.0.0.1:5001/b").is_some());
    }

    #[test]
    fn a_name_that_resolves_to_this_machine_is_no_way_around() {
        let names = Names { reach: Reach::from_server("r.example"), limit: Duration::from_secs(5) };
        let timeout = || NextTimeout {
            after: ureq::unversioned::transport::time::Duration::from_secs(5),
            reason: ureq::Timeout::Resolve,
            per_read: None,
            per_write: None,
        };
        let config = Agent::config_builder().build();
        let ask = |uri: &str| names.resolve(&uri.parse().unwrap(), &config, timeout());
        assert!(matches!(ask("https://127.0.0.1/"), Err(ureq::Error::Io(_))));
        names.reach.resolved("r.example", &[IpAddr::from([127, 0, 0, 1])]);
        assert!(ask("https://127.0.0.1/").is_ok());
    }
}
