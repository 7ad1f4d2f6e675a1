//! What of a tenant's blocks is past its retention.

use koios_bucket::{Manifest, ManifestBlock};

use crate::compact::CompactionSettings;
use crate::compact::settings::millis;

/// From which time on samples are kept, by class of series, as of one version of a manifest. What is past that may be removed.
#[derive(Clone, Debug)]
pub(crate) struct Horizon<'s> {
    settings: &'s CompactionSettings,
    now_ms: i64,
    /// Names of the classes; the last one is the rest.
    classes: Vec<u64>,
    /// By class; `None` for ever, and while a policy is too new for anything to be removed.
    kept_from: Vec<Option<i64>>,
    is_settled: bool,
}

impl<'s> Horizon<'s> {
    /// As of `now_ms`, or as of what readers leave out already.
    pub(crate) fn of(manifest: &Manifest, now_ms: i64, settings: &'s CompactionSettings) -> Self {
        let record = manifest.retention.as_ref();
        let masking = record.filter(|r| r.policy.masks());
        // What readers still see is not removed.
        let now_ms = masking.map_or(now_ms, |r| r.horizon_ms.min(now_ms));
        let is_settled = is_settled(manifest, now_ms, settings);
        let from = |kept_ms: Option<i64>| kept_ms.map(|kept| now_ms.saturating_sub(kept));
        let rules = record.into_iter().flat_map(|r| &r.policy.rules);
        let all = rules.map(|rule| from(rule.kept_ms));
        let all = all.chain(std::iter::once(from(settings.retention_ms())));
        Self {
            settings,
            now_ms,
            classes: record.map_or_else(|| vec![0], |r| r.classes.clone()),
            kept_from: all.map(|from| from.filter(|_| is_settled)).collect(),
            is_settled,
        }
    }

    /// As of when.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now_ms
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
        let all_summaries = resolution_ms != 0
            && self.is_settled
            && self
                .settings
                .is_past_its_retention(resolution_ms, block.window, self.now_ms);
        all_summaries || self.left_in(block).all(|class| self.is_past(class, block))
    }

    /// Whether a block has samples that no rule speaks of, which are older than they are kept.
    pub(crate) fn is_rest_old(&self, block: &ManifestBlock) -> bool {
        self.left_in(block).any(|class| class == self.rest()) && self.is_past(self.rest(), block)
    }
}

/// Whether what is past its retention may be removed: a policy that came lately can be taken back, as a deletion can.
pub(crate) fn is_settled(manifest: &Manifest, now_ms: i64, settings: &CompactionSettings) -> bool {
    let record = manifest.retention.as_ref();
    record.is_none_or(|r| now_ms.saturating_sub(r.since_ms) >= millis(settings.undelete_window))
}
