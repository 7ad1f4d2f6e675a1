//! One partition's part of a request, to all its members, until a majority has it under one epoch.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use koios_control::{ClusterState, Partition};
use koios_model::{BatchColumns, PartitionId, SeriesHash, TenantId};
use koios_runtime::{ClockHandle, Cpu, RngHandle, TaskGroup};
use koios_wire::{Batch, BatchHeader, PushAck, ServiceError, ServiceErrorCode};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use crate::left_out::LeftOut;
use crate::limiter::Limiter;
use crate::metric_limit::MetricsOf;
use crate::metrics::DistributorMetrics;
use crate::outcome::Written;
use crate::points::Points;
use crate::rate_limit::{Rates, admitted_samples};
use crate::routes::Routes;
use crate::series_limit::{Decision, Reserved};
use crate::streams::{Sequence, Streams};
use crate::taken_out::report;
use crate::{Error, Members, Rejection, RejectionReport};

/// How often a batch is sent again under a newer state.
const RESENDS_MAX: u32 = 5;
/// First rest before a batch is sent again to members that have not adopted the state yet; doubles each time.
const RESEND_REST: Duration = Duration::from_millis(50);
/// KiB of batches that may still be on their way to slower members after their majority.
const STRAGGLERS_KIB_MAX: usize = 64 << 10;

/// Sends batches.
#[derive(Debug)]
pub(crate) struct Replicator {
    pub(crate) routes: Arc<Routes>,
    pub(crate) members: Arc<dyn Members>,
    pub(crate) streams: Streams,
    pub(crate) clock: ClockHandle,
    pub(crate) cpu: Cpu,
    pub(crate) rng: RngHandle,
    pub(crate) tasks: TaskGroup,
    pub(crate) metrics: DistributorMetrics,
    pub(crate) rates: Arc<Rates>,
    pub(crate) stragglers: Arc<Semaphore>,
    /// How long a partition's part may take, resends included.
    pub(crate) deadline: Duration,
}

/// What is sent to a partition.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) columns: BatchColumns,
    /// Of the same columns, if that was done before.
    pub(crate) encoded: Option<Bytes>,
    /// Labels that the columns lack.
    pub(crate) left_out: Arc<LeftOut>,
    /// The data points that series are of.
    pub(crate) points: Points,
    /// The limit on the tenant's series, if it has one.
    pub(crate) limiter: Option<Limiter>,
}

/// What a majority said.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    /// The tenant's active series in the partition.
    pub(crate) series: u64,
    pub(crate) conflicts: u64,
    /// Those of them that are native histograms, as far as the member told.
    pub(crate) histogram_conflicts: u64,
    /// Conflicts in which what was sent stays, as far as the member told, and those of them that are native histograms.
    pub(crate) conflicts_kept: u64,
    pub(crate) histogram_conflicts_kept: u64,
    /// The first conflict in words; empty when there was none.
    pub(crate) conflict: String,
    /// The newest state version that a member spoke of.
    pub(crate) state_version: u64,
    /// Thousandths of samples per second of the tenant in the partition, from all distributors; 0 when no member told.
    pub(crate) tenant_rate: u64,
    /// What it has now.
    pub(crate) written: Written,
    /// The data points that these are of.
    pub(crate) points: Points,
    /// Series that were taken out.
    pub(crate) taken_out: TakenOut,
}

/// Series that passed for known and are gone from the members, where there is no room for them any more.
#[derive(Debug, Default)]
pub(crate) struct TakenOut {
    /// Those that were refused.
    pub(crate) refused: HashSet<SeriesHash>,
    /// How many of others it cannot be told yet whether there is room.
    pub(crate) undecided: u64,
    pub(crate) report: RejectionReport,
    pub(crate) exemplars: u64,
    /// Data points of which series were refused.
    pub(crate) points: BTreeSet<u32>,
}

impl TakenOut {
    /// Takes series out of columns that have all labels, and are of these data points.
    fn take(&mut self, full: &BatchColumns, points: &mut Points, out: &Decision, limit: u64) -> BatchColumns {
        let now = out.count;
        let of_all = Rejection::SeriesLimit { limit, now };
        let refusal = |hash: &SeriesHash| out.refusal(hash, &of_all);
        self.exemplars += report(full, |_, hash| refusal(hash), &mut self.report);
        for (at, hash) in full.hashes.iter().enumerate() {
            if refusal(hash).is_some() {
                self.refused.insert(*hash);
                self.points.extend(points.at(at));
            }
        }
        self.undecided += out.undecided.len() as u64;
        let is_out = |hash: &SeriesHash| refusal(hash).is_some() || out.undecided.contains(hash);
        let is_out = |at: usize| full.hashes.get(at).is_some_and(is_out);
        *points = points.without(is_out);
        full.without(is_out)
    }
}

/// What the sends of a batch share: made when a member asks for labels.
#[derive(Debug, Default)]
struct Labelled {
    /// The batch with all labels.
    batch: OnceCell<Arc<Batch>>,
    /// What becomes of series that it speaks of by reference, where the tenant has a limit.
    decision: OnceCell<Mutex<Decision>>,
    /// Whether a majority has it.
    is_acknowledged: AtomicBool,
}

impl Labelled {
    /// Whether labels may be sent. Series that a majority has exist.
    async fn is_admitted(
        &self,
        limiter: Option<&Limiter>,
        (batch, left_out): (&Arc<Batch>, &Arc<LeftOut>),
        cpu: &Cpu,
    ) -> Result<bool, ServiceError> {
        let Some(limiter) = limiter.filter(|_| !self.is_acknowledged.load(Ordering::Relaxed)) else {
            return Ok(true);
        };
        let decide = || async {
            let metrics = match limiter.per_metric {
                0 => None,
                limit => {
                    let (batch, left_out) = (Arc::clone(batch), Arc::clone(left_out));
                    let find = move || {
                        let full = left_out.put_back(batch.columns())?;
                        Ok(MetricsOf::known(
                            full.as_ref().unwrap_or_else(|| batch.columns()),
                            limit,
                        ))
                    };
                    let found = cpu.run(find).await.map_err(|panic| internal(&panic))?;
                    Some(found.map_err(|e: Error| internal(&e))?)
                }
            };
            let partition = batch.header().partition;
            let decision = limiter.admit_known(partition, batch.columns(), metrics.as_ref());
            Ok::<_, ServiceError>(Mutex::new(decision.await))
        };
        Ok(self.decision.get_or_try_init(decide).await?.lock().is_yes())
    }

    /// The series that must be taken out of the batch, if there are some, and the room of the others, which find it again in
    /// the next round. Slower members are refused their labels, too.
    fn out(&self) -> Option<Decision> {
        let mut decision = self.decision.get()?.lock();
        (!decision.is_yes()).then(|| Decision {
            reserved: std::mem::take(&mut decision.reserved),
            metric_room: decision.metric_room.take(),
            refused: decision.refused.clone(),
            refused_by_metric: decision.refused_by_metric.clone(),
            undecided: decision.undecided.clone(),
            count: decision.count,
        })
    }

    /// A majority has the batch.
    fn acknowledged(&self) {
        self.is_acknowledged.store(true, Ordering::Relaxed);
        self.settle();
    }

    fn settle(&self) {
        let Some(decision) = self.decision.get() else {
            return;
        };
        let mut decision = decision.lock();
        let reserved = std::mem::take(&mut decision.reserved);
        reserved.into_values().for_each(Reserved::settled);
        decision.metric_room = None;
    }
}

impl Drop for Labelled {
    fn drop(&mut self) {
        if *self.is_acknowledged.get_mut() {
            self.settle();
        }
    }
}

type Send = BoxFuture<'static, (String, Result<PushAck, ServiceError>)>;

/// What goes to the members in one round.
#[derive(Clone, Debug)]
struct Sent {
    batch: Arc<Batch>,
    left_out: Arc<LeftOut>,
    labelled: Arc<Labelled>,
    limiter: Option<Limiter>,
}

/// The answers of one round.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: usize,
    result: Acknowledged,
    /// The first failure with the member that gave it.
    failure: Option<String>,
    /// How many members say that they never take the batch, and what the first of them said.
    refused: usize,
    refusal: Option<String>,
    /// Some member knows another epoch: a further round may succeed.
    superseded: bool,
    /// The newest state version that a member spoke of.
    newest_version: u64,
}

impl Tally {
    fn add(&mut self, member: &str, answer: Result<PushAck, ServiceError>) {
        match answer {
            Ok(ack) => {
                self.acknowledged += 1;
                self.newest_version = self.newest_version.max(ack.state_version);
                let result = &mut self.result;
                result.series = result.series.max(ack.partition_series);
                result.tenant_rate = result.tenant_rate.max(ack.tenant_rate);
                if ack.conflicts > result.conflicts {
                    result.conflicts = ack.conflicts;
                    result.histogram_conflicts = ack.histogram_conflicts;
                    result.conflicts_kept = ack.conflicts_kept;
                    result.histogram_conflicts_kept = ack.histogram_conflicts_kept;
                    result.conflict = ack.conflict;
                }
            }
            Err(error) => {
                self.newest_version = self.newest_version.max(error.state_version);
                self.superseded |= matches!(error.code, ServiceErrorCode::Stale | ServiceErrorCode::Behind);
                let told = || format!("member {member}: {error}");
                // Not `InvalidArgument`: so says a member of an older version that cannot read a batch.
                if error.code == ServiceErrorCode::TooLarge {
                    self.refused += 1;
                    self.refusal.get_or_insert_with(told);
                }
                self.failure.get_or_insert_with(told);
            }
        }
    }
}

impl Replicator {
    /// Bounds the KiB of batches that may still be on their way after their majority.
    pub(crate) fn straggler_permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(STRAGGLERS_KIB_MAX))
    }

    /// Sends `content` until a majority of the partition's members has synced it under one epoch (I1, I14).
    ///
    /// A member that does not know a series gets the labels, those included that were left out. When members know another
    /// epoch, the same content goes out again as a new batch under the newer state: merging makes the earlier one harmless
    /// (I2).
    pub(crate) async fn replicate(
        &self,
        tenant: &TenantId,
        partition: PartitionId,
        admission_ms: i64,
        content: Content,
    ) -> Result<Acknowledged, Error> {
        let Content {
            mut columns,
            mut encoded,
            mut left_out,
            mut points,
            limiter,
        } = content;
        let started = self.clock.elapsed();
        let mut taken_out = TakenOut::default();
        for round in 0..=RESENDS_MAX {
            let table = self.routes.current();
            let state = &table.state;
            let Some(placed) = state.partition(partition) else {
                return Err(Error::NoPartitions);
            };
            let left = self.left(started);
            let sequence = self.streams.open(partition, tenant);
            let header = BatchHeader {
                tenant: tenant.clone(),
                stream: self.streams.id(),
                sequence: sequence.number,
                settled_below: sequence.settled_below,
                partition,
                epoch: placed.epoch,
                admission_ms,
            };
            let mut batch = Batch::new(header, columns);
            if let Some(encoded) = encoded.take() {
                batch = batch.with_content(encoded);
            }
            let batch = Arc::new(batch);
            self.encode(&batch, placed.replicas.len() > 1).await?;
            let labelled = Arc::<Labelled>::default();
            let sent = Sent {
                batch: Arc::clone(&batch),
                left_out: Arc::clone(&left_out),
                labelled: Arc::clone(&labelled),
                limiter: limiter.clone(),
            };
            let sent_at = self.clock.elapsed();
            let samples = admitted_samples(batch.columns());
            self.rates.sent(tenant, partition, samples, sent_at);
            let tally = self.round(state, placed, sent, sequence, left).await;
            let needed = placed.write_quorum();
            if let Some(limiter) = limiter.as_ref().filter(|_| tally.acknowledged > 0) {
                let times = (sent_at, self.clock.elapsed());
                limiter.room.note(partition, tally.result.series, times);
            }
            if tally.acknowledged > 0 {
                let rate = tally.result.tenant_rate;
                self.rates.told(tenant, partition, rate, sent_at);
            }
            if tally.acknowledged >= needed {
                labelled.acknowledged();
                return Ok(Acknowledged {
                    state_version: tally.newest_version,
                    written: Written::of(batch.columns()),
                    points,
                    taken_out,
                    ..tally.result
                });
            }
            if let Some((out, limiter)) = labelled.out().zip(limiter.as_ref()) {
                let full = self.put_back(&batch, &left_out).await?;
                columns = taken_out.take(&full, &mut points, &out, limiter.room.limit());
                left_out = Arc::default();
                if columns.is_empty() {
                    return Ok(Acknowledged {
                        taken_out,
                        ..Acknowledged::default()
                    });
                }
                continue;
            }
            // A retry finds the same members refuse it again.
            if tally.refused > placed.replicas.len().saturating_sub(needed) {
                return Err(Error::RefusedByMembers {
                    partition,
                    reason: tally.refusal.unwrap_or_default(),
                });
            }
            let again = tally.superseded && round < RESENDS_MAX;
            if !again || !self.newer_state(state, &tally, round, started).await {
                return Err(not_enough(partition, needed, tally));
            }
            self.metrics.resends.inc();
            columns = batch.columns().clone();
            encoded = Some(batch.content().clone());
        }
        Err(Error::Internal("resent beyond the bound".to_owned()))
    }

    /// The columns of a batch with all labels.
    async fn put_back(&self, batch: &Arc<Batch>, left_out: &Arc<LeftOut>) -> Result<BatchColumns, Error> {
        let (batch, left_out) = (Arc::clone(batch), Arc::clone(left_out));
        let put_back = move || left_out.put_back(batch.columns()).map(|full| (full, batch));
        let done = self.cpu.run(put_back).await;
        let (full, batch) = done.map_err(|panic| Error::Internal(panic.to_string()))??;
        Ok(full.unwrap_or_else(|| batch.columns().clone()))
    }

    /// Compresses the content of a large batch off the async threads, once for all members.
    /// Where it surely travels, the rest too.
    async fn encode(&self, batch: &Arc<Batch>, travels: bool) -> Result<(), Error> {
        if batch.is_encoded_inline() || (batch.has_content() && !travels) {
            return Ok(());
        }
        let batch = Arc::clone(batch);
        let encode = move || match travels {
            true => batch.encoded().len(),
            false => batch.content().len(),
        };
        let encoded = self.cpu.run(encode).await;
        encoded
            .map(drop)
            .map_err(|panic| Error::Internal(panic.to_string()))
    }

    fn left(&self, started: Duration) -> Duration {
        self.deadline
            .saturating_sub(self.clock.elapsed().saturating_sub(started))
    }

    /// Sends one batch to every member and listens until a majority has it or cannot come about any more.
    async fn round(
        &self,
        state: &ClusterState,
        placed: &Partition,
        sent: Sent,
        sequence: Sequence,
        limit: Duration,
    ) -> Tally {
        let mut tally = Tally::default();
        let mut sends = FuturesUnordered::new();
        for replica in &placed.replicas {
            match state.members.get(&replica.member) {
                Some(member) => {
                    sends.push(self.send((&member.name, &member.grpc_addr), sent.clone(), limit));
                }
                None => tally.add(
                    &replica.member,
                    Err(ServiceError::unavailable("it is not registered")),
                ),
            }
        }
        let needed = placed.write_quorum();
        while tally.acknowledged < needed && tally.acknowledged + sends.len() >= needed {
            let Some((member, answer)) = sends.next().await else {
                break;
            };
            if let Err(error) = &answer {
                self.metrics.send_failed(error.code.as_str());
                tracing::debug!(member, %error, partition = %placed.id, "member did not acknowledge");
            }
            tally.add(&member, answer);
        }
        self.finish_in_background(sends, sequence, held_kib(&sent.batch, &sent.left_out));
        tally
    }

    fn send(&self, (name, addr): (&str, &str), sent: Sent, limit: Duration) -> Send {
        let (name, ingester) = (name.to_owned(), self.members.ingester(name, addr));
        let clock = Arc::clone(&self.clock);
        let (sent_with_labels, cpu) = (self.metrics.sent_with_labels.clone(), self.cpu.clone());
        let sent_bytes = self.metrics.sent_bytes.clone();
        Box::pin(async move {
            let Sent {
                batch,
                left_out,
                labelled,
                limiter,
            } = sent;
            let push = async {
                match ingester.push(Arc::clone(&batch)).await {
                    Err(e) if e.code == ServiceErrorCode::UnknownSeries && batch.leaves_labels_out() => {
                        let content = (&batch, &left_out);
                        if !labelled.is_admitted(limiter.as_ref(), content, &cpu).await? {
                            return Err(e);
                        }
                        sent_with_labels.inc();
                        // Once for all members that ask.
                        let labelled = labelled.batch.get_or_try_init(|| async {
                            let (batch, left_out) = (Arc::clone(&batch), Arc::clone(&left_out));
                            let labelled = cpu.run(move || with_labels(&batch, &left_out)).await;
                            labelled
                                .map_err(|panic| internal(&panic))?
                                .map_err(|e| internal(&e))
                        });
                        let labelled = labelled.await?;
                        let answer = ingester.push(Arc::clone(labelled)).await;
                        sent_bytes.inc_by(labelled.encoded_len().unwrap_or(0) as u64);
                        answer
                    }
                    answer => answer,
                }
            };
            let answer = clock.timeout(limit, push).await;
            sent_bytes.inc_by(batch.encoded_len().unwrap_or(0) as u64);
            let answer = answer.unwrap_or_else(|late| {
                let message = format!("no answer within {:?}", late.0);
                Err(ServiceError::new(ServiceErrorCode::DeadlineExceeded, message))
            });
            (name, answer)
        })
    }

    /// Lets the remaining members have the batch too, so that repair has less to do; in bounds, else repair does it.
    fn finish_in_background(&self, mut sends: FuturesUnordered<Send>, sequence: Sequence, kib: u32) {
        if sends.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.stragglers).try_acquire_many_owned(kib) else {
            self.metrics.stragglers_dropped.inc();
            return;
        };
        let metrics = self.metrics.clone();
        metrics.stragglers.inc();
        self.tasks.spawn_cancelled("slower members", async move {
            while let Some((member, answer)) = sends.next().await {
                if let Err(error) = answer {
                    metrics.send_failed(error.code.as_str());
                    tracing::debug!(member, %error, "slower member did not acknowledge");
                }
            }
            metrics.stragglers.dec();
            drop((sequence, permit));
        });
    }

    /// Waits for the state that a member spoke of, or rests so that members can catch up. False when time is up.
    async fn newer_state(&self, ours: &ClusterState, tally: &Tally, round: u32, started: Duration) -> bool {
        let left = self.left(started);
        if left.is_zero() {
            return false;
        }
        if tally.newest_version > ours.version {
            let wanted = self
                .routes
                .handle()
                .at_least(tally.newest_version, &*self.clock, left);
            return wanted.await.is_ok();
        }
        let rest = RESEND_REST.saturating_mul(1 << round.min(8));
        let jitter = Duration::from_millis(self.rng.below(rest.as_millis() as u64 / 2 + 1));
        self.clock.sleep((rest + jitter).min(left)).await;
        !self.left(started).is_zero()
    }
}

/// The batch with all labels, encoded.
fn with_labels(batch: &Batch, left_out: &LeftOut) -> Result<Arc<Batch>, Error> {
    let labelled = match left_out.put_back(batch.columns())? {
        Some(columns) => Batch::new(batch.header().clone(), columns)
            .with_content(batch.content().clone())
            .with_labels(),
        None => batch.with_labels(),
    };
    labelled.encoded();
    Ok(Arc::new(labelled))
}

fn internal(error: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::new(ServiceErrorCode::Internal, error.to_string())
}

/// What a batch takes in memory, roughly: its columns, its encoded form, and the message that labels were left in.
fn held_kib(batch: &Batch, left_out: &LeftOut) -> u32 {
    let bytes = batch.columns().memory_bytes();
    let with_encoded = bytes + bytes / 2 + left_out.bytes();
    u32::try_from(with_encoded >> 10)
        .unwrap_or(u32::MAX)
        .saturating_add(1)
}

fn not_enough(partition: PartitionId, needed: usize, tally: Tally) -> Error {
    Error::NotEnoughReplicas {
        partition,
        acknowledged: tally.acknowledged,
        needed,
        reason: tally.failure.unwrap_or_else(|| "no member answered".to_owned()),
    }
}
