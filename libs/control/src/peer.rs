//! The client of one process's `Control` service: every call has a deadline and drops its connection on timeout.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koios_runtime::{ClockHandle, NetHandle};
use koios_wire::ServiceError;
use koios_wire::grpc::{MESSAGE_BYTES_MAX, PeerChannel, RpcSettings};
use koios_wire::pb::v1::control_client::ControlClient as Stub;
use koios_wire::pb::v1::{
    PairsReply, PairsRequest, ProposeReply, ProposeRequest, RaftRequest, StateReply, StateRequest,
};
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::{ClusterState, Command, Error, Report, Ruling};

/// Longest a unary call takes when the caller sets no shorter limit.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Most addresses whose connections are kept.
const CONNECTIONS_MAX: usize = 256;

/// Connections to other processes, shared by all that talk to the control plane.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    net: NetHandle,
    clock: ClockHandle,
    open: Arc<Mutex<BTreeMap<String, Peer>>>,
}

impl Peers {
    pub(crate) fn new(net: NetHandle, clock: ClockHandle) -> Self {
        Self {
            net,
            clock,
            open: Arc::default(),
        }
    }

    pub(crate) fn clock(&self) -> &ClockHandle {
        &self.clock
    }

    /// The connection to an address, dialled at its first call.
    pub(crate) fn to(&self, addr: &str) -> Peer {
        let mut open = self.open.lock();
        if let Some(peer) = open.get(addr) {
            return peer.clone();
        }
        if open.len() >= CONNECTIONS_MAX {
            open.pop_first();
        }
        let peer = self.dial(addr);
        open.insert(addr.to_owned(), peer.clone());
        peer
    }

    /// A connection of its own, for a stream.
    pub(crate) fn dial(&self, addr: &str) -> Peer {
        let settings = RpcSettings {
            deadline: CALL_DEADLINE,
            ..RpcSettings::default()
        };
        Peer {
            channel: PeerChannel::new(Arc::clone(&self.net), Arc::clone(&self.clock), addr, settings),
        }
    }
}

/// One process's control service.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    channel: PeerChannel,
}

/// A peer's states, as they come.
pub(crate) type StateStream = tonic::Streaming<StateReply>;

impl Peer {
    pub(crate) fn addr(&self) -> &str {
        self.channel.addr()
    }

    /// The peer's state, if it is newer than `known_version`.
    pub(crate) async fn state(
        &self,
        known_version: u64,
        limit: Duration,
    ) -> Result<Option<ClusterState>, Error> {
        let reply = self
            .limited(limit, |channel| async move {
                stub(channel).state(StateRequest { known_version }).await
            })
            .await?;
        self.parse_state(&reply)
    }

    /// Follows the peer's states.
    pub(crate) async fn watch(&self, known_version: u64, limit: Duration) -> Result<StateStream, Error> {
        self.limited(limit, |channel| async move {
            stub(channel).watch(StateRequest { known_version }).await
        })
        .await
    }

    /// Proposes a command to the peer.
    pub(crate) async fn propose(&self, command: &Command, limit: Duration) -> Result<ProposeReply, Error> {
        let command = serde_json::to_vec(command)
            .map(Bytes::from)
            .map_err(|e| self.failed(e))?;
        self.limited(limit, |channel| async move {
            stub(channel).propose(ProposeRequest { command }).await
        })
        .await
    }

    /// Tells the peer which replicas of HA pairs were seen; gives its rulings, or where the leader is.
    pub(crate) async fn pairs(
        &self,
        report: &Report,
        limit: Duration,
    ) -> Result<Result<Vec<Ruling>, String>, Error> {
        let report = serde_json::to_vec(report)
            .map(Bytes::from)
            .map_err(|e| self.failed(e))?;
        let reply: PairsReply = self
            .limited(limit, |channel| async move {
                stub(channel).pairs(PairsRequest { report }).await
            })
            .await?;
        if !reply.leader.is_empty() {
            return Ok(Err(reply.leader));
        }
        serde_json::from_slice(&reply.rulings)
            .map(Ok)
            .map_err(|e| self.failed(e))
    }

    /// Sends a message between voters.
    pub(crate) async fn raft(
        &self,
        kind: &'static str,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Error> {
        let request = RaftRequest {
            kind: kind.to_owned(),
            payload,
        };
        let reply = self
            .limited(limit, |channel| async move { stub(channel).raft(request).await })
            .await?;
        Ok(reply.payload)
    }

    /// The state in a reply; `None` when the reply brings none.
    pub(crate) fn parse_state(&self, reply: &StateReply) -> Result<Option<ClusterState>, Error> {
        if reply.state.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&reply.state)
            .map(Some)
            .map_err(|e| self.failed(e))
    }

    pub(crate) fn failed(&self, what: impl std::fmt::Display) -> Error {
        Error::Peer {
            addr: self.addr().to_owned(),
            message: what.to_string(),
        }
    }

    async fn limited<T, F>(&self, limit: Duration, call: impl FnOnce(Channel) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let clock = Arc::clone(self.channel.clock());
        let reply = clock.timeout(limit, self.channel.call(call)).await;
        match reply {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(ServiceError { message, .. })) => {
                let own = format!("{}: ", self.addr());
                Err(self.failed(message.strip_prefix(&own).unwrap_or(&message)))
            }
            Err(elapsed) => {
                self.channel.reset();
                Err(self.failed(elapsed))
            }
        }
    }
}

fn stub(channel: Channel) -> Stub<Channel> {
    Stub::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
