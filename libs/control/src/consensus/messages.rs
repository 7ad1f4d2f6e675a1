//! What voters say to each other inside the `Raft` rpc.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{SnapshotMeta, Vote};
use crate::{ClusterState, Error};

/// Kinds of messages.
pub(crate) mod kind {
    pub(crate) const APPEND: &str = "append";
    pub(crate) const VOTE: &str = "vote";
    pub(crate) const PRE_VOTE: &str = "pre_vote";
    pub(crate) const SNAPSHOT: &str = "snapshot";
    pub(crate) const TRANSFER: &str = "transfer";
    pub(crate) const HELLO: &str = "hello";
    pub(crate) const JOIN: &str = "join";
}

/// A Raft message and the voter it is for: after a voter lost its log, another one answers at its address.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    pub(crate) to: u64,
    pub(crate) body: T,
}

/// A whole snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotMessage {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: ClusterState,
}

/// Who answers at a listed voter's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The voter's name.
    pub(crate) name: String,
    /// The voter's id.
    pub(crate) id: u64,
    /// Whether it has a log, that is: was ever part of a cluster.
    pub(crate) has_log: bool,
}

/// A voter without a log asks the leader to be taken in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) addr: String,
}

/// The answer to [`Join`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum JoinReply {
    /// It votes now.
    Joined,
    /// Ask the leader there.
    AskLeader(Option<String>),
    /// Not now.
    Failed(String),
}

pub(crate) fn encode(message: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(message)
        .map(Bytes::from)
        .map_err(|e| Error::Storage(format!("message does not serialise: {e}")))
}

pub(crate) fn decode<T: DeserializeOwned>(from: &str, kind: &str, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|e| Error::Peer {
        addr: from.to_owned(),
        message: format!("{kind} message: {e}"),
    })
}
