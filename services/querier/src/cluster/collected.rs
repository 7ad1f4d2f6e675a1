//! What a lookup collects from all sources before it is sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use koios_model::Labels;
use koios_promql::QueryError;

use super::budget::{Budget, Charge};

/// What an entry of a set occupies beside its bytes.
const ENTRY_BYTES: usize = 64;

/// Something whose memory is known.
pub(crate) trait Footprint {
    /// Bytes on the heap.
    fn heap_bytes(&self) -> usize;
}

impl Footprint for String {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl Footprint for Labels {
    fn heap_bytes(&self) -> usize {
        self.packed().len()
    }
}

/// A set whose memory is charged to the query as long as it lives.
#[derive(Debug)]
pub(crate) struct Collected<T> {
    all: BTreeSet<T>,
    charge: Charge,
    budget: Arc<Budget>,
}

impl<T: Footprint + Ord> Collected<T> {
    pub(crate) fn new(budget: &Arc<Budget>) -> Result<Self, QueryError> {
        Ok(Self {
            all: BTreeSet::new(),
            charge: budget.charge(0)?,
            budget: Arc::clone(budget),
        })
    }

    /// Adds an entry unless it is there.
    pub(crate) fn add(&mut self, entry: T) -> Result<(), QueryError> {
        if !self.all.contains(&entry) {
            let charge = self.budget.charge(entry.heap_bytes() + ENTRY_BYTES)?;
            self.charge.absorb(charge);
            self.all.insert(entry);
        }
        Ok(())
    }

    /// Drops the last entries beyond `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        while self.all.len() > len {
            self.all.pop_last();
        }
    }

    /// The entries in order, and what must live as long as they do.
    pub(crate) fn into_parts(self) -> (Vec<T>, Charge) {
        (self.all.into_iter().collect(), self.charge)
    }
}
