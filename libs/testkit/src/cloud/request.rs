//! Requests as they came, and answers.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use koios_runtime::ClockHandle;
use percent_encoding::percent_decode_str;

/// Objects all have this age.
pub(super) const LAST_MODIFIED: &str = "Wed, 01 Jan 2025 00:00:00 GMT";
/// The same as lists write it.
pub(super) const LAST_MODIFIED_ISO: &str = "2025-01-01T00:00:00.000Z";

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` and so on.
    pub method: String,
    /// Decoded.
    pub path: String,
    /// Decoded.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Bytes,
}

impl Request {
    pub(super) async fn read(request: hyper::Request<Incoming>) -> Result<Self, hyper::Error> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        let headers = parts.headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        });
        Ok(Self {
            method: parts.method.to_string(),
            path: decoded(parts.uri.path()),
            query: pairs.collect(),
            headers: headers.collect(),
            body: body.collect().await?.to_bytes(),
        })
    }

    /// A header's value; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }

    /// A parameter's value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        value_of(&self.query, name)
    }

    /// Whether it writes only if there is nothing yet.
    pub fn is_conditional(&self) -> bool {
        self.header("if-none-match") == Some("*") || self.header("x-goog-if-generation-match") == Some("0")
    }

    /// The bytes asked for: the first, and the one behind the last.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
    }
}

fn value_of<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, value) = pairs.iter().find(|(n, _)| n == name)?;
    Some(value)
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A body that may come in halves.
pub(super) type AnswerBody = StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("content-length", length)
    }

    pub(super) fn into_response(mut self) -> hyper::Response<AnswerBody> {
        let body = std::mem::take(&mut self.body);
        self.respond(stream::iter([Ok(Frame::data(body))]).boxed())
    }

    /// Half of the body, and then the connection ends. What has no body is answered as it is.
    pub(super) fn cut_short(mut self) -> hyper::Response<AnswerBody> {
        if self.body.is_empty() {
            return self.into_response();
        }
        let half = self.body.split_to(self.body.len() / 2);
        let cut = std::io::Error::other("cut short");
        self.respond(stream::iter([Ok(Frame::data(half)), Err(cut)]).boxed())
    }

    pub(super) fn slowly(mut self, clock: ClockHandle, pause: Duration) -> hyper::Response<AnswerBody> {
        let half = self.body.split_to(self.body.len() / 2);
        let rest = std::mem::take(&mut self.body);
        let later = stream::once(async move {
            clock.sleep(pause).await;
            Ok(Frame::data(rest))
        });
        self.respond(stream::iter([Ok(Frame::data(half))]).chain(later).boxed())
    }

    fn respond(
        self,
        body: BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>,
    ) -> hyper::Response<AnswerBody> {
        let mut response = hyper::Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response
            .body(StreamBody::new(body))
            .expect("headers of the fake are well-formed")
    }
}
