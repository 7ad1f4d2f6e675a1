//! What a request came to.

use crate::metrics::DistributorMetrics;
use crate::replicate::Acknowledged;
use crate::{Error, RejectionReport};

/// What was written of a request, and what was not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Samples that a majority has synced.
    pub samples_written: u64,
    /// Exemplars that were dropped.
    pub exemplars_dropped: u64,
    /// What was rejected.
    pub rejected: RejectionReport,
    /// A sample had another value at its timestamp already, in words.
    pub conflict: Option<String>,
}

impl Outcome {
    /// The sentence for the sender, when not everything was written as sent.
    pub fn complaint(&self) -> Option<String> {
        self.rejected
            .message(self.samples_written)
            .or_else(|| self.conflict.clone())
    }
}

/// A failed request and what was written of it nevertheless.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) samples_written: u64,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            samples_written: 0,
        }
    }
}

impl Outcome {
    /// Adds an acknowledged part of `samples` samples.
    pub(crate) fn add(&mut self, samples: u64, acknowledged: &Acknowledged, metrics: &DistributorMetrics) {
        let conflicts = acknowledged.conflicts.min(samples);
        metrics.conflicts.inc_by(conflicts);
        self.samples_written += samples - conflicts;
        if acknowledged.conflicts > 0 && self.conflict.is_none() {
            self.conflict = Some(conflict_message(acknowledged));
        }
    }
}

fn conflict_message(acknowledged: &Acknowledged) -> String {
    const START: &str = "duplicate sample for timestamp";
    let told = &acknowledged.conflict;
    if told.starts_with(START) {
        told.clone()
    } else {
        format!(
            "{START}: {} samples have another value already, one is kept for each; {told}",
            acknowledged.conflicts
        )
    }
}
