//! A connection to one peer that is replaced when it stops answering.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use koios_runtime::{ClockHandle, NetHandle};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::convert::error_from_status;
use crate::{ServiceError, ServiceErrorCode};

/// Longest wait for a connection: a peer that lives accepts at once.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Bytes that a peer may send ahead on one stream.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same of the connection: that of so many streams that some which nobody reads do not keep the others waiting.
const CONNECTION_WINDOW: u32 = 256 * STREAM_WINDOW;
/// Bytes of an answer that a peer may send in one frame, which is read and handed over at once: HTTP/2's 16 KiB would be several
/// of each for most messages.
const FRAME_BYTES_MAX: u32 = STREAM_WINDOW;
/// How often a connection is tried, and how long it may take to answer. A caller that took another peer's answer does not
/// wait for the deadline that would drop the connection.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Deadlines of calls.
#[derive(Clone, Copy, Debug)]
pub struct RpcSettings {
    /// Whole unary calls and the start of streams.
    pub deadline: Duration,
    /// Between two messages of a stream, and for the first one, or the whole answer, of a read of blocks.
    pub stream_idle: Duration,
}

impl RpcSettings {
    /// Those of reads of blocks: a call may fetch as many ranges from the bucket as a stream does before a message.
    #[must_use]
    pub fn for_blocks(self) -> Self {
        Self {
            deadline: self.stream_idle.max(self.deadline),
            ..self
        }
    }
}

impl Default for RpcSettings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            stream_idle: Duration::from_secs(30),
        }
    }
}

/// A lazily dialled channel to one address. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    net: NetHandle,
    clock: ClockHandle,
    addr: String,
    settings: RpcSettings,
    slot: parking_lot::Mutex<Slot>,
}

/// The connection in use and how many there have been: a late failure must not drop its successor.
#[derive(Debug, Default)]
struct Slot {
    generation: u64,
    channel: Option<Channel>,
}

impl PeerChannel {
    /// Nothing is dialled before the first call.
    pub fn new(net: NetHandle, clock: ClockHandle, addr: impl Into<String>, settings: RpcSettings) -> Self {
        let slot = parking_lot::Mutex::default();
        Self {
            shared: Arc::new(Shared {
                net,
                clock,
                addr: addr.into(),
                settings,
                slot,
            }),
        }
    }

    /// The peer's `host:port`.
    pub fn addr(&self) -> &str {
        &self.shared.addr
    }

    /// The deadlines.
    pub fn settings(&self) -> RpcSettings {
        self.shared.settings
    }

    /// The clock that deadlines are measured by.
    pub fn clock(&self) -> &ClockHandle {
        &self.shared.clock
    }

    /// Makes one call within the deadline.
    ///
    /// # Errors
    /// The peer's error, or `DeadlineExceeded`/`Unavailable` naming the address; the connection is then dropped.
    pub async fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        let limit = self.shared.settings.deadline;
        let (generation, channel) = self.channel()?;
        let error = match self.shared.clock.timeout(limit, call(channel)).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => error_from_status(&status, &self.shared.addr),
            Err(_) => self.late(),
        };
        self.drop_channel_after(&error, generation);
        Err(error)
    }

    /// What is said of a call that passed its deadline.
    pub(super) fn late(&self) -> ServiceError {
        let Shared { addr, settings, .. } = &*self.shared;
        let message = format!("{addr} did not answer within {:?}", settings.deadline);
        ServiceError::new(ServiceErrorCode::DeadlineExceeded, message)
    }

    /// Forgets a connection over which the peer was not reached, so that the next call dials afresh.
    pub(super) fn drop_channel_after(&self, error: &ServiceError, generation: u64) {
        if matches!(
            error.code,
            ServiceErrorCode::DeadlineExceeded | ServiceErrorCode::Unavailable
        ) {
            self.drop_channel(generation);
        }
    }

    /// Forgets the connection, so that the next call dials afresh.
    pub fn reset(&self) {
        self.shared.slot.lock().channel = None;
    }

    fn drop_channel(&self, generation: u64) {
        let mut slot = self.shared.slot.lock();
        if slot.generation == generation {
            slot.channel = None;
        }
    }

    /// The connection in use, dialled when the first call is made, and how many there have been.
    pub(super) fn channel(&self) -> Result<(u64, Channel), ServiceError> {
        let mut slot = self.shared.slot.lock();
        if let Some(channel) = &slot.channel {
            return Ok((slot.generation, channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", self.shared.addr))
            .map_err(|e| ServiceError::invalid(format!("{:?} is no host:port: {e}", self.shared.addr)))?
            .tcp_nodelay(true)
            // Not adaptive: that would give the connection no larger a window than a stream.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let Shared { net, clock, addr, .. } = &*self.shared;
        let (net, clock, addr) = (Arc::clone(net), Arc::clone(clock), addr.clone());
        let connector = service_fn(move |_: http::Uri| {
            let (net, clock, addr) = (Arc::clone(&net), Arc::clone(&clock), addr.clone());
            async move {
                let connected = clock.timeout(CONNECT_MAX, net.connect(&addr)).await;
                let late = |_| {
                    let text = format!("{addr} took no connection within {CONNECT_MAX:?}");
                    io::Error::new(io::ErrorKind::TimedOut, text)
                };
                connected.map_err(late).flatten().map(TokioIo::new)
            }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        slot.generation += 1;
        slot.channel = Some(channel.clone());
        Ok((slot.generation, channel))
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use koios_runtime::{BoxedIo, Listener, Net, TokioClock};

    use super::*;
    use crate::pb::v1::StoreLabelsRequest;
    use crate::pb::v1::store_client::StoreClient;

    /// Drops all packets.
    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl Net for Silent {
        async fn bind(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        async fn connect(&self, _: &str) -> io::Result<BoxedIo> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i7_a_peer_that_takes_no_connection_fails_before_the_deadline_of_a_call() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let settings = RpcSettings::default();
        let peer = PeerChannel::new(Arc::new(Silent), Arc::clone(&clock), "10.0.0.1:9095", settings);
        for _ in 0..2 {
            let began = clock.elapsed();
            let names = |channel| async move {
                let request = StoreLabelsRequest::default();
                StoreClient::new(channel).label_names(request).await
            };
            let e = peer.call(names).await.unwrap_err();
            assert_eq!(e.code, ServiceErrorCode::Unavailable, "{e}");
            let took = clock.elapsed().saturating_sub(began);
            assert!(took < settings.deadline / 2, "{took:?}");
        }
    }

    /// Takes connections, and says nothing on them.
    #[derive(Debug, Default)]
    struct Mute(parking_lot::Mutex<Vec<tokio::io::DuplexStream>>);

    #[async_trait]
    impl Net for Mute {
        async fn bind(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        async fn connect(&self, _: &str) -> io::Result<BoxedIo> {
            let (near, far) = tokio::io::duplex(1 << 20);
            self.0.lock().push(far);
            Ok(Box::new(near))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i13_a_peer_that_says_nothing_is_told_with_how_long_it_was_waited_for() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let settings = RpcSettings {
            deadline: Duration::from_secs(600),
            ..RpcSettings::default()
        };
        let peer = PeerChannel::new(Arc::new(Mute::default()), clock, "10.0.0.1:9095", settings);
        let names = |channel| async move {
            let request = StoreLabelsRequest::default();
            StoreClient::new(channel).label_names(request).await
        };
        let e = peer.call(names).await.unwrap_err();
        assert_eq!(e.to_string(), "10.0.0.1:9095: no answer within 20s (unavailable)");
    }
}
