//! What can be asked of the control state, and what it answers.

use std::fmt;

use koios_model::PartitionId;
use serde::{Deserialize, Serialize};

use crate::{ClusterId, ClusterState, Incarnation, LossId, Member};

/// A change of the state. Applying a command twice is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Creates the cluster, or restores one whose voters were all lost from the newest copy found.
    Create {
        /// The first state; its version and epochs are those from which to go on.
        state: Box<ClusterState>,
    },
    /// A process starts, or its addresses or data directory changed.
    Register {
        /// The process.
        member: Member,
        /// The cluster its data directory belongs to, when it has one already.
        cluster_id: Option<ClusterId>,
    },
    /// A process is gone for good. Refused while it holds replicas.
    Remove {
        /// Its name.
        member: String,
    },
    /// A replica has copied everything it must be able to serve, from a read quorum of counting members that had adopted
    /// `epoch`.
    SetCounting {
        /// The partition.
        partition: PartitionId,
        /// The epoch under which it copied.
        epoch: u64,
        /// The replica's member.
        member: String,
        /// The data directory it copied into.
        incarnation: Incarnation,
    },
    /// An operator goes on without what a majority of a partition has lost: all current replicas count.
    AcceptLoss {
        /// The partition.
        partition: PartitionId,
        /// Why; recorded.
        note: String,
        /// Drawn at random by who asks, so that the command heard twice is told from another one. Zero in commands of
        /// versions that drew none.
        #[serde(default)]
        id: LossId,
    },
    /// Gives a replica to another member, which must copy it before it counts.
    ReplaceReplica {
        /// The partition.
        partition: PartitionId,
        /// The epoch the caller saw.
        epoch: u64,
        /// Who holds it.
        member: String,
        /// Who shall.
        with: String,
    },
    /// Assigns a task to a holder, if its epoch is still the one that the caller saw (0 when unassigned).
    Assign {
        /// The task.
        task: String,
        /// Who shall do it.
        holder: String,
        /// The epoch the caller saw.
        epoch: u64,
    },
    /// Nobody shall do a task any more. Its epochs begin again when it is assigned once more, so only tasks that their epoch
    /// fences nowhere may end so.
    Unassign {
        /// The task.
        task: String,
        /// The epoch the caller saw.
        epoch: u64,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { state } => match state.cluster_id {
                Some(id) => write!(f, "create cluster {id}"),
                None => f.write_str("create"),
            },
            Self::Register { member, .. } => write!(f, "register {} {}", member.name, member.incarnation),
            Self::Remove { member } => write!(f, "remove {member}"),
            Self::SetCounting {
                partition, member, ..
            } => write!(f, "count {member} in partition {partition}"),
            Self::AcceptLoss { partition, .. } => write!(f, "accept loss of partition {partition}"),
            Self::ReplaceReplica {
                partition,
                member,
                with,
                ..
            } => write!(f, "replace {member} by {with} in partition {partition}"),
            Self::Assign { task, holder, .. } => write!(f, "assign {task} to {holder}"),
            Self::Unassign { task, .. } => write!(f, "unassign {task}"),
        }
    }
}

/// The effect of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The state version that holds the effect.
    pub version: u64,
    /// Whether the command changed anything.
    pub changed: bool,
    /// The epoch of the partition or task that the command named, 0 when it named none.
    pub epoch: u64,
}

/// Why a command was refused. Retrying the same command does not help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// Nothing but `Create` can be applied yet.
    #[error("the cluster has not been created yet")]
    NotCreated,
    /// The data directory comes from another cluster.
    #[error("data directory of member {member} belongs to cluster {got}, this is cluster {want}")]
    OtherCluster {
        /// The member, or empty for a restored state.
        member: String,
        /// Where it belongs.
        got: ClusterId,
        /// This cluster.
        want: ClusterId,
    },
    /// A field is empty or too long.
    #[error("{what} {value:?} is not valid: {rule}")]
    Invalid {
        /// Which field.
        what: String,
        /// Its value, shortened.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// No such partition.
    #[error("partition {partition} does not exist")]
    NoPartition {
        /// The partition.
        partition: PartitionId,
    },
    /// No such member.
    #[error("member {member} is not registered")]
    NoMember {
        /// The member.
        member: String,
    },
    /// The member has no replica there.
    #[error("member {member} holds no replica of partition {partition}")]
    NoReplica {
        /// The partition.
        partition: PartitionId,
        /// The member.
        member: String,
    },
    /// The caller's epoch is not the current one.
    #[error("FENCED epoch {got}<{current} of {what}")]
    Fenced {
        /// The partition or task.
        what: String,
        /// What the caller knew.
        got: u64,
        /// What holds.
        current: u64,
    },
    /// Too few replicas count for anything to have been copied from them.
    #[error(
        "partition {partition} has {counting} counting replicas, {needed} are needed to copy from; an operator can accept \
         the loss with `koios ctl partition accept-loss`"
    )]
    NoQuorum {
        /// The partition.
        partition: PartitionId,
        /// How many count.
        counting: u64,
        /// How many must.
        needed: u64,
    },
    /// The data directory has been replaced since.
    #[error("member {member} now has data directory {current}, not {got}")]
    OtherIncarnation {
        /// The member.
        member: String,
        /// What the caller named.
        got: Incarnation,
        /// What is registered.
        current: Incarnation,
    },
    /// A member cannot be used so.
    #[error("member {member} cannot be changed so: {reason}")]
    InUse {
        /// The member.
        member: String,
        /// Why.
        reason: String,
    },
    /// The state would grow beyond its bound.
    #[error("too many {what}: the limit is {limit}; remove unused ones first")]
    TooMany {
        /// Of what.
        what: String,
        /// How many are allowed.
        limit: u64,
    },
}
