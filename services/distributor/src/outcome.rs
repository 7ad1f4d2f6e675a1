//! What a request came to.

use koios_model::BatchColumns;

use crate::metrics::DistributorMetrics;
use crate::points::PointCounts;
use crate::replicate::Acknowledged;
use crate::{Error, RejectionReport};

/// How much of what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Floats.
    pub samples: u64,
    /// Native histograms.
    pub histograms: u64,
    /// Exemplars.
    pub exemplars: u64,
}

impl Written {
    /// What a batch carries.
    pub(crate) fn of(columns: &BatchColumns) -> Self {
        Self {
            samples: columns.timestamps.len() as u64,
            histograms: columns.histograms.len() as u64,
            exemplars: columns.exemplars.len() as u64,
        }
    }

    /// Samples of both kinds.
    pub(crate) fn all_samples(&self) -> u64 {
        self.samples + self.histograms
    }
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.histograms += other.histograms;
        self.exemplars += other.exemplars;
    }
}

/// What was written of a request, and what was not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// What a majority has synced.
    pub written: Written,
    /// Exemplars that were dropped.
    pub exemplars_dropped: u64,
    /// Data points of OTLP.
    pub(crate) points: PointCounts,
    /// What was dropped because another replica of its HA pair is elected.
    pub deduplicated: Written,
    /// Samples whose time had another value already.
    pub conflicts: u64,
    /// Those of them that are not kept.
    pub(crate) conflicts_lost: u64,
    /// What was rejected.
    pub rejected: RejectionReport,
    /// A sample had another value at its timestamp already, in words.
    pub conflict: Option<String>,
    /// Series of which it cannot be told yet whether the tenant may have them.
    pub(crate) undecided: u64,
    /// The newest version of the control state that an ingester spoke of.
    pub(crate) state_version: u64,
}

impl Outcome {
    /// Whether there was nothing to write, because another replica of an HA pair is elected.
    pub fn is_deduplicated(&self) -> bool {
        self.deduplicated != Written::default() && self.written == Written::default()
    }

    /// What the sender is told of. What is dropped because another replica is elected is as good as written: Prometheus takes fewer
    /// than it sent for a failure, so that each healthy standby would count failures and log errors.
    pub fn confirmed(&self) -> Written {
        let mut confirmed = self.written;
        confirmed += self.deduplicated;
        confirmed
    }

    /// The sentence for the sender, when not everything was written as sent.
    pub fn complaint(&self) -> Option<String> {
        self.rejected
            .message(self.written.all_samples())
            .or_else(|| self.conflict.clone())
    }
}

/// A failed request and what was written of it nevertheless.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) written: Written,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            written: Written::default(),
        }
    }
}

impl Outcome {
    /// Adds an acknowledged part. What is not kept in a conflict does not count as written. Of conflicts that no member told
    /// the kind of, floats come first.
    pub(crate) fn add(&mut self, acknowledged: Acknowledged, metrics: &DistributorMetrics) {
        let part = acknowledged.written;
        let conflicts = acknowledged.conflicts.min(part.samples + part.histograms);
        metrics.conflicts.inc_by(conflicts);
        let of_histograms = acknowledged.histogram_conflicts.min(conflicts);
        let of_floats = (conflicts - of_histograms).min(part.samples);
        let kept_histograms = acknowledged.histogram_conflicts_kept;
        let kept_floats = acknowledged.conflicts_kept.saturating_sub(kept_histograms);
        let lost_floats = of_floats.saturating_sub(kept_floats);
        let lost_histograms = (conflicts - of_floats).saturating_sub(kept_histograms);
        let lost_histograms = lost_histograms.min(part.histograms);
        self.written.samples += part.samples - lost_floats;
        self.written.histograms += part.histograms - lost_histograms;
        self.conflicts_lost += lost_floats + lost_histograms;
        self.written.exemplars += part.exemplars;
        self.conflicts += conflicts;
        self.state_version = self.state_version.max(acknowledged.state_version);
        if acknowledged.conflicts > 0 && self.conflict.is_none() {
            self.conflict = Some(conflict_message(&acknowledged));
        }
        self.undecided += acknowledged.taken_out.undecided;
        self.exemplars_dropped += acknowledged.taken_out.exemplars;
        self.points.refused.extend(acknowledged.taken_out.points);
        self.rejected.merge(acknowledged.taken_out.report);
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

#[cfg(test)]
mod tests {
    use koios_server::Metrics;

    use super::*;

    #[test]
    fn conflicts_are_taken_from_what_was_written_of_their_kind() {
        // Floats, histograms, conflicts and those of histograms, of these how many are kept; floats and histograms that were
        // written.
        for (floats, histograms, (all, of_histograms), kept, written) in [
            (1, 1, (1, 1), (0, 0), (1, 0)),
            (1, 1, (1, 0), (0, 0), (0, 1)),
            (3, 4, (5, 3), (0, 0), (1, 1)),
            (2, 2, (0, 0), (0, 0), (2, 2)),
            (3, 4, (5, 3), (3, 2), (2, 3)),
            (1, 0, (1, 0), (1, 0), (1, 0)),
            // Members of older versions do not tell.
            (1, 2, (2, 0), (0, 0), (0, 1)),
            // More than came.
            (1, 1, (9, 9), (0, 0), (1, 0)),
            (1, 1, (1, 1), (9, 9), (1, 1)),
        ] {
            let mut outcome = Outcome::default();
            let part = Acknowledged {
                conflicts: all,
                histogram_conflicts: of_histograms,
                conflicts_kept: kept.0,
                histogram_conflicts_kept: kept.1,
                written: Written {
                    samples: floats,
                    histograms,
                    exemplars: 0,
                },
                ..Acknowledged::default()
            };
            outcome.add(part, &DistributorMetrics::new(&Metrics::default()));
            let told = (outcome.written.samples, outcome.written.histograms);
            assert_eq!(
                told, written,
                "{floats} {histograms} {all} {of_histograms} {kept:?}"
            );
        }
    }
}
