//! Metadata of metrics: what was sent last of each, until nobody sends it any more.

use std::collections::BTreeMap;

use koios_model::{BatchColumns, METRIC_NAME, Matchers, Metadata, TimeRange};

use crate::head::Head;

/// What the metadata of one metric takes beside its texts, roughly, here and in JSON.
const ENTRY_BYTES: usize = 200;

/// Most bytes that the metadata of a head may take: of some 50,000 metrics with texts as they mostly are. Senders choose names
/// and texts, and none of it counts against a limit of theirs.
const BYTES_MAX: usize = 16 << 20;

/// What is left when room is made, so that what looks through all of it is rare: the log waits for it.
const BYTES_AFTER_ROOM: usize = BYTES_MAX / 2;

/// Metadata by metric name.
#[derive(Debug, Default)]
pub(crate) struct MetadataTable {
    metrics: BTreeMap<String, Held>,
    bytes: usize,
}

/// The metadata of one metric.
#[derive(Debug)]
struct Held {
    /// When the batch that brought it was admitted.
    admission_ms: i64,
    /// What it counts for.
    bytes: usize,
    metadata: Metadata,
}

impl MetadataTable {
    /// What it holds, in bytes: as JSON has it, which is what every segment of the log begins with, and no less than it takes
    /// here.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Of different metadata for one metric the later admitted stays; of equally late ones the greater.
    fn merge(&mut self, name: &str, metadata: &Metadata, admission_ms: i64) {
        match self.metrics.get_mut(name) {
            Some(held) => {
                if (held.admission_ms, &held.metadata) >= (admission_ms, metadata) {
                    return;
                }
                held.admission_ms = admission_ms;
                if held.metadata != *metadata {
                    self.bytes -= held.bytes;
                    held.bytes = entry_bytes(name, metadata);
                    self.bytes += held.bytes;
                    held.metadata.clone_from(metadata);
                }
            }
            None => {
                let bytes = entry_bytes(name, metadata);
                self.bytes += bytes;
                let held = Held {
                    admission_ms,
                    bytes,
                    metadata: metadata.clone(),
                };
                self.metrics.insert(name.to_owned(), held);
            }
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&str, i64, &Metadata) -> bool) {
        let bytes = &mut self.bytes;
        self.metrics.retain(|name, held| {
            let keeps = keep(name, held.admission_ms, &held.metadata);
            if !keeps {
                *bytes -= held.bytes;
            }
            keeps
        });
    }

    /// Drops metadata of metrics that are not `in_use`, then of others, what was sent last longest ago first. Gives of how many
    /// metrics it was.
    fn make_room(&mut self, in_use: impl Fn(&str, &Metadata) -> bool) -> u64 {
        // By their places: what is looked through is large, and no name is copied.
        let entries = self.metrics.iter().enumerate();
        let mut entries: Vec<(bool, i64, usize, usize)> = entries
            .map(|(place, (name, held))| {
                let in_use = in_use(name, &held.metadata);
                (in_use, held.admission_ms, place, held.bytes)
            })
            .collect();
        entries.sort_unstable();
        let mut left = self.bytes;
        let first_kept = entries.iter().position(|(.., bytes)| {
            let has_room = left <= BYTES_AFTER_ROOM;
            left -= bytes;
            has_room
        });
        entries.truncate(first_kept.unwrap_or(entries.len()));
        let mut dropped: Vec<usize> = entries.iter().map(|(_, _, place, _)| *place).collect();
        dropped.sort_unstable();
        let mut next = dropped.iter().copied().peekable();
        let mut place = 0..;
        self.retain(|_, _, _| next.next_if_eq(&place.next().unwrap_or_default()).is_none());
        dropped.len() as u64
    }
}

fn entry_bytes(name: &str, metadata: &Metadata) -> usize {
    let Metadata { kind, help, unit } = metadata;
    let texts = [name, kind, help, unit];
    ENTRY_BYTES + texts.into_iter().map(json_bytes).sum::<usize>()
}

/// What a text takes in JSON, without its quotes: a control character six times as much.
fn json_bytes(text: &str) -> usize {
    let of_byte = |b| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        ..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(of_byte).sum()
}

impl Head {
    /// Metadata by metric name, ascending, each with the admission time of the batch that brought it.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, i64, &Metadata)> {
        let metrics = self.metadata.metrics.iter();
        metrics.map(|(name, held)| (name.as_str(), held.admission_ms, &held.metadata))
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

    /// Drops metadata of metrics without series here, then of others.
    fn make_metadata_room(&mut self) -> u64 {
        // Taken out while it is looked through, for what is asked is a part of the head, too.
        let mut table = std::mem::take(&mut self.metadata);
        let dropped = table.make_room(|name, m| self.has_series_of(name, &m.kind));
        self.metadata = table;
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
        let has_series = |suffix: &&str| match *suffix {
            "" => self.has_label(METRIC_NAME, metric),
            suffix => self.has_label(METRIC_NAME, &format!("{metric}{suffix}")),
        };
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
