//! Metadata of metrics: what was sent last of each, until nobody sends it any more.

use koios_model::{BatchColumns, METRIC_NAME, Matchers, Metadata, TimeRange};

use crate::head::Head;

impl Head {
    /// Metadata by metric name, ascending, each with the admission time of the batch that brought it.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, i64, &Metadata)> {
        self.metadata
            .iter()
            .map(|(name, (at, m))| (name.as_str(), *at, m))
    }

    /// Drops metadata that was sent last before a time, of metrics of which no series is here: no block that is cut has a
    /// use for it. Gives of how many metrics it was.
    pub fn forget_metadata(&mut self, before_ms: i64) -> usize {
        let is_old = |at: i64| at < before_ms;
        let forgotten: Vec<String> = self
            .metadata
            .iter()
            .filter(|(name, (at, m))| is_old(*at) && !self.has_series_of(name, &m.kind))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &forgotten {
            self.metadata.remove(name);
        }
        forgotten.len()
    }

    /// Of different metadata for one metric the later admitted stays; of equally late ones the greater.
    pub(crate) fn merge_metadata(&mut self, batch: &BatchColumns, admission_ms: i64) {
        for (name, metadata) in &batch.metadata {
            match self.metadata.get_mut(name) {
                Some((at, held)) => {
                    if (*at, &*held) < (admission_ms, metadata) {
                        *at = admission_ms;
                        held.clone_from(metadata);
                    }
                }
                None => {
                    self.metadata
                        .insert(name.clone(), (admission_ms, metadata.clone()));
                }
            }
        }
    }

    /// Drops what a deletion says is of no series any more.
    pub(crate) fn delete_metadata(&mut self, matchers: &Matchers, range: TimeRange) {
        self.metadata
            .retain(|name, (at, m)| *at > range.max || !deletes_metric(matchers, name, &m.kind));
    }

    fn has_series_of(&self, metric: &str, kind: &str) -> bool {
        let suffixes: &[&str] = match kind {
            "histogram" => &["", "_bucket", "_count", "_sum"],
            "gaugehistogram" => &["", "_bucket", "_gcount", "_gsum"],
            "summary" => &["", "_count", "_sum"],
            "counter" => &["", "_total"],
            "info" => &["", "_info"],
            _ => &[""],
        };
        let has_series = |suffix: &&str| self.has_label(METRIC_NAME, &format!("{metric}{suffix}"));
        suffixes.iter().any(has_series)
    }
}

/// Whether every series of a metric matches, whatever other labels it has. Its metadata may be in another partition than its
/// series are, so that none of them may be where that is.
pub fn deletes_metric(matchers: &Matchers, metric: &str, kind: &str) -> bool {
    let match_named = |suffix: &str| {
        let name = format!("{metric}{suffix}");
        matchers.iter().all(|m| match m.name() {
            METRIC_NAME => m.matches(&name),
            _ => m.matches_empty() && m.matches_all_but_empty(),
        })
    };
    match kind {
        "histogram" => match_named("") || ["_bucket", "_count", "_sum"].into_iter().all(match_named),
        "gaugehistogram" => match_named("") || ["_bucket", "_gcount", "_gsum"].into_iter().all(match_named),
        "summary" => ["", "_count", "_sum"].into_iter().all(match_named),
        "counter" => match_named("") || match_named("_total"),
        "info" => match_named("") || match_named("_info"),
        _ => match_named(""),
    }
}
