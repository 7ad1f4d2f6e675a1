//! Reads of recent samples: every partition from a majority of its counting members (I4, I7).
//!
//! All members are asked at once, so that each answer holds everything acknowledged before the query started (I5). As
//! many streams as the quorum needs are pulled; the others stay open, unread, and step in when one fails or lags.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use koios_model::PartitionId;
use koios_promql::QueryError;
use koios_runtime::ClockHandle;
use koios_wire::{ReadEnd, ReadItem, ReadRequest, ServiceError, ServiceErrorCode};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::budget::Budget;
use super::collected::{Charged, Footprint};
use super::deletions::DeletionsSeen;
use super::held::{HeldSeries, SourceError, hold};
use super::topology::{PartitionTarget, ReadPlan, Replica};

/// How patient a read of members is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest wait for a member's answer, or for the next item of its stream.
    pub member: Duration,
    /// Wait before a spare member steps in for one that lags.
    pub hedge: Duration,
    /// Wait before a member that has not adopted our state yet, or whose state is newer, is asked again.
    pub retry: Duration,
    /// How often that is repeated.
    pub retries: u32,
    /// How old a manifest may be that only may tell more than the heads do.
    pub manifest_age: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            member: Duration::from_secs(10),
            hedge: Duration::from_millis(500),
            retry: Duration::from_millis(100),
            retries: 10,
            manifest_age: Duration::from_secs(60),
        }
    }
}

/// Why a partition could not be read.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// A member knows a newer control state, of this version: plan again.
    Stale(u64),
    /// The query fails.
    Query(QueryError),
}

impl From<QueryError> for HeadError {
    fn from(e: QueryError) -> Self {
        Self::Query(e)
    }
}

/// What was read of one partition.
#[derive(Debug)]
pub(crate) struct PartitionRead<T> {
    pub(crate) partition: PartitionId,
    /// Per member: its answer and what it held.
    pub(crate) answers: Vec<(T, ReadEnd)>,
}

/// The fan-out's surroundings.
#[derive(Clone, Debug)]
pub(crate) struct HeadReader {
    pub(crate) clock: ClockHandle,
    pub(crate) patience: Patience,
    /// Answers of members that have applied the deletions of this manifest version, and of those that have not, are not put
    /// together; 0 where it is not to be known.
    apart: u64,
    /// Longest wait for a member's answer, or for its stream to begin.
    answer_wait: Duration,
}

impl HeadReader {
    pub(crate) fn new(clock: ClockHandle, patience: Patience) -> Self {
        Self {
            clock,
            patience,
            apart: 0,
            answer_wait: patience.member,
        }
    }

    /// The same for members of which not all know of the same deletions.
    pub(crate) fn seeing(&self, seen: &DeletionsSeen) -> Self {
        let answer_wait = self.patience.member;
        Self {
            apart: seen.apart(),
            answer_wait: seen.answer_wait().unwrap_or(answer_wait).min(answer_wait),
            ..self.clone()
        }
    }

    /// Reads the series of all partitions of a plan. `request` names partition and epoch itself.
    pub(crate) async fn read_series(
        &self,
        plan: &ReadPlan,
        request: &ReadRequest,
        budget: &Arc<Budget>,
    ) -> Result<Vec<PartitionRead<Vec<HeldSeries>>>, HeadError> {
        self.all_partitions(plan, |target| self.read_partition(target, request, budget))
            .await
    }

    /// Runs `read` on every partition at once; the first failure ends it.
    pub(crate) async fn all_partitions<'a, T, F>(
        &'a self,
        plan: &'a ReadPlan,
        read: impl Fn(&'a PartitionTarget) -> F,
    ) -> Result<Vec<T>, HeadError>
    where
        F: Future<Output = Result<T, HeadError>>,
    {
        let mut reads: FuturesUnordered<_> = plan
            .partitions
            .iter()
            .enumerate()
            .map(|(i, target)| {
                let read = read(target);
                async move { read.await.map(|r| (i, r)) }
            })
            .collect();
        let mut done = Vec::with_capacity(reads.len());
        while let Some(read) = reads.next().await {
            done.push(read?);
        }
        done.sort_by_key(|(i, _)| *i);
        Ok(done.into_iter().map(|(_, r)| r).collect())
    }

    async fn read_partition(
        &self,
        target: &PartitionTarget,
        request: &ReadRequest,
        budget: &Arc<Budget>,
    ) -> Result<PartitionRead<Vec<HeldSeries>>, HeadError> {
        let request = ReadRequest {
            partition: target.partition,
            epoch: target.epoch,
            ..request.clone()
        };
        let read = self.quorum(target, |replica, turns| {
            let request = request.clone();
            async move { self.read_member(replica, request, budget, turns).await }
        });
        let PartitionRead { partition, answers } = read.await?;
        let taken = answers.into_iter().map(|((held, budget), end)| {
            // Those that lagged hold nothing any more.
            budget.take()?;
            Ok((held, end))
        });
        let answers = taken.collect::<Result<_, QueryError>>()?;
        Ok(PartitionRead { partition, answers })
    }

    /// Asks every member for a short answer; a majority must give one.
    pub(crate) async fn ask_partition<'a, T, F>(
        &'a self,
        target: &'a PartitionTarget,
        ask: impl Fn(Arc<dyn koios_wire::IngesterService>) -> F + Sync + 'a,
    ) -> Result<PartitionRead<T>, HeadError>
    where
        F: Future<Output = Result<(T, ReadEnd), ServiceError>> + 'a,
    {
        let ask = &ask;
        self.quorum(target, |replica, _| async move {
            let client = client_of(replica)?;
            Ok(self.patiently(|| ask(Arc::clone(&client))).await?)
        })
        .await
    }

    /// As [`Self::ask_partition`], each answer charged to the query as it comes.
    pub(crate) async fn ask_partition_within<'a, T, F>(
        &'a self,
        target: &'a PartitionTarget,
        budget: &'a Arc<Budget>,
        ask: impl Fn(Arc<dyn koios_wire::IngesterService>) -> F + Sync + 'a,
    ) -> Result<PartitionRead<Charged<T>>, HeadError>
    where
        T: Footprint,
        F: Future<Output = Result<(T, ReadEnd), ServiceError>> + 'a,
    {
        let ask = &ask;
        self.quorum(target, |replica, _| async move {
            let client = client_of(replica)?;
            let (answer, end) = self.patiently(|| ask(Arc::clone(&client))).await?;
            Ok((Charged::new(answer, budget)?, end))
        })
        .await
    }

    /// Starts `attempt` with every member and waits for as many complete answers as the partition needs.
    async fn quorum<'a, T, F>(
        &self,
        target: &'a PartitionTarget,
        attempt: impl Fn(&'a Replica, Arc<Turns>) -> F,
    ) -> Result<PartitionRead<T>, HeadError>
    where
        F: Future<Output = Result<(T, ReadEnd), SourceError>>,
    {
        let turns = Arc::new(Turns::new(target.quorum));
        let mut attempts: FuturesUnordered<_> = target
            .replicas
            .iter()
            .map(|replica| {
                let attempt = attempt(replica, Arc::clone(&turns));
                async move { (replica, attempt.await) }
            })
            .collect();
        // Of members that have not applied certain deletions, and of those that have.
        let mut answers = [Vec::new(), Vec::new()];
        let most = |answers: &[Vec<_>; 2]| answers.iter().map(Vec::len).max().unwrap_or(0);
        let mut failures = Vec::new();
        while most(&answers) < target.quorum && most(&answers) + attempts.len() >= target.quorum {
            let hedge = self.clock.sleep(self.patience.hedge);
            let next = tokio::select! {
                biased;
                next = attempts.next() => next,
                () = hedge => { turns.permits.add_permits(1); continue }
            };
            match next {
                Some((_, Ok(answer))) => {
                    let before = most(&answers);
                    let [without, with] = &mut answers;
                    let (_, end): &(T, ReadEnd) = &answer;
                    let has_applied = end.deletions_version >= self.apart;
                    let side = if has_applied { with } else { without };
                    side.push(answer);
                    if most(&answers) == before {
                        // It cannot be put together with the others: one more is needed.
                        turns.permits.add_permits(1);
                    }
                }
                Some((_, Err(SourceError::Query(e)))) => return Err(e.into()),
                Some((_, Err(SourceError::Service(e)))) if e.code == ServiceErrorCode::Stale => {
                    return Err(HeadError::Stale(e.state_version));
                }
                Some((replica, Err(SourceError::Service(e)))) => {
                    tracing::debug!(partition = %target.partition, member = %replica.name, error = %e, "member not read");
                    failures.push(format!("{}: {e}", replica.name));
                }
                None => break,
            }
        }
        let answered = most(&answers);
        match answers.into_iter().find(|some| some.len() >= target.quorum) {
            Some(answers) => Ok(PartitionRead {
                partition: target.partition,
                answers,
            }),
            None => Err(too_few(target, answered, failures).into()),
        }
    }

    async fn read_member(
        &self,
        replica: &Replica,
        request: ReadRequest,
        budget: &Arc<Budget>,
        turns: Arc<Turns>,
    ) -> Result<((Vec<HeldSeries>, Arc<Budget>), ReadEnd), SourceError> {
        let client = client_of(replica)?;
        let mut stream = self.patiently(|| client.read(request.clone())).await?;
        // A failed attempt gives its permit back on drop, so that a spare member goes on.
        let turn = turns.begin().await?;
        // What is read beside those that lag may not be taken.
        let budget = if turn.is_spare {
            budget.aside()
        } else {
            Arc::clone(budget)
        };
        let mut held: Vec<HeldSeries> = Vec::new();
        loop {
            let item = self.within(self.patience.member, stream.next()).await?;
            match item {
                None => return Err(ServiceError::unavailable("the stream broke off before its end").into()),
                Some(Err(e)) => return Err(e.into()),
                Some(Ok(ReadItem::End(end))) => {
                    turn.end();
                    return Ok(((held, budget), end));
                }
                Some(Ok(ReadItem::Series(batch))) => {
                    for series in batch {
                        let series = hold(series, held.last().map(|s| &s.labels), &budget);
                        held.push(series.map_err(|e| turn.failed(e))?);
                    }
                }
            }
        }
    }

    /// Calls until the callee has adopted our state, a bounded number of times.
    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        let mut tries = 0;
        loop {
            match self.within(self.answer_wait, call()).await? {
                Err(e) if e.code == ServiceErrorCode::Behind && tries < self.patience.retries => {
                    tries += 1;
                    self.clock.sleep(self.patience.retry).await;
                }
                result => return result,
            }
        }
    }

    async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Result<T, ServiceError> {
        self.clock
            .timeout(limit, future)
            .await
            .map_err(|e| ServiceError::new(ServiceErrorCode::DeadlineExceeded, format!("no answer: {e}")))
    }
}

/// Lets as many members of a partition send as are needed, and more when some of these lag.
#[derive(Debug)]
struct Turns {
    needed: usize,
    permits: Semaphore,
    /// Members that send, or have sent all.
    begun: AtomicUsize,
}

/// A member's leave to send. One that fails gives it back on drop, so that a spare member goes on.
#[derive(Debug)]
struct Turn<'t> {
    turns: &'t Turns,
    permit: Option<SemaphorePermit<'t>>,
    /// Whether others send that may be enough.
    is_spare: bool,
}

impl Turns {
    fn new(needed: usize) -> Self {
        Self {
            needed,
            permits: Semaphore::new(needed),
            begun: AtomicUsize::new(0),
        }
    }

    async fn begin(&self) -> Result<Turn<'_>, ServiceError> {
        let closed = |_| ServiceError::internal("the read was given up");
        let permit = self.permits.acquire().await.map_err(closed)?;
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        Ok(Turn {
            turns: self,
            permit: Some(permit),
            is_spare: begun >= self.needed,
        })
    }
}

impl Turn<'_> {
    /// All came: no other is needed for it.
    fn end(mut self) {
        if let Some(permit) = self.permit.take() {
            permit.forget();
        }
    }

    /// Why an item cannot be held: where there is no room for a spare's, the others may do without.
    fn failed(&self, e: SourceError) -> SourceError {
        match e {
            SourceError::Query(e) if self.is_spare => {
                ServiceError::new(ServiceErrorCode::ResourceExhausted, e.to_string()).into()
            }
            e => e,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.turns.begun.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn client_of(replica: &Replica) -> Result<Arc<dyn koios_wire::IngesterService>, ServiceError> {
    if !replica.counts {
        let text = "it may lack acknowledged samples until it is repaired";
        return Err(ServiceError::new(ServiceErrorCode::NotCounting, text));
    }
    let unknown = || ServiceError::unavailable("its address is not known");
    replica.client.clone().ok_or_else(unknown)
}

fn too_few(target: &PartitionTarget, answered: usize, mut failures: Vec<String>) -> QueryError {
    failures.sort();
    if failures.is_empty() {
        failures.push(format!("it has {} members", target.replicas.len()));
    }
    QueryError::unavailable(format!(
        "partition {}: {answered} of {} needed members answered: {}",
        target.partition,
        target.quorum,
        failures.join("; ")
    ))
}
