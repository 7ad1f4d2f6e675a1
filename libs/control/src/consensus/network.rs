//! Raft messages over the `Raft` rpc.

use std::future::Future;
use std::time::Duration;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkV2};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Voters;
use super::messages::{Envelope, SnapshotMessage, decode, encode, kind};
use super::types::{Snapshot, TypeConfig, Vote, VoterNode};
use crate::peer::{Peer, Peers};

/// Makes one connection per voter.
#[derive(Clone, Debug)]
pub(crate) struct NetworkFactory {
    pub(crate) peers: Peers,
    pub(crate) listed: Voters,
}

/// Where a voter is reached: where this process's configuration lists it, else where it was when it joined.
pub(crate) fn addr_of<'a>(listed: &'a Voters, node: &'a VoterNode) -> &'a str {
    listed.get(&node.name).unwrap_or(&node.addr)
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &VoterNode) -> Network {
        Network {
            target,
            peer: self.peers.to(addr_of(&self.listed, node)),
        }
    }
}

/// The way to one voter.
#[derive(Debug)]
pub(crate) struct Network {
    target: u64,
    peer: Peer,
}

impl Network {
    /// Any failure is reported as unreachable, so that Raft backs off before it tries again.
    async fn call<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        body: impl Serialize,
        limit: Duration,
    ) -> Result<T, Unreachable<TypeConfig>> {
        let envelope = Envelope {
            to: self.target,
            body,
        };
        let unreachable = |e| Unreachable::new(&e);
        let payload = encode(&envelope).map_err(unreachable)?;
        let reply = self.peer.raft(kind, payload, limit).await.map_err(unreachable)?;
        decode(self.peer.addr(), kind, &reply).map_err(unreachable)
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(kind::APPEND, rpc, option.soft_ttl()).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(kind::VOTE, rpc, option.soft_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(kind::PRE_VOTE, rpc, option.soft_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let state = serde_json::from_slice(&snapshot.snapshot).map_err(|e| Unreachable::new(&e))?;
        let message = SnapshotMessage {
            vote,
            meta: snapshot.meta,
            state,
        };
        tokio::select! {
            biased;
            reply = self.call(kind::SNAPSHOT, message, option.soft_ttl()) => Ok(reply?),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(kind::TRANSFER, request, option.soft_ttl()).await?)
    }
}
