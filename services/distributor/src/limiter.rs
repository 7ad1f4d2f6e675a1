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
use crate::metric_limit::MetricsOf;
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
    /// Most series of one metric; 0 for no limit.
    pub(crate) per_metric: u64,
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
    /// The same of each metric.
    metrics: Vec<u64>,
    /// Whether one that counts said so.
    counts_metrics: bool,
}

/// What was found out of a partition.
struct Asked {
    partition: PartitionId,
    series: Vec<(SeriesHash, Existence)>,
    /// Series of each metric, and whether that is all of them.
    metrics: Vec<u64>,
    counts_metrics: bool,
}

impl Told {
    fn add(&mut self, answer: Result<HeldSeriesReply, ServiceError>) {
        match answer {
            Ok(reply) if reply.held.len() == self.held.len() => {
                self.counting += usize::from(reply.counts);
                self.counts_metrics |= reply.counts;
                self.series = self.series.max(Some(reply.partition_series));
                let both = self.held.iter_mut().zip(reply.held);
                both.for_each(|(held, too)| *held |= too);
                let metrics = self.metrics.iter_mut().zip(reply.metric_series);
                metrics.for_each(|(most, count)| *most = count.max(*most));
            }
            // A member of an earlier version cannot tell: no series that may exist is refused.
            Err(error) if error.code == ServiceErrorCode::Unimplemented => {
                self.held.fill(true);
                self.counts_metrics = true;
            }
            Ok(_) => tracing::debug!("member answered for other series than it was asked for"),
            Err(error) => tracing::debug!(%error, "member did not say which series it has"),
        }
    }

    /// Whether further answers could change nothing.
    fn is_decided(&self, needed: usize) -> bool {
        let are_all_held = !self.held.is_empty() && self.held.iter().all(|held| *held);
        let are_counted = self.metrics.is_empty() || self.counts_metrics;
        self.counting >= needed || (are_all_held && are_counted)
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
    /// Decides on series that are not known here, and are of these metrics if those may have so many only.
    pub(crate) async fn admit(
        &self,
        unknown: ByPartition<Arc<[SeriesHash]>>,
        metrics: Option<&MetricsOf>,
    ) -> Decision {
        self.decide(unknown, metrics, Existence::Untold).await
    }

    /// What nobody can tell of counts as `untold`.
    async fn decide(
        &self,
        unknown: ByPartition<Arc<[SeriesHash]>>,
        metrics: Option<&MetricsOf>,
        untold: Existence,
    ) -> Decision {
        let (partitions, distributors) = (&self.state.partitions, self.distributors());
        if metrics.is_none()
            && let Some(reserved) = self.room.take_at_once(&unknown, partitions, distributors)
        {
            return Decision {
                reserved,
                ..Decision::default()
            };
        }
        self.asker.metrics.limit_asks.inc();
        let none: Arc<[SeriesHash]> = Arc::default();
        let asks = partitions.values().map(|placed| {
            let series = unknown.get(&placed.id).unwrap_or(&none);
            self.ask(placed, Arc::clone(series), metrics)
        });
        let mut counts = vec![0u64; metrics.map_or(0, |metrics| metrics.names.len())];
        let mut are_counted = true;
        let mut asked = BTreeMap::new();
        for mut of_partition in join_all(asks).await {
            for (_, existence) in &mut of_partition.series {
                if *existence == Existence::Untold {
                    *existence = untold;
                }
            }
            are_counted &= of_partition.counts_metrics;
            let both = counts.iter_mut().zip(of_partition.metrics);
            both.for_each(|(sum, count)| *sum = sum.saturating_add(count));
            asked.insert(of_partition.partition, of_partition.series);
        }
        let counts = (&*counts, are_counted);
        let by_metric = metrics.map(|m| m.take(&self.room.metrics(), counts, &mut asked));
        let mut decision = self.room.decide(&asked, partitions, distributors);
        let Some(by_metric) = by_metric else {
            return decision;
        };
        decision.undecided.extend(by_metric.undecided);
        decision.refused_by_metric = by_metric.refused;
        decision.metric_room = Some(by_metric.room);
        decision
    }

    /// Decides on known series of a batch that a member does not have, and that are of these metrics if those may have so
    /// many only. They exist unless members deny it.
    pub(crate) async fn admit_known(
        &self,
        partition: PartitionId,
        columns: &BatchColumns,
        metrics: Option<&MetricsOf>,
    ) -> Decision {
        let known = columns.series().filter(|series| series.known);
        let mut known: Vec<SeriesHash> = known.map(|series| series.hash).collect();
        known.sort_unstable();
        known.dedup();
        let known = BTreeMap::from([(partition, known.into())]);
        let mut decision = self.decide(known, metrics, Existence::Held).await;
        decision.reserved.values_mut().for_each(Reserved::sent);
        decision
    }

    /// Distributors of the cluster that may let series in at the same moment.
    fn distributors(&self) -> u64 {
        distributors_of(&self.state).min(DISTRIBUTORS_MAX)
    }

    /// What the members of a partition say of series and metrics. Notes how many series there are.
    async fn ask(&self, placed: &Partition, series: Arc<[SeriesHash]>, metrics: Option<&MetricsOf>) -> Asked {
        let metrics = metrics
            .map(|metrics| Arc::clone(&metrics.names))
            .unwrap_or_default();
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
                    metrics: Arc::clone(&metrics),
                };
                async move { clock.timeout(*deadline, ingester.held_series(request)).await }
            })
            .collect();
        let needed = placed.read_quorum();
        let mut told = Told {
            held: vec![false; series.len()],
            counting: 0,
            series: None,
            metrics: vec![0; metrics.len()],
            counts_metrics: false,
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
        Asked {
            partition: placed.id,
            series: each.collect(),
            metrics: told.metrics,
            counts_metrics: told.counts_metrics,
        }
    }
}

/// How many distributors are registered.
pub(crate) fn distributors_of(state: &ClusterState) -> u64 {
    let roles = state.members.values().map(|member| member.role);
    let distributors = roles.filter(|role| matches!(role, Role::Distributor | Role::All));
    (distributors.count() as u64).max(1)
}
