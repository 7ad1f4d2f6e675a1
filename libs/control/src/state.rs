//! The replicated state.

use std::collections::BTreeMap;
use std::fmt;

use koios_model::PartitionId;
use serde::{Deserialize, Serialize};

use crate::hex::{self, hex_id};

hex_id!(
    /// A cluster's random identity, created once.
    ClusterId
);

hex_id!(
    /// A data directory's random identity, created with the directory and again when its content is lost or damaged.
    Incarnation
);

hex_id!(
    /// An operator's acceptance of a loss, drawn at random with the command; zero when the command came without.
    LossId
);

impl LossId {
    /// Whether the command came without one.
    pub fn is_none(&self) -> bool {
        self.0 == 0
    }
}

/// The cluster's secret, which keys the hashes of series. Never shown in logs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("the secret is not hexadecimal"))
    }
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds replicas of partitions.
    Ingester,
    /// Receives writes.
    Distributor,
    /// Answers queries and evaluates rules.
    Querier,
    /// Serves and compacts blocks.
    Store,
    /// Votes, and nothing else.
    Control,
    /// All of them in one process.
    All,
}

impl Role {
    /// Whether such a process can hold replicas of partitions.
    pub fn holds_partitions(self) -> bool {
        matches!(self, Self::Ingester | Self::All)
    }

    /// Whether such a process serves blocks.
    pub fn serves_blocks(self) -> bool {
        matches!(self, Self::Store | Self::All)
    }
}

/// A registered process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique in the cluster, stable over restarts.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// The failure domain it runs in.
    pub zone: String,
    /// `host:port` of its gRPC listener.
    pub grpc_addr: String,
    /// `host:port` of its HTTP listener.
    pub http_addr: String,
    /// Its data directory's.
    pub incarnation: Incarnation,
    /// Software version, for operators and for rolling upgrades.
    pub version: String,
}

/// One member's part in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The member's name.
    pub member: String,
    /// The zone it was placed in.
    pub zone: String,
    /// The data directory that holds the data; a process with another one must not answer for this replica.
    pub incarnation: Incarnation,
    /// Whether it can serve everything it ever acknowledged, and so counts for reads.
    pub counts: bool,
}

/// A replication group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// Grows whenever a replica changes or may have lost what it acknowledged; holders of a lower one are fenced (I14).
    pub epoch: u64,
    /// As many as the replication factor, each in a zone of its own, in the order of placement.
    pub replicas: Vec<Replica>,
    /// The state version in which it was formed.
    pub formed_at_version: u64,
}

impl Partition {
    /// How many members must have synced a batch before it is acknowledged.
    pub fn write_quorum(&self) -> usize {
        self.replicas.len() / 2 + 1
    }

    /// How many counting members a complete read needs, so that it meets every acknowledged batch.
    pub fn read_quorum(&self) -> usize {
        self.replicas.len().saturating_sub(self.write_quorum()) + 1
    }

    /// The replica of a member.
    pub fn replica(&self, member: &str) -> Option<&Replica> {
        self.replicas.iter().find(|r| r.member == member)
    }

    /// Whether this very data directory of this member counts for reads.
    pub fn counts(&self, member: &str, incarnation: Incarnation) -> bool {
        self.replica(member)
            .is_some_and(|r| r.counts && r.incarnation == incarnation)
    }

    /// The replicas that count for reads.
    pub fn counting(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|r| r.counts)
    }

    /// Whether a complete read is possible at all; when not, an operator must accept the loss.
    pub fn is_readable(&self) -> bool {
        self.counting().count() >= self.read_quorum()
    }
}

/// An operator's decision to go on without data that no majority holds any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedLoss {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch from then on.
    pub epoch: u64,
    /// The state version in which it was accepted.
    pub at_version: u64,
    /// What the operator wrote.
    pub note: String,
    /// The replicas that did not count before.
    pub lost: Vec<Replica>,
    /// The command's. Not written when there is none, so that the state reads as versions without it wrote it.
    #[serde(default, skip_serializing_if = "LossId::is_none")]
    pub id: LossId,
}

/// Who does a task: a compaction owner, a rule group's evaluator, the elected replica of an HA pair.
///
/// It does not expire by time: the holder goes on until it sees a higher epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// A member's name, or an HA pair's replica.
    pub holder: String,
    /// Grows with every change of the holder.
    pub epoch: u64,
}

/// How partitions are formed; fixed when the cluster is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Replicas per partition, each in another zone: 3, or 1.
    pub replication_factor: u32,
    /// How many partitions to form.
    pub partitions: u32,
    /// How many ingesters must have registered in each of `replication_factor` zones before partitions are formed.
    pub ingesters_per_zone: u32,
}

impl Default for Settings {
    /// One process with one partition.
    fn default() -> Self {
        Self {
            replication_factor: 1,
            partitions: 1,
            ingesters_per_zone: 1,
        }
    }
}

/// The control state. Its JSON form is deterministic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Grows with every change; 0 before the cluster was created.
    pub version: u64,
    /// Unset before the cluster was created.
    pub cluster_id: Option<ClusterId>,
    /// How often it was restored from a copy: two that differ in it were led by processes that did not know of each other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restores: u64,
    /// Keys the hashes of series (`koios_model::TenantSeed`).
    pub secret: Secret,
    /// How partitions are formed.
    pub settings: Settings,
    /// By name.
    pub members: BTreeMap<String, Member>,
    /// By number; empty until formed.
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// Oldest first.
    pub accepted_losses: Vec<AcceptedLoss>,
    /// By task, for example `compact/<tenant>` or `ha/<tenant>/<cluster label>`.
    pub assignments: BTreeMap<String, Assignment>,
}

fn is_zero(restores: &u64) -> bool {
    *restores == 0
}

impl ClusterState {
    /// Replicas per partition.
    pub fn replication_factor(&self) -> u32 {
        self.settings.replication_factor
    }

    /// A partition.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id)
    }

    /// The partitions a member holds a replica of, ascending.
    pub fn partitions_of<'a>(&'a self, member: &'a str) -> impl Iterator<Item = &'a Partition> {
        self.partitions
            .values()
            .filter(move |p| p.replica(member).is_some())
    }

    /// Members that do a thing, by name.
    pub fn members_with(&self, wanted: impl Fn(Role) -> bool) -> impl Iterator<Item = &Member> {
        self.members.values().filter(move |m| wanted(m.role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(replicas: usize) -> Partition {
        let replica = |i: usize| Replica {
            member: format!("m{i}"),
            zone: format!("z{i}"),
            incarnation: Incarnation(i as u128),
            counts: true,
        };
        Partition {
            id: PartitionId(0),
            epoch: 1,
            replicas: (0..replicas).map(replica).collect(),
            formed_at_version: 1,
        }
    }

    #[test]
    fn every_read_quorum_meets_every_write_quorum() {
        for n in 1..8 {
            let p = partition(n);
            assert!(p.write_quorum() + p.read_quorum() > n);
            assert!(p.write_quorum() <= n && p.read_quorum() <= n);
        }
        assert_eq!((partition(3).write_quorum(), partition(3).read_quorum()), (2, 2));
        assert_eq!((partition(1).write_quorum(), partition(1).read_quorum()), (1, 1));
    }

    #[test]
    fn a_replica_counts_only_with_its_own_data_directory() {
        let p = partition(3);
        assert!(p.counts("m1", Incarnation(1)));
        assert!(!p.counts("m1", Incarnation(7)));
        assert!(!p.counts("other", Incarnation(1)));
    }

    #[test]
    fn secrets_are_stored_but_not_shown() {
        let secret = Secret(vec![0xde, 0xad]);
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"dead\"");
        assert_eq!(format!("{secret:?}"), "Secret(2 bytes)");
    }
}
