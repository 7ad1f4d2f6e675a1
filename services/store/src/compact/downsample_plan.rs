//! Which windows to downsample next, and which blocks are older than what is kept.
//!
//! A day's window that has ended long enough ago gets a block of summaries for each resolution, beside the blocks with its
//! samples. In the manifest the `sources` of a downsampled block are the live blocks that it summarises: merges put what
//! they write in the place of what they read, and when samples go because of their age, the list becomes empty.

use std::collections::{BTreeMap, BTreeSet};

use koios_block::BlockId;
use koios_bucket::{Manifest, ManifestBlock};
use koios_model::{TimeRange, window_start};

use super::CompactionSettings;
use super::deletions;
use super::retention::Horizon;
use super::settings::Downsampling;

/// What came late is summarised together with the rest of its window when the rest is at most so many times as large…
const REWRITE_MAX: u64 = 8;
/// …or when so many blocks came…
const PIECES_MAX: usize = 8;

/// A window to downsample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DownsampleJob {
    /// The window.
    pub(crate) window: TimeRange,
    /// All blocks with samples of it, ascending by name.
    pub(crate) inputs: Vec<ManifestBlock>,
    /// The resolutions to make, milliseconds.
    pub(crate) resolutions: Vec<i64>,
    /// Downsampled blocks whose place the new ones take.
    pub(crate) replaced: Vec<BlockId>,
}

impl DownsampleJob {
    pub(crate) fn bytes(&self) -> u64 {
        self.inputs.iter().map(ManifestBlock::bytes).sum()
    }

    pub(crate) fn samples(&self) -> u64 {
        self.inputs.iter().map(|b| b.samples).sum()
    }
}

/// One window of a manifest.
#[derive(Debug, Default)]
struct Window<'m> {
    raw: Vec<&'m ManifestBlock>,
    downsampled: Vec<&'m ManifestBlock>,
}

impl<'m> Window<'m> {
    fn of(&self, resolution_ms: i64) -> impl Iterator<Item = &'m ManifestBlock> + '_ {
        let alike = move |b: &&&ManifestBlock| b.resolution_ms == resolution_ms;
        self.downsampled.iter().filter(alike).copied()
    }

    /// The blocks with samples that no block of a resolution summarises.
    fn missing(&self, resolution_ms: i64) -> Vec<&'m ManifestBlock> {
        let known: BTreeSet<BlockId> = self
            .of(resolution_ms)
            .flat_map(|b| b.sources.iter().copied())
            .collect();
        // One of exemplars alone has nothing to summarise.
        let missing = self
            .raw
            .iter()
            .filter(|b| b.samples > 0 && !known.contains(&b.block));
        missing.copied().collect()
    }

    /// The blocks of a resolution that summarise something else than what there is now: their sources went without them,
    /// or something of them was deleted while the samples are still there.
    fn outdated(&self, manifest: &Manifest, resolution_ms: i64) -> Vec<&'m ManifestBlock> {
        let outdated = |b: &&ManifestBlock| {
            let live = |id: &BlockId| manifest.block(*id).is_some();
            // One that may be taken back is masked in summaries as in samples.
            let is_deleted = deletions::can_be_cleaned(manifest, b);
            !b.sources.is_empty() && (!b.sources.iter().all(live) || is_deleted)
        };
        self.of(resolution_ms).filter(outdated).collect()
    }
}

/// The windows of a manifest, of the widest width that blocks are merged to. Blocks that do not fit into one are left out.
fn windows<'m>(
    manifest: &'m Manifest,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
) -> BTreeMap<i64, Window<'m>> {
    let width_ms = settings.widest_ms();
    let mut windows: BTreeMap<i64, Window<'_>> = BTreeMap::new();
    for block in manifest.blocks.iter().filter(|b| !bad.contains(&b.block)) {
        let start = window_start(block.window.min, width_ms);
        if block.window.max > settings.widest_window(start).max {
            continue;
        }
        let window = windows.entry(start).or_default();
        if block.resolution_ms == 0 {
            window.raw.push(block);
        } else {
            window.downsampled.push(block);
        }
    }
    windows
}

/// The windows that are to be downsampled, old ones first. Blocks in `bad` are left alone, and so are those that are to
/// be merged first.
pub(crate) fn due_downsamplings(
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
    merging: &BTreeSet<BlockId>,
) -> Vec<DownsampleJob> {
    let mut jobs = Vec::new();
    for (start, window) in windows(manifest, settings, bad) {
        let range = settings.widest_window(start);
        if window.raw.is_empty() || window.raw.iter().any(|b| merging.contains(&b.block)) {
            continue;
        }
        let due: Vec<i64> = settings
            .downsampling
            .iter()
            .filter(|d| {
                d.is_wanted(range, now_ms, settings) && is_due(manifest, &window, d, settings, now_ms)
            })
            .map(|d| d.resolution_ms)
            .collect();
        if due.is_empty() {
            continue;
        }
        // What stands for samples that are gone stays beside what is made of those that came since.
        let replaced = window.downsampled.iter().filter(|b| !b.sources.is_empty());
        let replaced: Vec<_> = replaced.filter(|b| due.contains(&b.resolution_ms)).collect();
        // What of it is damaged by now would be missing in what is made.
        if replaced.iter().any(|b| b.sources.iter().any(|s| bad.contains(s))) {
            continue;
        }
        let mut inputs: Vec<_> = window.raw.iter().map(|b| (*b).clone()).collect();
        inputs.sort_unstable_by_key(|b| b.block);
        // A deletion that may be taken back masks some of them: later.
        if deletions::clean_up_to(manifest, &inputs).is_none() {
            continue;
        }
        jobs.push(DownsampleJob {
            window: range,
            replaced: replaced.iter().map(|b| b.block).collect(),
            inputs,
            resolutions: due,
        });
    }
    jobs
}

/// Since when a window has been due: when it was old enough for the first of its resolutions, or, if that was later, when the last of
/// its blocks came.
pub(crate) fn downsampling_due_since_ms(job: &DownsampleJob, settings: &CompactionSettings) -> i64 {
    let wanted = settings.downsampling.iter();
    let wanted = wanted.filter(|d| job.resolutions.contains(&d.resolution_ms));
    let wait_ms = wanted.map(|d| d.wait_ms(settings)).min().unwrap_or(0);
    let old_enough = job.window.max.saturating_add(wait_ms);
    let came = job.inputs.iter().map(|b| b.block.time_ms()).max();
    came.map_or(old_enough, |came| old_enough.max(came))
}

fn is_due(
    manifest: &Manifest,
    window: &Window<'_>,
    wanted: &Downsampling,
    settings: &CompactionSettings,
    now_ms: i64,
) -> bool {
    if !window.outdated(manifest, wanted.resolution_ms).is_empty() {
        return true;
    }
    let bytes = |blocks: &[&ManifestBlock]| -> u64 { blocks.iter().map(|b| b.bytes()).sum() };
    let missing = window.missing(wanted.resolution_ms);
    let (late, all) = (bytes(&missing), bytes(&window.raw));
    let is_worth_it =
        late.saturating_mul(REWRITE_MAX) >= all.saturating_sub(late) || missing.len() >= PIECES_MAX;
    let horizon = Horizon::of(manifest, now_ms, settings);
    let is_last_time = missing.iter().any(|b| horizon.is_rest_old(b));
    !missing.is_empty() && (is_worth_it || is_last_time)
}

/// What is older than what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Blocks to take off the list.
    pub(crate) blocks: Vec<BlockId>,
    /// Downsampled blocks that stand for samples of those from now on.
    pub(crate) standing_in: Vec<BlockId>,
    /// Those of them with samples that rules alone let go: what summarises others with them still does.
    pub(crate) by_rules: Vec<BlockId>,
    /// Windows of which the samples of some series go and those of others stay.
    pub(crate) splits: Vec<SplitJob>,
    /// Blocks whose samples that no rule speaks of are old, and wait for summaries to take their place.
    pub(crate) waiting: BTreeSet<BlockId>,
}

/// A window of which summaries take the place of samples, but for those of series that a rule keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SplitJob {
    /// The window.
    pub(crate) window: TimeRange,
    /// Its blocks with samples, ascending by name.
    pub(crate) raw: Vec<ManifestBlock>,
    /// The blocks of summaries that speak for them.
    pub(crate) summaries: Vec<ManifestBlock>,
    /// Summaries that do not speak for all of them, and go.
    pub(crate) outdated: Vec<BlockId>,
}

impl SplitJob {
    /// Whether it reads all samples that its summaries speak for, as far as a manifest lists them: of others there would be both.
    pub(crate) fn has_all_that_is_summarised(&self, manifest: &Manifest) -> bool {
        let is_read = |id: &BlockId| self.raw.iter().any(|b| b.block == *id);
        let is_gone = |id: &BlockId| manifest.block(*id).is_none();
        let summaries = self.summaries.iter().filter_map(|b| manifest.block(b.block));
        let mut sources = summaries.flat_map(|b| &b.sources);
        sources.all(|id| is_read(id) || is_gone(id))
    }

    /// All blocks that it reads.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &ManifestBlock> {
        self.raw.iter().chain(&self.summaries)
    }
}

/// What is older than what is kept. Where summaries are to outlive samples, the samples of a window go together and once
/// all of them are summarised; what cannot be, because it is damaged, is not waited for.
pub(crate) fn expired(
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
) -> Expired {
    let horizon = Horizon::of(manifest, now_ms, settings);
    let mut found = Expired::default();
    for (start, window) in windows(manifest, settings, bad) {
        let left_alone = window.downsampled.iter().filter(|b| {
            let gone = |id: &BlockId| manifest.block(*id).is_none();
            !b.sources.is_empty() && b.sources.iter().all(gone)
        });
        if window.raw.is_empty() {
            found.standing_in.extend(left_alone.map(|b| b.block));
        }
        let range = settings.widest_window(start);
        window.expire(manifest, range, &horizon, settings, &mut found);
    }
    let is_expired = |b: &&ManifestBlock| horizon.is_expired(b) && !found.waiting.contains(&b.block);
    let expired: Vec<&ManifestBlock> = manifest.blocks.iter().filter(is_expired).collect();
    found.blocks.extend(expired.iter().map(|b| b.block));
    let by_rules = |b: &&&ManifestBlock| b.resolution_ms == 0 && !horizon.is_rest_old(b);
    let by_rules = expired.iter().filter(by_rules).map(|b| b.block);
    found.by_rules.extend(by_rules);
    found
}

impl Window<'_> {
    /// What of the window goes, or waits.
    fn expire(
        &self,
        manifest: &Manifest,
        range: TimeRange,
        horizon: &Horizon,
        settings: &CompactionSettings,
        found: &mut Expired,
    ) {
        let has_rest = |b: &&ManifestBlock| horizon.left_in(b).any(|class| class == horizon.rest());
        let of_rest: Vec<_> = self.raw.iter().copied().filter(has_rest).collect();
        if !of_rest.iter().any(|b| horizon.is_rest_old(b)) {
            return;
        }
        let is_wanted =
            |d: &&Downsampling| d.outlives(settings) && !horizon.are_summaries_past(d.resolution_ms, range);
        let wanted = settings.downsampling.iter().filter(is_wanted);
        let wanted: Vec<i64> = wanted.map(|d| d.resolution_ms).collect();
        // Of series that a rule keeps the samples stay: these need no summaries.
        let is_summarised = |&r: &i64| {
            let missing = self.missing(r);
            of_rest.iter().all(|b| !missing.contains(b)) && self.outdated(manifest, r).is_empty()
        };
        let all_old = of_rest.iter().all(|b| horizon.is_rest_old(b));
        let may_go = wanted.is_empty() || all_old && wanted.iter().all(is_summarised);
        if !may_go {
            found.waiting.extend(of_rest.iter().map(|b| b.block));
            return;
        }
        if !all_old {
            return;
        }
        let beside = self.downsampled.iter().filter(|b| !b.sources.is_empty());
        // Summaries of a part of the samples would pass for all of them.
        let (speaking, outdated): (Vec<_>, Vec<_>) =
            beside.copied().partition(|b| is_summarised(&b.resolution_ms));
        let is_all_gone = self.raw.iter().all(|b| horizon.is_expired(b));
        // Samples that stay, of a damaged block, would be there beside the summaries that stand in for them.
        let is_left = |id: &&BlockId| {
            let unread = manifest
                .block(**id)
                .filter(|b| self.raw.iter().all(|r| r.block != b.block));
            unread.is_some_and(|b| !(is_all_gone && horizon.is_expired(b)))
        };
        let sources = speaking.iter().flat_map(|b| &b.sources);
        let left: Vec<BlockId> = sources.filter(is_left).copied().collect();
        if !left.is_empty() {
            found.waiting.extend(left);
            found.waiting.extend(self.raw.iter().map(|b| b.block));
            return;
        }
        if is_all_gone {
            found.standing_in.extend(speaking.iter().map(|b| b.block));
            found.blocks.extend(outdated.iter().map(|b| b.block));
        } else if !speaking.is_empty() {
            found.waiting.extend(self.raw.iter().map(|b| b.block));
            let mut raw: Vec<_> = self.raw.iter().map(|b| (*b).clone()).collect();
            raw.sort_unstable_by_key(|b| b.block);
            // A deletion that may be taken back masks some of them: later.
            let clean = |blocks: &[ManifestBlock]| deletions::clean_up_to(manifest, blocks).is_some();
            if clean(&raw) && speaking.iter().all(|b| clean(std::slice::from_ref(*b))) {
                found.splits.push(SplitJob {
                    window: range,
                    raw,
                    summaries: speaking.into_iter().cloned().collect(),
                    outdated: outdated.iter().map(|b| b.block).collect(),
                });
            }
        }
    }
}

#[cfg(test)]
#[path = "downsample_plan_test.rs"]
mod tests;
