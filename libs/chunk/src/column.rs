//! A column of integers in its smallest form: prediction, then bit-packed residuals in blocks with exceptions.
//!
//! All arithmetic wraps, so every sequence of 64-bit integers survives, however wild.

use std::ops::Range;

use crate::bits::{
    Cursor, UNPACKED_MAX, bit_len, pack, packed_len, unpack, unzigzag, varint_len, write_varint,
    write_zigzag, zigzag,
};

/// Residuals per block.
pub(crate) const BLOCK: usize = UNPACKED_MAX;
/// Bit of a block's width byte: exceptions follow.
const HAS_EXCEPTIONS: u8 = 0x80;

const MODE_CONSTANT: u8 = 0;
const MODE_LINEAR: u8 = 1;
const MODE_DELTA: u8 = 2;
const MODE_DELTA_ZIGZAG: u8 = 3;
const MODE_DELTA_OF_DELTA: u8 = 4;

/// Scratch memory of the column encoder.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    deltas: Vec<i64>,
    sorted: Vec<i64>,
    residuals: Vec<u64>,
    best: Vec<u64>,
}

/// How a column is predicted: the mode and its two parameters.
#[derive(Clone, Copy, Debug)]
struct Plan {
    mode: u8,
    a: i64,
    b: i64,
}

/// Appends a column; its length must be known to the reader.
pub(crate) fn write(out: &mut Vec<u8>, values: &[i64], scratch: &mut Scratch) {
    let Some((first, _)) = ends_unless_constant(out, values) else {
        return;
    };
    let plan = choose(values, first, scratch);
    out.push(plan.mode);
    write_zigzag(out, plan.a);
    write_zigzag(out, plan.b);
    for block in scratch.best.chunks(BLOCK) {
        write_block(out, block);
    }
}

/// Appends a column by the one plan that is rarely bad, without looking for a better one.
pub(crate) fn write_fast(out: &mut Vec<u8>, values: &[i64]) {
    let Some((first, last)) = ends_unless_constant(out, values) else {
        return;
    };
    let mean = last.wrapping_sub(first).wrapping_div(values.len() as i64 - 1);
    write_deltas(out, values, first, mean);
}

/// As [`write_fast`], of times counted from the first: along a line where they jitter around a schedule, which takes a bit
/// less for each than their steps, in which every jitter counts twice.
pub(crate) fn write_times_fast(out: &mut Vec<u8>, times: &[i64]) {
    let Some((first, last)) = ends_unless_constant(out, times) else {
        return;
    };
    let steps = times.len() as i64 - 1;
    // Rounded: a step that is too short by a fraction leaves the schedule in the end.
    let step = last
        .wrapping_sub(first)
        .wrapping_add(steps / 2)
        .wrapping_div(steps);
    let (mut lowest, mut highest, mut any) = (0i64, 0i64, 0u64);
    let (mut line, mut before) = (first, first);
    for &t in times.iter().skip(1) {
        line = line.wrapping_add(step);
        let off = t.wrapping_sub(line);
        lowest = lowest.min(off);
        highest = highest.max(off);
        any |= zigzag(t.wrapping_sub(before).wrapping_sub(step));
        before = t;
    }
    if bit_len(highest.wrapping_sub(lowest) as u64) >= bit_len(any) {
        return write_deltas(out, times, first, step);
    }
    let origin = first.wrapping_add(lowest);
    out.push(MODE_LINEAR);
    write_zigzag(out, origin);
    write_zigzag(out, step);
    let mut line = origin;
    write_blocks(out, times, |t| {
        let r = t.wrapping_sub(line) as u64;
        line = line.wrapping_add(step);
        r
    });
}

/// The first and the last value; none where nothing more is to be written.
fn ends_unless_constant(out: &mut Vec<u8>, values: &[i64]) -> Option<(i64, i64)> {
    let (&first, &last) = values.first().zip(values.last())?;
    if values.iter().all(|&v| v == first) {
        out.push(MODE_CONSTANT);
        write_zigzag(out, first);
        return None;
    }
    Some((first, last))
}

fn write_deltas(out: &mut Vec<u8>, values: &[i64], first: i64, mean: i64) {
    out.push(MODE_DELTA_ZIGZAG);
    write_zigzag(out, first);
    write_zigzag(out, mean);
    let mut before = first;
    write_blocks(out, values.get(1..).unwrap_or_default(), |v| {
        let r = zigzag(v.wrapping_sub(before).wrapping_sub(mean));
        before = v;
        r
    });
}

/// Writes residuals in blocks without exceptions.
fn write_blocks(out: &mut Vec<u8>, values: &[i64], mut residual: impl FnMut(i64) -> u64) {
    let mut residuals = [0u64; BLOCK];
    for block in values.chunks(BLOCK) {
        let mut any = 0;
        for (r, &v) in residuals.iter_mut().zip(block) {
            *r = residual(v);
            any |= *r;
        }
        let width = bit_len(any);
        out.push(width as u8);
        pack(out, residuals.get(..block.len()).unwrap_or_default(), width);
    }
}

/// Picks the cheapest plan and leaves its residuals in `scratch.best`.
fn choose(values: &[i64], first: i64, scratch: &mut Scratch) -> Plan {
    scratch.deltas.clear();
    scratch.deltas.extend(
        values
            .iter()
            .zip(values.iter().skip(1))
            .map(|(a, b)| b.wrapping_sub(*a)),
    );
    scratch.sorted.clear();
    scratch.sorted.extend_from_slice(&scratch.deltas);
    let middle = scratch.sorted.len() / 2;
    let median = *scratch.sorted.select_nth_unstable(middle).1;
    let least = scratch.deltas.iter().copied().min().unwrap_or(0);
    let first_delta = scratch.deltas.first().copied().unwrap_or(0);
    let last = values.last().copied().unwrap_or(first);
    let step = last.wrapping_sub(first).wrapping_div(scratch.deltas.len() as i64);

    let plans = [
        linear_plan(values, 0),
        linear_plan(values, step),
        linear_plan(values, median),
        Plan {
            mode: MODE_DELTA,
            a: first,
            b: least,
        },
        Plan {
            mode: MODE_DELTA_ZIGZAG,
            a: first,
            b: median,
        },
        Plan {
            mode: MODE_DELTA_OF_DELTA,
            a: first,
            b: first_delta,
        },
    ];
    // The most promising first: a residual never takes fewer bits than it has, so most plans need no closer look.
    let mut promise = [(0usize, 0usize); 6];
    for (at, (promise, plan)) in promise.iter_mut().zip(plans).enumerate() {
        residuals(plan, values, &scratch.deltas, &mut scratch.residuals);
        let bits: usize = scratch.residuals.iter().map(|r| bit_len(*r) as usize).sum();
        *promise = (parameter_bytes(plan) + bits / 8, at);
    }
    promise.sort_unstable();
    // Of equally small ones the first.
    let mut best = (usize::MAX, usize::MAX);
    for (least, at) in promise {
        let Some(&plan) = plans.get(at).filter(|_| (least, at) < best) else {
            continue;
        };
        residuals(plan, values, &scratch.deltas, &mut scratch.residuals);
        let blocks = scratch.residuals.chunks(BLOCK);
        let size = parameter_bytes(plan) + blocks.map(|b| best_width(b).1).sum::<usize>();
        if (size, at) < best {
            best = (size, at);
            std::mem::swap(&mut scratch.residuals, &mut scratch.best);
        }
    }
    plans.get(best.1).copied().unwrap_or(plans[0])
}

fn parameter_bytes(plan: Plan) -> usize {
    let bytes = varint_len(bit_len(zigzag(plan.a))) + varint_len(bit_len(zigzag(plan.b)));
    bytes as usize
}

/// A line of slope `step` under all values.
fn linear_plan(values: &[i64], step: i64) -> Plan {
    let mut line = 0i64;
    let mut origin = i64::MAX;
    for &v in values {
        origin = origin.min(v.wrapping_sub(line));
        line = line.wrapping_add(step);
    }
    Plan {
        mode: MODE_LINEAR,
        a: origin,
        b: step,
    }
}

fn residuals(plan: Plan, values: &[i64], deltas: &[i64], out: &mut Vec<u64>) {
    out.clear();
    let b = plan.b;
    match plan.mode {
        MODE_LINEAR => {
            let mut line = plan.a;
            out.extend(values.iter().map(|v| {
                let r = v.wrapping_sub(line) as u64;
                line = line.wrapping_add(b);
                r
            }));
        }
        MODE_DELTA => out.extend(deltas.iter().map(|d| d.wrapping_sub(b) as u64)),
        MODE_DELTA_ZIGZAG => out.extend(deltas.iter().map(|d| zigzag(d.wrapping_sub(b)))),
        _ => out.extend(
            deltas
                .iter()
                .zip(deltas.iter().skip(1))
                .map(|(d, next)| zigzag(next.wrapping_sub(*d))),
        ),
    }
}

/// The width at which a block is smallest, and its size in bytes then; of widths that give the same the smallest.
fn best_width(block: &[u64]) -> (u32, usize) {
    let mut counts = [0u8; 65];
    let mut present = 0u128;
    for &r in block {
        let bits = bit_len(r);
        present |= 1 << bits;
        if let Some(n) = counts.get_mut(bits as usize) {
            *n += 1;
        }
    }
    // The widths that occur, descending, and how often each does.
    let mut used = [(0u32, 0usize); 65];
    let mut len = 0;
    while present != 0 {
        let bits = 127 - present.leading_zeros();
        present ^= 1 << bits;
        if let (Some(slot), Some(n)) = (used.get_mut(len), counts.get(bits as usize)) {
            *slot = (bits, usize::from(*n));
            len += 1;
        }
    }
    let used = used.get(..len).unwrap_or_default();
    let mut best = (64, usize::MAX);
    let with_zero = used.last().is_none_or(|(bits, _)| *bits > 0).then_some(0);
    for (wider, width) in used.iter().map(|(bits, _)| *bits).chain(with_zero).enumerate() {
        let exceptions: usize = used
            .iter()
            .take(wider)
            .map(|&(bits, n)| n * (1 + varint_len(bits - width) as usize))
            .sum();
        // They only get more from here on.
        if exceptions >= best.1 {
            break;
        }
        let size = 1 + packed_len(block.len(), width) + exceptions + usize::from(exceptions > 0);
        if size <= best.1 {
            best = (width, size);
        }
    }
    best
}

fn write_block(out: &mut Vec<u8>, block: &[u64]) {
    let (width, _) = best_width(block);
    let exceptions = || block.iter().enumerate().filter(|(_, r)| bit_len(**r) > width);
    let count = exceptions().count();
    out.push(width as u8 | if count > 0 { HAS_EXCEPTIONS } else { 0 });
    if count > 0 {
        out.push(count as u8);
    }
    pack(out, block, width);
    for (i, r) in exceptions() {
        out.push(i as u8);
        write_varint(out, r >> width);
    }
}

/// Reads a column value by value, a block at a time.
#[derive(Debug)]
pub(crate) struct Reader {
    mode: u8,
    b: i64,
    /// The last value given out; for the linear mode the line's next height.
    last: i64,
    delta: i64,
    /// Values not yet given out.
    left: usize,
    /// How many of the next values come without a residual.
    free: usize,
    /// Residuals not yet looked at, or the values last given out.
    block: [i64; BLOCK],
    at: usize,
    len: usize,
}

/// What a reader found wrong.
pub(crate) type Flaw = &'static str;

const ENDS: Flaw = "column ends early";

impl Reader {
    /// Opens a column of `count` values at the cursor.
    pub(crate) fn open(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, Flaw> {
        let mut r = Self {
            mode: MODE_CONSTANT,
            b: 0,
            last: 0,
            delta: 0,
            left: count,
            free: 0,
            block: [0; BLOCK],
            at: 0,
            len: 0,
        };
        if count == 0 {
            return Ok(r);
        }
        r.mode = cursor.u8().ok_or(ENDS)?;
        r.last = cursor.zigzag().ok_or(ENDS)?;
        if r.mode != MODE_CONSTANT {
            r.b = cursor.zigzag().ok_or(ENDS)?;
        }
        r.free = match r.mode {
            MODE_CONSTANT => count,
            MODE_LINEAR => 0,
            MODE_DELTA | MODE_DELTA_ZIGZAG => 1,
            MODE_DELTA_OF_DELTA => 2,
            _ => return Err("column has an unknown mode"),
        }
        .min(count);
        if r.mode == MODE_DELTA_OF_DELTA {
            r.delta = r.b;
            r.last = r.last.wrapping_sub(r.b);
        }
        Ok(r)
    }

    /// The next values, at most `most` of them and at least one while any are left. The cursor is the one the column
    /// was opened with.
    pub(crate) fn run(&mut self, cursor: &mut Cursor<'_>, most: usize) -> Result<&[i64], Flaw> {
        if self.free == 0 && self.at >= self.len {
            self.fill(cursor)?;
        }
        let given = if self.free > 0 {
            self.run_free(most)
        } else {
            self.run_block(most)
        };
        self.left = self.left.saturating_sub(given.len());
        self.block.get(given).ok_or(ENDS)
    }

    /// Values that come without residuals.
    fn run_free(&mut self, most: usize) -> Range<usize> {
        let given = self.free.min(BLOCK).min(most);
        self.free -= given;
        let step = if self.mode == MODE_DELTA_OF_DELTA {
            self.delta
        } else {
            0
        };
        for v in self.block.iter_mut().take(given) {
            self.last = self.last.wrapping_add(step);
            *v = self.last;
        }
        0..given
    }

    /// What is left of the block, or `most` of it, one tight loop per mode.
    fn run_block(&mut self, most: usize) -> Range<usize> {
        let given = self.at..self.len.min(self.at.saturating_add(most));
        let each = self.block.get_mut(given.clone()).unwrap_or_default().iter_mut();
        let (b, mut last, mut delta) = (self.b, self.last, self.delta);
        match self.mode {
            MODE_LINEAR => each.for_each(|v| {
                *v = last.wrapping_add(*v);
                last = last.wrapping_add(b);
            }),
            MODE_DELTA => each.for_each(|v| {
                last = last.wrapping_add(b.wrapping_add(*v));
                *v = last;
            }),
            MODE_DELTA_ZIGZAG => each.for_each(|v| {
                last = last.wrapping_add(b.wrapping_add(unzigzag(*v as u64)));
                *v = last;
            }),
            _ => each.for_each(|v| {
                delta = delta.wrapping_add(unzigzag(*v as u64));
                last = last.wrapping_add(delta);
                *v = last;
            }),
        }
        (self.last, self.delta, self.at) = (last, delta, given.end);
        given
    }

    /// Moves the cursor past the column without giving out its values.
    pub(crate) fn skip(mut self, cursor: &mut Cursor<'_>) -> Result<(), Flaw> {
        while self.left > self.free {
            self.left -= self.free;
            self.free = 0;
            self.fill(cursor)?;
            self.left -= self.len;
        }
        Ok(())
    }

    /// Unpacks the next block.
    fn fill(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Flaw> {
        self.at = 0;
        self.len = self.left.min(BLOCK);
        let head = cursor.u8().ok_or(ENDS)?;
        let width = u32::from(head & !HAS_EXCEPTIONS);
        if width > 64 || self.len == 0 {
            return Err("block is wider than 64 bits or not expected");
        }
        let exceptions = if head & HAS_EXCEPTIONS != 0 {
            cursor.u8().ok_or(ENDS)?
        } else {
            0
        };
        let rest = cursor.rest();
        cursor.take(packed_len(self.len, width)).ok_or(ENDS)?;
        let block = self.block.get_mut(..self.len).ok_or(ENDS)?;
        unpack(rest, width, block);
        for _ in 0..exceptions {
            let at = cursor.u8().ok_or(ENDS)?;
            let high = cursor.varint().ok_or(ENDS)?;
            let slot = block
                .get_mut(usize::from(at))
                .ok_or("exception lies outside its block")?;
            let high = high
                .checked_shl(width)
                .ok_or("exception in a block of full width")?;
            *slot |= high as i64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_runs_of(most: usize, encoded: &[u8], count: usize) -> Vec<i64> {
        let mut c = Cursor::new(encoded);
        let mut r = Reader::open(&mut c, count).unwrap();
        let mut got = Vec::new();
        while got.len() < count {
            let run = r.run(&mut c, most).unwrap();
            assert!((1..=most).contains(&run.len()));
            got.extend_from_slice(run);
        }
        assert!(c.at_end());
        got
    }

    fn in_runs(encoded: &[u8], count: usize) -> Vec<i64> {
        in_runs_of(BLOCK, encoded, count)
    }

    fn survives(values: &[i64]) -> usize {
        let mut out = Vec::new();
        write(&mut out, values, &mut Scratch::default());
        for most in [1, 7, BLOCK, usize::MAX] {
            assert_eq!(in_runs_of(most, &out, values.len()), values);
        }
        let mut fast = Vec::new();
        write_fast(&mut fast, values);
        assert_eq!(in_runs(&fast, values.len()), values, "fast");
        let mut times = Vec::new();
        write_times_fast(&mut times, values);
        assert_eq!(in_runs(&times, values.len()), values, "times, fast");
        let mut c = Cursor::new(&out);
        Reader::open(&mut c, values.len()).unwrap().skip(&mut c).unwrap();
        assert!(c.at_end(), "skip: {} of {}", c.pos(), out.len());
        out.len()
    }

    proptest! {
        #[test]
        fn any_integers_survive(values in proptest::collection::vec(any::<i64>(), 0..200)) {
            survives(&values);
        }

        #[test]
        fn small_steps_survive(start in any::<i64>(), steps in proptest::collection::vec(-50i64..50, 0..300)) {
            let mut v = start;
            let values: Vec<i64> = steps.iter().map(|s| { v = v.wrapping_add(*s); v }).collect();
            survives(&values);
        }
    }

    #[test]
    fn i12_a_column_never_gives_more_than_it_has() {
        // One value in a mode that starts with two.
        let bytes = [MODE_DELTA_OF_DELTA, 0, 2];
        assert_eq!(in_runs(&bytes, 1), [-1 + 1]);
    }

    #[test]
    fn each_shape_takes_its_cheapest_mode() {
        assert!(survives(&[7; 1000]) <= 3);
        let regular: Vec<i64> = (0..120).map(|i| i * 15_000).collect();
        assert!(survives(&regular) <= 7);
        let squares: Vec<i64> = (0..120).map(|i| i * i).collect();
        assert!(survives(&squares) <= 60, "{}", survives(&squares));
        let mut outlier = regular;
        outlier[60] += 1;
        assert!(survives(&outlier) <= 14, "{}", survives(&outlier));
        // Three bits for a jitter of seven milliseconds, where steps would take four.
        let jitter = |i: i64| i * 15_000 + (i * 5) % 7;
        let mut times = Vec::new();
        write_times_fast(&mut times, &(0..640).map(jitter).collect::<Vec<_>>());
        assert!(times.len() <= 640 * 3 / 8 + 16, "{}", times.len());
        survives(&[i64::MIN, i64::MAX]);
        survives(&[i64::MAX, i64::MIN, 0]);
    }
}
