//! Replies: whole ones, and events that are sent as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
};
use hyper::{Response, StatusCode};
use serde_json::Value as Json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::fault::Fault;

/// A reply.
pub(crate) type Reply = Response<Either<Full<Bytes>, Events>>;

/// The page may load nothing from anywhere, and speak to this server alone.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
);

/// A body of server-sent events.
#[derive(Debug)]
pub(crate) struct Events(UnboundedReceiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Where events are sent to.
#[derive(Clone, Debug)]
pub(crate) struct EventSender(UnboundedSender<Bytes>);

impl EventSender {
    /// Sends an event; whether somebody may still hear it.
    pub fn send(&self, event: &Json) -> bool {
        self.0.send(format!("data: {event}\n\n").into()).is_ok()
    }

    /// Says that there is no more.
    pub fn done(&self) {
        // Whoever is gone has no need to hear it.
        let _ = self.0.send("data: [DONE]\n\n".into());
    }
}

/// A reply of events, and where they are sent to.
pub(crate) fn events() -> (EventSender, Reply) {
    let (sender, receiver) = unbounded_channel();
    let mut reply = Response::new(Either::Right(Events(receiver)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    (EventSender(sender), reply)
}

/// Whether a reply is sent as it comes.
pub(crate) fn is_stream(reply: &Reply) -> bool {
    matches!(reply.body(), Either::Right(_))
}

fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    reply
}

/// A reply in JSON.
pub(crate) fn json(body: &Json) -> Reply {
    whole(StatusCode::OK, "application/json", body.to_string())
}

/// The page.
pub(crate) fn page(text: &'static str) -> Reply {
    let mut reply = whole(StatusCode::OK, "text/html; charset=utf-8", text);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, PAGE_POLICY);
    reply
}

/// The reply to a request that is not answered.
pub(crate) fn fault(fault: &Fault, allowed: Option<&'static str>) -> Reply {
    let body = fault.to_json().to_string();
    let mut reply = whole(fault.status, "application/json", body);
    let headers = reply.headers_mut();
    if let Some(allowed) = allowed {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if fault.status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}
