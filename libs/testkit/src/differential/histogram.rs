//! Native histograms as the query API shows them.

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
    /// Each bucket that is not empty, ascending.
    buckets: Vec<Bucket>,
}

#[derive(Clone, Debug, PartialEq)]
struct Bucket {
    /// Which bounds belong to it, as the API numbers it: 0 the upper, 1 the lower, 2 none, 3 both.
    bounds: u8,
    lower: f64,
    upper: f64,
    count: f64,
}

impl Bucket {
    fn close(&self, other: &Self) -> bool {
        self.bounds == other.bounds
            && close(self.lower, other.lower)
            && close(self.upper, other.upper)
            && close(self.count, other.count)
    }
}

impl HistogramValue {
    pub(super) fn from_json(json: &serde_json::Value) -> Result<Self> {
        let buckets = json["buckets"].as_array().into_iter().flatten().map(|bucket| {
            let field = |i: usize| bucket.get(i).context("bucket").and_then(number);
            Ok(Bucket {
                bounds: bucket[0].as_u64().context("bounds")?.try_into()?,
                lower: field(1)?,
                upper: field(2)?,
                count: field(3)?,
            })
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
                .map(|bucket| Bucket {
                    count: bucket.count * factor,
                    ..*bucket
                })
                .collect(),
        }
    }

    /// Whether the other is the same in smaller buckets, the zero bucket included.
    pub(super) fn is_refined_by(&self, other: &Self) -> bool {
        let within = |bucket: &Bucket| -> f64 {
            let finer = other.buckets.iter();
            let finer = finer.filter(|b| bucket.lower <= b.lower && b.upper <= bucket.upper);
            finer.map(|b| b.count).sum()
        };
        close(self.count, other.count)
            && close(self.sum, other.sum)
            && self.buckets.len() <= other.buckets.len()
            && self
                .buckets
                .iter()
                .all(|bucket| close(bucket.count, within(bucket)))
    }

    /// Whether both differ by rounding at most.
    pub(super) fn close(&self, other: &Self) -> bool {
        close(self.count, other.count)
            && close(self.sum, other.sum)
            && self.buckets.len() == other.buckets.len()
            && self.buckets.iter().zip(&other.buckets).all(|(a, b)| a.close(b))
    }
}

impl From<&Histogram> for HistogramValue {
    fn from(h: &Histogram) -> Self {
        let populated = buckets(h).into_iter().filter(|b| b.count != 0.0);
        Self {
            count: h.count,
            sum: h.sum,
            buckets: populated
                .map(|b| Bucket {
                    bounds: match (b.lower_inclusive, b.upper_inclusive) {
                        (false, true) => 0,
                        (true, false) => 1,
                        (false, false) => 2,
                        (true, true) => 3,
                    },
                    lower: b.lower,
                    upper: b.upper,
                    count: b.count,
                })
                .collect(),
        }
    }
}

impl fmt::Display for HistogramValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{count:{} sum:{}", self.count, self.sum)?;
        for bucket in &self.buckets {
            let (open, close) = match bucket.bounds {
                0 => ('(', ']'),
                1 => ('[', ')'),
                2 => ('(', ')'),
                _ => ('[', ']'),
            };
            write!(
                f,
                " {open}{},{}{close}:{}",
                bucket.lower, bucket.upper, bucket.count
            )?;
        }
        f.write_str("}")
    }
}
