//! Rows made one after the other, so that whoever folds them never holds them all.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::inputs::{Inputs, Needs, is_row_function};
use super::range_call::RangeFunction;
use super::row::Row;
use super::select::{SelectTimes, Take, instant_row, smoothed_row};
use super::window::Scratch;
use super::{Evaluator, Shared, wrong_type};
use crate::annotations::Annotations;
use crate::ast::RangeEdges;
use crate::context::{Account, check};
use crate::error::QueryError;
use crate::memory::Memory;
use crate::plan::{Node, SelectNode};
use crate::steps::Steps;

/// Where rows come from. Making one row depends on no other, and on nothing that changes.
#[derive(Debug)]
pub(super) enum RowSource<'n> {
    /// An instant selector.
    Select {
        source: usize,
        times: SelectTimes,
        take: Take,
    },
    /// An instant selector with interpolated values.
    Smoothed {
        node: &'n SelectNode,
        times: SelectTimes,
    },
    /// A range function.
    Range(Box<RangeFunction>),
    /// What is evaluated already.
    Rows(Vec<Row>),
}

impl<'n> RowSource<'n> {
    /// A selector, taking `take` of each sample.
    pub(super) fn select(node: &SelectNode, times: SelectTimes, take: Take) -> Self {
        Self::Select {
            source: node.source,
            times,
            take,
        }
    }

    /// How many rows there are to make, empty ones included.
    fn len(&self, shared: &Shared<'_>) -> usize {
        match self {
            Self::Select { source, .. } => shared.series_of(*source).map_or(0, <[_]>::len),
            Self::Smoothed { node, .. } => shared.series_of(node.source).map_or(0, <[_]>::len),
            Self::Range(function) => function.len(shared),
            Self::Rows(_) => 0,
        }
    }

    /// Makes row number `i`.
    fn make(
        &self,
        shared: &Shared<'_>,
        i: usize,
        steps: Steps,
        scratch: &mut Scratch,
        annotations: &mut Annotations,
    ) -> Result<Option<Row>, QueryError> {
        match self {
            Self::Select { source, times, take } => {
                let Some(series) = shared.series_of(*source)?.get(i) else {
                    return Ok(None);
                };
                instant_row(shared, series, *times, *take, scratch).map(Some)
            }
            Self::Smoothed { node, times } => {
                let Some(series) = shared.series_of(node.source)?.get(i) else {
                    return Ok(None);
                };
                smoothed_row(shared, series, node, *times, &mut scratch.buffer, annotations).map(Some)
            }
            Self::Range(function) => function.row(shared, i, steps, scratch, annotations),
            Self::Rows(_) => Ok(None),
        }
    }
}

/// Rows of consecutive series, made without looking at others.
struct Made {
    /// Those that have samples.
    rows: Vec<Row>,
    annotations: Annotations,
    /// What making them looked at and held, and what the rows hold.
    account: Account,
    /// Why there are no more of them.
    end: Result<(), QueryError>,
}

/// What becomes of a row that was handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowThen {
    /// It is gone.
    Gone,
    /// It is kept, and its samples and bytes stay held.
    Kept,
}

/// A part of a round, and what was made of it until that is folded.
struct Slot {
    part: Range<usize>,
    made: Mutex<Option<Made>>,
}

impl Slot {
    fn new(part: Range<usize>) -> Self {
        Self {
            part,
            made: Mutex::new(None),
        }
    }
}

/// The parts of a round on their way to whoever folds them: in order, whichever was made first.
struct Folding<'e, 'a, F, M> {
    evaluator: &'e mut Evaluator<'a>,
    fold: &'e mut F,
    /// Makes a part for which there was no memory ahead of its turn.
    again: M,
    /// How many parts were folded.
    folded: usize,
    /// Why there are no more of them.
    end: Result<(), QueryError>,
}

impl<F, M> Folding<'_, '_, F, M>
where
    F: FnMut(Row, &mut Annotations) -> Result<RowThen, QueryError>,
    M: Fn(&Range<usize>) -> Made,
{
    /// Folds the parts whose turn it is, up to the first that is not made yet. Whether to go on.
    fn fold_ready(&mut self, slots: &[Slot]) -> bool {
        while self.end.is_ok()
            && let Some(slot) = slots.get(self.folded)
            && let Some(mut made) = slot.made.lock().take()
        {
            if made.account.memory.was_refused() {
                drop(made);
                made = (self.again)(&slot.part);
            }
            self.folded += 1;
            self.end = self.evaluator.fold_part(made, self.fold);
        }
        self.end.is_ok()
    }

    /// The end of a round whose parts were all made.
    fn finish(self, slots: &[Slot]) -> Result<(), QueryError> {
        self.end?;
        if self.folded < slots.len() {
            return Err(QueryError::internal(
                "a part of the series was left out".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Points that one part of a round has at most, unless one series has more: some hundred microseconds of work.
const PART_POINTS: usize = 1 << 13;
/// Points that a round has at most, unless one series has more: what is made ahead of its turn.
const ROUND_POINTS: usize = 1 << 21;
/// Fewer points than this are made in one go: starting threads would take longer.
const PARALLEL_POINTS_MIN: usize = 1 << 14;
/// Parts of a round for every core: enough that starting threads for them is worth it and none waits long for the last,
/// few enough that what is made ahead is small, should folding be slow.
const PARTS_PER_CORE: usize = 16;

/// Divides series into parts, and those into rounds of parts that are made at the same time.
struct Parts {
    next: usize,
    count: usize,
    series_per_part: usize,
    parts_per_round: usize,
}

impl Parts {
    fn new(count: usize, steps: Steps, width: usize) -> Self {
        let points = count.saturating_mul(steps.count());
        let parallel = width > 1 && points >= PARALLEL_POINTS_MIN;
        let series_per_part = (PART_POINTS / steps.count().max(1)).max(1);
        let most = ROUND_POINTS / series_per_part.saturating_mul(steps.count()).max(1);
        let wanted = if parallel { width * PARTS_PER_CORE } else { 1 };
        Self {
            next: 0,
            count,
            series_per_part,
            parts_per_round: wanted.min(most).max(1),
        }
    }

    fn next_round(&mut self) -> Option<Vec<Range<usize>>> {
        let mut round = Vec::with_capacity(self.parts_per_round);
        while round.len() < self.parts_per_round && self.next < self.count {
            let end = self.next.saturating_add(self.series_per_part).min(self.count);
            round.push(self.next..end);
            self.next = end;
        }
        (!round.is_empty()).then_some(round)
    }
}

impl RowSource<'_> {
    /// Makes the rows of some series, with memory of their own.
    fn make_part(&self, shared: &Shared<'_>, part: Range<usize>, steps: Steps, memory: Arc<Memory>) -> Made {
        let account = Account::new(shared.options.max_samples, memory);
        let shared = Shared {
            account: &account,
            ..*shared
        };
        let mut rows = Vec::with_capacity(part.len());
        let mut annotations = Annotations::default();
        let mut scratch = Scratch::of(&account.memory);
        let end = part.into_iter().try_for_each(|i| {
            check(shared.ctx)?;
            let row = self.make_counted(&shared, i, steps, &mut scratch, &mut annotations)?;
            rows.extend(row);
            Ok(())
        });
        drop(scratch);
        Made {
            rows,
            annotations,
            account,
            end,
        }
    }

    /// Makes row number `i` and takes its memory; `None` if it is empty.
    fn make_counted(
        &self,
        shared: &Shared<'_>,
        i: usize,
        steps: Steps,
        scratch: &mut Scratch,
        annotations: &mut Annotations,
    ) -> Result<Option<Row>, QueryError> {
        // Taken before the row is made; what has histograms turns out larger.
        let memory = &shared.account.memory;
        let slots = steps.count().saturating_mul(size_of::<f64>());
        memory.take(slots)?;
        let made = self.make(shared, i, steps, scratch, annotations)?;
        let Some(row) = made.filter(|row| !row.is_empty()) else {
            memory.give(slots);
            return Ok(None);
        };
        memory.take(row.bytes().saturating_sub(slots))?;
        if matches!(self, Self::Select { .. } | Self::Smoothed { .. }) {
            shared.account.looked_at(row.samples());
        }
        Ok(Some(row))
    }
}

impl<'a> Evaluator<'a> {
    /// The rows of a vector node: made on demand where they come right from storage, else it was evaluated.
    pub(super) fn row_source<'n>(
        &self,
        node: &'n Node,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<RowSource<'n>, QueryError> {
        let made = match node {
            Node::Select(select) | Node::Plus(select, _) => Some(self.select_source(select, steps)),
            Node::Call(call) if is_row_function(call) => self.range_source(call, steps, inputs)?,
            _ => None,
        };
        match made {
            Some(source) => Ok(source),
            None => inputs.vector().map(RowSource::Rows),
        }
    }

    /// The rows of a node that makes them on demand.
    pub(super) fn leaf_source<'n>(
        &mut self,
        node: &'n Node,
        steps: Steps,
    ) -> Result<RowSource<'n>, QueryError> {
        let mut needs = Needs::new();
        if !self.row_needs(node, steps, &mut needs)? {
            return Err(wrong_type("leaf"));
        }
        let mut values = self.evaluate(needs)?;
        self.row_source(node, steps, &mut Inputs::of(values.drain(..), None))
    }

    /// The rows of an instant selector.
    pub(super) fn select_source<'n>(&self, node: &'n SelectNode, steps: Steps) -> RowSource<'n> {
        let times = self.select_times(node, steps);
        if node.edges == RangeEdges::Smoothed {
            RowSource::Smoothed { node, times }
        } else {
            RowSource::select(node, times, Take::Value)
        }
    }

    /// Hands every row that has samples to `fold`, in order.
    pub(super) fn for_each_row(
        &mut self,
        source: RowSource<'_>,
        steps: Steps,
        mut fold: impl FnMut(Row, &mut Annotations) -> Result<RowThen, QueryError> + Send,
    ) -> Result<(), QueryError> {
        if let RowSource::Rows(rows) = source {
            // Held already.
            for row in rows {
                check(self.ctx)?;
                fold(row, &mut self.annotations)?;
            }
            return Ok(());
        }
        let shared = self.shared();
        let memory = &shared.account.memory;
        let count = source.len(&shared);
        let mut parts = Parts::new(count, steps, shared.ctx.width());
        while let Some(round) = parts.next_round() {
            if let [part] = &round[..] {
                let made = source.make_part(&shared, part.clone(), steps, memory.part());
                self.fold_part(made, &mut fold)?;
                continue;
            }
            let folding = Folding {
                evaluator: self,
                fold: &mut fold,
                again: |part: &Range<usize>| source.make_part(&shared, part.clone(), steps, memory.part()),
                folded: 0,
                end: Ok(()),
            };
            let slots: Vec<Slot> = round.into_iter().map(Slot::new).collect();
            let folding = Mutex::new(folding);
            let given_up = AtomicBool::new(false);
            shared.ctx.each(slots.len(), &|i: usize| {
                let Some(slot) = slots.get(i).filter(|_| !given_up.load(Ordering::Relaxed)) else {
                    return;
                };
                let made = source.make_part(&shared, slot.part.clone(), steps, memory.ahead());
                *slot.made.lock() = Some(made);
                // Whoever is there folds what is ready; everyone else goes on making.
                if let Some(mut folding) = folding.try_lock() {
                    given_up.store(!folding.fold_ready(&slots), Ordering::Relaxed);
                }
            });
            let mut folding = folding.into_inner();
            folding.fold_ready(&slots);
            folding.finish(&slots)?;
        }
        Ok(())
    }

    /// Hands the rows of one part to `fold`. Fails as if they were made just now, however long they have waited.
    fn fold_part(
        &mut self,
        made: Made,
        fold: &mut impl FnMut(Row, &mut Annotations) -> Result<RowThen, QueryError>,
    ) -> Result<(), QueryError> {
        let account = self.account;
        made.account.memory.in_turn()?;
        account.fits(made.account.peak())?;
        account.looked_at(made.account.total());
        self.annotations.merge(made.annotations);
        for row in made.rows {
            let (held, bytes) = (row.held(), row.bytes());
            made.account.memory.give(bytes);
            account.memory.take(bytes)?;
            // What waits in parts is little and the same for every query: only what is folded counts.
            account.hold(held)?;
            if fold(row, &mut self.annotations)? == RowThen::Gone {
                account.release(held);
                account.memory.give(bytes);
            }
        }
        made.end
    }

    /// All rows that have samples.
    pub(super) fn collect(&mut self, source: RowSource<'_>, steps: Steps) -> Result<Vec<Row>, QueryError> {
        if let RowSource::Rows(rows) = source {
            return Ok(rows);
        }
        let mut rows = Vec::new();
        self.for_each_row(source, steps, |row, _| {
            rows.push(row);
            Ok(RowThen::Kept)
        })?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(series: usize, steps: usize, width: usize) -> Vec<Vec<Range<usize>>> {
        let steps = Steps::range(0, steps as i64 - 1, 1);
        let mut parts = Parts::new(series, steps, width);
        std::iter::from_fn(|| parts.next_round()).collect()
    }

    #[test]
    fn parts_do_not_depend_on_how_many_are_made_at_once() {
        for (series, steps) in [(1, 1), (10_000, 1), (5_000, 240), (100, 11_000), (3, 1 << 22)] {
            let flat = |width| rounds(series, steps, width).concat();
            assert_eq!(flat(1), flat(16));
            let all: Vec<usize> = flat(16).into_iter().flatten().collect();
            assert_eq!(all, (0..series).collect::<Vec<_>>());
        }
    }

    #[test]
    fn i12_long_series_are_made_one_after_the_other() {
        assert!(rounds(64, 31_000_000, 16).iter().all(|round| round.len() == 1));
        assert!(rounds(640, 240, 16).iter().any(|round| round.len() > 1));
    }
}
