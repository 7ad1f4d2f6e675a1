//! Serves gRPC over injected listeners.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use futures::FutureExt as _;
use hyper::body::Frame;
use koios_runtime::{CancellationToken, ClockHandle, Listener};
use tonic::Status;
use tonic::service::Routes;

use crate::edge::panic_text;
use crate::http_server::{ConnectionLimits, HttpServer};

/// gRPC services behind one listener. Not for strangers: peers only.
#[derive(Clone, Debug)]
pub struct GrpcServer {
    http: HttpServer,
    message_bytes_max: u64,
}

impl GrpcServer {
    /// A server that refuses messages beyond `message_bytes_max` before it reads them.
    pub fn new(clock: ClockHandle, limits: ConnectionLimits, message_bytes_max: u64) -> Self {
        Self {
            http: HttpServer::new(clock, limits).http2_only(),
            message_bytes_max,
        }
    }

    /// Serves until `cancel`, then drains as [`HttpServer::serve`] does.
    pub async fn serve(&self, listener: Box<dyn Listener>, routes: Routes, cancel: CancellationToken) {
        let limit = self.message_bytes_max;
        let router = routes
            .into_axum_router()
            .layer(from_fn(move |request, next| guard(limit, request, next)));
        self.http.serve(listener, router, cancel).await;
    }
}

async fn guard(limit: u64, request: Request, next: Next) -> Response {
    let request = request.map(|body| Body::new(FrameLimit::new(body, limit)));
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            tracing::error!(panic = panic_text(&*panic), "a gRPC handler panicked");
            Status::internal("a handler panicked, see the log").into_http()
        }
    }
}

/// Bytes before each message: a compression flag and the message's length, big endian.
const PREFIX_BYTES: usize = 5;

/// A request body whose messages are refused when they declare more than the limit.
struct FrameLimit {
    body: Body,
    limit: u64,
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// What is left of the current message.
    message_left: u64,
}

impl FrameLimit {
    fn new(body: Body, limit: u64) -> Self {
        Self {
            body,
            limit,
            prefix: [0; PREFIX_BYTES],
            prefix_len: 0,
            message_left: 0,
        }
    }

    /// Follows the messages through `data`.
    fn check(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while let Some((&first, rest)) = data.split_first() {
            if self.message_left > 0 {
                let skip = data
                    .len()
                    .min(usize::try_from(self.message_left).unwrap_or(usize::MAX));
                self.message_left -= skip as u64;
                data = data.get(skip..).unwrap_or(&[]);
                continue;
            }
            if let Some(slot) = self.prefix.get_mut(self.prefix_len) {
                *slot = first;
            }
            self.prefix_len += 1;
            data = rest;
            if self.prefix_len == PREFIX_BYTES {
                self.prefix_len = 0;
                let [_, a, b, c, d] = self.prefix;
                self.message_left = u64::from(u32::from_be_bytes([a, b, c, d]));
                if self.message_left > self.limit {
                    let (actual, limit) = (self.message_left, self.limit);
                    let message = format!(
                        "frame too large (actual: {actual}, limit: {limit}): send smaller messages or raise grpc.max-message-bytes"
                    );
                    return Err(Status::resource_exhausted(message));
                }
            }
        }
        Ok(())
    }
}

impl HttpBody for FrameLimit {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            None => None,
            Some(Err(e)) => Some(Err(Status::unknown(e.to_string()))),
            Some(Ok(frame)) => match frame.data_ref().map_or(Ok(()), |data| self.check(data)) {
                Ok(()) => Some(Ok(frame)),
                Err(status) => Some(Err(status)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(declared: u32, sent: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&declared.to_be_bytes());
        bytes.resize(PREFIX_BYTES + sent, 7);
        bytes
    }

    #[test]
    fn i12_a_declared_length_beyond_the_limit_is_refused_wherever_it_is_cut() {
        let mut stream = frame(3, 3);
        stream.extend(frame(0, 0));
        stream.extend(frame(8, 8));
        stream.extend(frame(1 << 30, 4));
        for step in 1..stream.len() {
            let mut limit = FrameLimit::new(Body::empty(), 8);
            let refused = stream.chunks(step).find_map(|part| limit.check(part).err());
            assert_eq!(
                refused.unwrap().message(),
                "frame too large (actual: 1073741824, limit: 8): send smaller messages or raise grpc.max-message-bytes"
            );
        }
        let mut limit = FrameLimit::new(Body::empty(), 8);
        assert!(limit.check(&stream[..stream.len() - 9]).is_ok());
    }
}
