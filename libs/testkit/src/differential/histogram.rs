//! Native histograms as the query API shows them, and as remote write 1.0 carries them.

use std::fmt;

use anyhow::{Context, Result};
use koios_model::Histogram;
use koios_promql::histogram::buckets;

use super::answer::{close, number};

/// A histogram as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramValue {
    count: f64,
    sum: f64,
    /// Lower bound, upper bound and count of each bucket that is not empty, ascending.
    buckets: Vec<(f64, f64, f64)>,
}

impl HistogramValue {
    pub(super) fn from_json(json: &serde_json::Value) -> Result<Self> {
        let buckets = json["buckets"].as_array().into_iter().flatten().map(|bucket| {
            let field = |i: usize| bucket.get(i).context("bucket").and_then(number);
            Ok((field(1)?, field(2)?, field(3)?))
        });
        Ok(Self {
            count: number(&json["count"])?,
            sum: number(&json["sum"])?,
            buckets: buckets.collect::<Result<_>>()?,
        })
    }

    /// How many observations it has.
    pub(super) fn count(&self) -> f64 {
        self.count
    }

    /// With all counts so many times as large.
    pub(super) fn scaled(&self, factor: f64) -> Self {
        Self {
            count: self.count * factor,
            sum: self.sum * factor,
            buckets: self
                .buckets
                .iter()
                .map(|(l, u, count)| (*l, *u, count * factor))
                .collect(),
        }
    }

    /// Whether both differ by rounding at most.
    pub(super) fn close(&self, other: &Self) -> bool {
        close(self.count, other.count)
            && close(self.sum, other.sum)
            && self.buckets.len() == other.buckets.len()
            && self
                .buckets
                .iter()
                .zip(&other.buckets)
                .all(|(a, b)| close(a.0, b.0) && close(a.1, b.1) && close(a.2, b.2))
    }
}

impl From<&Histogram> for HistogramValue {
    fn from(h: &Histogram) -> Self {
        let populated = buckets(h).into_iter().filter(|b| b.count != 0.0);
        Self {
            count: h.count,
            sum: h.sum,
            buckets: populated.map(|b| (b.lower, b.upper, b.count)).collect(),
        }
    }
}

impl fmt::Display for HistogramValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{count:{} sum:{}", self.count, self.sum)?;
        for (lower, upper, count) in &self.buckets {
            write!(f, " [{lower},{upper}]:{count}")?;
        }
        f.write_str("}")
    }
}
