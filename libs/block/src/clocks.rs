//! Finds series that share their times. All that a target exposes is scraped at once, so that its hundreds of series have the
//! very same times: the ticks of one clock.
//!
//! A series is compared with few clocks, chosen by what they have in common: a clock with just its times by a fingerprint, one
//! with more by *anchors*, its ends and such times as a hash picks. What is looked up is within a budget: what falls out
//! of it costs bytes, as do clocks that share no anchor with a series although they have all of its times.

use std::collections::{BTreeMap, HashMap};

/// Most ticks of a clock for each time of a series: of more, readers would read much that they do not need.
pub(crate) const TICKS_PER_TIME_MAX: u32 = 4;
/// Bytes of clocks to compare with: some thousand with a day of times each.
const KNOWN_BYTES_MAX: usize = 32 << 20;
/// Anchors of a series by which a clock is looked for.
const ANCHORS_TRIED: usize = 8;
/// Of so many times one is an anchor.
const ANCHOR_EACH: u64 = 64;
/// About what an entry of an index takes, in bytes, …
const ENTRY_BYTES: usize = 24;
/// … and a clock beside its times and anchors.
const CLOCK_BYTES: usize = 160;
/// A clock that was in no use while so many times as many series came as there are clocks may go for another one. In label order
/// the targets of a metric come in turn, and so do those of the next: if the oldest always went, all would before
/// their turn came again.
const TURNS_KEPT: u64 = 4;
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

/// Times that were written, to be found again.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// By their first rows.
    clocks: HashMap<u32, Clock>,
    /// First rows by when they were last used.
    by_use: BTreeMap<u64, u32>,
    by_print: HashMap<u64, u32>,
    by_anchor: HashMap<i64, u32>,
    /// Series that came.
    turns: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Clock {
    /// The first time, and by how much each is later.
    base: i64,
    offsets: Vec<u32>,
    /// When it was last used.
    used: u64,
    print: u64,
    bytes: usize,
}

impl Default for Clocks {
    fn default() -> Self {
        Self::within(KNOWN_BYTES_MAX)
    }
}

impl Clocks {
    /// Keeps at most so many bytes.
    fn within(bytes_max: usize) -> Self {
        Self {
            clocks: HashMap::new(),
            by_use: BTreeMap::new(),
            by_print: HashMap::new(),
            by_anchor: HashMap::new(),
            turns: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Where all of `times`, which ascend, stand in order.
    pub(crate) fn find(&mut self, times: &[i64]) -> Option<PlacedTimes> {
        self.turns += 1;
        let same = self.by_print.get(&print_of(times)).copied();
        let around = anchors(times).take(ANCHORS_TRIED);
        let around = around.filter_map(|anchor| self.by_anchor.get(&anchor).copied());
        let mut tried = Vec::with_capacity(1 + ANCHORS_TRIED);
        let mut found = None;
        for first_row in same.into_iter().chain(around) {
            if tried.contains(&first_row) {
                continue;
            }
            tried.push(first_row);
            let clock = self.clocks.get(&first_row);
            if let Some(placed) = clock.and_then(|clock| clock.place(first_row, times)) {
                found = Some((first_row, placed));
                break;
            }
        }
        let (first_row, placed) = found?;
        self.note_use(first_row);
        Some(placed)
    }

    /// Remembers times that were written from `first_row` on, if there is room.
    pub(crate) fn add(&mut self, first_row: u32, times: &[i64]) {
        let (Some(&base), Some(last)) = (times.first(), times.last()) else {
            return;
        };
        // Else they are of more than seven weeks.
        let fits = last
            .checked_sub(base)
            .is_some_and(|all| u32::try_from(all).is_ok());
        let bytes = CLOCK_BYTES + size_of_val(times) / 2 + (anchors(times).count() + 1) * ENTRY_BYTES;
        if !fits || !self.make_room(bytes) {
            return;
        }
        let offsets = times.iter().map(|t| (t - base) as u32).collect();
        let print = print_of(times);
        self.by_print.insert(print, first_row);
        for anchor in anchors(times) {
            let known = self.by_anchor.get(&anchor).and_then(|row| self.clocks.get(row));
            // The longer one has the times of more series.
            if known.is_none_or(|known| known.offsets.len() <= times.len()) {
                self.by_anchor.insert(anchor, first_row);
            }
        }
        self.bytes += bytes;
        self.by_use.insert(self.turns, first_row);
        let clock = Clock {
            base,
            offsets,
            used: self.turns,
            print,
            bytes,
        };
        self.clocks.insert(first_row, clock);
    }

    fn note_use(&mut self, first_row: u32) {
        if let Some(clock) = self.clocks.get_mut(&first_row) {
            self.by_use.remove(&clock.used);
            clock.used = self.turns;
            self.by_use.insert(clock.used, first_row);
        }
    }

    /// Lets clocks go that have not been used for long, until so many bytes fit in; whether they do.
    fn make_room(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some((&used, &first_row)) = self.by_use.first_key_value() else {
                return false;
            };
            if self.turns - used <= TURNS_KEPT * self.clocks.len() as u64 {
                return false;
            }
            self.remove(first_row);
        }
        true
    }

    fn remove(&mut self, first_row: u32) {
        let Some(clock) = self.clocks.remove(&first_row) else {
            return;
        };
        self.by_use.remove(&clock.used);
        self.bytes -= clock.bytes;
        if self.by_print.get(&clock.print) == Some(&first_row) {
            self.by_print.remove(&clock.print);
        }
        let times: Vec<i64> = clock.times().collect();
        for anchor in anchors(&times) {
            if self.by_anchor.get(&anchor) == Some(&first_row) {
                self.by_anchor.remove(&anchor);
            }
        }
    }
}

impl Clock {
    fn times(&self) -> impl Iterator<Item = i64> {
        self.offsets.iter().map(|&offset| self.base + i64::from(offset))
    }

    /// Where all of `times` are.
    fn place(&self, first_row: u32, times: &[i64]) -> Option<PlacedTimes> {
        let oldest = u32::try_from(times.first()?.checked_sub(self.base)?).ok()?;
        let oldest = self.offsets.binary_search(&oldest).ok()?;
        let offsets = self.offsets.get(oldest..)?;
        let is_at = |offset: u32, t: i64| self.base + i64::from(offset) == t;
        let mut placed = PlacedTimes {
            last_row: first_row + u32::try_from(offsets.len() - 1).ok()?,
            row_count: u32::try_from(times.len()).ok()?,
            ticks: Vec::new(),
        };
        let dense = offsets.get(..times.len());
        if dense.is_some_and(|dense| dense.iter().zip(times).all(|(&offset, &t)| is_at(offset, t))) {
            return Some(placed);
        }
        let ticks_max = times.len().saturating_mul(TICKS_PER_TIME_MAX as usize);
        let mut offsets = (0u32..).zip(offsets).take(ticks_max);
        for &t in times {
            let (tick, &offset) = offsets.find(|&(_, &offset)| self.base + i64::from(offset) >= t)?;
            if !is_at(offset, t) {
                return None;
            }
            placed.ticks.push(tick);
        }
        placed.row_count = placed.ticks.last()? + 1;
        Some(placed)
    }
}

/// The ends of times, and some between.
fn anchors(times: &[i64]) -> impl Iterator<Item = i64> {
    let ends = times.first().into_iter().chain(times.last()).copied();
    ends.chain(
        times
            .iter()
            .copied()
            .filter(|&t| mixed(t as u64) % ANCHOR_EACH == 0),
    )
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

    /// Writes times that are not known yet, as a writer does; tells where they are and whether they were known.
    fn push(clocks: &mut Clocks, rows: &mut u32, times: &[i64]) -> (PlacedTimes, bool) {
        if let Some(placed) = clocks.find(times) {
            return (placed, true);
        }
        let count = u32::try_from(times.len()).unwrap();
        clocks.add(*rows, times);
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

    #[test]
    fn equal_times_a_part_of_them_and_some_of_them_are_found() {
        let (mut clocks, mut rows) = (Clocks::default(), 0);
        let day = scrapes(1, 5760);
        let (all, _) = push(&mut clocks, &mut rows, &day);
        assert_eq!((all.last_row, all.row_count, all.tick(17)), (5759, 5760, 17));
        assert_eq!(push(&mut clocks, &mut rows, &day), (all, true));
        // Ends and begins at no end of the clock.
        let (part, known) = push(&mut clocks, &mut rows, &day[1000..3000]);
        assert!(known);
        assert_eq!((part.last_row, part.row_count, part.tick(3)), (4759, 2000, 3));
        let each_third: Vec<i64> = day.iter().copied().skip(1).step_by(3).collect();
        let (some, known) = push(&mut clocks, &mut rows, &each_third);
        assert!(known);
        assert_eq!((some.last_row, some.row_count, some.tick(5)), (5758, 5758, 15));
        // So few of them that reading all would be a waste.
        let each_ninth: Vec<i64> = day.iter().copied().step_by(9).collect();
        assert!(!push(&mut clocks, &mut rows, &each_ninth).1);
        let mut other = day.clone();
        other[4000] += 1;
        assert!(!push(&mut clocks, &mut rows, &other).1);
        assert!(push(&mut clocks, &mut rows, &other[3990..]).1);
        assert!(!push(&mut clocks, &mut rows, &scrapes(2, 5760)).1);
    }

    #[test]
    fn times_far_apart_are_never_found_and_harmless() {
        let (mut clocks, mut rows) = (Clocks::default(), 0);
        let far = [i64::MIN, 0, i64::MAX];
        for times in [&far[..], &far[..1], &far[1..], &far[2..]] {
            push(&mut clocks, &mut rows, times);
        }
        assert!(!push(&mut clocks, &mut rows, &far).1);
        assert!(push(&mut clocks, &mut rows, &far[..1]).1);
        assert!(push(&mut clocks, &mut rows, &far[2..]).1);
    }

    #[test]
    fn i12_what_is_known_is_bounded_and_taken_in_turn_some_stay_known() {
        let bytes = 400 * (480 * 4 + 500);
        let (mut clocks, mut rows) = (Clocks::within(bytes), 0);
        let mut known = [0; 6];
        for known in &mut known {
            for target in 0..1000 {
                *known += u32::from(push(&mut clocks, &mut rows, &scrapes(target, 480)).1);
                assert!(clocks.bytes <= bytes);
            }
        }
        assert_eq!(known[0], 0);
        assert!(known[1..].iter().all(|&known| known >= 300), "{known:?}");
        // Others take the place of those that do not come again.
        let mut known = [0; 8];
        for known in &mut known {
            for target in 2000..2200 {
                *known += u32::from(push(&mut clocks, &mut rows, &scrapes(target, 480)).1);
            }
        }
        assert_eq!(known[7], 200, "{known:?}");
        let counted: usize = clocks.clocks.values().map(|clock| clock.bytes).sum();
        assert_eq!(
            (counted, clocks.by_use.len()),
            (clocks.bytes, clocks.clocks.len())
        );
        assert!(clocks.by_print.len() <= clocks.clocks.len());
        assert!(
            clocks
                .by_anchor
                .values()
                .all(|row| clocks.clocks.contains_key(row))
        );
    }
}
