//! Which blocks answer for a time of which there are samples, summaries of them, or both.
//!
//! Samples as sent are used wherever they are kept, unless the query says otherwise. Where only summaries are left, those of
//! the coarsest resolution are read that the query cannot tell from finer ones.

use std::collections::{BTreeMap, BTreeSet};

use super::manifests::{ListedBlock, ManifestView, Summarised};

/// Windows of a range function must span so many summaries at least, unless there are no finer ones: each of its two edges
/// may be wrong by less than one.
const SUMMARIES_PER_WINDOW: i64 = 5;

/// How coarse the data may be that a query is answered from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceResolution {
    /// Samples as sent, and where these are no longer kept summaries that suit the query.
    #[default]
    Auto,
    /// Summaries of up to so many milliseconds, also where samples are kept; with 0 these wherever they are.
    UpTo(i64),
}

impl SourceResolution {
    /// Whether summaries may take the place of samples that are kept.
    pub fn asks_for_summaries(self) -> bool {
        matches!(self, Self::UpTo(max_ms) if max_ms > 0)
    }
}

/// What a read says about how coarse its data may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coarseness {
    pub(crate) resolution: SourceResolution,
    /// Milliseconds from one evaluation to the next; 0 for one.
    pub(crate) step_ms: i64,
    /// The selector's range, milliseconds; 0 for an instant selector.
    pub(crate) range_ms: i64,
}

impl Coarseness {
    /// Whether summaries of a resolution are as good as finer ones where samples are no longer kept.
    fn suits(&self, resolution_ms: i64) -> bool {
        if let SourceResolution::UpTo(max_ms) = self.resolution {
            return resolution_ms <= max_ms;
        }
        let windows = self.range_ms >= resolution_ms.saturating_mul(SUMMARIES_PER_WINDOW);
        match (self.step_ms, self.range_ms) {
            (0, _) => windows,
            (step, 0) => step >= resolution_ms,
            (step, _) => step >= resolution_ms && windows,
        }
    }

    /// Whether summaries of a resolution may take the place of samples that are kept.
    fn replaces_samples(&self, resolution_ms: i64) -> bool {
        matches!(self.resolution, SourceResolution::UpTo(max_ms) if resolution_ms <= max_ms)
    }
}

/// The blocks to read, out of those that are `needed`.
pub(crate) fn choose(
    view: &ManifestView,
    coarseness: Coarseness,
    needed: impl Fn(&ListedBlock) -> bool,
) -> Vec<&ListedBlock> {
    let mut chosen = Vec::new();
    let mut replaced = BTreeSet::<&str>::new();
    for window in windows(view, &needed).into_values() {
        // Those whose samples are no longer kept: all of them, at one resolution.
        let suits = |r: &&i64| coarseness.suits(**r);
        let left: BTreeMap<i64, Vec<_>> = by_resolution(&window, |s| s.sources.is_empty());
        let coarsest = left.keys().rev().find(suits).or_else(|| left.keys().next());
        chosen.extend(coarsest.and_then(|r| left.get(r)).into_iter().flatten());
        // Those whose samples are there.
        let mut beside = by_resolution(&window, |s| !s.sources.is_empty())
            .into_iter()
            .rev();
        let usable = beside.find(|(r, blocks)| {
            let summarised = || blocks.iter().filter_map(|b| b.summarised.as_ref());
            let sources: BTreeSet<&str> = summarised()
                .flat_map(|s| s.sources.iter().map(String::as_str))
                .collect();
            coarseness.replaces_samples(*r)
                && summarised().all(|s| !s.outdated)
                && blocks.first().is_some_and(|b| speaks_for_all(view, b, &sources))
        });
        for block in usable.into_iter().flat_map(|(_, blocks)| blocks) {
            let sources = block.summarised.iter().flat_map(|s| &s.sources);
            replaced.extend(sources.map(String::as_str));
            chosen.push(block);
        }
    }
    let samples = view.blocks.iter().filter(|b| b.summarised.is_none());
    chosen.extend(samples.filter(|b| needed(b) && !replaced.contains(b.id.as_str())));
    chosen
}

/// The needed blocks of summaries, by window.
fn windows<'v>(
    view: &'v ManifestView,
    needed: &impl Fn(&ListedBlock) -> bool,
) -> BTreeMap<i64, Vec<&'v ListedBlock>> {
    let mut windows: BTreeMap<i64, Vec<_>> = BTreeMap::new();
    for block in view.blocks.iter().filter(|b| b.summarised.is_some()) {
        if needed(block) {
            windows.entry(block.window.min).or_default().push(block);
        }
    }
    windows
}

fn by_resolution<'v>(
    window: &[&'v ListedBlock],
    which: impl Fn(&Summarised) -> bool,
) -> BTreeMap<i64, Vec<&'v ListedBlock>> {
    let mut found: BTreeMap<i64, Vec<_>> = BTreeMap::new();
    for block in window {
        if let Some(s) = block.summarised.as_ref().filter(|s| which(s)) {
            found.entry(s.resolution_ms).or_default().push(*block);
        }
    }
    found
}

/// Whether all blocks with samples of a window are among those that are summarised: what came late may not be yet.
fn speaks_for_all(view: &ManifestView, of: &ListedBlock, sources: &BTreeSet<&str>) -> bool {
    let samples = view.blocks.iter().filter(|b| b.summarised.is_none());
    let mut inside = samples.filter(|b| b.range.overlaps(&of.window));
    inside.all(|b| sources.contains(b.id.as_str()))
}

#[cfg(test)]
mod tests {
    use koios_model::TimeRange;

    use super::*;

    const MINUTES_5: i64 = 300_000;
    const HOUR: i64 = 3_600_000;

    fn samples(id: &str, day: i64) -> ListedBlock {
        let window = TimeRange::new(day * 24 * HOUR, (day + 1) * 24 * HOUR - 1);
        ListedBlock {
            id: id.to_owned(),
            range: window,
            window,
            partitions: Vec::new(),
            covers: BTreeMap::new(),
            summarised: None,
        }
    }

    fn summaries(id: &str, day: i64, resolution_ms: i64, sources: &[&str]) -> ListedBlock {
        ListedBlock {
            summarised: Some(Summarised {
                resolution_ms,
                sources: sources.iter().map(|s| (*s).to_owned()).collect(),
                outdated: false,
            }),
            ..samples(id, day)
        }
    }

    fn chosen(
        blocks: &[ListedBlock],
        resolution: SourceResolution,
        step_ms: i64,
        range_ms: i64,
    ) -> Vec<String> {
        let view = ManifestView {
            version: 1,
            blocks: blocks.to_vec(),
            ..ManifestView::default()
        };
        let coarseness = Coarseness {
            resolution,
            step_ms,
            range_ms,
        };
        let mut ids: Vec<String> = choose(&view, coarseness, |_| true)
            .iter()
            .map(|b| b.id.clone())
            .collect();
        ids.sort();
        ids
    }

    /// Day 0 has lost its samples, day 1 has both.
    fn two_days() -> Vec<ListedBlock> {
        vec![
            summaries("5m-0", 0, MINUTES_5, &[]),
            summaries("1h-0", 0, HOUR, &[]),
            samples("raw-1", 1),
            summaries("5m-1", 1, MINUTES_5, &["raw-1"]),
            summaries("1h-1", 1, HOUR, &["raw-1"]),
        ]
    }

    #[test]
    fn i4_samples_answer_where_they_are_and_summaries_where_only_they_are() {
        let of = |step, range| chosen(&two_days(), SourceResolution::Auto, step, range);
        assert_eq!(of(60_000, 0), ["5m-0", "raw-1"]);
        assert_eq!(of(HOUR, 0), ["1h-0", "raw-1"]);
        assert_eq!(of(HOUR, HOUR), ["5m-0", "raw-1"]);
        assert_eq!(of(HOUR, 5 * HOUR), ["1h-0", "raw-1"]);
        assert_eq!(of(0, 24 * HOUR), ["1h-0", "raw-1"]);
        assert_eq!(of(0, 0), ["5m-0", "raw-1"]);
        // There are no finer ones.
        let coarse: Vec<_> = two_days().into_iter().filter(|b| b.id != "5m-0").collect();
        assert_eq!(
            chosen(&coarse, SourceResolution::Auto, 60_000, 0),
            ["1h-0", "raw-1"]
        );
    }

    #[test]
    fn a_query_may_ask_for_summaries_or_against_them() {
        let of = |max| chosen(&two_days(), SourceResolution::UpTo(max), 60_000, 0);
        assert_eq!(of(0), ["5m-0", "raw-1"]);
        assert_eq!(of(MINUTES_5), ["5m-0", "5m-1"]);
        assert_eq!(of(HOUR), ["1h-0", "1h-1"]);
    }

    #[test]
    fn i2_summaries_that_do_not_speak_for_all_samples_do_not_replace_them() {
        let mut blocks = two_days();
        blocks.push(samples("late-1", 1));
        let up_to_1h = SourceResolution::UpTo(HOUR);
        assert_eq!(chosen(&blocks, up_to_1h, 0, 0), ["1h-0", "late-1", "raw-1"]);
        // Summarised at one resolution already.
        blocks[3]
            .summarised
            .as_mut()
            .unwrap()
            .sources
            .push("late-1".to_owned());
        assert_eq!(chosen(&blocks, up_to_1h, 0, 0), ["1h-0", "5m-1"]);
        blocks[3].summarised.as_mut().unwrap().outdated = true;
        assert_eq!(chosen(&blocks, up_to_1h, 0, 0), ["1h-0", "late-1", "raw-1"]);
    }
}
