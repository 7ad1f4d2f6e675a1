//! Range functions: a kernel slid over the samples of each series.

use super::cursor::Found;
use super::inputs::Inputs;
use super::matrix::{RangeInput, WindowSpec};
use super::rate::RateKind;
use super::rate_slide::Reaches;
use super::row::{Point, Row, Scalars};
use super::slide::{SAMPLES_PER_UNIT, Slide};
use super::source::RowSource;
use super::stretches::Stretches;
use super::window::{Samples, Scratch, Slider, StepInfo};
use super::{Evaluator, Shared, downsampled, over_time, rate, rate_slide, trend};
use crate::annotations::Annotations;
use crate::ast::{RangeEdges, Span};
use crate::error::QueryError;
use crate::memory::of_histogram;
use crate::plan::CallNode;
use crate::signatures::FunctionId;
use crate::steps::Steps;
use crate::work::Work;

/// How many windows must share a sample for [`Stretches`] to pay.
const OVERLAP_MIN: i64 = 3;

/// Computes one value of a range function from one window. Windows are never empty.
pub(super) type Kernel = fn(Samples<'_>, &mut StepInfo<'_>) -> Result<Point, QueryError>;

pub(super) fn kernel(function: FunctionId) -> Option<Kernel> {
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

/// A range function with all it needs but the samples.
#[derive(Debug)]
pub(super) struct RangeFunction {
    function: FunctionId,
    kernel: Kernel,
    input: RangeInput,
    spec: WindowSpec,
    params: Vec<Scalars>,
    /// Where the function's first argument stands.
    first_span: Span,
}

impl Evaluator<'_> {
    /// The range function that a call is, if it is one.
    pub(super) fn range_source<'n>(
        &self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Option<RowSource<'n>>, QueryError> {
        let Some(kernel) = kernel(node.function) else {
            return Ok(None);
        };
        let mut input = None;
        let mut params = Vec::new();
        for arg in &node.args {
            match self.range_input(self.nodes.get(*arg)?, steps, inputs)? {
                Some(range) => input = Some(range),
                None => params.push(inputs.scalar()?),
            }
        }
        let (input, spec) = input.ok_or_else(|| super::wrong_type("range vector"))?;
        check_edges(node.function, spec.edges)?;
        let first_span = node.args.first().map_or(node.span, |arg| arg.span);
        let function = RangeFunction {
            function: node.function,
            kernel,
            input,
            spec,
            params,
            first_span,
        };
        Ok(Some(RowSource::Range(Box::new(function))))
    }
}

impl RangeFunction {
    /// How many series there are.
    pub(super) fn len(&self, shared: &Shared<'_>) -> usize {
        self.input.len(shared)
    }

    /// The row of series number `i`.
    pub(super) fn row(
        &self,
        shared: &Shared<'_>,
        i: usize,
        steps: Steps,
        scratch: &mut Scratch,
        annotations: &mut Annotations,
    ) -> Result<Option<Row>, QueryError> {
        let Scratch {
            buffer,
            found,
            reaches,
        } = scratch;
        let loaded = self.input.load(shared, i, (self.spec, steps), buffer)?;
        let Some((labels, name_gone, samples)) = loaded else {
            return Ok(None);
        };
        let keeps_name = matches!(
            self.function,
            FunctionId::LastOverTime | FunctionId::FirstOverTime
        );
        let mut work = shared.work();
        let mut row = Row::blank(labels, name_gone || !keeps_name, steps.count(), &mut work)?;
        let found = (found, reaches);
        self.slide(shared, samples, steps, found, (&mut row, &mut work), annotations)?;
        if matches!(self.function, FunctionId::Rate | FunctionId::Increase) {
            self.note_possible_non_counter(shared, &row, annotations);
        }
        Ok(Some(row))
    }

    /// Slides the window over one series.
    fn slide(
        &self,
        shared: &Shared<'_>,
        samples: Samples<'_>,
        steps: Steps,
        (found, reaches): (&mut Found, &mut Reaches),
        (row, work): (&mut Row, &mut Work<'_>),
        annotations: &mut Annotations,
    ) -> Result<(), QueryError> {
        let use_starts = shared.options.use_start_timestamps && starts_matter(self.function, samples);
        let samples = match use_starts {
            true => samples,
            false => without_starts(samples),
        };
        if !samples.runs.is_empty() {
            return self.slide_downsampled(shared, samples, steps, (row, work), annotations);
        }
        let plain = samples.ht.is_empty() && samples.st.is_empty() && self.spec.edges == RangeEdges::Plain;
        if let Some(kind) = RateKind::of(self.function)
            && plain
        {
            let (spec, found) = ((&self.spec, steps), (found, reaches));
            let (seen, widest) = rate_slide::slide_plain(samples, spec, kind, found, &mut row.values, work)?;
            shared.account.looked_at(seen);
            return shared.account.fits(widest);
        }
        if plain {
            let mut slide = Slide {
                samples,
                spec: &self.spec,
                steps,
                found,
            };
            let values = &mut row.values;
            if let Some((seen, widest)) = slide.function(self.function, &self.params, values, work)? {
                shared.account.looked_at(seen);
                self.note_invalid_quantiles(&row.values, annotations);
                return shared.account.fits(widest);
            }
        }
        let stretches = self.stretches(samples, steps);
        work.hold(stretches.as_ref().map_or(0, Stretches::bytes))?;
        let samples = Samples {
            stretches: stretches.as_ref(),
            ..samples
        };
        let labels = row.labels.clone();
        let mut slider = Slider::new(samples);
        let (mut seen, mut widest) = (0, 0);
        for i in 0..steps.count() {
            work.spend(1)?;
            let at = steps.at(i);
            let times = self.spec.at(at);
            let window = slider.advance(times.after, times.until);
            if window.is_empty() {
                continue;
            }
            let weight = window.weight();
            seen += weight;
            work.spend(weight / SAMPLES_PER_UNIT)?;
            // Some sort a copy of the window.
            work.hold(weight.saturating_sub(widest) * size_of::<f64>())?;
            widest = widest.max(weight);
            let mut info = StepInfo {
                at,
                start: times.start,
                end: times.end,
                range_ms: self.spec.range_ms,
                edges: self.spec.edges,
                params: std::array::from_fn(|p| self.params.get(p).map_or(f64::NAN, |s| s.at(i))),
                labels: &labels,
                span: self.spec.span,
                first_span: self.first_span,
                annotations,
                ctx: shared.ctx,
            };
            let point = (self.kernel)(window, &mut info)?;
            if let Point::Histogram(h) = &point {
                work.hold(of_histogram(h))?;
            }
            row.set(i, point);
        }
        shared.account.looked_at(seen);
        shared.account.fits(widest)
    }

    /// The same over a series of which something is downsampled: its windows are few, as what is kept of it is.
    fn slide_downsampled(
        &self,
        shared: &Shared<'_>,
        samples: Samples<'_>,
        steps: Steps,
        (row, work): (&mut Row, &mut Work<'_>),
        annotations: &mut Annotations,
    ) -> Result<(), QueryError> {
        let labels = row.labels.clone();
        let (mut seen, mut widest) = (0, 0);
        for i in 0..steps.count() {
            let at = steps.at(i);
            let times = self.spec.at(at);
            let window = samples.between(times.after, times.until);
            let weight = window.weight();
            seen += weight;
            work.spend(1 + weight / SAMPLES_PER_UNIT)?;
            work.hold(weight.saturating_sub(widest) * size_of::<f64>())?;
            widest = widest.max(weight);
            let mut info = StepInfo {
                at,
                start: times.start,
                end: times.end,
                range_ms: self.spec.range_ms,
                edges: self.spec.edges,
                params: std::array::from_fn(|p| self.params.get(p).map_or(f64::NAN, |s| s.at(i))),
                labels: &labels,
                span: self.spec.span,
                first_span: self.first_span,
                annotations,
                ctx: shared.ctx,
            };
            let point = downsampled::point(samples, self.function, self.kernel, shared.options, &mut info)?;
            let point = match point {
                Some(point) => point,
                None if window.is_empty() => continue,
                None => (self.kernel)(window, &mut info)?,
            };
            if let Point::Histogram(h) = &point {
                work.hold(of_histogram(h))?;
            }
            row.set(i, point);
        }
        shared.account.looked_at(seen);
        shared.account.fits(widest)
    }

    /// What helps to sum up all windows of a series, if they overlap so much that it pays.
    fn stretches(&self, samples: Samples<'_>, steps: Steps) -> Option<Stretches> {
        let overlap = steps.count() > 1 && self.spec.range_ms / steps.interval() >= OVERLAP_MIN;
        let sums = matches!(self.function, FunctionId::SumOverTime | FunctionId::AvgOverTime);
        (overlap && sums)
            .then(|| Stretches::of(samples.t, samples.v, self.spec.range_ms))
            .flatten()
    }

    /// Notes each `q` that is none, where there is a value.
    fn note_invalid_quantiles(&self, values: &[f64], annotations: &mut Annotations) {
        let [q] = &self.params[..] else { return };
        if self.function != FunctionId::QuantileOverTime {
            return;
        }
        let mut noted = None;
        for (i, _) in values.iter().enumerate().filter(|(_, v)| !super::is_absent(**v)) {
            let q = q.at(i);
            if !(0.0..=1.0).contains(&q) && noted != Some(q.to_bits()) {
                annotations.invalid_quantile(q, self.first_span);
                noted = Some(q.to_bits());
            }
        }
    }

    fn note_possible_non_counter(&self, shared: &Shared<'_>, row: &Row, annotations: &mut Annotations) {
        let name = row.metric_name();
        if name.is_empty() || row.values.iter().all(|&v| super::is_absent(v)) {
            return;
        }
        if shared.options.type_and_unit_labels {
            let kind = row.labels.get("__type__").unwrap_or("");
            if kind != "counter" && kind != "histogram" {
                annotations.possible_non_counter_type(name, kind, self.spec.span);
            }
        } else if !["_total", "_sum", "_count", "_bucket"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            annotations.possible_non_counter(name, self.spec.span);
        }
    }
}

/// Whether start timestamps make a difference.
fn starts_matter(function: FunctionId, samples: Samples<'_>) -> bool {
    use FunctionId as F;
    let counters = matches!(
        function,
        F::Rate | F::Increase | F::Delta | F::Irate | F::Idelta | F::Resets
    );
    counters || !samples.ht.is_empty()
}

fn without_starts(samples: Samples<'_>) -> Samples<'_> {
    Samples {
        st: &[],
        hst: &[],
        ..samples
    }
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
