//! Functions of instant vectors and scalars, value by value.

use koios_model::Labels;

use super::call::absent_rows;
use super::inputs::Inputs;
use super::math::{date_function, float_function, round_to};
use super::row::{Row, Scalars, histogram_weight};
use super::{Evaluated, Evaluator, is_absent, wrong_type};
use crate::error::QueryError;
use crate::memory::of_histogram;
use crate::number;
use crate::plan::CallNode;
use crate::signatures::FunctionId;
use crate::steps::Steps;
use crate::work::Work;

impl Evaluator<'_> {
    /// Evaluates a call of a function without range vectors.
    pub(super) fn instant_call(
        &mut self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Evaluated, QueryError> {
        use FunctionId as F;
        match node.function {
            F::Time | F::Pi | F::Scalar | F::MaxOf | F::MinOf => {
                self.scalar_call(node, steps, inputs).map(Evaluated::Scalar)
            }
            F::HistogramQuantile | F::HistogramQuantiles | F::HistogramFraction => {
                self.bucket_call(node, steps, inputs).map(Evaluated::Vector)
            }
            F::HistogramAvg
            | F::HistogramCount
            | F::HistogramSum
            | F::HistogramStddev
            | F::HistogramStdvar => {
                let rows = inputs.vector()?;
                let mut work = self.work();
                super::aggregate_histogram::statistic(node.function, rows, &mut work).map(Evaluated::Vector)
            }
            F::Sort | F::SortDesc | F::SortByLabel | F::SortByLabelDesc => {
                self.sort_call(node, steps, inputs).map(Evaluated::Vector)
            }
            F::Vector => {
                let scalars = inputs.scalar()?;
                Ok(Evaluated::Vector(vec![row_of(scalars, steps, &mut self.work())?]))
            }
            F::Absent => {
                let rows = inputs.vector()?;
                let labels = self.absent_labels(node)?;
                let mut absent = absent_rows(&rows, labels, steps, &mut self.work())?;
                absent.iter_mut().for_each(|r| r.drop_name = false);
                Ok(Evaluated::Vector(absent))
            }
            F::Timestamp => {
                let rows = inputs.vector()?;
                step_times(rows, steps, &mut self.work()).map(Evaluated::Vector)
            }
            F::StartTimestamp => {
                // Only samples right from storage have start timestamps.
                inputs.vector()?;
                Ok(Evaluated::Vector(Vec::new()))
            }
            F::Clamp | F::ClampMax | F::ClampMin | F::Round => {
                self.bounded_call(node, inputs).map(Evaluated::Vector)
            }
            _ => self.float_call(node, steps, inputs).map(Evaluated::Vector),
        }
    }

    fn scalar_call(
        &self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Scalars, QueryError> {
        match node.function {
            FunctionId::Pi => Ok(Scalars::Const(std::f64::consts::PI)),
            FunctionId::Time => {
                Scalars::of_steps(steps.count(), &mut self.work(), |i| steps.at(i) as f64 / 1000.0)
            }
            FunctionId::Scalar => {
                let rows = inputs.vector()?;
                let mut work = self.work();
                work.hold(steps.count().saturating_mul(size_of::<f64>()))?;
                let mut values = work.filled(&f64::NAN, steps.count())?;
                for (i, v) in values.iter_mut().enumerate() {
                    work.spend(1 + rows.len())?;
                    *v = only_float(&rows, i);
                }
                Ok(Scalars::Steps(values))
            }
            function => {
                let (a, b) = (inputs.scalar()?, inputs.scalar()?);
                let f = if function == FunctionId::MaxOf {
                    number::max
                } else {
                    number::min
                };
                a.zip(&b, steps.count(), &mut self.work(), f)
            }
        }
    }

    fn float_call(
        &self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        if node.args.is_empty() {
            let Some(f) = date_function(node.function) else {
                return Err(unknown(node.function));
            };
            let values =
                Scalars::of_steps(
                    steps.count(),
                    &mut self.work(),
                    |i| f((steps.at(i) / 1000) as f64),
                )?;
            return Ok(vec![row_of(values, steps, &mut self.work())?]);
        }
        let f = float_function(node.function).ok_or_else(|| unknown(node.function))?;
        let rows = inputs.vector()?;
        let mut work = self.work();
        non_empty(rows.into_iter().map(|row| row.map_floats(&mut work, f)))
    }

    fn bounded_call(&self, node: &CallNode, inputs: &mut Inputs<'_>) -> Result<Vec<Row>, QueryError> {
        let rows = inputs.vector()?;
        let mut bound = |i: usize, default: f64| match node.args.get(i) {
            Some(_) => inputs.scalar(),
            None => Ok(Scalars::Const(default)),
        };
        let (low, high) = match node.function {
            FunctionId::Clamp => (bound(1, 0.0)?, bound(2, 0.0)?),
            FunctionId::ClampMax => (Scalars::Const(f64::NEG_INFINITY), bound(1, 0.0)?),
            FunctionId::ClampMin => (bound(1, 0.0)?, Scalars::Const(f64::INFINITY)),
            _ => {
                let nearest = bound(1, 1.0)?;
                return map_by_step(rows, &mut self.work(), |v, i| Some(round_to(v, nearest.at(i))));
            }
        };
        map_by_step(rows, &mut self.work(), |v, i| {
            let (low, high) = (low.at(i), high.at(i));
            let inverted = high < low;
            (!inverted).then(|| number::max(low, number::min(high, v)))
        })
    }

    /// Evaluates `-x`.
    pub(super) fn negate(&self, inputs: &mut Inputs<'_>) -> Result<Evaluated, QueryError> {
        Ok(match inputs.any()? {
            Evaluated::Scalar(Scalars::Const(v)) => Evaluated::Scalar(Scalars::Const(-v)),
            Evaluated::Scalar(Scalars::Steps(mut vs)) => {
                self.work().each(&mut vs, |_, v| *v = -*v)?;
                Evaluated::Scalar(Scalars::Steps(vs))
            }
            Evaluated::Vector(rows) => {
                let mut work = self.work();
                let rows = rows.into_iter().map(|row| negated(row, &mut work));
                Evaluated::Vector(rows.collect::<Result<_, _>>()?)
            }
            _ => return Err(wrong_type("scalar or instant vector")),
        })
    }
}

fn unknown(function: FunctionId) -> QueryError {
    QueryError::internal(format!("function {} has no implementation", function.name()))
}

fn negated(mut row: Row, work: &mut Work<'_>) -> Result<Row, QueryError> {
    let histograms = std::mem::take(&mut row.histograms);
    let mut row = row.map_floats(work, |v| -v)?;
    row.histograms = histograms;
    for h in row.histograms.iter_mut().flatten() {
        work.spend(histogram_weight(h))?;
        work.hold(of_histogram(h))?;
        *h = std::sync::Arc::new(super::aggregate_histogram::scaled(h, -1.0));
    }
    Ok(row)
}

/// One series without labels.
fn row_of(scalars: Scalars, steps: Steps, work: &mut Work<'_>) -> Result<Row, QueryError> {
    Ok(Row {
        values: scalars.into_steps(steps.count(), work)?,
        ..Row::new(Labels::empty(), false, 0)
    })
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

fn step_times(rows: Vec<Row>, steps: Steps, work: &mut Work<'_>) -> Result<Vec<Row>, QueryError> {
    let mut of = |row: Row| {
        let mut out = Row::blank(row.labels.clone(), true, steps.count(), work)?;
        work.each(&mut out.values, |i, v| {
            if row.has(i) {
                *v = steps.at(i) as f64 / 1000.0;
            }
        })?;
        Ok(out)
    };
    rows.into_iter().map(&mut of).collect()
}

/// Applies a function of value and step to all floats; `None` drops the value.
fn map_by_step(
    rows: Vec<Row>,
    work: &mut Work<'_>,
    f: impl Fn(f64, usize) -> Option<f64>,
) -> Result<Vec<Row>, QueryError> {
    non_empty(rows.into_iter().map(|mut row| {
        work.each(&mut row.values, |i, v| {
            if !is_absent(*v) {
                *v = f(*v, i).unwrap_or_else(super::absent);
            }
        })?;
        row.histograms = Vec::new();
        row.drop_name = true;
        Ok(row)
    }))
}

/// The rows that have any sample.
pub(super) fn non_empty(rows: impl Iterator<Item = Result<Row, QueryError>>) -> Result<Vec<Row>, QueryError> {
    rows.filter(|row| !row.as_ref().is_ok_and(Row::is_empty))
        .collect()
}
