//! Data points that are deltas: added up before they are translated.

use koios_model::{LabelsRef, SeriesHash, write_packed_bytes};

use super::super::delta::{Interval, Total};
use super::super::labels::Stop;
use super::super::point::{Number, Shape};
use super::super::{PointFault, native};
use super::{Metric, NAME, Translator};
use crate::remote_write::Sink;

/// Nanoseconds of a millisecond.
const NANOS: u64 = 1_000_000;

impl<'a, S: Sink<'a>> Translator<'a, '_, S> {
    /// Makes the current data point the total of its series. Where that starts anew, a zero is handed on first.
    pub(super) fn accumulate(&mut self, metric: &Metric<'a, '_>) -> Result<(), Stop> {
        // The total began before this interval did, and where it begins anew a zero says so.
        let start = std::mem::take(&mut self.point.start);
        // What will be refused for its time, or as no histogram, is no part of any total.
        if !self.context.accepted_ms.contains(&self.point.time_ms()) || !self.is_good_delta(metric.shape) {
            return Ok(());
        }
        let series = self.series_hash(metric.family);
        let Some((deltas, _)) = self.context.deltas else {
            return Err(PointFault::Temporality.into());
        };
        if self.point.is_stale() {
            deltas.end(series);
            return Ok(());
        }
        let interval = Interval {
            start,
            end: self.point.time,
        };
        let delta = self.delta(metric.shape)?;
        let added = deltas.add(series, interval, delta)?;
        let accepted = &self.context.accepted_ms;
        if let Some(zero_ms) = added.zero_ms.filter(|t| accepted.contains(t)) {
            self.set_total(added.total.zero());
            self.point.time = zero_ms.unsigned_abs().saturating_mul(NANOS);
            self.exemplars.clear();
            self.hand_on(metric)?;
            self.point.time = interval.end;
        }
        self.set_total(added.total);
        Ok(())
    }

    fn is_good_delta(&self, shape: Shape) -> bool {
        self.point.is_stale()
            || match shape {
                Shape::Exponential => matches!(native::exponential(&self.point.exponential), Ok(Ok(_))),
                Shape::Explicit if self.context.settings.convert_histograms_to_nhcb => {
                    native::custom(&self.point.explicit).is_ok()
                }
                Shape::Number | Shape::Explicit | Shape::Summary => true,
            }
    }

    fn series_hash(&mut self, family: &[u8]) -> u128 {
        let mut labels = self.base.labels().to_vec();
        labels.push((NAME, family));
        labels.sort_by_key(|(name, _)| *name);
        self.packed.clear();
        for (name, value) in labels {
            write_packed_bytes(&mut self.packed, name, value);
        }
        let packed = LabelsRef::from_trusted(&self.packed);
        self.context
            .deltas
            .map_or(0, |(_, seed)| SeriesHash::new(seed, packed).0)
    }

    fn delta(&self, shape: Shape) -> Result<Total, PointFault> {
        let finite = |sum: Option<f64>| sum.filter(|sum| sum.is_finite());
        match shape {
            Shape::Number if self.point.number.value().is_finite() => Ok(self.point.number.into()),
            Shape::Number => Err(PointFault::DeltaValue),
            Shape::Explicit => {
                let mut explicit = self.point.explicit.clone();
                explicit.sum = finite(explicit.sum);
                Ok(Total::Explicit(explicit))
            }
            Shape::Exponential => {
                let mut exponential = self.point.exponential.clone();
                exponential.sum = finite(exponential.sum);
                Ok(Total::Exponential(exponential))
            }
            Shape::Summary => Err(PointFault::Temporality),
        }
    }

    fn set_total(&mut self, total: Total) {
        match total {
            Total::Number(n, 0.0) => self.point.number = Number::Int(n),
            Total::Number(n, v) => self.point.number = Number::Double(n as f64 + v),
            Total::Explicit(explicit) => self.point.explicit = explicit,
            Total::Exponential(exponential) => self.point.exponential = exponential,
        }
    }
}
