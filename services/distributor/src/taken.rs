//! What was taken in of a request.

use std::collections::BTreeMap;

use koios_model::{METRIC_NAME, PartitionId, describe_labels};
use koios_tenancy::Limits;
use koios_wire::{influx, otlp};

use crate::Error;
use crate::intake::{Part, label_bytes_max};
use crate::metric_limit::MetricRoom;
use crate::pairs::PairsSeen;
use crate::points::PointCounts;
use crate::rejection::{Rejection, RejectionReport};

/// What a request came to.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) parts: BTreeMap<PartitionId, Part>,
    pub(crate) report: RejectionReport,
    /// Exemplars that were not taken.
    pub(crate) exemplars_dropped: u64,
    /// Data points of OTLP.
    pub(crate) points: PointCounts,
    /// What deltas changed of the tenant's totals.
    pub(crate) deltas: Option<otlp::Changes>,
    /// What it had to do with HA pairs.
    pub(crate) pairs: PairsSeen,
    /// The room that new series take of their metrics'.
    pub(crate) metric_room: Option<MetricRoom>,
    /// Series of which it cannot be told yet whether the tenant may have them.
    pub(crate) undecided: u64,
    /// Bytes that were asked for while it was taken in, beside the message's.
    pub(crate) asked_bytes: u64,
    /// What the request has too much of: it must be refused.
    pub(crate) exceeded: Option<Exceeded>,
}

impl Taken {
    /// With what the request had to do with HA pairs.
    pub(crate) fn with_pairs(self, pairs: PairsSeen) -> Self {
        Self { pairs, ..self }
    }

    /// What the columns occupy.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.values().map(|p| p.columns.memory_bytes() as u64).sum()
    }

    /// Adds what OTLP's translation said of its data points.
    pub(crate) fn add_report(&mut self, report: otlp::Report) {
        self.points.all += report.points;
        self.points.faulty += report.faults;
        if let Some((fault, metric)) = report.first {
            self.report.series += report.faults;
            self.report.add(Rejection::Point(fault), report.faults, || {
                describe_labels([(METRIC_NAME.as_bytes(), metric.as_bytes())])
            });
        }
    }

    /// Adds which lines of a text could not be read.
    pub(crate) fn add_lines(&mut self, report: influx::Report) {
        if let Some(first) = report.first {
            self.report.add_lines(report.lines, first);
        }
    }

    /// Exemplars that were taken.
    pub(crate) fn exemplars(&self) -> u64 {
        let exemplars = self.parts.values().map(|p| p.columns.exemplars.len());
        exemplars.sum::<usize>() as u64
    }

    /// Samples that were taken, histograms included.
    pub(crate) fn samples(&self) -> u64 {
        self.parts.values().map(|p| p.columns.sample_count() as u64).sum()
    }
}

/// A limit of a request that shows only as it is taken in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Exceeded {
    /// The bytes that may be held, which this says.
    Held(Error),
    /// That on all labels together, which had come to so many bytes.
    LabelBytes(u64),
    /// That on its series.
    Series,
}

impl Exceeded {
    /// Why the request is refused.
    pub(crate) fn into_error(self, limits: &Limits) -> Error {
        match self {
            Self::Held(error) => error,
            Self::LabelBytes(bytes) => Error::LabelBytes {
                bytes,
                limit: label_bytes_max(limits),
            },
            Self::Series => Error::TooManySeries {
                limit: limits.max_series_per_request,
            },
        }
    }
}
