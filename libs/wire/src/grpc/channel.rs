//! A connection to one peer that is replaced when it stops answering.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use koios_runtime::{ClockHandle, NetHandle};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::convert::error_from_status;
use crate::{ServiceError, ServiceErrorCode};

/// Deadlines of calls.
#[derive(Clone, Copy, Debug)]
pub struct RpcSettings {
    /// Whole unary calls and the start of streams.
    pub deadline: Duration,
    /// Between two messages of a stream.
    pub stream_idle: Duration,
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
            Err(_) => ServiceError::new(
                ServiceErrorCode::DeadlineExceeded,
                format!("{} did not answer within {limit:?}", self.shared.addr),
            ),
        };
        if matches!(
            error.code,
            ServiceErrorCode::DeadlineExceeded | ServiceErrorCode::Unavailable
        ) {
            self.drop_channel(generation);
        }
        Err(error)
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

    fn channel(&self) -> Result<(u64, Channel), ServiceError> {
        let mut slot = self.shared.slot.lock();
        if let Some(channel) = &slot.channel {
            return Ok((slot.generation, channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", self.shared.addr))
            .map_err(|e| ServiceError::invalid(format!("{:?} is no host:port: {e}", self.shared.addr)))?
            .tcp_nodelay(true)
            .http2_adaptive_window(true);
        let (net, addr) = (Arc::clone(&self.shared.net), self.shared.addr.clone());
        let connector = service_fn(move |_: http::Uri| {
            let (net, addr) = (Arc::clone(&net), addr.clone());
            async move { net.connect(&addr).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        slot.generation += 1;
        slot.channel = Some(channel.clone());
        Ok((slot.generation, channel))
    }
}
