//! A repository that an image is put into (OCI distribution spec, "Push").

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

use ureq::{
    Body,
    http::{Response, StatusCode, header},
};

use super::host::{Access, Host};
use crate::{
    http::{HttpError, Message, Question},
    image::{Digest, ImageError, reference::RegistryReference, store::Settings},
};

const BLOB_TYPE: &str = "application/octet-stream";

/// Bytes per second below which a server is as good as gone.
const MIN_RATE: u64 = 1024;

/// Opens what is to be uploaded, from its start.
type Open<'a> = dyn Fn() -> io::Result<Box<dyn Read + 'a>> + 'a;

pub(in crate::image) struct Upload {
    host: Host,
    tag: String,
    /// Another repository of the registry, which may have layers of the image already.
    from: Option<String>,
    stall: Duration,
}

impl Upload {
    /// To the tag of `to`. `from` is where the image comes from.
    pub(in crate::image) fn open(
        to: &RegistryReference,
        from: Option<&RegistryReference>,
        settings: &Settings,
    ) -> Result<Self, ImageError> {
        let (registry, repository) = to.full(&settings.default_registry);
        let from = from.map(|from| from.full(&settings.default_registry));
        let from = from.filter(|(other, name)| *other == registry && *name != repository).map(|(_, name)| name);
        Ok(Self {
            // Mirrors are read from only.
            host: Host::new(&registry, &repository, Access::Push { from: from.as_deref() }, settings)?,
            tag: to.tag.clone().unwrap_or_else(|| "latest".to_owned()),
            from,
            stall: settings.timeouts.stall,
        })
    }

    /// Whether the repository has this blob.
    pub(in crate::image) fn has(&self, digest: &Digest) -> Result<bool, ImageError> {
        let url = format!("{}/blobs/{digest}", self.host.base);
        let what = format!("the question for {digest}");
        let answer = self.host.ask(&what, |shown| self.host.http.ask(Question::Head, &url, shown))?;
        match answer.status() {
            // Whoever knows where it is, has it.
            status if status.is_success() || status.is_redirection() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(self.host.unexpected(status, &what)),
        }
    }

    /// Takes the blob over from the repository that the image comes from; false if the registry does not do so.
    pub(in crate::image) fn mount(&self, digest: &Digest) -> Result<bool, ImageError> {
        let Some(from) = &self.from else { return Ok(false) };
        let url = format!("{}/blobs/uploads/?mount={digest}&from={from}", self.host.base);
        let answer = self.host.ask(&format!("the mount of {digest}"), |shown| self.post(&url, shown))?;
        if answer.status() == StatusCode::ACCEPTED {
            // It has begun an upload instead, which we do not go on with. It ends by itself if it is not ended.
            if let Ok(location) = self.location(&url, &answer) {
                drop(self.host.ask_once(|shown| self.host.http.ask(Question::Delete, &location, shown)));
            }
        }
        Ok(answer.status() == StatusCode::CREATED)
    }

    /// Uploads a blob of this size. What is cut off is begun again from the start, a few times.
    pub(in crate::image) fn blob(&self, digest: &Digest, size: u64, open: &Open<'_>) -> Result<(), ImageError> {
        let begin = format!("{}/blobs/uploads/", self.host.base);
        let what = format!("the upload of {digest}");
        let answer = self.host.insist(&what, || {
            let answer = self.host.ask_once(|shown| self.post(&begin, shown))?;
            if answer.status() != StatusCode::ACCEPTED {
                return Ok(answer);
            }
            let location = self.location(&begin, &answer)?;
            let separator = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{separator}digest={digest}");
            self.host.ask_once(|shown| {
                let stream = open().map_err(ureq::Error::Io)?;
                let mut stream = Paced { stream, last: None, pace: (0, Duration::ZERO), limit: self.stall };
                self.host.http.send(Message::Put, &url, shown, BLOB_TYPE, (&mut stream, size))
            })
        })?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(self.host.refused(answer, &what)) }
    }

    /// Gives the manifest its tag. Everything that it names must be there.
    pub(in crate::image) fn manifest(&self, media_type: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let url = format!("{}/manifests/{}", self.host.base, self.tag);
        let what = format!("the manifest for {}", self.tag);
        let answer = self.host.ask(&what, |shown| {
            let mut body = bytes;
            self.host.http.send(Message::Put, &url, shown, media_type, (&mut body, bytes.len() as u64))
        })?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(self.host.refused(answer, &what)) }
    }

    fn post(&self, url: &str, authorization: Option<&str>) -> Result<Response<Body>, HttpError> {
        self.host.http.send(Message::Post, url, authorization, BLOB_TYPE, (&mut io::empty(), 0))
    }

    /// Where an upload that was begun goes on.
    fn location(&self, from: &str, answer: &Response<Body>) -> Result<String, ImageError> {
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or(HttpError::NoLocation).and_then(|to| self.host.http.location(from, to));
        location.map_err(|error| self.host.unreachable(error))
    }
}

/// Ends with an error if what is read from it is taken too slowly.
struct Paced<R> {
    stream: R,
    /// When the last piece was handed over.
    last: Option<Instant>,
    /// What has been taken in the last while, and how long that has taken.
    pace: (u64, Duration),
    limit: Duration,
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, waited) = &mut self.pace;
        *waited += self.last.map_or(Duration::ZERO, |last| last.elapsed());
        if *waited > self.limit {
            if u128::from(*bytes) * 1000 < u128::from(MIN_RATE) * self.limit.as_millis() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server hardly takes anything"));
            }
            self.pace = (0, Duration::ZERO);
        }
        let length = self.stream.read(buffer)?;
        self.pace.0 += length as u64;
        self.last = Some(Instant::now());
        Ok(length)
    }
}
