//! Functions of instant vectors and scalars, value by value.

use koios_model::Labels;

use super::call::{absent_labels, absent_rows};
use super::math::{date_function, float_function, round_to};
use super::row::{Point, Row, Scalars};
use super::{Evaluated, Evaluator, is_absent, wrong_type};
use crate::error::QueryError;
use crate::number;
use crate::plan::{CallNode, Node};
use crate::signatures::FunctionId;
use crate::steps::Steps;

impl Evaluator<'_> {
    /// Evaluates a call of a function without range vectors.
    pub(super) fn instant_call(&mut self, node: &CallNode, steps: Steps) -> Result<Evaluated, QueryError> {
        use FunctionId as F;
        match node.function {
            F::Time | F::Pi | F::Scalar | F::MaxOf | F::MinOf => {
                self.scalar_call(node, steps).map(Evaluated::Scalar)
            }
            F::HistogramQuantile | F::HistogramQuantiles | F::HistogramFraction => {
                self.bucket_call(node, steps).map(Evaluated::Vector)
            }
            F::HistogramAvg
            | F::HistogramCount
            | F::HistogramSum
            | F::HistogramStddev
            | F::HistogramStdvar => {
                let rows = self.vector_arg(node, 0, steps)?;
                Ok(Evaluated::Vector(super::aggregate_histogram::statistic(
                    node.function,
                    rows,
                )))
            }
            F::Sort | F::SortDesc | F::SortByLabel | F::SortByLabelDesc => {
                self.sort_call(node, steps).map(Evaluated::Vector)
            }
            F::Vector => {
                let scalars = self.scalar_arg(node, 0, steps)?;
                Ok(Evaluated::Vector(vec![row_of(scalars, steps)]))
            }
            F::Absent => {
                let rows = self.vector_arg(node, 0, steps)?;
                let mut absent = absent_rows(&rows, absent_labels(node.args.first()), steps);
                absent.iter_mut().for_each(|r| r.drop_name = false);
                Ok(Evaluated::Vector(absent))
            }
            F::Timestamp => self
                .vector_arg(node, 0, steps)
                .map(|rows| Evaluated::Vector(step_times(rows, steps))),
            F::StartTimestamp => {
                // Only samples right from storage have start timestamps.
                self.vector_arg(node, 0, steps)?;
                Ok(Evaluated::Vector(Vec::new()))
            }
            F::Clamp | F::ClampMax | F::ClampMin | F::Round => {
                self.bounded_call(node, steps).map(Evaluated::Vector)
            }
            _ => self.float_call(node, steps).map(Evaluated::Vector),
        }
    }

    pub(super) fn vector_arg(
        &mut self,
        node: &CallNode,
        i: usize,
        steps: Steps,
    ) -> Result<Vec<Row>, QueryError> {
        let arg = node.args.get(i).ok_or_else(|| wrong_type("argument"))?;
        self.vector(arg, steps)
    }

    pub(super) fn scalar_arg(
        &mut self,
        node: &CallNode,
        i: usize,
        steps: Steps,
    ) -> Result<Scalars, QueryError> {
        let arg = node.args.get(i).ok_or_else(|| wrong_type("argument"))?;
        self.scalar(arg, steps)
    }

    fn scalar_call(&mut self, node: &CallNode, steps: Steps) -> Result<Scalars, QueryError> {
        match node.function {
            FunctionId::Pi => Ok(Scalars::Const(std::f64::consts::PI)),
            FunctionId::Time => Ok(Scalars::Steps(steps.iter().map(|t| t as f64 / 1000.0).collect())),
            FunctionId::Scalar => {
                let rows = self.vector_arg(node, 0, steps)?;
                Ok(Scalars::Steps(
                    (0..steps.count()).map(|i| only_float(&rows, i)).collect(),
                ))
            }
            function => {
                let (a, b) = (self.scalar_arg(node, 0, steps)?, self.scalar_arg(node, 1, steps)?);
                let f = if function == FunctionId::MaxOf {
                    number::max
                } else {
                    number::min
                };
                Ok(a.zip(&b, steps.count(), f))
            }
        }
    }

    fn float_call(&mut self, node: &CallNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        if node.args.is_empty() {
            let Some(f) = date_function(node.function) else {
                return Err(unknown(node.function));
            };
            let values = steps.iter().map(|t| f((t / 1000) as f64)).collect();
            return Ok(vec![row_of(Scalars::Steps(values), steps)]);
        }
        let f = float_function(node.function).ok_or_else(|| unknown(node.function))?;
        let rows = self.vector_arg(node, 0, steps)?;
        Ok(non_empty(rows.into_iter().map(|row| row.map_floats(f))))
    }

    fn bounded_call(&mut self, node: &CallNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let rows = self.vector_arg(node, 0, steps)?;
        let bound = |ev: &mut Self, i: usize, default: f64| match node.args.get(i) {
            Some(arg) => ev.scalar(arg, steps),
            None => Ok(Scalars::Const(default)),
        };
        let (low, high) = match node.function {
            FunctionId::Clamp => (bound(self, 1, 0.0)?, bound(self, 2, 0.0)?),
            FunctionId::ClampMax => (Scalars::Const(f64::NEG_INFINITY), bound(self, 1, 0.0)?),
            FunctionId::ClampMin => (bound(self, 1, 0.0)?, Scalars::Const(f64::INFINITY)),
            _ => {
                let nearest = bound(self, 1, 1.0)?;
                return Ok(map_by_step(rows, |v, i| Some(round_to(v, nearest.at(i)))));
            }
        };
        Ok(map_by_step(rows, |v, i| {
            let (low, high) = (low.at(i), high.at(i));
            let inverted = high < low;
            (!inverted).then(|| number::max(low, number::min(high, v)))
        }))
    }

    /// Evaluates `-x`.
    pub(super) fn negate(&mut self, node: &Node, steps: Steps) -> Result<Evaluated, QueryError> {
        Ok(match self.eval(node, steps)? {
            Evaluated::Scalar(Scalars::Const(v)) => Evaluated::Scalar(Scalars::Const(-v)),
            Evaluated::Scalar(Scalars::Steps(vs)) => {
                Evaluated::Scalar(Scalars::Steps(vs.into_iter().map(|v| -v).collect()))
            }
            Evaluated::Vector(rows) => Evaluated::Vector(rows.into_iter().map(negated).collect()),
            _ => return Err(wrong_type("scalar or instant vector")),
        })
    }
}

fn unknown(function: FunctionId) -> QueryError {
    QueryError::internal(format!("function {} has no implementation", function.name()))
}

fn negated(mut row: Row) -> Row {
    let histograms = std::mem::take(&mut row.histograms);
    let mut row = row.map_floats(|v| -v);
    row.histograms = histograms;
    for h in row.histograms.iter_mut().flatten() {
        *h = std::sync::Arc::new(super::aggregate_histogram::scaled(h, -1.0));
    }
    row
}

/// One series without labels.
fn row_of(scalars: Scalars, steps: Steps) -> Row {
    Row {
        values: scalars.into_steps(steps.count()),
        ..Row::new(Labels::empty(), false, 0)
    }
}

/// The value of the only float at a step; NaN if there is none or more than one.
fn only_float(rows: &[Row], i: usize) -> f64 {
    let mut floats = rows
        .iter()
        .filter_map(|r| r.values.get(i).copied())
        .filter(|&v| !is_absent(v));
    match (floats.next(), floats.next()) {
        (Some(v), None) => v,
        _ => f64::NAN,
    }
}

fn step_times(rows: Vec<Row>, steps: Steps) -> Vec<Row> {
    let of = |row: Row| {
        let mut out = Row::new(row.labels.clone(), true, steps.count());
        for i in (0..steps.count()).filter(|&i| row.has(i)) {
            out.set(i, Point::Float(steps.at(i) as f64 / 1000.0));
        }
        out
    };
    rows.into_iter().map(of).collect()
}

/// Applies a function of value and step to all floats; `None` drops the value.
fn map_by_step(rows: Vec<Row>, f: impl Fn(f64, usize) -> Option<f64>) -> Vec<Row> {
    non_empty(rows.into_iter().map(|mut row| {
        for (i, v) in row.values.iter_mut().enumerate() {
            if !is_absent(*v) {
                *v = f(*v, i).unwrap_or_else(super::absent);
            }
        }
        row.histograms = Vec::new();
        row.drop_name = true;
        row
    }))
}

pub(super) fn non_empty(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    rows.filter(|r| !r.is_empty()).collect()
}
