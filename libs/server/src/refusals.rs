//! Gives a body to what hyper refuses by itself.
//!
//! A request line or a header that is no HTTP never reaches a handler, nor does a URI beyond 65,534 bytes: hyper answers
//! without a body and closes. Clients and people should still read why.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper answers by itself, and what it means.
const REFUSALS: [(&str, &str); 3] = [
    (
        "400 Bad Request",
        "malformed HTTP request: the request line or a header has bytes that must not stand there; percent-encode what the URL says",
    ),
    ("414 URI Too Long", "URI too long (limit: 65534); use POST"),
    (
        "431 Request Header Fields Too Large",
        "the headers of the request are too many or too long",
    ),
];
/// Longest bare answer: a status line and two or three short headers.
const BARE_BYTES_MAX: usize = 256;
/// The only headers of a bare answer: handlers say at least what kind of text they send.
const BARE_HEADERS: [&str; 3] = ["connection", "content-length", "date"];

/// The answer to send instead of one without a body.
fn with_body(answer: &[u8]) -> Option<Bytes> {
    let answer = Some(answer).filter(|answer| answer.len() <= BARE_BYTES_MAX)?;
    let head = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
    let (status, headers) = head.strip_prefix("HTTP/1.1 ")?.split_once("\r\n")?;
    let (_, why) = REFUSALS.iter().find(|(refusal, _)| *refusal == status)?;
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.to_ascii_lowercase());
    let is_bare = |line: &str| name(line).is_some_and(|name| BARE_HEADERS.contains(&name.as_str()));
    if !headers.split("\r\n").all(is_bare) || !headers.split("\r\n").any(|line| line == "content-length: 0") {
        return None;
    }
    let body = format!(r#"{{"status":"error","errorType":"bad_data","error":"{why}"}}"#);
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Some(answer.into())
}

/// A stream that replaces hyper's bare refusals by ones with a body.
pub(crate) struct WithBodies<T> {
    io: T,
    /// What is left to write of the replacement; the original counts as written when this is empty.
    replacement: Bytes,
}

impl<T> WithBodies<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            replacement: Bytes::new(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithBodies<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithBodies<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replacement.is_empty() {
            match with_body(buf) {
                Some(replacement) => self.replacement = replacement,
                None => return Pin::new(&mut self.io).poll_write(cx, buf),
            }
        }
        while !self.replacement.is_empty() {
            let left = self.replacement.clone();
            let n = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, &left))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement.advance(n);
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
