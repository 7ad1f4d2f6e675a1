//! What a metric says before its data points.

use super::super::OtlpError;
use super::super::names::Suffix;
use super::super::point::Shape;
use crate::protobuf::{BYTES, Reader, VARINT};

/// Temporalities.
pub(super) const DELTA: u64 = 1;
pub(super) const CUMULATIVE: u64 = 2;

pub(super) const GAUGE: u32 = 5;
const SUM: u32 = 7;
const HISTOGRAM: u32 = 9;
const EXPONENTIAL_HISTOGRAM: u32 = 10;
const SUMMARY: u32 = 11;

/// A metric before its data points.
#[derive(Default)]
pub(super) struct MetricHead<'a> {
    pub(super) name: &'a [u8],
    pub(super) description: &'a [u8],
    pub(super) unit: &'a [u8],
    /// The number of the field that holds its data.
    pub(super) kind: u32,
    pub(super) data: Option<Reader<'a>>,
    pub(super) temporality: u64,
    pub(super) monotonic: bool,
    pub(super) points: usize,
}

impl<'a> MetricHead<'a> {
    /// Fields may come in any order, so the data points are left for later.
    pub(super) fn read(mut message: Reader<'a>) -> Result<Self, OtlpError> {
        let mut head = Self::default();
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1..=3 | GAUGE | SUM | HISTOGRAM | EXPONENTIAL_HISTOGRAM | SUMMARY => tag.expect(BYTES)?,
                _ => {}
            }
            match tag.field {
                1 => head.name = message.bytes()?,
                2 => head.description = message.bytes()?,
                3 => head.unit = message.bytes()?,
                kind @ (GAUGE | SUM | HISTOGRAM | EXPONENTIAL_HISTOGRAM | SUMMARY) => {
                    head.kind = kind;
                    head.data = Some(message.message()?);
                }
                _ => message.skip(tag)?,
            }
        }
        let Some(mut data) = head.data else {
            return Ok(head);
        };
        while !data.done() {
            let tag = data.tag()?;
            match tag.field {
                1 => {
                    tag.expect(BYTES)?;
                    data.bytes()?;
                    head.points += 1;
                }
                2 => {
                    tag.expect(VARINT)?;
                    head.temporality = data.varint()?;
                }
                3 => {
                    tag.expect(VARINT)?;
                    head.monotonic = data.varint()? != 0;
                }
                _ => data.skip(tag)?,
            }
        }
        Ok(head)
    }

    pub(super) fn shape(&self) -> Option<Shape> {
        match self.kind {
            GAUGE | SUM => Some(Shape::Number),
            HISTOGRAM => Some(Shape::Explicit),
            EXPONENTIAL_HISTOGRAM => Some(Shape::Exponential),
            SUMMARY => Some(Shape::Summary),
            _ => None,
        }
    }

    pub(super) fn has_temporality(&self) -> bool {
        matches!(self.kind, SUM | HISTOGRAM | EXPONENTIAL_HISTOGRAM)
    }

    /// Whether totals only grow, as those of histograms do.
    pub(super) fn only_grows(&self) -> bool {
        self.kind != SUM || self.monotonic
    }

    pub(super) fn suffix(&self) -> Suffix {
        match self.kind {
            SUM if self.monotonic => Suffix::Total,
            GAUGE => Suffix::Gauge,
            _ => Suffix::Other,
        }
    }

    /// The type in Prometheus' words. What comes as deltas is cumulative when it is kept.
    pub(super) fn kind_word(&self) -> &'static str {
        match self.kind {
            SUM if self.monotonic => "counter",
            GAUGE | SUM => "gauge",
            SUMMARY => "summary",
            _ => "histogram",
        }
    }
}
