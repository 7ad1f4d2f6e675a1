//! `sort` and its kin. Only instant queries keep the order.

use std::cmp::Ordering;

use super::inputs::Inputs;
use super::row::Row;
use super::{Evaluator, is_absent};
use crate::error::QueryError;
use crate::plan::CallNode;
use crate::signatures::FunctionId;
use crate::steps::Steps;

impl Evaluator<'_> {
    pub(super) fn sort_call(
        &mut self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let by_value = matches!(node.function, FunctionId::Sort | FunctionId::SortDesc);
        let mut rows = inputs.vector()?;
        if !steps.is_single() {
            self.annotations.sort_in_range_query(node.span);
        }
        if by_value {
            // Histograms have no order.
            for row in &mut rows {
                row.histograms = Vec::new();
            }
            rows.retain(|r| !r.is_empty());
        }
        if !steps.is_single() {
            return Ok(rows);
        }
        let descending = matches!(node.function, FunctionId::SortDesc | FunctionId::SortByLabelDesc);
        if by_value {
            self.work()
                .sort(&mut rows, |a, b| nan_last(first(a), first(b), descending))?;
            return Ok(rows);
        }
        let labels = (1..node.args.len()).map(|i| self.text(node, i));
        let labels = labels.collect::<Result<Vec<_>, _>>()?;
        self.work().sort(&mut rows, |a, b| {
            let order = by_labels(a, b, &labels);
            if descending { order.reverse() } else { order }
        })?;
        Ok(rows)
    }
}

fn first(row: &Row) -> f64 {
    row.values
        .iter()
        .copied()
        .find(|&v| !is_absent(v))
        .unwrap_or(f64::NAN)
}

pub(super) fn nan_last(a: f64, b: f64, descending: bool) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => {
            let order = a.partial_cmp(&b).unwrap_or(Ordering::Equal);
            if descending { order.reverse() } else { order }
        }
    }
}

fn by_labels(a: &Row, b: &Row, labels: &[&str]) -> Ordering {
    labels
        .iter()
        .map(|name| natural(a.labels.get(name).unwrap_or(""), b.labels.get(name).unwrap_or("")))
        .find(|o| o.is_ne())
        .unwrap_or_else(|| a.labels.cmp(&b.labels))
}

/// Compares runs of digits as numbers and everything else as text.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a, b);
    while !x.is_empty() && !y.is_empty() {
        let ((p, rest_x), (q, rest_y)) = (chunk(x), chunk(y));
        let order = match (p.parse::<u64>(), q.parse::<u64>()) {
            (Ok(m), Ok(n)) => m.cmp(&n),
            _ => p.cmp(q),
        };
        if order.is_ne() {
            return order;
        }
        (x, y) = (rest_x, rest_y);
    }
    // A prefix sorts first; numbers may still differ in leading zeros.
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

/// The first run of digits or of anything else, and what follows.
fn chunk(s: &str) -> (&str, &str) {
    let digit = |c: char| c.is_ascii_digit();
    let digits = s.starts_with(digit);
    s.split_at(s.find(|c| digit(c) != digits).unwrap_or(s.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut v = vec!["cpu10", "cpu2", "cpu", "cpu02", "a", "10", "9"];
        v.sort_by(|a, b| natural(a, b));
        assert_eq!(v, ["9", "10", "a", "cpu", "cpu02", "cpu2", "cpu10"]);
    }

    #[test]
    fn nan_sorts_last_either_way() {
        for descending in [true, false] {
            assert_eq!(nan_last(f64::NAN, 1.0, descending), Ordering::Greater);
        }
    }
}
