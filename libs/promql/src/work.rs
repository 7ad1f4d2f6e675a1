//! What the evaluation of a node spends: time, counted in units of work, and memory.

use std::sync::Arc;

use crate::context::{QueryContext, check};
use crate::error::QueryError;
use crate::memory::{Lease, Memory};

/// After how many units of work the caller is asked whether to go on. A unit is a value or a label set looked at: some
/// nanoseconds, so that a query ends within a few milliseconds of being told to.
pub(crate) const UNITS_PER_CHECK: usize = 1 << 16;

/// The work of one node, or of a part of it.
pub(crate) struct Work<'a> {
    ctx: &'a dyn QueryContext,
    unchecked: usize,
    lease: Lease,
}

impl<'a> Work<'a> {
    /// Nothing done, nothing held.
    pub(crate) fn new(ctx: &'a dyn QueryContext, memory: &Arc<Memory>) -> Self {
        Self {
            ctx,
            unchecked: 0,
            lease: Lease::of(memory),
        }
    }

    /// Counts work, and fails once the caller wants the query to stop.
    #[inline]
    pub(crate) fn spend(&mut self, units: usize) -> Result<(), QueryError> {
        self.unchecked = self.unchecked.saturating_add(units);
        if self.unchecked < UNITS_PER_CHECK {
            return Ok(());
        }
        self.unchecked = 0;
        check(self.ctx)
    }

    /// Counts bytes that are held until this work is done.
    #[inline]
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), QueryError> {
        self.lease.grow(bytes)
    }

    /// An empty lease of the same memory, for what is given back before this work is done.
    pub(crate) fn lease(&self) -> Lease {
        self.lease.another()
    }

    /// So many of a value, asking in between whether to go on: memory that is used for the first time is slow.
    pub(crate) fn filled<T: Clone>(&mut self, value: &T, count: usize) -> Result<Vec<T>, QueryError> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let more = UNITS_PER_CHECK.min(count - all.len());
            self.spend(more)?;
            all.resize(all.len() + more, value.clone());
        }
        Ok(all)
    }

    /// Applies `f` to each value and its number, asking in between whether to go on.
    pub(crate) fn each<T>(
        &mut self,
        values: &mut [T],
        mut f: impl FnMut(usize, &mut T),
    ) -> Result<(), QueryError> {
        for (n, chunk) in values.chunks_mut(UNITS_PER_CHECK).enumerate() {
            self.spend(chunk.len())?;
            for (i, value) in chunk.iter_mut().enumerate() {
                f(n * UNITS_PER_CHECK + i, value);
            }
        }
        Ok(())
    }

    /// Sorts as [`slice::sort_by`] does, asking in between whether to go on.
    pub(crate) fn sort<T>(
        &mut self,
        items: &mut Vec<T>,
        mut order: impl FnMut(&T, &T) -> std::cmp::Ordering,
    ) -> Result<(), QueryError> {
        // What is compared is labels mostly: more than one unit.
        const RUN: usize = UNITS_PER_CHECK / 16;
        if items.len() <= RUN {
            self.spend(items.len())?;
            items.sort_by(order);
            return Ok(());
        }
        let mut lease = self.lease();
        lease.cover(items.len().saturating_mul(2 * size_of::<T>()))?;
        let mut runs: Vec<Vec<T>> = Vec::new();
        let mut rest = std::mem::take(items).into_iter();
        loop {
            let mut run: Vec<T> = rest.by_ref().take(RUN).collect();
            if run.is_empty() {
                break;
            }
            self.spend(run.len().saturating_mul(16))?;
            run.sort_by(&mut order);
            runs.push(run);
        }
        while runs.len() > 1 {
            let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
            let mut pairs = runs.into_iter();
            while let Some(first) = pairs.next() {
                merged.push(match pairs.next() {
                    Some(second) => self.merged(first, second, &mut order)?,
                    None => first,
                });
            }
            runs = merged;
        }
        *items = runs.pop().unwrap_or_default();
        Ok(())
    }

    /// Unites two sorted runs; of equal items those of the first come first.
    fn merged<T>(
        &mut self,
        first: Vec<T>,
        second: Vec<T>,
        order: &mut impl FnMut(&T, &T) -> std::cmp::Ordering,
    ) -> Result<Vec<T>, QueryError> {
        let mut out = Vec::with_capacity(first.len().saturating_add(second.len()));
        let (mut a, mut b) = (first.into_iter().peekable(), second.into_iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            self.spend(8)?;
            out.extend(if order(x, y).is_gt() { b.next() } else { a.next() });
        }
        out.extend(a);
        out.extend(b);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Uninterrupted;

    #[test]
    fn long_lists_are_sorted_as_short_ones_are() {
        let memory = Memory::new(usize::MAX);
        for len in [0, 1, 4_096, 4_097, 50_000] {
            let mut items: Vec<(u32, u32)> = (0..len).map(|i| (i * 7_919 % 1_009, i)).collect();
            let mut expected = items.clone();
            expected.sort_by_key(|(key, _)| *key);
            let mut work = Work::new(&Uninterrupted, &memory);
            work.sort(&mut items, |a, b| a.0.cmp(&b.0)).unwrap();
            assert_eq!(items, expected);
        }
        assert_eq!(memory.held(), 0);
    }
}
