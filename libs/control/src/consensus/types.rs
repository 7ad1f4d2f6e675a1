//! The types that parametrise Raft.

use serde::{Deserialize, Serialize};

use super::ordered::Ordered;
use crate::{Command, Outcome, Rejection};

openraft::declare_raft_types!(
    /// Commands in, outcomes out.
    pub(crate) TypeConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = VoterNode,
        AsyncRuntime = Ordered,
);

/// A voter's name and address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoterNode {
    pub(crate) name: String,
    pub(crate) addr: String,
}

/// What applying an entry gave; nothing for entries that are not commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Applied(pub(crate) Option<Result<Outcome, Rejection>>);

pub(crate) type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// The bytes are the JSON of the state.
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, Vec<u8>>;

/// A voter's id: its name and the random number of its log, so that a voter that lost its log is another one. (A Raft
/// voter that forgets its vote or log under the same id can elect two leaders.)
pub(crate) fn node_id(name: &str, log_nonce: u128) -> u64 {
    let mut bytes = log_nonce.to_le_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
