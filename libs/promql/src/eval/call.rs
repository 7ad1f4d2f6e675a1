//! Function calls: which kernel runs over which argument.

use std::collections::BTreeMap;

use koios_model::{Labels, LabelsBuilder, METRIC_NAME, MatchOp, Matcher};

use super::matrix::{RangeInput, WindowSpec};
use super::row::{Point, Row, Scalars};
use super::select::Take;
use super::window::{SampleBuffer, Samples, Slider, StepInfo};
use super::{Evaluated, Evaluator, over_time, rate, trend};
use crate::ast::RangeEdges;
use crate::context::check;
use crate::error::QueryError;
use crate::plan::{CallNode, Node};
use crate::signatures::FunctionId;
use crate::steps::Steps;

/// Computes one value of a range function from one window. Windows are never empty.
pub(super) type Kernel = fn(Samples<'_>, &mut StepInfo<'_>) -> Result<Point, QueryError>;

/// After how many kernel calls the caller is asked again whether to go on.
const CALLS_PER_CHECK: usize = 256;

fn kernel(function: FunctionId) -> Option<Kernel> {
    use FunctionId as F;
    Some(match function {
        F::AbsentOverTime | F::PresentOverTime => over_time::present,
        F::AvgOverTime => over_time::avg,
        F::Changes => over_time::changes,
        F::CountOverTime => over_time::count,
        F::Delta => rate::delta,
        F::Deriv => trend::deriv,
        F::DoubleExponentialSmoothing => trend::double_exponential_smoothing,
        F::FirstOverTime => over_time::first,
        F::Idelta => rate::idelta,
        F::Increase => rate::increase,
        F::Irate => rate::irate,
        F::LastOverTime => over_time::last,
        F::MadOverTime => over_time::mad,
        F::MaxOverTime => over_time::max,
        F::MinOverTime => over_time::min,
        F::PredictLinear => trend::predict_linear,
        F::QuantileOverTime => over_time::quantile,
        F::Rate => rate::rate,
        F::Resets => over_time::resets,
        F::StddevOverTime => over_time::stddev,
        F::StdvarOverTime => over_time::stdvar,
        F::SumOverTime => over_time::sum,
        F::TsOfFirstOverTime => over_time::ts_of_first,
        F::TsOfLastOverTime => over_time::ts_of_last,
        F::TsOfMaxOverTime => over_time::ts_of_max,
        F::TsOfMinOverTime => over_time::ts_of_min,
        _ => return None,
    })
}

impl Evaluator<'_> {
    /// Evaluates a function call.
    pub(super) fn call(&mut self, node: &CallNode, steps: Steps) -> Result<Evaluated, QueryError> {
        if let Some(kernel) = kernel(node.function) {
            return self.range_call(node, kernel, steps).map(Evaluated::Vector);
        }
        match (node.function, node.args.first()) {
            (FunctionId::Timestamp, Some(Node::Select(select))) if select.edges == RangeEdges::Plain => {
                let mut times = self.select_times(select, steps);
                if times.at.is_some() {
                    // Prometheus ignores the offset here.
                    times.offset_ms = 0;
                }
                let rows = self.select_with(select.source, times, Take::Time)?;
                Ok(Evaluated::Vector(without_names(rows)))
            }
            (FunctionId::StartTimestamp, Some(Node::Select(select))) => {
                let times = self.select_times(select, steps);
                let rows = self.select_with(select.source, times, Take::Start)?;
                Ok(Evaluated::Vector(without_names(rows)))
            }
            (FunctionId::LabelReplace, _) => self.label_replace(node, steps).map(Evaluated::Vector),
            (FunctionId::LabelJoin, _) => self.label_join(node, steps).map(Evaluated::Vector),
            (FunctionId::Info, _) => self.info(node, steps).map(Evaluated::Vector),
            _ => self.instant_call(node, steps),
        }
    }

    fn range_call(&mut self, node: &CallNode, kernel: Kernel, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let mut input = None;
        let mut params = Vec::new();
        for arg in &node.args {
            match self.range_input(arg, steps)? {
                Some(range) => input = Some(range),
                None => params.push(self.scalar(arg, steps)?),
            }
        }
        let (input, spec) = input.ok_or_else(|| super::wrong_type("range vector"))?;
        check_edges(node.function, spec.edges)?;
        let rows = self.range_rows(node, kernel, &input, spec, &params, steps)?;
        if node.function == FunctionId::AbsentOverTime {
            return Ok(absent_rows(&rows, absent_labels(node.args.first()), steps));
        }
        Ok(rows)
    }

    fn range_rows(
        &mut self,
        node: &CallNode,
        kernel: Kernel,
        input: &RangeInput,
        spec: WindowSpec,
        params: &[Scalars],
        steps: Steps,
    ) -> Result<Vec<Row>, QueryError> {
        let mut buffer = SampleBuffer::default();
        let mut rows = Vec::new();
        let windows = (spec, steps);
        for i in 0..input.len(self) {
            check(self.ctx)?;
            let Some((labels, name_gone, samples)) = input.load(self, i, windows, &mut buffer)? else {
                break;
            };
            let row = self.range_row(node, kernel, spec, params, steps, (labels, name_gone, samples))?;
            let held = row.samples();
            if held == 0 {
                continue;
            }
            self.account.hold(held)?;
            if matches!(node.function, FunctionId::Rate | FunctionId::Increase) {
                self.note_possible_non_counter(&row, spec);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Slides the window over one series.
    fn range_row(
        &mut self,
        node: &CallNode,
        kernel: Kernel,
        spec: WindowSpec,
        params: &[Scalars],
        steps: Steps,
        (labels, name_gone, samples): (Labels, bool, Samples<'_>),
    ) -> Result<Row, QueryError> {
        let keeps_name = matches!(
            node.function,
            FunctionId::LastOverTime | FunctionId::FirstOverTime
        );
        let samples = if self.options.use_start_timestamps {
            samples
        } else {
            without_starts(samples)
        };
        let mut row = Row::new(labels.clone(), name_gone || !keeps_name, steps.count());
        let mut slider = Slider::new(samples);
        let (mut seen, mut widest) = (0, 0);
        let first_span = node.args.first().map_or(node.span, Node::span);
        for i in 0..steps.count() {
            if i % CALLS_PER_CHECK == CALLS_PER_CHECK - 1 {
                check(self.ctx)?;
            }
            let at = steps.at(i);
            let times = spec.at(at);
            let window = slider.advance(times.after, times.until);
            if window.is_empty() {
                continue;
            }
            let weight = window.weight();
            seen += weight;
            widest = widest.max(weight);
            let mut info = StepInfo {
                at,
                start: times.start,
                end: times.end,
                range_ms: spec.range_ms,
                edges: spec.edges,
                params: std::array::from_fn(|p| params.get(p).map_or(f64::NAN, |s| s.at(i))),
                labels: &labels,
                span: spec.span,
                first_span,
                annotations: &mut self.annotations,
            };
            row.set(i, kernel(window, &mut info)?);
        }
        self.account.looked_at(seen);
        self.account.hold(widest)?;
        self.account.release(widest);
        Ok(row)
    }

    fn note_possible_non_counter(&mut self, row: &Row, spec: WindowSpec) {
        let name = row.metric_name();
        if name.is_empty() || row.values.iter().all(|&v| super::is_absent(v)) {
            return;
        }
        if self.options.type_and_unit_labels {
            let kind = row.labels.get("__type__").unwrap_or("");
            if kind != "counter" && kind != "histogram" {
                self.annotations.possible_non_counter_type(name, kind, spec.span);
            }
        } else if !["_total", "_sum", "_count", "_bucket"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            self.annotations.possible_non_counter(name, spec.span);
        }
    }
}

fn without_starts(samples: Samples<'_>) -> Samples<'_> {
    Samples {
        st: &[],
        hst: &[],
        ..samples
    }
}

fn without_names(mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        row.drop_name = true;
    }
    rows
}

/// `anchored` and `smoothed` look beyond the range, which few functions can take.
fn check_edges(function: FunctionId, edges: RangeEdges) -> Result<(), QueryError> {
    use FunctionId as F;
    let (word, safe) = match edges {
        RangeEdges::Plain => return Ok(()),
        RangeEdges::Anchored => (
            "anchored",
            &[F::Changes, F::Delta, F::Increase, F::Rate, F::Resets][..],
        ),
        RangeEdges::Smoothed => ("smoothed", &[F::Delta, F::Increase, F::Rate][..]),
    };
    if safe.contains(&function) {
        return Ok(());
    }
    let names: Vec<_> = safe.iter().map(|f| f.name()).collect();
    Err(QueryError::execution(format!(
        "{word} modifier can only be used with: {} - not with {}",
        names.join(", "),
        function.name()
    )))
}

/// One row that is 1 wherever no row has anything.
pub(super) fn absent_rows(rows: &[Row], labels: Labels, steps: Steps) -> Vec<Row> {
    let mut out = Row::new(labels, true, steps.count());
    for i in 0..steps.count() {
        if !rows.iter().any(|r| r.has(i)) {
            out.set(i, Point::Float(1.0));
        }
    }
    if out.is_empty() { Vec::new() } else { vec![out] }
}

/// The labels that a selector pins to one value.
pub(super) fn absent_labels(arg: Option<&Node>) -> Labels {
    let matchers: &[Matcher] = match arg {
        Some(Node::Select(s)) => &s.matchers,
        Some(Node::Range(r)) => &r.select.matchers,
        Some(Node::Invariant(inner)) => return absent_labels(Some(inner)),
        _ => &[],
    };
    // A label named again after an equality is left out, even if both agree: so it was always done.
    let mut pinned: BTreeMap<&str, (Option<&str>, bool)> = BTreeMap::new();
    for m in matchers.iter().filter(|m| m.name() != METRIC_NAME) {
        let (value, was_pinned) = pinned.entry(m.name()).or_default();
        let pin = m.op() == MatchOp::Equal && !*was_pinned;
        *value = pin.then_some(m.value());
        *was_pinned |= pin;
    }
    let mut labels = LabelsBuilder::default();
    for (name, (value, _)) in pinned {
        labels.set(name, value.unwrap_or(""));
    }
    labels.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_functions_take_anchored_ranges() {
        assert!(check_edges(FunctionId::Rate, RangeEdges::Smoothed).is_ok());
        let e = check_edges(FunctionId::SumOverTime, RangeEdges::Anchored).unwrap_err();
        assert_eq!(
            e.to_string(),
            "anchored modifier can only be used with: changes, delta, increase, rate, resets - not with \
             sum_over_time"
        );
    }
}
