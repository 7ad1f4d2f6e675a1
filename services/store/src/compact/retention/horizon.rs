//! What of a tenant's blocks is past its retention.

use koios_bucket::{Manifest, ManifestBlock, RetentionRecord, SummaryRetention};
use koios_model::TimeRange;

use crate::compact::CompactionSettings;
use crate::compact::settings::millis;

/// From which time on samples are kept, by class of series, as one version of a manifest notes it. What is past that may be removed.
#[derive(Clone, Debug)]
pub(crate) struct Horizon {
    now_ms: i64,
    /// Names of the classes; the last one is the rest.
    classes: Vec<u64>,
    /// By class; `None` for ever, and while the policy is too new for anything to be removed.
    kept_from: Vec<Option<i64>>,
    /// Summaries of which some may be removed.
    summaries: Vec<SummaryRetention>,
}

impl Horizon {
    /// As of what the manifest notes, but never after `now_ms`. Without a note nothing is past.
    pub(crate) fn of(manifest: &Manifest, now_ms: i64, settings: &CompactionSettings) -> Self {
        let Some(record) = &manifest.retention else {
            return Self {
                now_ms,
                classes: vec![0],
                kept_from: vec![None],
                summaries: Vec::new(),
            };
        };
        // What readers still see is not removed.
        let now_ms = record.horizon_ms.min(now_ms);
        let is_settled = is_settled(record, now_ms, settings);
        let policy = &record.policy;
        let kept = policy.rules.iter().map(|rule| rule.kept_ms);
        let kept = kept.chain(std::iter::once(policy.samples_ms));
        let from = |kept_ms: Option<i64>| kept_ms.map(|kept| now_ms.saturating_sub(kept));
        let summaries = policy.summaries.iter().filter(|_| is_settled);
        Self {
            now_ms,
            classes: record.classes.clone(),
            kept_from: kept.map(|kept| from(kept).filter(|_| is_settled)).collect(),
            summaries: summaries.copied().collect(),
        }
    }

    /// Whether all summaries of a window are older than summaries of their resolution are kept.
    pub(crate) fn are_summaries_past(&self, resolution_ms: i64, window: TimeRange) -> bool {
        let of = self.summaries.iter().find(|s| s.resolution_ms == resolution_ms);
        let kept_ms = of.and_then(|s| s.kept_ms);
        kept_ms.is_some_and(|kept| window.max < self.now_ms.saturating_sub(kept))
    }

    /// How many classes there are.
    pub(crate) fn count(&self) -> usize {
        self.kept_from.len()
    }

    /// The class of series that no rule matches.
    pub(crate) fn rest(&self) -> usize {
        self.count().saturating_sub(1)
    }

    /// The name of a class.
    pub(crate) fn name(&self, class: usize) -> u64 {
        self.classes.get(class).copied().unwrap_or(0)
    }

    /// From which time on samples of a class are kept.
    pub(crate) fn kept_from(&self, class: usize) -> Option<i64> {
        self.kept_from.get(class).copied().flatten()
    }

    /// The classes of which a block may have series.
    pub(crate) fn left_in<'a>(&'a self, block: &'a ManifestBlock) -> impl Iterator<Item = usize> + 'a {
        (0..self.count()).filter(|class| !block.lacks.contains(&self.name(*class)))
    }

    /// Whether all that a block has of a class may go.
    pub(crate) fn is_past(&self, class: usize, block: &ManifestBlock) -> bool {
        // Summaries of the rest have a retention of their own, and go with their block.
        let is_rest_of_summaries = block.resolution_ms != 0 && class == self.rest();
        !is_rest_of_summaries && self.kept_from(class).is_some_and(|from| block.range.max < from)
    }

    /// Whether nothing of a block is to be kept.
    pub(crate) fn is_expired(&self, block: &ManifestBlock) -> bool {
        let resolution_ms = block.resolution_ms;
        let all_summaries = resolution_ms != 0 && self.are_summaries_past(resolution_ms, block.window);
        all_summaries || self.left_in(block).all(|class| self.is_past(class, block))
    }

    /// Whether a block has samples that no rule speaks of, which are older than they are kept.
    pub(crate) fn is_rest_old(&self, block: &ManifestBlock) -> bool {
        self.left_in(block).any(|class| class == self.rest()) && self.is_past(self.rest(), block)
    }
}

/// Whether what is past its retention may be removed: the policy that is noted is the one in force, and has been for as long as a deletion
/// may be taken back.
pub(crate) fn is_settled(record: &RetentionRecord, now_ms: i64, settings: &CompactionSettings) -> bool {
    settings.policy.as_deref() == Some(&record.policy)
        && now_ms.saturating_sub(record.since_ms) >= millis(settings.undelete_window)
}
