//! `topk`, `bottomk`, `limitk`, `limit_ratio`: some of the input series, unchanged.

use super::Evaluator;
use super::aggregate::{Grouped, extent};
use super::is_absent;
use super::ratio::sample_offset;
use super::row::{Point, Row, Scalars};
use super::sort::nan_last;
use crate::ast::AggregateOp;
use crate::error::QueryError;
use crate::number::format_g;
use crate::plan::AggregateNode;
use crate::steps::Steps;
use crate::work::Work;

/// 2^63: the least float an `i64` cannot hold.
const I64_LIMIT: f64 = 9_223_372_036_854_775_808.0;

impl Evaluator<'_> {
    /// The `k` greatest, least or first series of each group.
    pub(super) fn select_k(
        &mut self,
        node: &AggregateNode,
        param: &Scalars,
        rows: &[Row],
        steps: Steps,
    ) -> Result<Vec<Row>, QueryError> {
        if !any_k(param, steps)? {
            return Ok(Vec::new());
        }
        let mut work = self.work();
        let grouped = Grouped::new(rows, &node.grouping, node.without, &mut work)?;
        let by_value = node.op != AggregateOp::Limitk;
        if by_value && rows.iter().any(|r| !r.histograms.is_empty()) {
            self.annotations
                .histogram_ignored_in_aggregation(node.op.as_str(), node.span);
        }
        let mut picked = Picked::new(rows, &mut work)?;
        // Every series is in one heap at most.
        work.hold(rows.len().saturating_mul(2 * size_of::<(f64, usize)>()))?;
        for i in 0..steps.count() {
            work.spend(1 + rows.len().saturating_mul(4))?;
            let k = (param.at(i) as i64).min(rows.len() as i64);
            let Some(k) = usize::try_from(k).ok().filter(|&k| k > 0) else {
                continue;
            };
            let mut heaps: Vec<KHeap> = grouped.labels.iter().map(|_| KHeap::new(k, node.op)).collect();
            for (r, (row, &group)) in rows.iter().zip(&grouped.of_row).enumerate() {
                let value = row.values.get(i).copied().unwrap_or_else(super::absent);
                let counts = if by_value { !is_absent(value) } else { row.has(i) };
                if let Some(heap) = heaps.get_mut(group).filter(|_| counts) {
                    heap.offer(value, r);
                }
            }
            for r in heaps.iter_mut().flat_map(KHeap::take_ordered) {
                picked.take(rows, r, i, &mut work)?;
            }
        }
        Ok(picked.into_rows(steps.is_single()))
    }

    /// A share of the series, the same ones each time; a negative ratio gives the others.
    pub(super) fn limit_ratio(
        &mut self,
        node: &AggregateNode,
        param: &Scalars,
        rows: &[Row],
        steps: Steps,
    ) -> Result<Vec<Row>, QueryError> {
        let (low, high, nan) = extent(param, steps);
        if low == 0.0 && high == 0.0 && !nan {
            return Ok(Vec::new());
        }
        if nan {
            return Err(QueryError::execution("Ratio value is NaN"));
        }
        if let Some(span) = node.param.map(|param| param.span) {
            if high > 1.0 {
                self.annotations.invalid_ratio(high, 1.0, span);
            }
            if low < -1.0 {
                self.annotations.invalid_ratio(low, -1.0, span);
            }
        }
        let mut work = self.work();
        let mut picked = Picked::new(rows, &mut work)?;
        for (r, row) in rows.iter().enumerate() {
            work.spend(16)?;
            let offset = sample_offset(&row.labels);
            for i in 0..steps.count() {
                work.spend(1)?;
                let ratio = param.at(i).clamp(-1.0, 1.0);
                let chosen = if ratio >= 0.0 {
                    offset < ratio
                } else {
                    offset >= 1.0 + ratio
                };
                if chosen {
                    picked.take(rows, r, i, &mut work)?;
                }
            }
        }
        Ok(picked.into_rows(steps.is_single()))
    }
}

/// Whether any series is wanted at any step; fails if the numbers are none.
fn any_k(param: &Scalars, steps: Steps) -> Result<bool, QueryError> {
    let (low, high, nan) = extent(param, steps);
    if nan {
        return Err(QueryError::execution("Parameter value is NaN"));
    }
    if high < 1.0 {
        return Ok(false);
    }
    if low <= -I64_LIMIT {
        let low = format_g(low);
        return Err(QueryError::execution(format!(
            "Scalar value {low} underflows int64"
        )));
    }
    if high >= I64_LIMIT {
        let high = format_g(high);
        return Err(QueryError::execution(format!(
            "Scalar value {high} overflows int64"
        )));
    }
    Ok(true)
}

/// The chosen steps of the input rows, in order of first choice.
struct Picked {
    rows: Vec<Option<Row>>,
    order: Vec<usize>,
}

impl Picked {
    fn new(rows: &[Row], work: &mut Work<'_>) -> Result<Self, QueryError> {
        work.hold(
            rows.len()
                .saturating_mul(size_of::<Option<Row>>() + size_of::<usize>()),
        )?;
        Ok(Self {
            rows: rows.iter().map(|_| None).collect(),
            order: Vec::new(),
        })
    }

    fn take(&mut self, rows: &[Row], r: usize, step: usize, work: &mut Work<'_>) -> Result<(), QueryError> {
        let (Some(from), Some(to)) = (rows.get(r), self.rows.get_mut(r)) else {
            return Ok(());
        };
        let point = from.point(step);
        if matches!(point, Point::Absent) {
            return Ok(());
        }
        let to = match to {
            Some(to) => to,
            None => {
                let slots = from.values.len() + from.histograms.len();
                work.hold(slots.saturating_mul(8))?;
                self.order.push(r);
                let (labels, steps) = (from.labels.clone(), from.values.len());
                to.insert(Row::blank(labels, from.drop_name, steps, work)?)
            }
        };
        to.set(step, point);
        Ok(())
    }

    /// In order of choice if that is what the result shows, else in order of input.
    fn into_rows(mut self, ordered: bool) -> Vec<Row> {
        if !ordered {
            return self.rows.into_iter().flatten().collect();
        }
        let order = std::mem::take(&mut self.order);
        order
            .into_iter()
            .filter_map(|r| self.rows.get_mut(r).and_then(Option::take))
            .collect()
    }
}

/// Keeps the best `k` values; of equal ones those that came first, as a binary heap with the worst on top does.
struct KHeap {
    k: usize,
    op: AggregateOp,
    items: Vec<(f64, usize)>,
}

impl KHeap {
    fn new(k: usize, op: AggregateOp) -> Self {
        Self {
            k,
            op,
            items: Vec::new(),
        }
    }

    /// Whether `a` is to be thrown out before `b`.
    fn worse(&self, a: f64, b: f64) -> bool {
        a.is_nan()
            || if self.op == AggregateOp::Bottomk {
                a > b
            } else {
                a < b
            }
    }

    fn offer(&mut self, value: f64, row: usize) {
        if self.items.len() < self.k {
            self.items.push((value, row));
            if self.op != AggregateOp::Limitk {
                self.sift_up(self.items.len() - 1);
            }
            return;
        }
        if self.op == AggregateOp::Limitk {
            return;
        }
        let Some(top) = self.items.first_mut() else { return };
        let worst = top.0;
        let better = if self.op == AggregateOp::Bottomk {
            worst > value
        } else {
            worst < value
        };
        if better || (worst.is_nan() && !value.is_nan()) {
            *top = (value, row);
            self.sift_down();
        }
    }

    fn value(&self, i: usize) -> f64 {
        self.items.get(i).map_or(f64::NAN, |item| item.0)
    }

    fn sift_up(&mut self, mut child: usize) {
        while child > 0 {
            let parent = (child - 1) / 2;
            if !self.worse(self.value(child), self.value(parent)) {
                return;
            }
            self.items.swap(parent, child);
            child = parent;
        }
    }

    fn sift_down(&mut self) {
        let (mut parent, len) = (0, self.items.len());
        loop {
            let left = 2 * parent + 1;
            if left >= len {
                return;
            }
            let right = left + 1;
            let child = if right < len && self.worse(self.value(right), self.value(left)) {
                right
            } else {
                left
            };
            if !self.worse(self.value(child), self.value(parent)) {
                return;
            }
            self.items.swap(parent, child);
            parent = child;
        }
    }

    /// The rows kept, best first.
    fn take_ordered(&mut self) -> impl Iterator<Item = usize> + use<> {
        let mut items = std::mem::take(&mut self.items);
        if self.op != AggregateOp::Limitk {
            let descending = self.op == AggregateOp::Topk;
            items.sort_by(|a, b| nan_last(a.0, b.0, descending));
        }
        items.into_iter().map(|(_, row)| row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(op: AggregateOp, k: usize, values: &[f64]) -> Vec<usize> {
        let mut heap = KHeap::new(k, op);
        for (row, &v) in values.iter().enumerate() {
            heap.offer(v, row);
        }
        heap.take_ordered().collect()
    }

    #[test]
    fn nan_is_worst_for_both_ends() {
        let values = [f64::NAN, 3.0, 1.0, 2.0];
        assert_eq!(kept(AggregateOp::Topk, 2, &values), [1, 3]);
        assert_eq!(kept(AggregateOp::Bottomk, 2, &values), [2, 3]);
        assert_eq!(kept(AggregateOp::Topk, 4, &values), [1, 3, 2, 0]);
        assert_eq!(kept(AggregateOp::Limitk, 2, &values), [0, 1]);
    }
}
