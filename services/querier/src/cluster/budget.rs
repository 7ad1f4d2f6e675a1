//! What one query may hold in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use koios_promql::QueryError;

/// A query's memory: samples, in the form they came in, and labels that it holds at once. Shared by all reads of the query.
///
/// What is read beside something else, and perhaps never taken, is charged to a budget [`aside`](Self::aside): all of these
/// together may hold as much again as the query may, and none of it counts against the query until it is taken.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    series_max: usize,
    bytes: AtomicUsize,
    /// What all budgets aside hold.
    aside: AtomicUsize,
    series: AtomicUsize,
    /// The query's, of one that is aside.
    query: Option<Query>,
}

/// What a budget that is aside belongs to.
#[derive(Debug)]
struct Query {
    budget: Arc<Budget>,
    is_taken: AtomicBool,
}

impl Budget {
    /// At most `bytes_max` bytes held at once and `series_max` series returned by all selectors together.
    pub fn new(bytes_max: usize, series_max: usize) -> Arc<Self> {
        Self::of(bytes_max, series_max, None)
    }

    fn of(bytes_max: usize, series_max: usize, query: Option<Query>) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            series_max,
            bytes: AtomicUsize::new(0),
            aside: AtomicUsize::new(0),
            series: AtomicUsize::new(0),
            query,
        })
    }

    /// A budget for what may not be taken; itself where this is one.
    pub(crate) fn aside(self: &Arc<Self>) -> Arc<Self> {
        let budget = match &self.query {
            Some(query) if !query.is_taken() => return Arc::clone(self),
            Some(query) => &query.budget,
            None => self,
        };
        let query = Query {
            budget: Arc::clone(budget),
            is_taken: AtomicBool::new(false),
        };
        Self::of(self.bytes_max, self.series_max, Some(query))
    }

    /// Counts against the query what was charged aside, and what will be.
    ///
    /// # Errors
    /// [`QueryError::LimitExceeded`].
    pub(crate) fn take(&self) -> Result<(), QueryError> {
        let Some(query) = &self.query else {
            return Ok(());
        };
        if query.is_taken.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let held = self.bytes.swap(0, Ordering::Relaxed);
        query.budget.aside.fetch_sub(held, Ordering::Relaxed);
        self.within(query.budget.add(held))
    }

    /// Takes `bytes` until the returned charge is dropped.
    ///
    /// # Errors
    /// [`QueryError::LimitExceeded`].
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<Charge, QueryError> {
        let is_within = self.add(bytes);
        let charge = Charge {
            budget: Arc::clone(self),
            bytes,
        };
        self.within(is_within)?;
        Ok(charge)
    }

    fn within(&self, is_within: bool) -> Result<(), QueryError> {
        if is_within {
            return Ok(());
        }
        Err(QueryError::LimitExceeded(format!(
            "query memory limit of {} bytes exceeded: select fewer series or a shorter range",
            self.bytes_max
        )))
    }

    /// Adds bytes; whether that is within the limit.
    fn add(&self, bytes: usize) -> bool {
        let added = |counter: &AtomicUsize| counter.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let held = match &self.query {
            None => added(&self.bytes),
            Some(query) if query.is_taken() => return query.budget.add(bytes),
            Some(query) => {
                added(&self.bytes);
                added(&query.budget.aside)
            }
        };
        held <= self.bytes_max
    }

    fn give_back(&self, bytes: usize) {
        match &self.query {
            Some(query) if query.is_taken() => return query.budget.give_back(bytes),
            Some(query) => {
                query.budget.aside.fetch_sub(bytes, Ordering::Relaxed);
            }
            None => {}
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a returned series.
    ///
    /// # Errors
    /// [`QueryError::LimitExceeded`].
    pub fn count_series(&self) -> Result<(), QueryError> {
        if self.series.fetch_add(1, Ordering::Relaxed) < self.series_max {
            return Ok(());
        }
        Err(QueryError::LimitExceeded(format!(
            "query fetched too many series (limit {}): add matchers",
            self.series_max
        )))
    }

    /// The most series any one source needs to send for the limit to be noticed.
    pub(crate) fn series_to_ask(&self) -> u64 {
        (self.series_max as u64).saturating_add(1)
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Query {
    fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Acquire)
    }
}

/// Bytes of a [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Takes over what `other` holds.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i12_a_query_cannot_hold_more_than_its_budget() {
        let budget = Budget::new(100, 1);
        let mut a = budget.charge(60).unwrap();
        let text = budget.charge(41).unwrap_err().to_string();
        assert!(
            text.starts_with("query memory limit of 100 bytes exceeded"),
            "{text}"
        );
        assert_eq!(budget.held(), 60);
        a.absorb(budget.charge(40).unwrap());
        drop(a);
        assert_eq!(budget.held(), 0);
        assert!(budget.count_series().is_ok());
        let text = budget.count_series().unwrap_err().to_string();
        assert!(
            text.starts_with("query fetched too many series (limit 1)"),
            "{text}"
        );
        // A limit that is none.
        assert_eq!(Budget::new(0, usize::MAX).series_to_ask(), u64::MAX);
    }

    #[test]
    fn i12_what_is_aside_counts_against_the_query_once_it_is_taken() {
        let budget = Budget::new(100, 1);
        let own = budget.charge(60).unwrap();
        let (first, second) = (budget.aside(), budget.aside());
        let taken = first.charge(40).unwrap();
        let lost = second.charge(60).unwrap();
        assert_eq!(budget.held(), 60);
        // All that is aside has one bound.
        assert!(second.charge(1).is_err());
        assert!(Arc::ptr_eq(&second.aside(), &second));
        drop(lost);
        // When one of them is taken.
        first.take().unwrap();
        assert_eq!(budget.held(), 100);
        assert!(first.charge(1).is_err(), "as of the query");
        let mut own = own;
        own.absorb(taken);
        drop(own);
        assert_eq!(budget.held(), 0);
        // What comes later is the query's at once, and what is beside that is aside again.
        let more = first.charge(70).unwrap();
        let again = first.aside();
        let beside = again.charge(50).unwrap();
        assert_eq!(budget.held(), 70);
        let text = again.take().unwrap_err().to_string();
        assert!(
            text.starts_with("query memory limit of 100 bytes exceeded"),
            "{text}"
        );
        drop((more, beside));
        assert_eq!(budget.held(), 0);
        assert_eq!(budget.aside.load(Ordering::Relaxed), 0);
    }
}
