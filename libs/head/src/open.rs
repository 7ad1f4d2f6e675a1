//! The open samples of a series: a byte-packed run in a chain of small blocks, appended to with every sample.
//!
//! An entry is a control byte, the change of the time step when there is one, and the value as the difference of
//! decimal mantissas, usually one or two bytes. It lives only in memory; sealing decodes it and encodes a chunk.

use koios_chunk::decimal::{EXPONENT_MAX, exponent_for_run, from_mantissa, to_mantissa};

const BLOCK_DATA_BYTES: usize = 59;
/// Blocks allocated at a time: 256 KiB, so that growing never copies.
const SEGMENT_BLOCKS: usize = 4096;
const NO_BLOCK: u32 = u32::MAX;

/// The value has the bits of the one before.
const SAME: u8 = 0;
/// The difference of mantissas follows.
const DELTA: u8 = 1;
/// A larger exponent and the mantissa follow.
const RAISE: u8 = 2;
/// The eight bytes of the float follow.
const RAW: u8 = 3;
/// Control bit: the time step is that of the sample before.
const SAME_STEP: u8 = 0x80;

#[derive(Clone, Debug)]
struct Block {
    next: u32,
    used: u8,
    data: [u8; BLOCK_DATA_BYTES],
}

const EMPTY: Block = Block {
    next: NO_BLOCK,
    used: 0,
    data: [0; BLOCK_DATA_BYTES],
};

/// The slab that all open samples of a head lie in.
#[derive(Debug)]
pub(crate) struct Pool {
    segments: Vec<Box<[Block]>>,
    free: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            segments: Vec::new(),
            free: NO_BLOCK,
        }
    }
}

/// The hot state of a series: all that an append in order touches beside the tail block.
#[derive(Clone, Debug)]
pub(crate) struct Hot {
    /// Time of the newest sample ever appended in order.
    pub(crate) last_t: i64,
    /// Its value.
    pub(crate) last_v: f64,
    /// The step before it, as far as it fits.
    last_step: u32,
    head: u32,
    tail: u32,
    /// Open samples.
    pub(crate) count: u16,
    exponent: u8,
    /// Whether `last_t` and `last_v` mean anything.
    pub(crate) has_last: bool,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            last_t: i64::MIN,
            last_v: 0.0,
            last_step: 0,
            head: NO_BLOCK,
            tail: NO_BLOCK,
            count: 0,
            exponent: 0,
            has_last: false,
        }
    }
}

/// What follows from one sample to the next; writer and reader step it alike.
#[derive(Clone, Copy, Debug)]
struct State {
    t: i64,
    v: f64,
    step: u32,
    exponent: u8,
}

impl State {
    fn first(t: i64, v: f64) -> Self {
        Self {
            t,
            v,
            step: 0,
            exponent: exponent_for_run(&[v]),
        }
    }

    fn advance(&mut self, t: i64, v: f64) {
        self.step = t.wrapping_sub(self.t).clamp(0, i64::from(u32::MAX)) as u32;
        (self.t, self.v) = (t, v);
    }

    fn mantissa(&self) -> Option<i64> {
        to_mantissa(self.v, self.exponent)
    }
}

/// One entry under construction; the longest is 22 bytes.
#[derive(Debug)]
struct Entry {
    bytes: [u8; 24],
    len: usize,
}

impl Entry {
    fn push(&mut self, b: u8) {
        self.bytes[self.len] = b;
        self.len += 1;
    }

    fn zigzag(&mut self, v: i64) {
        let mut v = ((v << 1) ^ (v >> 63)) as u64;
        while v >= 0x80 {
            self.push((v as u8) | 0x80);
            v >>= 7;
        }
        self.push(v as u8);
    }

    /// The entry for sample `(t, v)` after `state`, whose exponent it may raise.
    fn new(state: &mut State, t: i64, v: f64) -> Self {
        let mut e = Self {
            bytes: [0; 24],
            len: 1,
        };
        let change = t.wrapping_sub(state.t).wrapping_sub(i64::from(state.step));
        if change != 0 {
            e.zigzag(change);
        }
        let kind = e.push_value(state, v);
        e.bytes[0] = kind | if change == 0 { SAME_STEP } else { 0 };
        e
    }

    fn push_value(&mut self, state: &mut State, v: f64) -> u8 {
        if v.to_bits() == state.v.to_bits() {
            return SAME;
        }
        let before = state.mantissa();
        if let Some(m) = to_mantissa(v, state.exponent) {
            self.zigzag(m.wrapping_sub(before.unwrap_or(0)));
            return DELTA;
        }
        // After a float no larger exponent is tried: series of full precision would pay for the search every time.
        if before.is_some() && v.is_finite() {
            let higher = (state.exponent + 1..=EXPONENT_MAX).find_map(|e| to_mantissa(v, e).map(|m| (e, m)));
            if let Some((exponent, m)) = higher {
                state.exponent = exponent;
                self.push(exponent);
                self.zigzag(m);
                return RAISE;
            }
        }
        for b in v.to_bits().to_le_bytes() {
            self.push(b);
        }
        RAW
    }
}

impl Pool {
    fn block(&self, id: u32) -> &Block {
        &self.segments[id as usize / SEGMENT_BLOCKS][id as usize % SEGMENT_BLOCKS]
    }

    fn block_mut(&mut self, id: u32) -> &mut Block {
        &mut self.segments[id as usize / SEGMENT_BLOCKS][id as usize % SEGMENT_BLOCKS]
    }

    /// Loads the block that the next append writes to, if there is one.
    pub(crate) fn touch(&self, hot: &Hot) -> u32 {
        if hot.count == 0 {
            0
        } else {
            u32::from(self.block(hot.tail).used)
        }
    }

    fn allocate(&mut self) -> u32 {
        if self.free == NO_BLOCK {
            let base = (self.segments.len() * SEGMENT_BLOCKS) as u32;
            let mut segment = vec![EMPTY; SEGMENT_BLOCKS].into_boxed_slice();
            for (i, b) in segment.iter_mut().enumerate().take(SEGMENT_BLOCKS - 1) {
                b.next = base + i as u32 + 1;
            }
            self.segments.push(segment);
            self.free = base;
        }
        let id = self.free;
        let block = self.block_mut(id);
        let next = block.next;
        (block.next, block.used) = (NO_BLOCK, 0);
        self.free = next;
        id
    }

    /// Appends a sample later than all before; starts a run when none is open.
    pub(crate) fn append(&mut self, hot: &mut Hot, t: i64, v: f64) {
        if hot.count == 0 {
            let state = State::first(t, v);
            hot.head = self.allocate();
            hot.tail = hot.head;
            let block = self.block_mut(hot.head);
            block.data[..8].copy_from_slice(&t.to_le_bytes());
            block.data[8..16].copy_from_slice(&v.to_bits().to_le_bytes());
            block.used = 16;
            (hot.last_step, hot.exponent) = (0, state.exponent);
        } else {
            let mut state = State {
                t: hot.last_t,
                v: hot.last_v,
                step: hot.last_step,
                exponent: hot.exponent,
            };
            let entry = Entry::new(&mut state, t, v);
            state.advance(t, v);
            (hot.last_step, hot.exponent) = (state.step, state.exponent);
            self.write(hot, &entry.bytes[..entry.len]);
        }
        (hot.last_t, hot.last_v, hot.has_last) = (t, v, true);
        hot.count += 1;
    }

    fn write(&mut self, hot: &mut Hot, entry: &[u8]) {
        let mut used = usize::from(self.block(hot.tail).used);
        if used + entry.len() > BLOCK_DATA_BYTES {
            let next = self.allocate();
            self.block_mut(hot.tail).next = next;
            (hot.tail, used) = (next, 0);
        }
        let block = self.block_mut(hot.tail);
        block.data[used..used + entry.len()].copy_from_slice(entry);
        block.used = (used + entry.len()) as u8;
    }

    /// Appends the open samples to columns.
    pub(crate) fn decode(&self, hot: &Hot, timestamps: &mut Vec<i64>, values: &mut Vec<f64>) {
        if hot.count == 0 {
            return;
        }
        let mut entries = Entries {
            pool: self,
            block: self.block(hot.head),
            at: 0,
        };
        let mut state = State::first(entries.u64() as i64, f64::from_bits(entries.u64()));
        timestamps.reserve(usize::from(hot.count));
        values.reserve(usize::from(hot.count));
        timestamps.push(state.t);
        values.push(state.v);
        for _ in 1..hot.count {
            entries.step(&mut state);
            timestamps.push(state.t);
            values.push(state.v);
        }
    }

    /// Ends the run: gives its blocks back. The last time and value stay.
    pub(crate) fn release(&mut self, hot: &mut Hot) {
        if hot.count == 0 {
            return;
        }
        let free = self.free;
        self.block_mut(hot.tail).next = free;
        self.free = hot.head;
        (hot.head, hot.tail, hot.count) = (NO_BLOCK, NO_BLOCK, 0);
    }

    /// Memory held, free blocks included.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.segments.len() * SEGMENT_BLOCKS * size_of::<Block>()
    }
}

/// Reads entries along a chain; an entry never crosses a block.
#[derive(Debug)]
struct Entries<'a> {
    pool: &'a Pool,
    block: &'a Block,
    at: usize,
}

impl Entries<'_> {
    #[inline]
    fn byte(&mut self) -> u8 {
        let b = self.block.data[self.at];
        self.at += 1;
        b
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    #[inline]
    fn zigzag(&mut self) -> i64 {
        let first = self.byte();
        let (mut v, mut shift) = (u64::from(first & 0x7f), 7);
        if first < 0x80 {
            return ((v >> 1) as i64) ^ -((v & 1) as i64);
        }
        loop {
            let b = self.byte();
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return ((v >> 1) as i64) ^ -((v & 1) as i64);
            }
            shift += 7;
        }
    }

    fn step(&mut self, state: &mut State) {
        if self.at >= usize::from(self.block.used) {
            (self.block, self.at) = (self.pool.block(self.block.next), 0);
        }
        let control = self.byte();
        let change = if control & SAME_STEP != 0 {
            0
        } else {
            self.zigzag()
        };
        let t = state.t.wrapping_add(i64::from(state.step)).wrapping_add(change);
        let v = match control & !SAME_STEP {
            SAME => state.v,
            DELTA => {
                let m = state.mantissa().unwrap_or(0).wrapping_add(self.zigzag());
                from_mantissa(m, state.exponent)
            }
            RAISE => {
                state.exponent = self.byte();
                from_mantissa(self.zigzag(), state.exponent)
            }
            _ => f64::from_bits(self.u64()),
        };
        state.advance(t, v);
    }
}

#[cfg(test)]
mod tests {
    use koios_model::stale_nan;
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-100_000i64..100_000).prop_map(|m| m as f64 / 100.0),
            (0i64..1000).prop_map(|m| m as f64),
            Just(stale_nan()),
            Just(-0.0),
        ]
    }

    fn open(pool: &Pool, hot: &Hot) -> Vec<(i64, u64)> {
        let (mut ts, mut vs) = (Vec::new(), Vec::new());
        pool.decode(hot, &mut ts, &mut vs);
        ts.into_iter().zip(vs.into_iter().map(f64::to_bits)).collect()
    }

    proptest! {
        #[test]
        fn open_samples_read_back_bit_for_bit(
            a in proptest::collection::btree_map(any::<i64>(), any_value(), 1..100),
            b in proptest::collection::btree_map(0i64..100_000, any_value(), 1..100),
        ) {
            let mut pool = Pool::default();
            let (mut x, mut y) = (Hot::default(), Hot::default());
            let (mut ia, mut ib) = (a.iter(), b.iter());
            loop {
                let (sa, sb) = (ia.next(), ib.next());
                if let Some((&t, &v)) = sa { pool.append(&mut x, t, v); }
                if let Some((&t, &v)) = sb { pool.append(&mut y, t, v); }
                if sa.is_none() && sb.is_none() { break; }
            }
            let bits = |m: &std::collections::BTreeMap<i64, f64>| m.iter().map(|(t, v)| (*t, v.to_bits())).collect::<Vec<_>>();
            prop_assert_eq!(open(&pool, &x), bits(&a));
            pool.release(&mut x);
            prop_assert_eq!(open(&pool, &x), vec![]);
            prop_assert_eq!(open(&pool, &y), bits(&b));
        }
    }

    #[test]
    fn hot_state_and_blocks_keep_their_size() {
        assert_eq!(size_of::<Hot>(), 32);
        assert_eq!(size_of::<Block>(), 64);
    }

    #[test]
    fn released_blocks_are_used_again() {
        let mut pool = Pool::default();
        let mut hot = Hot::default();
        for run in 0..10_000i64 {
            for i in 0..100 {
                pool.append(&mut hot, run * 100 + i, i as f64 * 1.1);
            }
            pool.release(&mut hot);
        }
        assert_eq!(pool.segments.len(), 1);
    }
}
