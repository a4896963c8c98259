//! `GET /v1/events`: what happens, as it happens, as server-sent events (HTML standard, 9.2).
//!
//! Each has the name of the audit log's event and its line as data. A client that does not keep up gets an event `lagged` and
//! the end of the stream.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Bytes, Frame};

use super::{Backend, server::problem};
use crate::audit::{Heard, Listener};

pub(super) async fn events<B: Backend>(State(backend): State<B>) -> Response {
    let Some(listener) = backend.events() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too many listen to events already");
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::new(Stream { listener, begun: false })).into_response()
}

struct Stream {
    listener: Listener,
    begun: bool,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |text: String| Some(Ok(Frame::data(Bytes::from(text))));
        if !self.begun {
            self.begun = true;
            // A comment, by which a client knows that it will hear what happens from now on.
            return Poll::Ready(frame(": listening\n\n".to_owned()));
        }
        self.listener.poll_heard(context).map(|heard| match heard {
            // JSON has no line ends of its own.
            Some(Heard::Event(told)) => frame(format!("event: {}\ndata: {}\n\n", told.name, told.line)),
            Some(Heard::Lagged) => frame("event: lagged\ndata: {\"event\":\"lagged\"}\n\n".to_owned()),
            None => None,
        })
    }
}
