//! Metadata of metrics: what was sent last of each, until nobody sends it any more.

use std::collections::BTreeMap;

use koios_model::{BatchColumns, METRIC_NAME, Matchers, Metadata, TimeRange};

use crate::head::Head;

/// What the metadata of one metric takes beside its texts, roughly.
const ENTRY_BYTES: usize = 200;

/// Most bytes that the metadata of a head may take: of some 50,000 metrics with texts as they mostly are. Senders choose names
/// and texts, and none of it counts against a limit of theirs.
const BYTES_MAX: usize = 16 << 20;

/// What is left when room is made, so that what looks through all of it is rare.
const BYTES_AFTER_ROOM: usize = BYTES_MAX / 8 * 7;

/// Metadata by metric name.
#[derive(Debug, Default)]
pub(crate) struct MetadataTable {
    metrics: BTreeMap<String, (i64, Metadata)>,
    bytes: usize,
}

impl MetadataTable {
    /// What it holds, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Of different metadata for one metric the later admitted stays; of equally late ones the greater.
    fn merge(&mut self, name: &str, metadata: &Metadata, admission_ms: i64) {
        match self.metrics.get_mut(name) {
            Some((at, held)) => {
                if (*at, &*held) < (admission_ms, metadata) {
                    self.bytes -= entry_bytes(name, held);
                    self.bytes += entry_bytes(name, metadata);
                    *at = admission_ms;
                    held.clone_from(metadata);
                }
            }
            None => {
                self.bytes += entry_bytes(name, metadata);
                self.metrics
                    .insert(name.to_owned(), (admission_ms, metadata.clone()));
            }
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&str, i64, &Metadata) -> bool) {
        let bytes = &mut self.bytes;
        self.metrics.retain(|name, (at, m)| {
            let keeps = keep(name, *at, m);
            if !keeps {
                *bytes -= entry_bytes(name, m);
            }
            keeps
        });
    }
}

fn entry_bytes(name: &str, metadata: &Metadata) -> usize {
    let Metadata { kind, help, unit } = metadata;
    ENTRY_BYTES + name.len() + kind.len() + help.len() + unit.len()
}

impl Head {
    /// Metadata by metric name, ascending, each with the admission time of the batch that brought it.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, i64, &Metadata)> {
        let metrics = self.metadata.metrics.iter();
        metrics.map(|(name, (at, m))| (name.as_str(), *at, m))
    }

    /// Drops metadata that was sent last before a time, of metrics of which no series is here: no block that is cut has a
    /// use for it. Gives of how many metrics it was.
    pub fn forget_metadata(&mut self, before_ms: i64) -> usize {
        // Taken out while it is looked through, for what is asked is a part of the head, too.
        let mut table = std::mem::take(&mut self.metadata);
        let before = table.metrics.len();
        table.retain(|name, at, m| at >= before_ms || self.has_series_of(name, &m.kind));
        let forgotten = before - table.metrics.len();
        self.metadata = table;
        forgotten
    }

    /// Takes the metadata of a batch. Gives of how many metrics it was that went for lack of room.
    pub(crate) fn merge_metadata(&mut self, batch: &BatchColumns, admission_ms: i64) -> u64 {
        for (name, metadata) in &batch.metadata {
            self.metadata.merge(name, metadata, admission_ms);
        }
        match self.metadata.bytes > BYTES_MAX {
            true => self.make_metadata_room(),
            false => 0,
        }
    }

    /// Drops metadata of metrics without series here, then of others, what was sent last longest ago first.
    fn make_metadata_room(&mut self) -> u64 {
        let of_entry = |(name, at, m): (&str, i64, &Metadata)| {
            let order = (self.has_series_of(name, &m.kind), at, name.to_owned());
            (order, entry_bytes(name, m))
        };
        let mut entries: Vec<_> = self.metadata().map(of_entry).collect();
        entries.sort_unstable();
        let mut dropped = 0;
        for ((_, _, name), bytes) in entries {
            if self.metadata.bytes <= BYTES_AFTER_ROOM {
                break;
            }
            self.metadata.metrics.remove(&name);
            self.metadata.bytes -= bytes;
            dropped += 1;
        }
        dropped
    }

    /// Drops what a deletion says is of no series any more.
    pub(crate) fn delete_metadata(&mut self, matchers: &Matchers, range: TimeRange) {
        self.metadata
            .retain(|name, at, m| at > range.max || !deletes_metric(matchers, name, &m.kind));
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
