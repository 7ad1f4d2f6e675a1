//! Data points that are deltas: added up before they are translated.

use std::sync::Arc;

use koios_model::{LabelsRef, SeriesHash, write_packed_bytes};

use super::super::delta::{Added, Interval, Place, Total};
use super::super::labels::Stop;
use super::super::point::{Number, Shape, millis};
use super::super::{PointFault, native};
use super::identity::Identity;
use super::{Metric, NAME, Translator};
use crate::remote_write::Sink;

/// Nanoseconds of a millisecond.
const NANOS: i64 = 1_000_000;

/// What the deltas of a metric have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaMetric {
    /// Of their streams.
    pub(super) identity: Identity,
    /// Whether their totals only grow.
    pub(super) monotonic: bool,
}

impl<'a, S: Sink<'a>> Translator<'a, '_, S> {
    /// Makes the current data point the total of its series. Where that starts anew, a zero is handed on first. Tells
    /// whether there is anything else to hand on.
    pub(super) fn accumulate(&mut self, metric: &Metric<'a, '_>, of: DeltaMetric) -> Result<bool, Stop> {
        let interval = Interval {
            start: std::mem::take(&mut self.point.start),
            end: self.point.time,
        };
        // What will be refused for its time, the size of its labels, or as no histogram, is no part of any total.
        let labels = self.base.labels().iter();
        let label_bytes = labels
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        if label_bytes > self.context.label_bytes {
            return Ok(true);
        }
        if !self.context.accepted_ms.contains(&self.point.time_ms()) || !self.is_good_delta(metric.shape) {
            return Ok(true);
        }
        let Some((deltas, seed)) = self.context.deltas else {
            return Err(PointFault::Temporality.into());
        };
        let place = Place {
            series: self.series_hash(metric.family)?,
            stream: of.identity.with_attributes(&self.point.attributes, seed).0,
            monotonic: of.monotonic,
            point: self.point_number(),
        };
        // Times are in nanoseconds until they are handed on.
        let latest_ms = millis(i64::MAX.cast_unsigned()).min(*self.context.accepted_ms.end());
        if self.point.is_stale() {
            return match deltas.end(place, interval, latest_ms) {
                Ok(Some(t_ms)) => {
                    self.point.time = nanos(t_ms);
                    Ok(true)
                }
                Ok(None) => Ok(false),
                // That it ends needs no room.
                Err(PointFault::DeltaRoom) => Ok(true),
                Err(fault) => Err(fault.into()),
            };
        }
        let delta = self.delta(metric.shape)?;
        let added = deltas.add(place, interval, &delta, latest_ms)?;
        self.hand_on_zero(metric, &added)?;
        self.point.start = nanos(added.start_ms);
        self.point.time = nanos(added.t_ms);
        self.set_total(added.total);
        Ok(true)
    }

    /// Samples come with their start, from which queries count; but downsampled blocks do not keep it, and other readers do
    /// not know it. To them only a zero shows that a total began anew, and that its first sample counts as a whole. What is
    /// not monotonic is read as it is, and would seem to have dropped to it.
    fn hand_on_zero(&mut self, metric: &Metric<'a, '_>, added: &Added) -> Result<(), Stop> {
        let accepted = &self.context.accepted_ms;
        let Some(zero_ms) = added.zero_ms.filter(|t| accepted.contains(t)) else {
            return Ok(());
        };
        self.set_total(added.total.zero());
        self.point.start = nanos(added.start_ms);
        self.point.time = nanos(zero_ms);
        self.exemplars.clear();
        self.hand_on(metric)
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

    /// Data points that name no labels may have long ones, of their resource: of all together no more is read than series
    /// may be handed on with.
    fn series_hash(&mut self, family: &[u8]) -> Result<u128, Stop> {
        let mut labels = self.base.labels().to_vec();
        labels.push((NAME, family));
        labels.sort_by_key(|(name, _)| *name);
        self.packed.clear();
        for (name, value) in labels {
            write_packed_bytes(&mut self.packed, name, value);
        }
        let full = self.context.strings.full();
        self.hashed_bytes = self.hashed_bytes.saturating_add(self.packed.len());
        if self.hashed_bytes > full.limit {
            return Err(full.into());
        }
        let packed = LabelsRef::from_trusted(&self.packed);
        let deltas = self.context.deltas;
        Ok(deltas.map_or(0, |(_, seed)| SeriesHash::new(seed, packed).0))
    }

    fn delta(&self, shape: Shape) -> Result<Total, PointFault> {
        let finite = |sum: Option<f64>| sum.filter(|sum| sum.is_finite());
        match shape {
            Shape::Number if self.point.number.value().is_finite() => Ok(self.point.number.into()),
            Shape::Number => Err(PointFault::DeltaValue),
            Shape::Explicit => {
                let mut explicit = self.point.explicit.clone();
                explicit.sum = finite(explicit.sum);
                Ok(Total::Explicit(Arc::new(explicit)))
            }
            Shape::Exponential => {
                let mut exponential = self.point.exponential.clone();
                exponential.sum = finite(exponential.sum);
                Ok(Total::Exponential(Arc::new(exponential)))
            }
            Shape::Summary => Err(PointFault::Temporality),
        }
    }

    fn set_total(&mut self, total: Total) {
        match total {
            Total::Number(n, 0.0) => self.point.number = Number::Int(n),
            Total::Number(n, v) => self.point.number = Number::Double(n as f64 + v),
            Total::Explicit(explicit) => self.point.explicit = Arc::unwrap_or_clone(explicit),
            Total::Exponential(exponential) => self.point.exponential = Arc::unwrap_or_clone(exponential),
        }
    }
}

/// From milliseconds, both since the Unix epoch.
fn nanos(millis: i64) -> u64 {
    millis.saturating_mul(NANOS).cast_unsigned()
}
