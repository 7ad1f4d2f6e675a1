//! Serves a router over injected listeners.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use koios_runtime::{BoxedIo, CancellationToken, ClockHandle, Listener, TaskGroup};
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt as _;

use crate::api_error::{ErrorType, api_error};
use crate::refusals::WithBodies;

/// Bytes that a client may send ahead on one HTTP/2 stream.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same from a peer, one stream of which has all batches for a member: as much as comes within a few round trips.
const PEER_STREAM_WINDOW: u32 = 8 * STREAM_WINDOW;
/// The same of one connection: that of many streams, for what nobody reads of one must not keep the others waiting.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// Bytes that a peer may send in one HTTP/2 frame, which is read and handed over at once: the 16 KiB that strangers may would be
/// several of each for most batches.
const PEER_FRAME_BYTES_MAX: u32 = STREAM_WINDOW;

/// How long a listener rests after it failed to accept, so that a lack of file descriptors does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Bounds of one listener's connections.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections at once; further ones wait in the system's backlog.
    pub connections_max: usize,
    /// How long a client may take for the head of a request, which is also how long an idle connection stays.
    pub header_timeout: Duration,
    /// How often an HTTP/2 connection is probed; one that does not answer in the same time is closed.
    pub keep_alive: Duration,
    /// Streams at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// How long a stop waits for requests in flight before it cuts them.
    pub drain: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            header_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(20),
            streams_max: 256,
            drain: Duration::from_secs(30),
        }
    }
}

/// HTTP/1.1 and HTTP/2 without TLS over any [`Listener`].
#[derive(Clone, Debug)]
pub struct HttpServer {
    clock: ClockHandle,
    limits: ConnectionLimits,
    http2_only: bool,
}

impl HttpServer {
    /// A server with these limits.
    pub fn new(clock: ClockHandle, limits: ConnectionLimits) -> Self {
        Self {
            clock,
            limits,
            http2_only: false,
        }
    }

    /// The same for HTTP/2 alone, with prior knowledge, as gRPC uses it.
    #[must_use]
    pub fn http2_only(mut self) -> Self {
        self.http2_only = true;
        self
    }

    /// Accepts and serves until `cancel`, then lets requests in flight end for at most [`ConnectionLimits::drain`] and
    /// cuts the rest.
    pub async fn serve(&self, mut listener: Box<dyn Listener>, router: Router, cancel: CancellationToken) {
        // Not a child of `cancel`: connections outlive it by the drain.
        let connections = TaskGroup::new(CancellationToken::new());
        let permits = Arc::new(Semaphore::new(self.limits.connections_max));
        // Every connection holds a sender, so the receiver ends with the last of them.
        let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
        loop {
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                accepted = accept(&mut *listener, &permits) => accepted,
            };
            match accepted {
                Ok((io, permit)) => {
                    let (server, open) = (self.clone(), open.clone());
                    let (router, cancel) = (router.clone(), cancel.clone());
                    connections.spawn_cancelled("http connection", async move {
                        server.connection(io, router, cancel).await;
                        drop((open, permit));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    self.clock.sleep(ACCEPT_REST).await;
                }
            }
        }
        drop((listener, open));
        if self
            .clock
            .timeout(self.limits.drain, all_closed.recv())
            .await
            .is_err()
        {
            tracing::warn!(limit = ?self.limits.drain, "cutting requests still in flight");
        }
        connections.stop().await;
    }

    fn builder(&self) -> auto::Builder<hyper_util::rt::TokioExecutor> {
        let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_max)
            .keep_alive_interval(self.limits.keep_alive)
            .keep_alive_timeout(self.limits.keep_alive)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if self.http2_only {
            builder
                .http2()
                .max_frame_size(PEER_FRAME_BYTES_MAX)
                .initial_stream_window_size(PEER_STREAM_WINDOW);
            builder.http2_only()
        } else {
            builder
        }
    }

    async fn connection(&self, io: BoxedIo, router: Router, cancel: CancellationToken) {
        let stopping = self.http2_only.then(|| cancel.clone());
        let service = service_fn(move |request: http::Request<Incoming>| {
            let mut request = single_slashes(request.map(Body::new));
            if let Some(stopping) = &stopping {
                // Peers keep streams open, which end only if somebody tells them to.
                request.extensions_mut().insert(stopping.clone());
            }
            let refusal = refuse_hosts(&request);
            let router = router.clone();
            async move {
                match refusal {
                    Some(refusal) => Ok::<_, Infallible>(refusal),
                    None => router.oneshot(request).await,
                }
            }
        });
        let builder = self.builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(WithBodies::new(io)), service));
        let result = tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            // The client's doing: it went away or sent no HTTP.
            tracing::debug!(%error, "connection ended");
        }
    }
}

type Accepted = (BoxedIo, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &mut dyn Listener, permits: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.map_err(|_| std::io::Error::other("the connection limit was closed"))?;
    let (io, _peer) = listener.accept().await?;
    Ok((io, permit))
}

/// Refuses a request that does not say once which host it is for, and ends its connection: what stands between takes two hosts,
/// or none, for one or the other. So it does where a whole URL names another host than the header; one that names the same is
/// as good as a path. Requests of HTTP/2 say it elsewhere, and those of HTTP/1.0 need not.
///
/// **Source**: RFC 9112 section 3.2.
fn refuse_hosts(request: &http::Request<Body>) -> Option<Response> {
    let version = request.version();
    let least = usize::from(version == Version::HTTP_11);
    let hosts = request.headers().get_all(header::HOST).iter().take(2).count();
    if version > Version::HTTP_11 {
        return None;
    }
    let why = match hosts {
        _ if (least..=1).contains(&hosts) => other_host(request)?,
        0 => "the request has no Host header: send one",
        _ => "the request has several Host headers: send one",
    };
    let mut refusal = api_error(ErrorType::BadData, why);
    let close = HeaderValue::from_static("close");
    refusal.headers_mut().insert(header::CONNECTION, close);
    Some(refusal)
}

/// Why a request whose URL names a host is refused, if its header names another one.
fn other_host(request: &http::Request<Body>) -> Option<&'static str> {
    let named = request.uri().authority()?.as_str();
    let named = named.rsplit_once('@').map_or(named, |(_, host)| host);
    let host = request.headers().get(header::HOST)?;
    let is_other = !host.as_bytes().eq_ignore_ascii_case(named.as_bytes());
    is_other.then_some("the URL of the request names another host than its Host header: send the path alone")
}

/// Some clients join a base URL and a path with two slashes: `//api/v1/query` means `/api/v1/query`.
fn single_slashes(mut request: http::Request<Body>) -> http::Request<Body> {
    let path = request.uri().path();
    if !path.contains("//") {
        return request;
    }
    let mut clean = String::with_capacity(path.len());
    for c in path.chars() {
        if !(c == '/' && clean.ends_with('/')) {
            clean.push(c);
        }
    }
    if let Some(query) = request.uri().query() {
        clean.push('?');
        clean.push_str(query);
    }
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = clean.parse().ok().or(parts.path_and_query);
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

#[cfg(test)]
#[path = "http_server_test.rs"]
mod tests;
