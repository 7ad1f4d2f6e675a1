//! Gives a body to what hyper refuses by itself.
//!
//! A URI beyond 65,534 bytes never reaches a handler: hyper answers `414` without a body and closes. Clients and people
//! should still read why.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const STATUS_LINE: &[u8] = b"HTTP/1.1 414 URI Too Long\r\n";
const NO_BODY: &[u8] = b"\r\ncontent-length: 0\r\n";
/// Longest bare answer: a status line and two or three short headers.
const BARE_BYTES_MAX: usize = 256;
const WITH_BODY: &[u8] =
    b"HTTP/1.1 414 URI Too Long\r\ncontent-type: application/json\r\nconnection: close\r\n\
    content-length: 89\r\n\r\n\
    {\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"URI too long (limit: 65534); use POST\"}";

fn is_bare(answer: &[u8]) -> bool {
    answer.len() <= BARE_BYTES_MAX
        && answer.starts_with(STATUS_LINE)
        && answer.windows(NO_BODY.len()).any(|w| w == NO_BODY)
}

/// A stream that replaces hyper's bare `414` by one with a body.
pub(crate) struct WithBodies<T> {
    io: T,
    /// What is left to write of the replacement; the original counts as written when this is empty.
    replacement: &'static [u8],
}

impl<T> WithBodies<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, replacement: &[] }
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
        if !is_bare(buf) {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        }
        if self.replacement.is_empty() {
            self.replacement = WITH_BODY;
        }
        while !self.replacement.is_empty() {
            let left = self.replacement;
            let n = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, left))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement = left.get(n..).unwrap_or(&[]);
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
