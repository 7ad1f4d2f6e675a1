//! What of blocks is deleted or past its retention, and so kept from readers: caches hold blocks as they are, and are masked as they are read (I10).

use koios_block::{BlockReader, BlockSeries, Deletion, EXEMPLARS_PART, HeldCells};
use koios_bucket::{Manifest, ManifestBlock, RetentionRecord, Tombstone};
use koios_chunk::{Chunk, Encoder};
use koios_model::{Expiry, Labels, Summary, TimeRange};
use koios_runtime::Cpu;
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::error::from_bucket;

/// A listed block, and what of it is deleted.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) block: ManifestBlock,
    pub(crate) masks: Masks,
}

impl Listed {
    /// Whether the block has any exemplars.
    pub(crate) fn has_exemplars(&self) -> bool {
        self.block.parts.iter().any(|part| part.name == EXEMPLARS_PART)
    }
}

/// The deletions of a manifest, and what is too old, compiled once for all blocks that are read.
pub(crate) struct Compiled<'m> {
    deletions: Vec<(&'m Tombstone, Deletion)>,
    /// The names of its classes of series, and from when on their samples are kept.
    expiry: (&'m [u64], Expiry),
}

impl<'m> Compiled<'m> {
    /// What deletes something in a range.
    pub(crate) fn new(manifest: &'m Manifest, range: TimeRange) -> Result<Self, ServiceError> {
        let compile = |t: &'m Tombstone| {
            let matchers = t.matchers().map_err(|e| {
                let text = format!(
                    "deletion {} of tenant {} cannot be read: {e}",
                    t.id, manifest.tenant
                );
                ServiceError::new(ServiceErrorCode::Corruption, text)
            })?;
            let range = t.range;
            Ok((t, Deletion { matchers, range }))
        };
        let masks_read = |t: &Tombstone, b: &ManifestBlock| t.masks(b) && t.range.overlaps(&reach(b, range));
        let is_masking = |t: &&'m Tombstone| manifest.blocks.iter().any(|b| masks_read(t, b));
        let tombstones = manifest.tombstones.iter().filter(is_masking);
        let before = manifest
            .retention
            .as_ref()
            .and_then(RetentionRecord::masked_before);
        // Where nothing is old no rule is compiled.
        let expiry = match before.is_some_and(|from| range.min < from) {
            true => manifest.expiry().map_err(|e| from_bucket(&e))?,
            false => Expiry::default(),
        };
        let names = manifest.retention.as_ref().map(|r| r.classes.as_slice());
        Ok(Self {
            deletions: tombstones.map(compile).collect::<Result<_, _>>()?,
            expiry: (names.unwrap_or_default(), expiry),
        })
    }

    /// What of a block is too old: nothing, where it has no series of which something is.
    fn expiry_of(&self, block: &ManifestBlock) -> Expiry {
        let (names, expiry) = &self.expiry;
        // A summary goes when all that it speaks for is too old; those that no rule speaks of are kept for times of their own.
        let expiry = match block.resolution_ms {
            0 => expiry.clone(),
            resolution_ms => expiry.of_rules().earlier_by(resolution_ms),
        };
        let is_touched = names.iter().zip(expiry.by_class()).any(|(name, from)| {
            from.is_some_and(|from| block.range.min < from) && !block.lacks.contains(name)
        });
        match is_touched {
            true => expiry,
            false => Expiry::default(),
        }
    }

    /// A block of the manifest, and what of it is deleted.
    pub(crate) fn listed(&self, block: &ManifestBlock) -> Listed {
        let masking = self.deletions.iter().filter(|(t, _)| t.masks(block));
        Listed {
            block: block.clone(),
            masks: Masks {
                deletions: masking.map(|(_, d)| d.clone()).collect(),
                expiry: self.expiry_of(block),
            },
        }
    }
}

/// The times of which samples are told where a range of a block is read: a summary in it speaks for others around it, too.
fn reach(block: &ManifestBlock, range: TimeRange) -> TimeRange {
    TimeRange::new(
        range.min.saturating_sub(block.resolution_ms),
        range.max.saturating_add(block.resolution_ms),
    )
}

/// A block that is read.
#[derive(Clone, Debug)]
pub(crate) struct MaskedBlock {
    pub(crate) reader: BlockReader,
    pub(crate) masks: Masks,
}

impl MaskedBlock {
    /// The same for a read that holds what it fetches.
    pub(crate) fn with_held(self, held: &HeldCells) -> Self {
        Self {
            reader: self.reader.with_held(held),
            ..self
        }
    }

    /// The same, whose summaries are read with the sums of their histograms, or without.
    pub(crate) fn with_histogram_sums(self, wanted: bool) -> Self {
        Self {
            reader: self.reader.with_histogram_sums(wanted),
            ..self
        }
    }
}

/// The deletions that a block is not clean of, and what of it is too old.
#[derive(Clone, Debug, Default)]
pub(crate) struct Masks {
    deletions: Vec<Deletion>,
    expiry: Expiry,
}

impl Masks {
    /// Deletions as they are.
    #[cfg(test)]
    pub(crate) fn of(deletions: Vec<Deletion>) -> Self {
        Self {
            deletions,
            expiry: Expiry::default(),
        }
    }

    /// Whether nothing is deleted.
    pub(crate) fn is_empty(&self) -> bool {
        self.deletions.is_empty() && self.expiry.latest().is_none()
    }

    /// When samples of a series are deleted, as far as that overlaps a range.
    pub(crate) fn ranges(&self, labels: &Labels, range: TimeRange) -> Vec<TimeRange> {
        let of_series = |d: &&Deletion| d.range.overlaps(&range) && d.matchers.matches(labels.as_ref());
        let old = self.expiry.gone(labels.as_ref()).filter(|r| r.overlaps(&range));
        let deleted = self.deletions.iter().filter(of_series).map(|d| d.range);
        deleted.chain(old).collect()
    }

    /// Whether all is deleted that a series may have in a range.
    pub(crate) fn hide(&self, series: &BlockSeries, range: TimeRange) -> bool {
        if self.is_empty() {
            return false;
        }
        let (mut from, to) = (range.min.max(series.range.min), range.max.min(series.range.max));
        let mut ranges = self.ranges(&series.labels, TimeRange::new(from, to));
        ranges.sort_unstable_by_key(|r| r.min);
        for deleted in ranges {
            if deleted.min > from {
                return false;
            }
            if deleted.max >= to {
                return true;
            }
            from = from.max(deleted.max.saturating_add(1));
        }
        false
    }
}

/// Takes what is deleted out of the chunks that one block has of series, given the ranges of each.
pub(crate) async fn mask(
    chunks: Vec<Vec<Chunk>>,
    ranges: Vec<Vec<TimeRange>>,
    cpu: &Cpu,
) -> Result<Vec<Vec<Chunk>>, ServiceError> {
    if ranges.iter().all(Vec::is_empty) {
        return Ok(chunks);
    }
    let work = move || {
        let mut encoder = Encoder::default();
        let mut left = |(chunks, mut ranges): (Vec<Chunk>, Vec<TimeRange>)| {
            let of_summaries = gone_with_summaries(&chunks, &ranges)?;
            ranges.extend(of_summaries);
            let left = chunks
                .into_iter()
                .map(|chunk| chunk.without(&ranges, &mut encoder));
            left.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
        };
        let series = chunks.into_iter().zip(ranges);
        series.map(&mut left).collect::<Result<Vec<_>, _>>()
    };
    let masked = cpu
        .run(work)
        .await
        .map_err(|e| ServiceError::internal(e.to_string()))?;
    masked.map_err(|e| {
        let text = format!("samples of a block cannot be decoded: {e}");
        ServiceError::new(ServiceErrorCode::Corruption, text)
    })
}

/// The times of summaries that are deleted in part: they go as a whole, and with them the native histograms that are kept beside them,
/// in chunks of their own.
fn gone_with_summaries(chunks: &[Chunk], ranges: &[TimeRange]) -> Result<Vec<TimeRange>, koios_chunk::Error> {
    let mut gone = Vec::new();
    if ranges.is_empty() || !chunks.iter().any(Chunk::has_histograms) {
        return Ok(gone);
    }
    let mut summaries = Vec::new();
    for chunk in chunks.iter().filter(|chunk| chunk.has_summaries()) {
        let whole = chunk.time_range();
        if ranges.iter().any(|r| r.overlaps(&whole)) {
            chunk.decode_summaries(TimeRange::ALL, &mut summaries)?;
        }
    }
    for summary in summaries.iter().map(Summary::range) {
        // Of one that is deleted whole the ranges say so already.
        let is_whole = |r: &TimeRange| r.min <= summary.min && summary.max <= r.max;
        if ranges.iter().any(|r| r.overlaps(&summary)) && !ranges.iter().any(is_whole) {
            gone.push(summary);
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use koios_model::{MatchOp, Matcher, Matchers, SeriesClasses};

    use super::*;

    #[test]
    fn i10_summaries_that_no_rule_speaks_of_are_not_hidden_with_samples() {
        let rules = SeriesClasses::new([Matchers(vec![Matcher::equal("a", "ruled")])]);
        let expiry = Expiry::new(rules, [Some(50), Some(60)]);
        let from = |e: &Expiry, value: &str| e.kept_from(Labels::from_pairs([("a", value)]).as_ref());
        assert_eq!((from(&expiry, "ruled"), from(&expiry, "x")), (Some(50), Some(60)));
        let of_summaries = expiry.of_rules().earlier_by(5);
        assert_eq!(
            (from(&of_summaries, "ruled"), from(&of_summaries, "x")),
            (Some(45), None)
        );
    }

    #[test]
    fn a_series_is_hidden_when_nothing_of_it_is_left_in_range() {
        let deletion = |value: &str, min, max| Deletion {
            matchers: Matchers(vec![
                Matcher::new(MatchOp::Equal, "a".to_owned(), value.to_owned()).unwrap(),
            ]),
            range: TimeRange::new(min, max),
        };
        let rule = |value: &str| Matchers(vec![Matcher::equal("a", value)]);
        let classes = SeriesClasses::new([rule("old")]);
        let masks = Masks {
            deletions: vec![
                deletion("x", 50, 80),
                deletion("x", 10, 49),
                deletion("y", 0, 1000),
                deletion("old", 50, 60),
            ],
            expiry: Expiry::new(classes, [Some(50)]),
        };
        let series = |value: &str, min, max| BlockSeries {
            labels: Labels::from_pairs([("a", value)]),
            id: 0,
            first_row: 0,
            row_count: 1,
            times_last_row: 0,
            times_row_count: 1,
            histogram_first_row: 0,
            histogram_count: 0,
            range: TimeRange::new(min, max),
            metadata: None,
        };
        for (value, (min, max), (from, to), hidden) in [
            ("x", (10, 80), (0, 100), true),
            ("x", (10, 81), (0, 100), false),
            ("x", (10, 81), (0, 80), true),
            ("x", (9, 80), (0, 100), false),
            ("x", (0, 100), (20, 70), true),
            ("y", (0, 100), (0, 100), true),
            ("z", (20, 30), (0, 100), false),
            ("old", (0, 49), (0, 100), true),
            ("old", (0, 60), (0, 100), true),
            ("old", (0, 61), (0, 100), false),
        ] {
            let hides = masks.hide(&series(value, min, max), TimeRange::new(from, to));
            assert_eq!(hides, hidden, "{value} {min}..={max} in {from}..={to}");
        }
    }
}
