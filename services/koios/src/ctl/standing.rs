//! How partitions stand: what the control state says, and what their members say of their logs.

use std::fmt;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use koios_control::{ClusterState, Partition, Replica};
use koios_wire::grpc::IngesterClient;
use koios_wire::{BatchSetsRequest, IngesterService};

/// Longest one member is waited for.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// Partitions whose members are asked at a time.
const ASKED_AT_A_TIME: usize = 16;

/// Whether a member answers reads of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    /// It does.
    Counting,
    /// The control state says that it lacks what it acknowledged.
    NotCounting,
    /// The control state does not know, but the member does: its log is damaged.
    Damaged,
    /// It should, but did not say so.
    Unknown(String),
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counting => f.write_str("counting"),
            Self::NotCounting => f.write_str("not counting"),
            Self::Damaged => f.write_str("DAMAGED: its log lost acknowledged samples, it refuses reads"),
            Self::Unknown(why) => write!(f, "counting, but does not answer: {why}"),
        }
    }
}

/// A partition and its members.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) partition: &'a Partition,
    pub(super) replicas: Vec<(&'a Replica, Serving)>,
}

impl Standing<'_> {
    /// Whether enough members can serve everything. One that does not answer may come back with all it had.
    pub(super) fn is_readable(&self) -> bool {
        self.enough(|s| matches!(s, Serving::Counting | Serving::Unknown(_)))
    }

    /// Whether enough members say that they serve everything.
    pub(super) fn answers(&self) -> bool {
        self.enough(|s| *s == Serving::Counting)
    }

    fn enough(&self, whole: impl Fn(&Serving) -> bool) -> bool {
        self.replicas.iter().filter(|(_, s)| whole(s)).count() >= self.partition.read_quorum()
    }
}

/// Asks the members of every partition.
pub(super) async fn standings(state: &ClusterState) -> Vec<Standing<'_>> {
    let standing = |partition| async move {
        let ask = |replica| async move { (replica, serving(state, partition, replica).await) };
        Standing {
            partition,
            replicas: join_all(partition.replicas.iter().map(ask)).await,
        }
    };
    let standings = stream::iter(state.partitions.values()).map(standing);
    standings.buffered(ASKED_AT_A_TIME).collect().await
}

async fn serving(state: &ClusterState, partition: &Partition, replica: &Replica) -> Serving {
    if !replica.counts {
        return Serving::NotCounting;
    }
    let Some(member) = state.members.get(&replica.member) else {
        return Serving::Unknown("it is not registered".to_owned());
    };
    let client = IngesterClient::new(super::channel(&member.grpc_addr, ASK_DEADLINE));
    let request = BatchSetsRequest {
        partition: partition.id,
        epoch: partition.epoch,
    };
    match client.batch_sets(request).await {
        Ok(reply) if reply.counts => Serving::Counting,
        Ok(_) => Serving::Damaged,
        Err(e) => Serving::Unknown(e.message),
    }
}

#[cfg(test)]
mod tests {
    use koios_control::Incarnation;
    use koios_model::PartitionId;

    use super::*;

    #[test]
    fn damaged_members_do_not_make_a_partition_readable_and_silent_ones_may() {
        let replica = |i: u128| Replica {
            member: format!("m{i}"),
            zone: format!("z{i}"),
            incarnation: Incarnation(i),
            counts: true,
        };
        let partition = Partition {
            id: PartitionId(0),
            epoch: 1,
            replicas: (0..3).map(replica).collect(),
            formed_at_version: 1,
        };
        let unknown = || Serving::Unknown("down".to_owned());
        for (serving, readable, answers) in [
            (
                [Serving::Counting, Serving::Counting, Serving::Damaged],
                true,
                true,
            ),
            ([Serving::Counting, unknown(), Serving::NotCounting], true, false),
            (
                [Serving::Counting, Serving::Damaged, Serving::NotCounting],
                false,
                false,
            ),
            ([Serving::Damaged, Serving::Damaged, unknown()], false, false),
        ] {
            let standing = Standing {
                partition: &partition,
                replicas: partition.replicas.iter().zip(serving).collect(),
            };
            assert_eq!(standing.is_readable(), readable, "{standing:?}");
            assert_eq!(standing.answers(), answers, "{standing:?}");
        }
    }
}
