//! What surrounds a running query: the caller's right to stop it, and what it holds and has read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::future::{BoxFuture, FutureExt};

use crate::error::QueryError;
use crate::memory::Memory;

/// Where the words of Prometheus' errors place an interruption or an exceeded limit.
pub(crate) const PHASE_EVALUATION: &str = "expression evaluation";
/// See [`PHASE_EVALUATION`].
pub(crate) const PHASE_EXECUTION: &str = "query execution";
/// See [`PHASE_EVALUATION`].
pub(crate) const PHASE_PARSING: &str = "query parsing";

/// Why a query is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Its deadline passed.
    Timeout,
    /// Nobody waits for it any more.
    Canceled,
}

/// Asked every bounded amount of work whether to go on. The engine has no clock of its own.
pub trait QueryContext: Send + Sync {
    /// Why to stop now, if so.
    fn interrupted(&self) -> Option<Interrupt>;

    /// How many parts of an evaluation may run at once.
    fn width(&self) -> usize {
        1
    }

    /// Runs `part(0)` to `part(parts - 1)`, each once, in any order and at the same time if it can, and returns when all
    /// have ended. What a query answers does not depend on how.
    fn each(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(part);
    }

    /// Itself, for work that outlives the borrow.
    fn shared(&self) -> Arc<dyn QueryContext>;

    /// Runs milliseconds of work where it keeps nobody waiting; ready when it is done.
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'_, ()> {
        work();
        futures::future::ready(()).boxed()
    }
}

/// Never interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uninterrupted;

impl QueryContext for Uninterrupted {
    fn interrupted(&self) -> Option<Interrupt> {
        None
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(*self)
    }
}

/// A cancel flag and a deadline.
#[derive(Clone)]
pub struct CancelContext {
    canceled: Arc<AtomicBool>,
    expired: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl CancelContext {
    /// `expired` tells whether the deadline has passed, by the caller's clock.
    pub fn new(expired: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            canceled: Arc::default(),
            expired: Arc::new(expired),
        }
    }

    /// Stops the query; clones share the flag.
    pub fn cancel(&self) {
        self.canceled.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for CancelContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelContext")
            .field("canceled", &self.canceled)
            .finish_non_exhaustive()
    }
}

impl QueryContext for CancelContext {
    fn interrupted(&self) -> Option<Interrupt> {
        if self.canceled.load(Ordering::Relaxed) {
            return Some(Interrupt::Canceled);
        }
        (self.expired)().then_some(Interrupt::Timeout)
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(self.clone())
    }
}

/// Fails when the caller wants the query to stop.
pub(crate) fn check(ctx: &dyn QueryContext) -> Result<(), QueryError> {
    check_in(ctx, PHASE_EVALUATION)
}

/// The same, in another phase.
pub(crate) fn check_in(ctx: &dyn QueryContext, phase: &'static str) -> Result<(), QueryError> {
    match ctx.interrupted() {
        None => Ok(()),
        Some(Interrupt::Timeout) => Err(QueryError::Timeout(phase)),
        Some(Interrupt::Canceled) => Err(QueryError::Canceled(phase)),
    }
}

/// What a query read and held, for the client and for fairness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryStats {
    /// Samples looked at, summed over all steps (Prometheus' `totalQueryableSamples`).
    pub samples_total: u64,
    /// Most samples held at once (Prometheus' `peakSamples`).
    pub samples_peak: u64,
    /// Series fetched.
    pub series_fetched: u64,
    /// Bytes fetched, as storage keeps them in memory.
    pub bytes_fetched: u64,
    /// Most bytes held at once, what was fetched included.
    pub bytes_peak: u64,
}

/// The samples and bytes a query holds, against their limits.
#[derive(Debug)]
pub(crate) struct Account {
    current: AtomicUsize,
    /// Samples of leaves that no node has asked for yet.
    aside: AtomicUsize,
    peak: AtomicUsize,
    total: AtomicUsize,
    max: usize,
    pub(crate) memory: Arc<Memory>,
}

impl Account {
    /// With the limit on samples held at once, and the account of bytes.
    pub(crate) fn new(max: usize, memory: Arc<Memory>) -> Self {
        Self {
            current: AtomicUsize::new(0),
            aside: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            max,
            memory,
        }
    }

    /// Takes `n` more samples into memory.
    pub(crate) fn hold(&self, n: usize) -> Result<(), QueryError> {
        self.current.fetch_add(n, Ordering::Relaxed);
        self.fits(0)
    }

    /// Takes the samples of a leaf into memory, until [`Self::take_up`].
    pub(crate) fn set_aside(&self, n: usize) -> Result<(), QueryError> {
        self.aside.fetch_add(n, Ordering::Relaxed);
        self.fits(0)
    }

    /// The samples of a leaf become those of a node, which counts them when it is done.
    pub(crate) fn take_up(&self, n: usize) {
        self.aside.fetch_sub(n, Ordering::Relaxed);
    }

    /// Fails if `n` samples more than are held now would be too many; takes none.
    pub(crate) fn fits(&self, n: usize) -> Result<(), QueryError> {
        let held = self.current().saturating_add(self.aside.load(Ordering::Relaxed));
        let then = held.saturating_add(n);
        self.peak.fetch_max(then, Ordering::Relaxed);
        if then > self.max {
            return Err(QueryError::TooManySamples(PHASE_EXECUTION));
        }
        Ok(())
    }

    /// Gives `n` samples back.
    pub(crate) fn release(&self, n: usize) {
        self.current.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// States what is held once a node's inputs are gone and only its output stays.
    pub(crate) fn settle(&self, held: usize) -> Result<(), QueryError> {
        self.current.store(0, Ordering::Relaxed);
        self.hold(held)
    }

    /// Counts samples looked at.
    pub(crate) fn looked_at(&self, n: usize) {
        self.total.fetch_add(n, Ordering::Relaxed);
    }

    /// How many samples were looked at.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// The most samples that were held.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_wins_over_the_deadline() {
        let ctx = CancelContext::new(|| true);
        assert_eq!(ctx.interrupted(), Some(Interrupt::Timeout));
        let given_away = ctx.clone();
        given_away.cancel();
        assert_eq!(ctx.interrupted(), Some(Interrupt::Canceled));
    }

    #[test]
    fn holding_more_than_the_limit_fails() {
        let a = Account::new(10, Memory::new(0));
        assert!(a.hold(10).is_ok());
        a.release(5);
        assert!(a.hold(5).is_ok() && a.hold(1).is_err());
        assert_eq!(a.peak(), 11);
        a.release(6);
        assert!(a.set_aside(5).is_ok() && a.settle(5).is_ok() && a.fits(1).is_err());
        a.take_up(5);
        assert!(a.settle(10).is_ok());
    }
}
