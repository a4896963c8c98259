//! HTTP for registries: `ureq` with the host's certificates, our own name resolution, and redirects under rules.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use hickory_resolver::TokioResolver;
use ureq::{
    Agent, Body,
    http::{Response, Uri, header},
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A connection that carries nothing for this long is broken.
const STALL_LIMIT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;

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
    #[error("a redirect to {0}, which is not allowed")]
    Redirect(String),
}

/// A client. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Http(Agent);

impl Http {
    pub(super) fn new() -> Self {
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
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(ANSWER_LIMIT))
            .timeout_per_read(Some(STALL_LIMIT))
            .build();
        Self(Agent::with_parts(config, DefaultConnector::default(), Names))
    }

    /// Gets `url`, following redirects. `authorization` is sent to that host only. The answer's status may be any.
    pub(super) fn get(
        &self,
        url: &str,
        authorization: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, HttpError> {
        let first: Uri = url.parse().map_err(|_| HttpError::Address(url.to_owned()))?;
        let mut target = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.0.get(&target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = authorization.filter(|_| same_host(&first, &target)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let answer = request.call()?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            target = follow(&first, &target, location.ok_or(HttpError::NoLocation)?)?;
        }
        Err(HttpError::TooManyRedirects)
    }
}

fn same_host(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// Where a redirect leads: never from https to http, never to this machine or its links unless the registry is there.
fn follow(first: &Uri, from: &Uri, location: &str) -> Result<Uri, HttpError> {
    let refused = || HttpError::Redirect(location.chars().take(200).collect());
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        let (scheme, authority) = from.scheme_str().zip(from.authority()).ok_or_else(refused)?;
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let target: Uri = absolute.parse().map_err(|_| refused())?;
    let secure = |uri: &Uri| uri.scheme_str() == Some("https");
    let allowed_scheme = secure(&target) || (target.scheme_str() == Some("http") && !secure(from));
    let inward = |uri: &Uri| uri.host().is_none_or(is_inward);
    if !allowed_scheme || (inward(&target) && !inward(first)) {
        return Err(refused());
    }
    Ok(target)
}

fn is_inward(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
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
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut found = self.empty();
        for address in lookup(host, *timeout.after).map_err(|_| ureq::Error::HostNotFound)?.into_iter().take(16) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

fn lookup(host: &str, limit: Duration) -> std::io::Result<Vec<IpAddr>> {
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
            .map_err(std::io::Error::other)?;
        let answer = tokio::time::timeout(limit.min(CONNECT_LIMIT), resolver.lookup_ip(bare)).await;
        let answer = answer.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
        Ok(answer.iter().collect())
    })
}

/// At most `limit` bytes of an answer's body.
pub(super) fn body(answer: Response<Body>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    answer.into_body().into_with_config().limit(u64::MAX).reader().take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_safe() {
        let go = |first: &str, from: &str, to: &str| {
            follow(&first.parse().unwrap(), &from.parse().unwrap(), to).map(|uri| uri.to_string()).ok()
        };
        let registry = "https://r.example/v2/x";
        assert_eq!(go(registry, registry, "/y?z").as_deref(), Some("https://r.example/y?z"));
        assert_eq!(go(registry, registry, "https://cdn.example/b").as_deref(), Some("https://cdn.example/b"));
        for bad in [
            "http://r.example/y",
            "file:///etc/passwd",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/",
            "https://localhost/",
            "https://[::ffff:127.0.0.1]/",
            "ftp://x/",
            "",
        ] {
            assert_eq!(go(registry, registry, bad), None, "{bad}");
        }
        let local = "http://127.0.0.1:5000/v2/x";
        assert!(go(local, local, "http://127.0.0.1:5001/b").is_some());
    }
}
