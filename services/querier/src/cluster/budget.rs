//! What one query may hold in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_promql::QueryError;

/// A query's memory: samples, in the form they came in, and labels that it holds at once. Shared by all reads of the query.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    series_max: usize,
    bytes: AtomicUsize,
    series: AtomicUsize,
}

impl Budget {
    /// At most `bytes_max` bytes held at once and `series_max` series returned by all selectors together.
    pub fn new(bytes_max: usize, series_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            series_max,
            bytes: AtomicUsize::new(0),
            series: AtomicUsize::new(0),
        })
    }

    /// Takes `bytes` until the returned charge is dropped.
    ///
    /// # Errors
    /// [`QueryError::LimitExceeded`].
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<Charge, QueryError> {
        let held = self
            .bytes
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        let charge = Charge {
            budget: Arc::clone(self),
            bytes,
        };
        if held > self.bytes_max {
            return Err(QueryError::LimitExceeded(format!(
                "query memory limit of {} bytes exceeded: select fewer series or a shorter range",
                self.bytes_max
            )));
        }
        Ok(charge)
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
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
}
