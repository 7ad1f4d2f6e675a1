//! Finds series that share their times. All that a target exposes is scraped at once, so that its hundreds of series have the
//! very same times: those of one run of rows.
//!
//! A series is compared with few runs, chosen by what they have in common: a run with just its times by a fingerprint, one
//! with more by *anchors*, its ends and such times as a hash picks. What is looked up is within a budget: what falls out
//! of it costs bytes, as do runs that share no anchor with a series although they have all of its times.
//!
//! In label order the targets of a metric come in turn, and so do those of the next. If the run that was not used for longest
//! always went for a new one, of more targets than fit none would be there when its turn comes again. So most of the memory is
//! for runs that stay: one of them goes only if it has not been used for longer than the new one was away. The rest is for those that
//! came last, as the series of a target may follow each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::known_run::Run;

/// Most ticks for each time of a series that a reader takes.
pub(crate) const TICKS_PER_TIME_MAX: u32 = 4;
/// Most ticks for each time of a series that are written: of more, reading would cost more than is saved.
const TICKS_WRITTEN_MAX: usize = 2;
/// Of a series of more rows than a page so many times fewer ticks than times may be of others: where a short range of it is, its ticks do
/// not tell exactly.
const LONG_OTHERS: usize = 10;
/// Bytes of runs to compare with: over five thousand with a day of times each.
const KNOWN_BYTES_MAX: usize = 64 << 20;
/// Of these one in so many are for the runs that came last.
const RECENT_SHARE: usize = 8;
/// Runs of which is known when they came, although their times are not: 4 MiB.
const SEEN_MAX: usize = 1 << 16;
/// Anchors of a series by which a run is looked for.
const ANCHORS_TRIED: usize = 8;
/// Of so many times one is an anchor.
const ANCHOR_EACH: u64 = 64;
/// About what an entry of an index takes, in bytes.
const ENTRY_BYTES: usize = 32;
/// Times that a fingerprint is made of.
const PRINTED: usize = 32;

/// Where the times of a series are among those written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlacedTimes {
    /// The row of the oldest. Later times are in rows before it.
    pub(crate) last_row: u32,
    /// How many rows there are from the newest to it.
    pub(crate) row_count: u32,
    /// How many rows before that of the oldest each one is, ascending; empty if there are no others between them.
    ticks: Vec<u32>,
}

impl PlacedTimes {
    pub(crate) fn new(last_row: u32, row_count: u32, ticks: Vec<u32>) -> Self {
        Self {
            last_row,
            row_count,
            ticks,
        }
    }

    /// Of `count` times in rows of their own, from `first_row` on.
    pub(crate) fn alone(first_row: u32, count: u32) -> Self {
        Self {
            last_row: first_row + count.saturating_sub(1),
            row_count: count,
            ticks: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn set_ticks(&mut self, ticks: Vec<u32>) {
        self.ticks = ticks;
    }

    /// How many rows before that of the oldest a time is, by its place among the times.
    pub(crate) fn tick(&self, place: usize) -> u32 {
        let dense = u32::try_from(place).unwrap_or(u32::MAX);
        self.ticks.get(place).copied().unwrap_or(dense)
    }
}

/// Runs of times that were written, to be found again: 64 MiB of them at most, and 4 MiB of what went.
#[derive(Debug)]
pub(crate) struct KnownRuns {
    /// Rows of a page of samples.
    page_rows: usize,
    /// By their first rows.
    runs: HashMap<u32, Known>,
    by_print: HashMap<u64, u32>,
    by_anchor: HashMap<u32, Around>,
    kept: Pool,
    recent: Pool,
    seen: Seen,
    /// How often another run than the last one was used.
    turn: u64,
    /// The run that was used last.
    last: Option<u32>,
}

#[derive(Debug)]
struct Known {
    run: Run,
    /// At which turn it was last used.
    used: u64,
    print: u64,
    bytes: usize,
    is_recent: bool,
}

/// Runs that have an anchor: the longest, which has the times of more series, and another one, in which they may be denser; or
/// the same again.
#[derive(Clone, Copy, Debug)]
struct Around {
    longest: u32,
    other: u32,
}

/// Runs that share a part of the memory.
#[derive(Debug, Default)]
struct Pool {
    /// By when they were last used.
    by_use: BTreeSet<(u64, u32)>,
    bytes: usize,
    bytes_max: usize,
}

impl Pool {
    fn within(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= self.bytes_max
    }
}

/// When runs came that were not kept, by their fingerprints.
#[derive(Debug, Default)]
struct Seen {
    turns: HashMap<u64, u64>,
    by_turn: BTreeMap<u64, u64>,
}

impl Seen {
    fn note(&mut self, print: u64, turn: u64) {
        self.take(print);
        if self.turns.len() >= SEEN_MAX
            && let Some((_, oldest)) = self.by_turn.pop_first()
        {
            self.turns.remove(&oldest);
        }
        self.turns.insert(print, turn);
        self.by_turn.insert(turn, print);
    }

    fn take(&mut self, print: u64) -> Option<u64> {
        let turn = self.turns.remove(&print)?;
        self.by_turn.remove(&turn);
        Some(turn)
    }
}

impl KnownRuns {
    /// For a block with so many rows in a page of samples.
    pub(crate) fn new(page_rows: usize) -> Self {
        Self::within(page_rows, KNOWN_BYTES_MAX)
    }

    /// Keeps at most so many bytes.
    fn within(page_rows: usize, bytes_max: usize) -> Self {
        let recent = bytes_max / RECENT_SHARE;
        Self {
            page_rows,
            runs: HashMap::new(),
            by_print: HashMap::new(),
            by_anchor: HashMap::new(),
            kept: Pool::within(bytes_max - recent),
            recent: Pool::within(recent),
            seen: Seen::default(),
            turn: 0,
            last: None,
        }
    }

    /// Where all of `times`, which ascend, stand in order: of the runs that are looked at the one that has the fewest others between.
    pub(crate) fn find(&mut self, times: &[i64]) -> Option<PlacedTimes> {
        let same = self.by_print.get(&print_of(times)).copied();
        let around = anchors(times).take(ANCHORS_TRIED);
        let around = around.filter_map(|anchor| self.by_anchor.get(&anchor_key(anchor)));
        let around = around.flat_map(|around| [around.longest, around.other]);
        let mut tried = Vec::with_capacity(1 + 2 * ANCHORS_TRIED);
        let mut ticks_max = self.ticks_max(times.len());
        let mut best = None;
        for first_row in same.into_iter().chain(around) {
            if tried.contains(&first_row) {
                continue;
            }
            tried.push(first_row);
            let known = self.runs.get(&first_row);
            if let Some(placed) = known.and_then(|known| known.run.place(first_row, times, ticks_max)) {
                // Another one has to have fewer.
                ticks_max = (placed.row_count as usize).saturating_sub(1);
                best = Some((first_row, placed));
                if ticks_max < times.len() {
                    break;
                }
            }
        }
        let (first_row, placed) = best?;
        self.note_use(first_row);
        Some(placed)
    }

    fn ticks_max(&self, count: usize) -> usize {
        match count > self.page_rows {
            true => count.saturating_add(count / LONG_OTHERS),
            false => count.saturating_mul(TICKS_WRITTEN_MAX),
        }
    }

    /// Remembers times that were written from `first_row` on, if there is room.
    pub(crate) fn add(&mut self, first_row: u32, times: &[i64]) {
        let Some(run) = Run::of(times) else { return };
        self.turn += 1;
        self.last = Some(first_row);
        let print = print_of(times);
        let away = self.seen.take(print).map(|seen| self.turn - seen);
        let bytes = size_of::<Known>() + run.heap_bytes() + (anchors(times).count() + 3) * ENTRY_BYTES;
        let is_kept = self.has_kept_room(bytes, away);
        if !is_kept {
            self.seen.note(print, self.turn);
            if !self.make_recent_room(bytes) {
                return;
            }
        }
        self.by_print.insert(print, first_row);
        for anchor in anchors(times) {
            self.add_anchor(anchor, first_row, times.len(), is_kept);
        }
        let pool = if is_kept { &mut self.kept } else { &mut self.recent };
        pool.bytes += bytes;
        pool.by_use.insert((self.turn, first_row));
        let known = Known {
            run,
            used: self.turn,
            print,
            bytes,
            is_recent: !is_kept,
        };
        self.runs.insert(first_row, known);
    }

    fn add_anchor(&mut self, anchor: i64, first_row: u32, count: usize, is_kept: bool) {
        let runs = &self.runs;
        // One that goes soon does not take the place of one that stays.
        let is_longer = |longest: u32| {
            let known = runs.get(&longest);
            known.is_none_or(|known| known.run.count() <= count && (is_kept || known.is_recent))
        };
        let around = self.by_anchor.entry(anchor_key(anchor)).or_insert(Around {
            longest: first_row,
            other: first_row,
        });
        if around.longest == first_row || around.other == first_row {
            return;
        }
        *around = match is_longer(around.longest) {
            true => Around {
                longest: first_row,
                other: around.longest,
            },
            false => Around {
                other: first_row,
                ..*around
            },
        };
    }

    fn note_use(&mut self, first_row: u32) {
        if self.last != Some(first_row) {
            self.turn += 1;
            self.last = Some(first_row);
        }
        if let Some(known) = self.runs.get_mut(&first_row) {
            let pool = if known.is_recent {
                &mut self.recent
            } else {
                &mut self.kept
            };
            pool.by_use.remove(&(known.used, first_row));
            known.used = self.turn;
            pool.by_use.insert((known.used, first_row));
        }
    }

    /// Whether so many bytes fit in among the runs that stay. Those go that have not been used for longer than a run was `away`
    /// that came before.
    fn has_kept_room(&mut self, bytes: usize, away: Option<u64>) -> bool {
        if bytes > self.kept.bytes_max {
            return false;
        }
        while !self.kept.has_room(bytes) {
            let (Some(away), Some(&(used, first_row))) = (away, self.kept.by_use.first()) else {
                return false;
            };
            // Rounds are not all of the same length.
            if self.turn - used <= away.saturating_add(away / 8) {
                return false;
            }
            self.remove(first_row);
        }
        true
    }

    fn make_recent_room(&mut self, bytes: usize) -> bool {
        if bytes > self.recent.bytes_max {
            return false;
        }
        while !self.recent.has_room(bytes) {
            let Some(&(_, first_row)) = self.recent.by_use.first() else {
                return false;
            };
            self.remove(first_row);
        }
        true
    }

    fn remove(&mut self, first_row: u32) {
        let Some(known) = self.runs.remove(&first_row) else {
            return;
        };
        let pool = if known.is_recent {
            &mut self.recent
        } else {
            &mut self.kept
        };
        pool.by_use.remove(&(known.used, first_row));
        pool.bytes -= known.bytes;
        if self.by_print.get(&known.print) == Some(&first_row) {
            self.by_print.remove(&known.print);
        }
        let times: Vec<i64> = known.run.times().collect();
        for key in anchors(&times).map(anchor_key) {
            let Some(around) = self.by_anchor.get_mut(&key) else {
                continue;
            };
            match (around.longest == first_row, around.other == first_row) {
                (true, true) => {
                    self.by_anchor.remove(&key);
                }
                (true, false) => around.longest = around.other,
                (false, true) => around.other = around.longest,
                (false, false) => {}
            }
        }
    }
}

/// The ends of times, and some between.
fn anchors(times: &[i64]) -> impl Iterator<Item = i64> {
    let ends = times.first().into_iter().chain(times.last()).copied();
    ends.chain(
        times
            .iter()
            .copied()
            .filter(|&t| mixed(t as u64).is_multiple_of(ANCHOR_EACH)),
    )
}

/// Anchors are told apart by the half of their hashes that did not pick them; what is found is compared in full.
fn anchor_key(anchor: i64) -> u32 {
    (mixed(anchor as u64) >> 32) as u32
}

/// What equal times have in common, and others hardly ever.
fn print_of(times: &[i64]) -> u64 {
    let printed = times
        .iter()
        .step_by(times.len() / PRINTED + 1)
        .chain(times.last());
    printed.fold(mixed(times.len() as u64), |print, &t| mixed(print ^ t as u64))
}

/// The finalizer of splitmix64.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_ROWS: usize = 16 * 1024;

    /// Writes times that are not known yet, as a writer does; tells where they are and whether they were known.
    fn push(known: &mut KnownRuns, rows: &mut u32, times: &[i64]) -> (PlacedTimes, bool) {
        if let Some(placed) = known.find(times) {
            return (placed, true);
        }
        let count = u32::try_from(times.len()).unwrap();
        known.add(*rows, times);
        let placed = PlacedTimes::alone(*rows, count);
        *rows += count;
        (placed, false)
    }

    /// Times of a target: every 15 s with some jitter.
    fn scrapes(target: u64, count: u64) -> Vec<i64> {
        let jitter = |i| (mixed(target << 32 | i) % 7) as i64;
        (0..count)
            .map(|i| (target * 137 % 15_000 + i * 15_000) as i64 + jitter(i))
            .collect()
    }

    /// How many of the series of a metric were known, of which each target has some.
    fn metric(known: &mut KnownRuns, rows: &mut u32, targets: std::ops::Range<u64>, series: usize) -> usize {
        let mut found = 0;
        for target in targets {
            let times = scrapes(target, 100);
            found += (0..series).filter(|_| push(known, rows, &times).1).count();
        }
        found
    }

    /// As many as fit a hundred of those runs.
    fn of_a_hundred() -> KnownRuns {
        let (mut one, mut rows) = (KnownRuns::new(PAGE_ROWS), 0);
        metric(&mut one, &mut rows, 0..100, 1);
        KnownRuns::within(PAGE_ROWS, one.kept.bytes)
    }

    #[test]
    fn equal_times_a_part_of_them_and_some_of_them_are_found() {
        let (mut known, mut rows) = (KnownRuns::new(PAGE_ROWS), 0);
        let day = scrapes(1, 5760);
        let (all, _) = push(&mut known, &mut rows, &day);
        assert_eq!((all.last_row, all.row_count, all.tick(17)), (5759, 5760, 17));
        assert_eq!(push(&mut known, &mut rows, &day), (all, true));
        // Ends and begins at no end of the run.
        let (part, found) = push(&mut known, &mut rows, &day[1000..3000]);
        assert!(found);
        assert_eq!((part.last_row, part.row_count, part.tick(3)), (4759, 2000, 3));
        let each_second: Vec<i64> = day.iter().copied().skip(1).step_by(2).collect();
        let (some, found) = push(&mut known, &mut rows, &each_second);
        assert!(found);
        assert_eq!((some.last_row, some.row_count, some.tick(5)), (5758, 5759, 10));
        // So few of them that reading all would be a waste.
        let each_third: Vec<i64> = day.iter().copied().step_by(3).collect();
        assert!(!push(&mut known, &mut rows, &each_third).1);
        let mut other = day.clone();
        other[4000] += 1;
        assert!(!push(&mut known, &mut rows, &other).1);
        assert!(push(&mut known, &mut rows, &other[3990..]).1);
        assert!(!push(&mut known, &mut rows, &scrapes(2, 5760)).1);
    }

    #[test]
    fn times_far_apart_are_found_too() {
        let (mut known, mut rows) = (KnownRuns::new(PAGE_ROWS), 0);
        let far = [i64::MIN, 0, i64::MAX];
        assert!(!push(&mut known, &mut rows, &far).1);
        for times in [&far[..], &far[..1], &far[1..], &far[2..], &far[..2]] {
            assert!(push(&mut known, &mut rows, times).1, "{times:?}");
        }
        assert!(!push(&mut known, &mut rows, &[i64::MIN, 1]).1);
    }

    #[test]
    fn the_run_with_the_fewest_others_between_is_named() {
        let all: Vec<i64> = (0..3000).map(|i| i * 5_000 + i % 3).collect();
        let each = |n: usize| all.iter().copied().step_by(n).collect::<Vec<i64>>();
        // A reader would have to read twice or three times what it needs of the first one.
        for (n, sparse_first) in [(2, false), (3, false), (3, true)] {
            let (mut known, mut rows) = (KnownRuns::new(PAGE_ROWS), 0);
            let both = [each(n), all.clone()];
            for i in if sparse_first { [1, 0] } else { [0, 1] } {
                assert!(!push(&mut known, &mut rows, &both[i]).1);
            }
            let part = &both[0][5..900];
            let (placed, found) = push(&mut known, &mut rows, part);
            assert!(found);
            assert_eq!(placed.row_count, 895, "each {n}th");
        }
    }

    #[test]
    fn a_series_of_several_pages_has_few_others_between() {
        let times = scrapes(3, 2000);
        let without = |n: usize| {
            let kept = times.iter().enumerate().filter(move |(i, _)| i % n != 1);
            kept.map(|(_, &t)| t).collect::<Vec<_>>()
        };
        for (page_rows, n, shared) in [(500, 3, false), (500, 20, true), (5000, 3, true)] {
            let (mut known, mut rows) = (KnownRuns::new(page_rows), 0);
            push(&mut known, &mut rows, &times);
            assert_eq!(
                push(&mut known, &mut rows, &without(n)).1,
                shared,
                "{page_rows} {n}"
            );
        }
    }

    #[test]
    fn five_thousand_targets_of_a_day_fit_in() {
        let (mut known, mut rows) = (KnownRuns::new(PAGE_ROWS), 0);
        push(&mut known, &mut rows, &scrapes(1, 5760));
        assert!(
            known.kept.bytes * 5000 <= known.kept.bytes_max,
            "{}",
            known.kept.bytes
        );
    }

    #[test]
    fn i12_of_ten_times_as_many_targets_as_fit_a_tenth_stays_known() {
        let (mut known, mut rows) = (of_a_hundred(), 0);
        for round in 0..40 {
            // Now and then some series of each target follow each other.
            let series = if round % 4 == 3 { 12 } else { 1 };
            let found = metric(&mut known, &mut rows, 0..1000, series);
            let ideal = 1000 * (series - 1) + if round > 0 { 100 } else { 0 };
            assert!(found * 100 >= ideal * 80, "round {round}: {found} of {ideal}");
            assert!(known.kept.bytes <= known.kept.bytes_max);
            assert!(known.recent.bytes <= known.recent.bytes_max);
        }
        let counted: usize = known.runs.values().map(|known| known.bytes).sum();
        assert_eq!(counted, known.kept.bytes + known.recent.bytes);
        let by_use = known.kept.by_use.len() + known.recent.by_use.len();
        assert_eq!(by_use, known.runs.len());
        assert!(known.by_print.values().all(|row| known.runs.contains_key(row)));
        let around = known.by_anchor.values().flat_map(|a| [a.longest, a.other]);
        assert!(around.into_iter().all(|row| known.runs.contains_key(&row)));
        assert_eq!(known.seen.turns.len(), known.seen.by_turn.len());
    }

    #[test]
    fn somewhat_more_targets_than_fit_are_mostly_known() {
        let (mut known, mut rows) = (of_a_hundred(), 0);
        metric(&mut known, &mut rows, 0..150, 12);
        for _ in 0..10 {
            let found = metric(&mut known, &mut rows, 0..150, 1);
            assert!(found >= 80, "{found} of 150");
        }
    }

    #[test]
    fn others_take_the_place_of_runs_that_do_not_come_again() {
        let (mut known, mut rows) = (of_a_hundred(), 0);
        // None of these comes again, each but once, or many times.
        metric(&mut known, &mut rows, 5000..9000, 1);
        metric(&mut known, &mut rows, 5000..5100, 12);
        for round in 0..6 {
            let found = metric(&mut known, &mut rows, 0..80, 1);
            assert!(round < 2 || found == 80, "round {round}: {found}");
        }
    }
}
