//! What a lookup collects from all sources before it is sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use koios_model::{Exemplar, Labels, Metadata};
use koios_promql::{Completeness, QueryError};
use koios_wire::SeriesExemplars;

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

impl<T: Footprint> Footprint for Vec<T> {
    fn heap_bytes(&self) -> usize {
        let of_entries: usize = self.iter().map(Footprint::heap_bytes).sum();
        of_entries + self.len() * size_of::<T>()
    }
}

impl Footprint for Metadata {
    fn heap_bytes(&self) -> usize {
        self.kind.len() + self.help.len() + self.unit.len()
    }
}

impl Footprint for (String, Metadata) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

impl Footprint for Exemplar {
    fn heap_bytes(&self) -> usize {
        self.labels.heap_bytes()
    }
}

impl Footprint for SeriesExemplars {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

/// What a source answered, charged to the query until it is taken apart.
#[derive(Debug)]
pub(crate) struct Charged<T> {
    answer: T,
    charge: Charge,
}

impl<T: Footprint> Charged<T> {
    /// Charges an answer as it comes; one that the query may not hold is dropped.
    pub(crate) fn new(answer: T, budget: &Arc<Budget>) -> Result<Self, QueryError> {
        let charge = budget.charge(answer.heap_bytes())?;
        Ok(Self { answer, charge })
    }

    /// The answer, whose entries are to be charged one by one as they are collected: they are not held twice.
    pub(crate) fn into_answer(self) -> T {
        self.answer
    }

    /// The answer, and what must live as long as it does.
    pub(crate) fn into_parts(self) -> (T, Charge) {
        (self.answer, self.charge)
    }
}

/// A set whose memory is charged to the query as long as it lives.
#[derive(Debug)]
pub(crate) struct Collected<T> {
    all: BTreeSet<T>,
    charge: Charge,
    budget: Arc<Budget>,
    completeness: Completeness,
}

impl<T: Footprint + Ord> Collected<T> {
    pub(crate) fn new(budget: &Arc<Budget>) -> Result<Self, QueryError> {
        Ok(Self {
            all: BTreeSet::new(),
            charge: budget.charge(0)?,
            budget: Arc::clone(budget),
            completeness: Completeness::Complete,
        })
    }

    /// Takes in what one of the sources lacks.
    pub(crate) fn lacks(&mut self, of_source: Completeness) {
        self.completeness.merge(of_source);
    }

    /// Whether the entries are all there are.
    pub(crate) fn completeness(&self) -> &Completeness {
        &self.completeness
    }

    /// The query's memory.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
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
