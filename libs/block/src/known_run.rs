//! A run of times in memory, exact and small: of regular times with some jitter each takes a byte.

use crate::shared_times::PlacedTimes;

/// Of so many times one is written in full, so that a part of a run is found without reading all before.
const MARK_EACH: usize = 128;
/// Steps that are looked at for a usual one.
const STEPS_LOOKED_AT: usize = 64;

/// Times that ascend.
#[derive(Debug)]
pub(crate) struct Run {
    count: usize,
    last: i64,
    /// The usual step from one to the next.
    step: i64,
    /// By how much each step differs from that, as LEB128 of zigzag.
    steps: Vec<u8>,
    /// One of [`MARK_EACH`].
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Mark {
    time: i64,
    /// Where the step to the next time begins.
    at: usize,
}

impl Run {
    /// None of no times.
    pub(crate) fn of(times: &[i64]) -> Option<Self> {
        let &last = times.last()?;
        let step = usual_step(times);
        let (mut steps, mut marks) = (Vec::with_capacity(times.len()), Vec::new());
        for (place, &time) in times.iter().enumerate() {
            if place % MARK_EACH == 0 {
                marks.push(Mark {
                    time,
                    at: steps.len(),
                });
            }
            if let Some(&next) = times.get(place + 1) {
                // Exact even where it wraps.
                let off = next.wrapping_sub(time).wrapping_sub(step);
                write_number(zigzag(off), &mut steps);
            }
        }
        steps.shrink_to_fit();
        marks.shrink_to_fit();
        Some(Self {
            count: times.len(),
            last,
            step,
            steps,
            marks,
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.steps.capacity() + self.marks.capacity() * size_of::<Mark>()
    }

    pub(crate) fn times(&self) -> impl Iterator<Item = i64> {
        self.times_from(0)
    }

    /// Those from a mark on.
    fn times_from(&self, mark: usize) -> Times<'_> {
        let at = self.marks.get(mark);
        Times {
            time: at.map_or(0, |mark| mark.time),
            step: self.step,
            steps: at.and_then(|mark| self.steps.get(mark.at..)).unwrap_or_default(),
            left: self.count.saturating_sub(mark * MARK_EACH),
        }
    }

    /// Where all of `times` are, if among at most so many ticks.
    pub(crate) fn place(&self, first_row: u32, times: &[i64], ticks_max: usize) -> Option<PlacedTimes> {
        let (&oldest, &newest) = times.first().zip(times.last())?;
        if newest > self.last || times.len() > self.count {
            return None;
        }
        let mark = self.marks.partition_point(|mark| mark.time <= oldest);
        let mark = mark.checked_sub(1)?;
        let mut rest = self.times_from(mark).enumerate();
        let (after_mark, found) = rest.find(|&(_, time)| time >= oldest)?;
        if found != oldest {
            return None;
        }
        let before = mark * MARK_EACH + after_mark;
        let mut ticks = Vec::new();
        let mut row_count = 1;
        let mut rest = rest
            .map(|(place, time)| (place - after_mark, time))
            .take(ticks_max.checked_sub(1)?);
        for (place, &time) in times.iter().enumerate().skip(1) {
            let (tick, found) = rest.find(|&(_, found)| found >= time)?;
            if found != time {
                return None;
            }
            let tick = u32::try_from(tick).ok()?;
            if ticks.is_empty() && tick as usize != place {
                ticks.extend(0u32..u32::try_from(place).ok()?);
            }
            if !ticks.is_empty() {
                ticks.push(tick);
            }
            row_count = tick + 1;
        }
        let last_row = first_row + u32::try_from(self.count - 1 - before).ok()?;
        Some(PlacedTimes::new(last_row, row_count, ticks))
    }
}

/// Times as they are decoded.
struct Times<'a> {
    time: i64,
    step: i64,
    steps: &'a [u8],
    left: usize,
}

impl Iterator for Times<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        self.left = self.left.checked_sub(1)?;
        let time = self.time;
        let off = unzigzag(read_number(&mut self.steps));
        self.time = time.wrapping_add(self.step).wrapping_add(off);
        Some(time)
    }
}

/// The median of some steps: one that came too early or late does not make all others long.
fn usual_step(times: &[i64]) -> i64 {
    let each = times.len() / STEPS_LOOKED_AT + 1;
    let pairs = times.iter().zip(times.iter().skip(1)).step_by(each);
    let mut steps: Vec<i64> = pairs.map(|(a, b)| b.wrapping_sub(*a)).collect();
    steps.sort_unstable();
    steps.get(steps.len() / 2).copied().unwrap_or(0)
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn write_number(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn read_number(bytes: &mut &[u8]) -> u64 {
    let (mut n, mut shift) = (0, 0);
    while let Some((&byte, rest)) = bytes.split_first() {
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 || shift > 63 {
            break;
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_of_regular_times_with_gaps_takes_about_a_byte_for_each() {
        let times: Vec<i64> = (0..5760i64)
            .filter(|i| i % 500 != 77)
            .map(|i| 1_700_000_000_000 + i * 15_000 + i * i % 7)
            .collect();
        let run = Run::of(&times).unwrap();
        assert!(run.times().eq(times.iter().copied()));
        assert!(run.heap_bytes() < 7000, "{}", run.heap_bytes());
    }

    proptest! {
        #[test]
        fn i2_times_are_exact_and_found_just_where_they_are(
            times in proptest::collection::btree_set(prop_oneof![3 => 0i64..3000, 1 => any::<i64>()], 1..600),
            taken in proptest::collection::vec(0usize..4, 600),
            from in any::<prop::sample::Index>(),
            changed in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let times: Vec<i64> = times.into_iter().collect();
            let run = Run::of(&times).unwrap();
            prop_assert!(run.times().eq(times.iter().copied()));
            let from = from.index(times.len());
            let places = (from..times.len()).filter(|&place| place == from || taken[place] > 0);
            let places: Vec<usize> = places.collect();
            let mut some: Vec<i64> = places.iter().map(|&place| times[place]).collect();
            let ticks = places.last().unwrap() - from + 1;
            let placed = run.place(1000, &some, ticks).unwrap();
            prop_assert_eq!((placed.last_row as usize, placed.row_count as usize), (1000 + times.len() - 1 - from, ticks));
            for (i, place) in places.iter().enumerate() {
                prop_assert_eq!(placed.tick(i) as usize, place - from);
            }
            prop_assert_eq!(run.place(1000, &some, ticks - 1), None);
            if let Some(changed) = changed {
                let changed = changed.index(some.len());
                let other = some[changed].wrapping_add(1);
                if !times.contains(&other) && other != i64::MIN {
                    some[changed] = other;
                    prop_assert_eq!(run.place(1000, &some, usize::MAX), None);
                }
            }
        }
    }
}
