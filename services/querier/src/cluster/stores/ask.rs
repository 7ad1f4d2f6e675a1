//! Asks stores about blocks, and others when those fail or lag.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use koios_promql::QueryError;
use koios_wire::{ServiceError, ServiceErrorCode, StoreService};
use parking_lot::Mutex;

use super::super::budget::Budget;
use super::super::collected::{Charged, Footprint};
use super::super::held::SourceError;
use super::super::topology::StoreMember;
use super::board::{Health, StoreBoard, UnderWay, Why};
use super::placement::{BlockGroup, Candidate, keep_together, share_out};

/// A call of a store about some blocks.
pub(super) type Call<'c, T> = &'c (
        dyn Fn(Arc<dyn StoreService>, Vec<String>) -> BoxFuture<'static, Result<T, ServiceError>>
            + Send
            + Sync
    );

/// A store's name and why it failed.
type Failure = (String, ServiceError);

/// The stores as one read sees them.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    stores: Arc<[StoreMember]>,
    board: Arc<StoreBoard>,
    /// Whether the log was told of a failure.
    is_told: Arc<AtomicBool>,
    /// Stores that could not do any of the read's work when they were asked for some of it.
    unable: Arc<Mutex<BTreeSet<String>>>,
}

/// Stores that cannot reach the bucket until it is the bucket's fault, as it seems, and not theirs.
const STORES_WITHOUT_BUCKET: usize = 2;

/// Whether a failure is of the store, whatever it was asked for: another one may well do better.
fn is_of_store(code: ServiceErrorCode) -> bool {
    matches!(
        code,
        ServiceErrorCode::Unavailable
            | ServiceErrorCode::DeadlineExceeded
            | ServiceErrorCode::Unimplemented
            | ServiceErrorCode::BucketUnavailable
    )
}

/// Which stores failed at some blocks, in one read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tried {
    failures: Vec<Failure>,
    /// Lag, and are waited for elsewhere.
    lagging: Vec<String>,
}

impl Tried {
    /// The same beside stores that lag.
    pub(super) fn beside(&self, lagging: &[String]) -> Self {
        Self {
            failures: self.failures.clone(),
            lagging: lagging.to_vec(),
        }
    }

    /// Stores that failed or lag.
    fn attempts(&self) -> usize {
        self.failures.len() + self.lagging.len()
    }

    /// Stores that could not reach the bucket.
    fn without_bucket(&self) -> usize {
        let is_without = |(_, e): &&Failure| e.code == ServiceErrorCode::BucketUnavailable;
        self.failures.iter().filter(is_without).count()
    }

    /// Whether asking one store more would be asking too many: a fault of the blocks, which all stores share, costs each
    /// block a few reads, however many stores there are.
    fn is_enough(&self, replication: usize) -> bool {
        let of_blocks = self.failures.iter().filter(|(_, e)| !is_of_store(e.code));
        of_blocks.count() > replication.max(2)
    }

    /// Whether only those are left to be asked that have not failed at anything in this read: as many stores have failed as
    /// may die at once, or the bucket seems to be down. The bucket is tried from a second store in any case, as the first may
    /// be cut off from it.
    fn is_last_resort(&self, replication: usize) -> bool {
        self.attempts() > replication.max(2) || self.without_bucket() >= STORES_WITHOUT_BUCKET
    }

    /// Whether the blocks are all asked of one store from now on: their first failure spreads a dead store's load over all
    /// others, a second one says that more is wrong than one store.
    fn keeps_together(&self) -> bool {
        self.attempts() >= 2 || self.without_bucket() > 0
    }

    fn has(&self, store: &StoreMember) -> bool {
        self.lagging.contains(&store.name) || self.failures.iter().any(|(name, _)| *name == store.name)
    }

    fn why(&self) -> Why {
        match (self.lagging.is_empty(), self.failures.is_empty()) {
            (false, _) => Why::Hedge,
            (true, false) => Why::Failover,
            (true, true) => Why::Assigned,
        }
    }
}

/// What one store answered about some of the blocks.
#[derive(Debug)]
pub(super) struct Answered<T> {
    pub(super) blocks: Vec<String>,
    pub(super) store: String,
    /// The stores that failed before.
    pub(super) tried: Tried,
    /// To be dropped when the store has no more to do.
    pub(super) under_way: UnderWay,
    pub(super) answer: T,
}

/// Why there is no answer.
enum Unanswered {
    /// Whoever is asked, the read fails.
    Final(SourceError),
    /// No store is left to be asked for these blocks.
    NoStore {
        blocks: Vec<String>,
        failures: Vec<Failure>,
    },
}

impl From<SourceError> for Unanswered {
    fn from(e: SourceError) -> Self {
        Self::Final(e)
    }
}

impl From<Unanswered> for SourceError {
    fn from(e: Unanswered) -> Self {
        match e {
            Unanswered::Final(e) => e,
            Unanswered::NoStore { blocks, failures } => unread(&blocks, &failures).into(),
        }
    }
}

impl Unanswered {
    /// With a failure that came beside.
    fn and(self, failure: Failure) -> Self {
        match self {
            Self::NoStore { blocks, mut failures } => {
                failures.push(failure);
                Self::NoStore { blocks, failures }
            }
            e @ Self::Final(_) => e,
        }
    }
}

/// What the query is told: damage first, since that is what somebody must look at.
fn unread(blocks: &[String], failures: &[Failure]) -> QueryError {
    if failures.is_empty() {
        let text = format!("{} blocks cannot be read: no store member is known", blocks.len());
        return QueryError::unavailable(text);
    }
    let damage = failures
        .iter()
        .find(|(_, e)| e.code == ServiceErrorCode::Corruption);
    let what = match (damage, blocks) {
        (Some((_, e)), _) => e.message.clone(),
        (None, [one]) => format!("block {one} cannot be read"),
        (None, [first, ..]) => format!("{} blocks ({first}, …) cannot be read", blocks.len()),
        (None, []) => "no block was read".to_owned(),
    };
    let stores: Vec<_> = failures
        .iter()
        .map(|(store, e)| format!("{store}: {e}"))
        .collect();
    // What is wrong with blocks is not asked of all stores.
    let rest = match failures.iter().all(|(_, e)| is_of_store(e.code)) {
        true => ": no other store is left to ask",
        false => "",
    };
    let text = format!("unavailable: {what}; asked {}{rest}", stores.join("; "));
    QueryError::unavailable(text)
}

type Answers<T> = Result<Vec<Answered<T>>, Unanswered>;
type OneAnswer<T> = Result<(UnderWay, T), ServiceError>;

impl Asker {
    pub(crate) fn new(stores: Vec<StoreMember>, board: Arc<StoreBoard>) -> Self {
        board.see(&stores);
        Self {
            stores: stores.into(),
            board,
            is_told: Arc::default(),
            unable: Arc::default(),
        }
    }

    pub(super) fn board(&self) -> &StoreBoard {
        &self.board
    }

    /// Whether another store may be asked beside some that lag, of which there are `lagging`.
    pub(super) fn may_hedge(&self, lagging: usize) -> bool {
        let replication = self.board.replication();
        replication > 1 && lagging <= replication && lagging < self.stores.len()
    }

    /// Asks about blocks, each once: one store for some of them each, another one where that fails.
    ///
    /// # Errors
    /// When some block could not be asked about at any store.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        blocks: Vec<String>,
        tried: Tried,
        call: Call<'_, T>,
    ) -> Result<Vec<Answered<T>>, SourceError> {
        Ok(self.ask_owners(blocks, tried, call).await?)
    }

    /// As [`Self::ask`], all answers: each is charged to the query as it comes.
    pub(super) async fn gather<T: Footprint + Send + 'static>(
        &self,
        blocks: Vec<String>,
        budget: &Arc<Budget>,
        call: Call<'_, Vec<T>>,
    ) -> Result<Vec<Charged<Vec<T>>>, SourceError> {
        let charged = |store, blocks| {
            let (asked, budget) = (call(store, blocks), Arc::clone(budget));
            let charged = async move { Ok(Charged::new(asked.await?, &budget)) };
            charged.boxed()
        };
        let answers = self.ask(blocks, Tried::default(), &charged).await?;
        let answers = answers.into_iter().map(|a| a.answer);
        Ok(answers.collect::<Result<_, _>>()?)
    }

    /// Takes note of a store that failed at blocks, which others are to read.
    ///
    /// # Errors
    /// When no other store could do better.
    pub(super) fn failed(
        &self,
        mut tried: Tried,
        store: &str,
        e: ServiceError,
    ) -> Result<Tried, SourceError> {
        match e.code {
            // Every store has the same bounds: it is the query that asks for too much.
            ServiceErrorCode::ResourceExhausted => Err(QueryError::LimitExceeded(e.message).into()),
            ServiceErrorCode::InvalidArgument | ServiceErrorCode::NotFound => Err(e.into()),
            _ => {
                if self.is_told.swap(true, Ordering::Relaxed) {
                    tracing::debug!(store, error = %e, "one more store failed in the same read");
                } else {
                    tracing::warn!(store, error = %e, "store failed, its blocks are asked of others");
                }
                if is_of_store(e.code) {
                    self.unable.lock().insert(store.to_owned());
                }
                tried.failures.push((store.to_owned(), e));
                Ok(tried)
            }
        }
    }

    fn ask_owners<'a, T: Send + 'static>(
        &'a self,
        blocks: Vec<String>,
        tried: Tried,
        call: Call<'a, T>,
    ) -> BoxFuture<'a, Answers<T>> {
        async move {
            if blocks.is_empty() {
                return Ok(Vec::new());
            }
            let groups = self.share_out(&blocks, &tried);
            if groups.is_empty() {
                let failures = tried.failures;
                return Err(Unanswered::NoStore { blocks, failures });
            }
            let asked = groups
                .into_iter()
                .map(|group| self.ask_group(group, tried.clone(), call));
            let answers = try_join_all(asked).await?;
            Ok(answers.into_iter().flatten().collect())
        }
        .boxed()
    }

    /// Shares blocks out over the stores that did not fail at them; no groups when none of these is to be asked.
    fn share_out(&self, blocks: &[String], tried: &Tried) -> Vec<BlockGroup> {
        let replication = self.board.replication();
        if tried.is_enough(replication) {
            return Vec::new();
        }
        let is_last_resort = tried.is_last_resort(replication);
        loop {
            let left = self.stores.iter().filter(|s| !tried.has(s));
            let left = left.filter(|s| !(is_last_resort && self.unable.lock().contains(&s.name)));
            let candidates = self.board.candidates(left);
            let groups = if tried.keeps_together() {
                keep_together(blocks.to_vec(), &candidates)
            } else {
                share_out(blocks.to_vec(), &candidates, replication)
            };
            let is_used = |c: &&Candidate| groups.iter().any(|g| g.store.name == c.store.name);
            let due = candidates.iter().filter(|c| c.health == Health::Due);
            let due = due.filter(is_used).map(|c| c.store.name.as_str());
            // Where another read came first the store is passed over now.
            if self.board.take_trials(due) {
                return groups;
            }
        }
    }

    async fn ask_group<T: Send + 'static>(
        &self,
        group: BlockGroup,
        tried: Tried,
        call: Call<'_, T>,
    ) -> Answers<T> {
        let (why, BlockGroup { blocks, store }) = (tried.why(), group);
        let began = self.board.elapsed();
        let mut asked = self.ask_store(&store, blocks.clone(), why, call).boxed();
        if why != Why::Assigned || !self.may_hedge(1) {
            let answer = asked.await;
            return self.answered(&store, blocks, tried, answer, call).await;
        }
        let mut lags_after = self.board.hedge_after();
        loop {
            let lags = self.board.sleep(lags_after);
            tokio::select! {
                biased;
                answer = &mut asked => return self.answered(&store, blocks, tried, answer, call).await,
                () = lags => {}
            }
            if self.board.take_hedge(&store.name) {
                return self.hedge(&store, blocks, (asked, began), call).await;
            }
            // Others may find out meanwhile that the store does not answer at all.
            lags_after = self.board.hedge_again();
        }
    }

    /// Takes an answer, or asks others.
    async fn answered<T: Send + 'static>(
        &self,
        store: &StoreMember,
        blocks: Vec<String>,
        tried: Tried,
        answer: OneAnswer<T>,
        call: Call<'_, T>,
    ) -> Answers<T> {
        match answer {
            Ok(answer) => Ok(vec![taken(store, blocks, &tried, answer)]),
            Err(e) => {
                let tried = self.failed(tried, &store.name, e)?;
                self.ask_owners(blocks, tried, call).await
            }
        }
    }

    /// Asks others beside a store that lags, and takes what comes first. One that lost, and answered nothing else meanwhile,
    /// counts as one that does not answer: nobody is left to wait for it.
    async fn hedge<T: Send + 'static>(
        &self,
        store: &StoreMember,
        blocks: Vec<String>,
        (mut asked, began): (BoxFuture<'_, OneAnswer<T>>, Duration),
        call: Call<'_, T>,
    ) -> Answers<T> {
        let beside = Tried::default().beside(std::slice::from_ref(&store.name));
        let mut others = self.ask_owners(blocks.clone(), beside, call);
        let failure = |e: ServiceError| (store.name.clone(), e);
        tokio::select! {
            biased;
            answer = &mut asked => match answer {
                Ok(answer) => Ok(vec![taken(store, blocks, &Tried::default(), answer)]),
                Err(e) => {
                    self.failed(Tried::default(), &store.name, e.clone())?;
                    others.await.map_err(|none| none.and(failure(e)))
                }
            },
            answers = &mut others => match answers {
                Ok(answers) => {
                    let lost = ServiceErrorCode::DeadlineExceeded;
                    self.board.failed(&store.name, lost, began);
                    Ok(answers)
                }
                Err(none) => match asked.await {
                    Ok(answer) => Ok(vec![taken(store, blocks, &Tried::default(), answer)]),
                    Err(e) => Err(none.and(failure(e))),
                },
            },
        }
    }

    async fn ask_store<T: Send + 'static>(
        &self,
        store: &StoreMember,
        blocks: Vec<String>,
        why: Why,
        call: Call<'_, T>,
    ) -> OneAnswer<T> {
        let (began, under_way) = (self.board.elapsed(), self.board.begin(&store.name, why));
        let asked = call(Arc::clone(&store.client), blocks);
        let answer = self.board.within(asked).await.and_then(|answer| answer);
        match &answer {
            Ok(_) => {
                let took = self.board.elapsed().saturating_sub(began);
                self.board.answered(&store.name, took);
            }
            Err(e) => self.board.failed(&store.name, e.code, began),
        }
        Ok((under_way, answer?))
    }
}

fn taken<T>(
    store: &StoreMember,
    blocks: Vec<String>,
    tried: &Tried,
    (under_way, answer): (UnderWay, T),
) -> Answered<T> {
    Answered {
        blocks,
        store: store.name.clone(),
        tried: tried.beside(&[]),
        under_way,
        answer,
    }
}
