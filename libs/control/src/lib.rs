//! The control plane: a small replicated state, kept and served by every process.
//!
//! **Data flow.** A voter's process runs a [`Consensus`]; its log is applied by [`ClusterState::apply`], and every new
//! state is offered to that process's [`StateHandle`]. All other processes run a [`StateSync`] that offers to their handle
//! the newest state found on disk, at seeds and in the bucket, and follows it by `Watch`. Callers read
//! [`StateHandle::current`], route with a [`Ring`] built from it, and change it with [`ControlClient::propose`].
//!
//! **Invariants.** A state's version grows by one with every change and names one content. A partition's epoch never
//! decreases and grows whenever a replica may have lost what it acknowledged; commands that name a lower epoch are refused
//! (I14). Only states of one cluster are ever accepted by one process. What is acknowledged by a voter is durable on its
//! disk. Applying is deterministic: no clock, no randomness, no hash order.
//!
//! **Deliberately absent.** Samples, series and anything large or fast; time-based leases. Heartbeats are in the leader's
//! memory only: which replicas of HA pairs were seen ([`Referee`]).
//!
//! **Failure behaviour.** Without voters every process goes on with its last state (I8) and [`ControlClient::propose`] fails
//! with [`Error::NoLeader`]. A damaged copy or log is detected by checksum and reported, never used (I11).

mod apply;
#[cfg(test)]
mod apply_test;
mod client;
mod command;
mod consensus;
mod error;
mod handle;
mod hex;
mod identity;
mod keeper;
mod pairs;
mod partitions;
mod peer;
mod plane;
mod propose;
mod remote;
mod ring;
mod sealed;
mod service;
mod state;
mod sync;

pub use client::ControlClient;
pub use command::{Command, Outcome, Rejection};
pub use consensus::{
    Consensus, LocalConsensus, ProposeError, RaftConsensus, RaftOptions, VoterStatus, Voters, parse_voters,
};
pub use error::Error;
pub use handle::StateHandle;
pub use identity::Identity;
pub use keeper::StateKeeper;
pub use pairs::{
    PAIR_IDLE, PAIR_LABEL_BYTES_MAX, PAIRS_PER_REPORT_MAX, PairReport, REPLICAS_MAX, Referee, Report, Ruling,
    Sighting, Span, election_task, names_a_pair,
};
pub use plane::{ControlOptions, ControlPlane};
pub use remote::RemoteControl;
pub use ring::{Ring, TOKENS_PER_PARTITION, tenant_shard};
pub use service::ControlRpc;
pub use state::{
    AcceptedLoss, Assignment, ClusterId, ClusterState, Incarnation, LossId, Member, Partition, Replica, Role,
    Secret, Settings,
};
pub use sync::{StateBackup, StateSync};
