//! Asks members which series exist, before one is refused or let in over the limit.
//!
//! Series that this process does not know go with their labels at once while there surely is room. Otherwise the members of
//! all partitions are asked how many series there are, and which of these they have. A series exists when a member says so;
//! it does not when so many that count say no that a majority cannot have it. One that does not exist and finds no room is
//! taken out of the request.
//!
//! A series that is known here may be gone from the members, which forget what has had no samples for long. It is then
//! treated in the same way when they ask for its labels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use koios_control::{ClusterState, Partition, Role};
use koios_model::{BatchColumns, PartitionId, SeriesHash, TenantId};
use koios_runtime::ClockHandle;
use koios_wire::{HeldSeriesReply, HeldSeriesRequest, ServiceError, ServiceErrorCode};

use crate::Members;
use crate::metrics::DistributorMetrics;
use crate::series_limit::{ByPartition, Decision, Existence, Reserved, Room};

/// Most distributors that room is left to: registered are those, too, that are no more.
const DISTRIBUTORS_MAX: u64 = 10;

/// How to ask members.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) members: Arc<dyn Members>,
    pub(crate) clock: ClockHandle,
    pub(crate) metrics: DistributorMetrics,
    /// How long members may take to answer.
    pub(crate) deadline: Duration,
}

/// The limit on a tenant's series, for one request. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    pub(crate) asker: Arc<Asker>,
    pub(crate) tenant: TenantId,
    pub(crate) room: Room,
    pub(crate) state: Arc<ClusterState>,
}

/// What the members of a partition said.
struct Told {
    /// By series.
    held: Vec<bool>,
    /// How many of those that count answered.
    counting: usize,
    /// The most series that one has.
    series: Option<u64>,
}

impl Told {
    fn add(&mut self, answer: Result<HeldSeriesReply, ServiceError>) {
        match answer {
            Ok(reply) if reply.held.len() == self.held.len() => {
                self.counting += usize::from(reply.counts);
                self.series = self.series.max(Some(reply.partition_series));
                let both = self.held.iter_mut().zip(reply.held);
                both.for_each(|(held, too)| *held |= too);
            }
            // A member of an earlier version cannot tell: no series that may exist is refused.
            Err(error) if error.code == ServiceErrorCode::Unimplemented => self.held.fill(true),
            Ok(_) => tracing::debug!("member answered for other series than it was asked for"),
            Err(error) => tracing::debug!(%error, "member did not say which series it has"),
        }
    }

    /// Whether further answers could change nothing.
    fn is_decided(&self, needed: usize) -> bool {
        let are_all_held = !self.held.is_empty() && self.held.iter().all(|held| *held);
        self.counting >= needed || are_all_held
    }

    fn existence(&self, held: bool, needed: usize) -> Existence {
        match held {
            true => Existence::Held,
            false if self.counting >= needed => Existence::Absent,
            false => Existence::Untold,
        }
    }
}

impl Limiter {
    /// Decides on series that are not known here.
    pub(crate) async fn admit(&self, unknown: ByPartition<Arc<[SeriesHash]>>) -> Decision {
        self.decide(unknown, Existence::Untold).await
    }

    /// What nobody can tell of counts as `untold`.
    async fn decide(&self, unknown: ByPartition<Arc<[SeriesHash]>>, untold: Existence) -> Decision {
        let (partitions, distributors) = (&self.state.partitions, self.distributors());
        if let Some(reserved) = self.room.take_at_once(&unknown, partitions, distributors) {
            return Decision {
                reserved,
                ..Decision::default()
            };
        }
        self.asker.metrics.limit_asks.inc();
        let none: Arc<[SeriesHash]> = Arc::default();
        let asks = partitions.values().map(|placed| {
            let series = unknown.get(&placed.id).unwrap_or(&none);
            self.ask(placed, Arc::clone(series))
        });
        let mut asked: BTreeMap<_, _> = join_all(asks).await.into_iter().collect();
        for (_, existence) in asked.values_mut().flatten() {
            if *existence == Existence::Untold {
                *existence = untold;
            }
        }
        self.room.decide(&asked, partitions, distributors)
    }

    /// Decides on known series of a batch that a member does not have. They exist unless members deny it.
    pub(crate) async fn admit_known(&self, partition: PartitionId, columns: &BatchColumns) -> Decision {
        let known = columns.series().filter(|series| series.known);
        let mut known: Vec<SeriesHash> = known.map(|series| series.hash).collect();
        known.sort_unstable();
        known.dedup();
        let known = BTreeMap::from([(partition, known.into())]);
        let mut decision = self.decide(known, Existence::Held).await;
        decision.reserved.values_mut().for_each(Reserved::sent);
        decision
    }

    /// Distributors of the cluster that may let series in at the same moment.
    fn distributors(&self) -> u64 {
        let roles = self.state.members.values().map(|member| member.role);
        let distributors = roles.filter(|role| matches!(role, Role::Distributor | Role::All));
        (distributors.count() as u64).clamp(1, DISTRIBUTORS_MAX)
    }

    /// What the members of a partition say of series. Notes how many there are.
    async fn ask(
        &self,
        placed: &Partition,
        series: Arc<[SeriesHash]>,
    ) -> (PartitionId, Vec<(SeriesHash, Existence)>) {
        let Asker {
            members,
            clock,
            deadline,
            ..
        } = &*self.asker;
        let asked_at = clock.elapsed();
        let members_of = placed.replicas.iter();
        let members_of = members_of.filter_map(|replica| self.state.members.get(&replica.member));
        let mut answers: FuturesUnordered<_> = members_of
            .map(|member| {
                let ingester = members.ingester(&member.name, &member.grpc_addr);
                let request = HeldSeriesRequest {
                    tenant: self.tenant.clone(),
                    partition: placed.id,
                    epoch: placed.epoch,
                    references: Arc::clone(&series),
                };
                async move { clock.timeout(*deadline, ingester.held_series(request)).await }
            })
            .collect();
        let needed = placed.read_quorum();
        let mut told = Told {
            held: vec![false; series.len()],
            counting: 0,
            series: None,
        };
        while !told.is_decided(needed) {
            match answers.next().await {
                Some(Ok(answer)) => told.add(answer),
                Some(Err(_)) => {}
                None => break,
            }
        }
        if let Some(count) = told.series {
            self.room.note(placed.id, count, (asked_at, clock.elapsed()));
        }
        let each = series.iter().zip(&told.held);
        let each = each.map(|(hash, held)| (*hash, told.existence(*held, needed)));
        (placed.id, each.collect())
    }
}
