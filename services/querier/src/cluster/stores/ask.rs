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
use super::super::topology::{StoreMember, Topology};
use super::board::{Again, Health, StoreBoard, UnderWay, Why};
use super::placement::{BlockGroup, Candidate, keep_together, share_out};
use super::tried::{Failure, Tried, is_of_store, unread};

/// A question to a store about some blocks.
pub(super) type Question<'q, T> = &'q (
        dyn Fn(Arc<dyn StoreService>, Vec<String>) -> BoxFuture<'static, Result<T, ServiceError>>
            + Send
            + Sync
    );

/// A call of a store about some blocks; what it answers is charged to a budget.
pub(super) type Call<'c, T> = &'c (
        dyn Fn(Arc<dyn StoreService>, Vec<String>, &Arc<Budget>) -> BoxFuture<'static, Result<T, SourceError>>
            + Send
            + Sync
    );

/// The stores as one read sees them.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    topology: Arc<dyn Topology>,
    /// As of when they were last looked up.
    stores: Arc<Mutex<Arc<[StoreMember]>>>,
    board: Arc<StoreBoard>,
    /// What answers are charged to.
    budget: Arc<Budget>,
    /// Whether stores that are away are waited for when no other is left.
    waits: bool,
    /// Whether the log was told of a failure.
    is_told: Arc<AtomicBool>,
    /// Stores that could not do any of the read's work when they were asked for some of it.
    unable: Arc<Mutex<BTreeSet<String>>>,
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

impl From<QueryError> for Unanswered {
    fn from(e: QueryError) -> Self {
        Self::Final(e.into())
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

type Answers<T> = Result<Vec<Answered<T>>, Unanswered>;
type OneAnswer<T> = Result<(UnderWay, T), SourceError>;

impl Asker {
    /// The stores as they are now; what they answer is charged to `budget`.
    pub(crate) fn new(topology: Arc<dyn Topology>, board: Arc<StoreBoard>, budget: Arc<Budget>) -> Self {
        let asker = Self {
            topology,
            stores: Arc::default(),
            board,
            budget,
            waits: true,
            is_told: Arc::default(),
            unable: Arc::default(),
        };
        asker.look_up();
        asker
    }

    /// The same for who would rather do without an answer than wait for stores that are away.
    pub(crate) fn without_waiting(self) -> Self {
        Self { waits: false, ..self }
    }

    /// Looks up who the stores are: a long read sees some of them come and go.
    fn look_up(&self) {
        let stores = self.topology.stores();
        self.board.see(&stores);
        *self.stores.lock() = stores.into();
    }

    fn stores(&self) -> Arc<[StoreMember]> {
        Arc::clone(&self.stores.lock())
    }

    pub(super) fn board(&self) -> &StoreBoard {
        &self.board
    }

    /// What answers are charged to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The same for what is read beside what is waited for: it is charged to the query only when it is taken.
    pub(super) fn aside(&self) -> Self {
        Self {
            budget: self.budget.aside(),
            ..self.clone()
        }
    }

    /// Takes what was read aside.
    pub(super) fn take(&self, aside: &Self) -> Result<(), QueryError> {
        // Within what is aside itself nothing is taken yet.
        if Arc::ptr_eq(&self.budget, &aside.budget) {
            return Ok(());
        }
        aside.budget.take()
    }

    /// Whether another store may be asked beside some that lag, of which there are `lagging`.
    pub(super) fn may_hedge(&self, lagging: usize) -> bool {
        let replication = self.board.replication();
        replication > 1 && lagging <= replication && lagging < self.stores().len()
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
        question: Question<'_, Vec<T>>,
    ) -> Result<Vec<Charged<Vec<T>>>, SourceError> {
        let charged = |store, blocks, budget: &Arc<Budget>| {
            let (asked, budget) = (question(store, blocks), Arc::clone(budget));
            let charged = async move { Ok::<_, SourceError>(Charged::new(asked.await?, &budget)?) };
            charged.boxed()
        };
        let answers = self.ask(blocks, Tried::default(), &charged).await?;
        Ok(answers.into_iter().map(|a| a.answer).collect())
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
                tried.add([Failure::new(store, e, self.board.elapsed())]);
                Ok(tried)
            }
        }
    }

    fn ask_owners<'a, T: Send + 'static>(
        &'a self,
        blocks: Vec<String>,
        mut tried: Tried,
        call: Call<'a, T>,
    ) -> BoxFuture<'a, Answers<T>> {
        async move {
            if blocks.is_empty() {
                return Ok(Vec::new());
            }
            let mut groups = self.share_out(&blocks, &tried);
            if groups.is_empty() {
                groups = self.wait_for_stores(&blocks, &mut tried).await;
            }
            if groups.is_empty() {
                let failures = tried.into_failures();
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
        let stores = self.stores();
        loop {
            let left = stores.iter().filter(|s| !tried.has(s));
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

    /// Where no store is left: one that could not be reached when it was asked and can be now, or one that came meanwhile, as
    /// stores are started anew one after the other. Waits for it as long as the board thinks that worthwhile.
    async fn wait_for_stores(&self, blocks: &[String], tried: &mut Tried) -> Vec<BlockGroup> {
        loop {
            // What is wrong with blocks is so at any store.
            let is_enough = tried.is_enough(self.board.replication());
            if !self.waits || is_enough || tried.lost().next().is_none() {
                return Vec::new();
            }
            self.look_up();
            let groups = self.share_out(blocks, tried);
            if !groups.is_empty() {
                return groups;
            }
            let stores = self.stores();
            let member = |name: &str| stores.iter().find(|s| s.name == name);
            let lost = tried.lost().filter(|(name, _)| member(name).is_some());
            match self.board.take_again(lost, tried.again()) {
                Again::Now(name) => {
                    tried.ask_again(&name);
                    let group = |store: &StoreMember| BlockGroup {
                        blocks: blocks.to_vec(),
                        store: store.clone(),
                    };
                    return member(&name).map(group).into_iter().collect();
                }
                Again::Later => self.board.sleep(self.board.hedge_again()).await,
                Again::Never => return Vec::new(),
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
            Ok(answer) => {
                if tried.is_again() {
                    // It is back, for all that the read asks.
                    self.unable.lock().remove(&store.name);
                }
                Ok(vec![taken(store, blocks, &tried, answer)])
            }
            Err(SourceError::Query(e)) => Err(e.into()),
            Err(SourceError::Service(e)) => {
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
        let aside = self.aside();
        let mut others = aside.ask_owners(blocks.clone(), beside, call);
        let (answer, others) = tokio::select! {
            biased;
            answer = &mut asked => match answer {
                // Others are at it already.
                Err(SourceError::Service(e)) => (Err(SourceError::Service(e)), Some(others.await)),
                answer => {
                    // Whatever they hold goes first.
                    drop(others);
                    (answer, None)
                }
            },
            answers = &mut others => match answers {
                Ok(answers) => {
                    let lost = ServiceErrorCode::DeadlineExceeded;
                    self.board.failed(&store.name, lost, began);
                    self.take(&aside)?;
                    return Ok(answers);
                }
                none => (asked.await, Some(none)),
            },
        };
        let e = match answer {
            Err(SourceError::Service(e)) => e,
            answer => return self.answered(store, blocks, Tried::default(), answer, call).await,
        };
        let mut tried = self.failed(Tried::default(), &store.name, e)?;
        match others {
            Some(Ok(answers)) => {
                self.take(&aside)?;
                return Ok(answers);
            }
            Some(Err(Unanswered::Final(SourceError::Service(e)))) => return Err(SourceError::from(e).into()),
            Some(Err(Unanswered::NoStore { failures, .. })) => tried.add(failures),
            // There was no room for it aside.
            Some(Err(Unanswered::Final(SourceError::Query(_)))) | None => {}
        }
        self.ask_owners(blocks, tried, call).await
    }

    async fn ask_store<T: Send + 'static>(
        &self,
        store: &StoreMember,
        blocks: Vec<String>,
        why: Why,
        call: Call<'_, T>,
    ) -> OneAnswer<T> {
        let (began, under_way) = (self.board.elapsed(), self.board.begin(&store.name, why));
        let asked = call(Arc::clone(&store.client), blocks, &self.budget);
        let late = |e: ServiceError| Err(e.into());
        let answer = self.board.within(asked).await.unwrap_or_else(late);
        match &answer {
            Err(SourceError::Service(e)) => self.board.failed(&store.name, e.code, began),
            // It answered, if more than the query may hold.
            Ok(_) | Err(SourceError::Query(_)) => {
                let took = self.board.elapsed().saturating_sub(began);
                self.board.answered(&store.name, took);
            }
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
        tried: tried.answered(),
        under_way,
        answer,
    }
}
