//! What a query holds in memory, in bytes, against its limit.
//!
//! The account follows evaluation: while a node is evaluated, what it makes is taken series by series (or, within a long
//! series, every so many bytes) and before it is made where its size is known; when the node is done, only its result
//! stays ([`Memory::settle`]). So the account costs nothing per sample.
//!
//! Whether a query is refused does not depend on how many cores it runs on: what is made ahead of its turn, at the same
//! time as other things, counts apart ([`Memory::ahead`]), and is made again in its turn if there is no room for it. It does
//! depend on how storage answers: series that several parts of a query wait for at the same time, half a megabyte each,
//! count while they wait.
//!
//! What is allocated while a query runs is at most one and a half times the account's peak, and half a megabyte beside
//! (columns grow by doubling; patterns are compiled), storage's own data not counted: `tests/memory_proof.rs` counts every
//! byte. A query that is refused never had more than that of its limit, and of the quarter for what is made ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use koios_model::{Histogram, Labels};

use crate::error::QueryError;

/// The part of the limit that may be held beyond it by what is made ahead of its turn: one over this.
const AHEAD_SHARE: usize = 4;

/// The bytes one query holds in all.
#[derive(Debug)]
struct Total {
    held: AtomicUsize,
    /// What was made ahead of its turn.
    ahead: AtomicUsize,
    peak: AtomicUsize,
    max: usize,
}

impl Total {
    /// Fails if `held` is too much.
    fn judge(&self, held: usize) -> Result<(), QueryError> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        self.peak.fetch_max(held.saturating_add(ahead), Ordering::Relaxed);
        if held <= self.max {
            return Ok(());
        }
        Err(self.exceeded())
    }

    /// Fails if there is no room for `ahead` beside what is held.
    fn judge_ahead(&self, ahead: usize) -> Result<(), QueryError> {
        let all = self.held.load(Ordering::Relaxed).saturating_add(ahead);
        self.peak.fetch_max(all, Ordering::Relaxed);
        if all <= self.max && ahead <= self.max / AHEAD_SHARE {
            return Ok(());
        }
        Err(self.exceeded())
    }

    fn exceeded(&self) -> QueryError {
        QueryError::LimitExceeded(format!(
            "query memory limit of {} bytes exceeded: select fewer series or a shorter range, make shorter labels or \
             larger steps, or raise the limit",
            self.max
        ))
    }
}

/// The bytes one part of a query holds. Parts may run at the same time; the limit is on what all hold together. What a
/// part holds is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    held: AtomicUsize,
    /// The most it held, or was asked to have room for.
    peak: AtomicUsize,
    /// Whether it is ahead of its turn.
    ahead: AtomicBool,
    /// Whether there was no room for it ahead of its turn.
    refused: AtomicBool,
    total: Arc<Total>,
}

impl Memory {
    /// An empty account of a query with a limit.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let total = Total {
            held: AtomicUsize::new(0),
            ahead: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            max,
        };
        Self::with(Arc::new(total), false)
    }

    /// An empty account of another part of the same query.
    pub(crate) fn part(&self) -> Arc<Self> {
        Self::with(Arc::clone(&self.total), false)
    }

    /// An empty account of a part that is made ahead of its turn. It takes no room from others; what it holds counts from
    /// [`Self::in_turn`] on.
    pub(crate) fn ahead(&self) -> Arc<Self> {
        Self::with(Arc::clone(&self.total), true)
    }

    fn with(total: Arc<Total>, ahead: bool) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            ahead: AtomicBool::new(ahead),
            refused: AtomicBool::new(false),
            total,
        })
    }

    /// Takes bytes; fails if they are too many, and has taken them all the same.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), QueryError> {
        let own = self.held.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(own.saturating_add(bytes), Ordering::Relaxed);
        let all = self.counter().fetch_add(bytes, Ordering::Relaxed);
        self.judge(all.saturating_add(bytes))
    }

    /// Fails if `bytes` more than the query holds now would be too many; takes none.
    pub(crate) fn fits(&self, bytes: usize) -> Result<(), QueryError> {
        self.peak
            .fetch_max(self.held().saturating_add(bytes), Ordering::Relaxed);
        let all = self.counter().load(Ordering::Relaxed);
        self.judge(all.saturating_add(bytes))
    }

    /// Where its bytes are counted.
    fn counter(&self) -> &AtomicUsize {
        match self.ahead.load(Ordering::Relaxed) {
            true => &self.total.ahead,
            false => &self.total.held,
        }
    }

    fn judge(&self, all: usize) -> Result<(), QueryError> {
        if !self.ahead.load(Ordering::Relaxed) {
            return self.total.judge(all);
        }
        let judged = self.total.judge_ahead(all);
        if judged.is_err() {
            self.refused.store(true, Ordering::Relaxed);
        }
        judged
    }

    /// Whether there was no room for it ahead of its turn.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts what was made ahead of its turn like anything else, now that it is its turn.
    ///
    /// Fails if it would have failed to be made now. Only while nobody takes or gives.
    pub(crate) fn in_turn(&self) -> Result<(), QueryError> {
        if !self.ahead.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let held = self.held();
        self.total.ahead.fetch_sub(held, Ordering::Relaxed);
        let most = self.peak.load(Ordering::Relaxed);
        let before = self.total.held.fetch_add(held, Ordering::Relaxed);
        self.total.judge(before.saturating_add(most))
    }

    /// Gives bytes back.
    pub(crate) fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.counter().fetch_sub(bytes, Ordering::Relaxed);
    }

    /// States what this part holds once a node's inputs are gone and only its result stays.
    pub(crate) fn settle(&self, held: usize) -> Result<(), QueryError> {
        let before = self.held();
        if held < before {
            self.give(before - held);
        }
        self.take(held.saturating_sub(before))
    }

    /// What this part holds.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most that the query held.
    pub(crate) fn peak(&self) -> u64 {
        self.total.peak.load(Ordering::Relaxed) as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.counter().fetch_sub(self.held(), Ordering::Relaxed);
    }
}

/// Growth up to this many bytes waits before it is taken, so that small pieces cost nothing.
const UNTAKEN_BYTES_MAX: usize = 64 << 10;

/// Bytes of a [`Memory`] that are given back on drop: what is held only while a node is evaluated.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    memory: Option<Arc<Memory>>,
    taken: usize,
    untaken: usize,
}

impl Lease {
    /// An empty lease.
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Some(Arc::clone(memory)),
            taken: 0,
            untaken: 0,
        }
    }

    /// An empty lease of the same memory.
    pub(crate) fn another(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            ..Self::default()
        }
    }

    /// What was taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes so much that `bytes` are covered in all.
    pub(crate) fn cover(&mut self, bytes: usize) -> Result<(), QueryError> {
        match bytes.checked_sub(self.taken) {
            None | Some(0) => Ok(()),
            Some(more) => self.take(more),
        }
    }

    /// Counts a piece more.
    #[inline]
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), QueryError> {
        self.untaken = self.untaken.saturating_add(bytes);
        if self.untaken < UNTAKEN_BYTES_MAX {
            return Ok(());
        }
        let more = std::mem::take(&mut self.untaken);
        self.take(more)
    }

    fn take(&mut self, bytes: usize) -> Result<(), QueryError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        self.taken = self.taken.saturating_add(bytes);
        memory.take(bytes)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            memory.give(self.taken);
        }
    }
}

/// What an allocation costs beside its bytes: the allocator's own, and the counts of shared ones.
const ALLOCATION_BYTES: usize = 32;

/// What a label set occupies.
pub(crate) fn of_labels(labels: &Labels) -> usize {
    labels.packed().len() + ALLOCATION_BYTES
}

/// What a table keyed by label sets occupies per entry, beside the labels.
pub(crate) const LABELS_ENTRY_BYTES: usize = 64;

/// What a shared histogram occupies.
pub(crate) fn of_histogram(h: &Histogram) -> usize {
    let spans = h.positive_spans.capacity() + h.negative_spans.capacity();
    let floats = h.positive_buckets.capacity() + h.negative_buckets.capacity() + h.custom_bounds.capacity();
    size_of::<Histogram>() + ALLOCATION_BYTES * 4 + (spans + floats) * 8
}

/// What a column of histograms occupies beside its slots. One that repeats counts once.
pub(crate) fn of_column<'h>(column: impl IntoIterator<Item = &'h Arc<Histogram>>) -> usize {
    let mut last: Option<&Arc<Histogram>> = None;
    let mut bytes = 0usize;
    for h in column {
        if !last.is_some_and(|last| Arc::ptr_eq(last, h)) {
            bytes = bytes.saturating_add(of_histogram(h));
        }
        last = Some(h);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_takes_in_large_pieces_and_gives_all_back() {
        let memory = Memory::new(1 << 20);
        let mut lease = Lease::of(&memory);
        for _ in 0..100 {
            lease.grow(1_000).unwrap();
        }
        assert!((1..=100_000).contains(&memory.held()));
        lease.cover(500_000).unwrap();
        assert_eq!(memory.held(), 500_000);
        assert!(lease.cover((1 << 20) + 1).is_err());
        drop(lease);
        assert_eq!((memory.held(), memory.peak()), (0, (1 << 20) + 1));
    }

    #[test]
    fn parts_of_a_query_share_its_limit_and_settle_apart() {
        let whole = Memory::new(100);
        let (a, b) = (whole.part(), whole.part());
        whole.take(10).unwrap();
        a.take(40).unwrap();
        b.take(50).unwrap();
        assert!(a.fits(1).is_err());
        a.settle(20).unwrap();
        b.settle(60).unwrap();
        assert_eq!((whole.held(), a.held(), b.held()), (10, 20, 60));
        assert!(whole.take(11).is_err());
        drop((a, b));
        assert!(whole.fits(79).is_ok() && whole.fits(80).is_err());
        assert_eq!(whole.peak(), 101);
    }

    #[test]
    fn what_is_made_ahead_of_its_turn_is_judged_as_if_it_were_made_in_turn() {
        let whole = Memory::new(100);
        let (a, b) = (whole.ahead(), whole.ahead());
        a.take(20).unwrap();
        a.give(15);
        b.take(5).unwrap();
        assert!(b.take(16).is_err() && b.was_refused() && !a.was_refused());
        drop(b);
        // None of that takes room from what is made in turn.
        whole.take(80).unwrap();
        a.in_turn().unwrap();
        assert!(whole.fits(15).is_ok() && whole.fits(16).is_err());
        let c = whole.ahead();
        c.take(15).unwrap();
        c.give(10);
        whole.take(1).unwrap();
        assert!(c.in_turn().is_err());
        drop((a, c));
        assert!(whole.fits(19).is_ok());
    }

    #[test]
    fn a_histogram_that_repeats_counts_once() {
        let h = Arc::new(Histogram::default());
        let once = of_column([&h]);
        assert_eq!(of_column([&h, &h, &h]), once);
        assert_eq!(of_column([&h, &Arc::new(Histogram::default())]), 2 * once);
    }
}
