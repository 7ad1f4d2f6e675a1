//! The open samples of a series: the entries of an open run (`koios_chunk`) in a chain of small blocks. An entry never
//! crosses a block. Sealing decodes them and encodes a chunk; reads copy their bytes.

use koios_chunk::{OpenRun, OpenState, decode_open};
use koios_model::{Sample, TimeRange};

use crate::error::SnapshotError;
use crate::slab::{Chained, NONE, Slab};
use crate::snapshot::Reader;

const BLOCK_DATA_BYTES: usize = 59;

/// One line of the processor's cache: an append waits for no other.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block {
    next: u32,
    used: u8,
    data: [u8; BLOCK_DATA_BYTES],
}

/// Bytes of a series' state in a copy, before its blocks.
const COPIED_STATE_BYTES: usize = 24;

const EMPTY: Block = Block {
    next: NONE,
    used: 0,
    data: [0; BLOCK_DATA_BYTES],
};

impl Chained for Block {
    fn next(&self) -> u32 {
        self.next
    }

    fn set_next(&mut self, next: u32) {
        self.next = next;
    }
}

/// The slab that all open samples of a head lie in.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    blocks: Slab<Block>,
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
    /// [`HAS_LAST`], [`HAS_STARTS`], [`OPENS_WINDOW`] and [`HAS_HISTOGRAMS`].
    flags: u8,
}

/// `last_t` and `last_v` mean something.
const HAS_LAST: u8 = 1;
/// There are, or were, start timestamps beside the open samples.
const HAS_STARTS: u8 = 2;
/// The open run is the first of its window.
const OPENS_WINDOW: u8 = 4;
/// There are, or were, native histograms beside the floats.
const HAS_HISTOGRAMS: u8 = 8;

impl Hot {
    /// Whether `last_t` and `last_v` mean anything.
    pub(crate) fn has_last(&self) -> bool {
        self.flags & HAS_LAST != 0
    }

    /// Whether the series may have start timestamps that are not sealed.
    pub(crate) fn has_starts(&self) -> bool {
        self.flags & HAS_STARTS != 0
    }

    /// Sets the newest sample in order of a series without open ones.
    pub(crate) fn set_last(&mut self, last: Option<Sample>) {
        let kept = self.flags & (HAS_STARTS | HAS_HISTOGRAMS);
        *self = Self::default();
        self.flags = kept;
        if let Some(Sample { t, v }) = last {
            (self.last_t, self.last_v) = (t, v);
            self.flags |= HAS_LAST;
        }
    }

    pub(crate) fn set_has_starts(&mut self) {
        self.flags |= HAS_STARTS;
    }

    /// Whether nothing but floats without start timestamps was ever appended, as far as is not sealed: one check for all
    /// that floats in order need not look at.
    pub(crate) fn has_plain_floats(&self) -> bool {
        self.flags & (HAS_STARTS | HAS_HISTOGRAMS) == 0
    }

    /// Whether the series has, or had, native histograms, as far as is not sealed.
    pub(crate) fn has_histograms(&self) -> bool {
        self.flags & HAS_HISTOGRAMS != 0
    }

    pub(crate) fn set_has_histograms(&mut self) {
        self.flags |= HAS_HISTOGRAMS;
    }

    /// Whether the open run is the first of its window, as far as is known: a restart forgets it.
    pub(crate) fn opens_window(&self) -> bool {
        self.flags & OPENS_WINDOW != 0
    }

    pub(crate) fn set_opens_window(&mut self, opens: bool) {
        self.flags = if opens {
            self.flags | OPENS_WINDOW
        } else {
            self.flags & !OPENS_WINDOW
        };
    }
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            last_t: i64::MIN,
            last_v: 0.0,
            last_step: 0,
            head: NONE,
            tail: NONE,
            count: 0,
            exponent: 0,
            flags: 0,
        }
    }
}

impl Pool {
    fn block(&self, id: u32) -> &Block {
        self.blocks.get(id)
    }

    fn block_mut(&mut self, id: u32) -> &mut Block {
        self.blocks.get_mut(id)
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
        self.blocks.add(EMPTY)
    }

    /// Appends a sample later than all before; starts a run when none is open.
    pub(crate) fn append(&mut self, hot: &mut Hot, t: i64, v: f64) {
        let state = match hot.count {
            0 => self.begin(hot, t, v),
            _ => self.go_on(hot, t, v),
        };
        (hot.last_step, hot.exponent) = (state.step, state.exponent);
        (hot.last_t, hot.last_v) = (t, v);
        hot.flags |= HAS_LAST;
        hot.count += 1;
    }

    fn begin(&mut self, hot: &mut Hot, t: i64, v: f64) -> OpenState {
        let (state, entry) = OpenState::first(t, v);
        hot.head = self.allocate();
        hot.tail = hot.head;
        let (bytes, block) = (entry.bytes(), self.block_mut(hot.tail));
        block.data[..bytes.len()].copy_from_slice(bytes);
        block.used = bytes.len() as u8;
        state
    }

    fn go_on(&mut self, hot: &mut Hot, t: i64, v: f64) -> OpenState {
        let before = OpenState {
            t: hot.last_t,
            v: hot.last_v,
            step: hot.last_step,
            exponent: hot.exponent,
        };
        let (mut state, block) = (before, self.block_mut(hot.tail));
        let room = &mut block.data[usize::from(block.used)..];
        let len = state.append_to(t, v, room);
        if len <= room.len() {
            block.used += len as u8;
            return state;
        }
        let next = self.allocate();
        self.block_mut(hot.tail).next = next;
        hot.tail = next;
        let (mut state, block) = (before, self.block_mut(next));
        block.used = state.append_to(t, v, &mut block.data) as u8;
        state
    }

    fn blocks(&self, hot: &Hot) -> impl Iterator<Item = &Block> {
        let head = (hot.count > 0).then(|| self.block(hot.head));
        std::iter::successors(head, |block| (block.next != NONE).then(|| self.block(block.next)))
    }

    /// The bytes of the open samples' entries, in the memory they need.
    fn copy(&self, hot: &Hot) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.blocks(hot).map(|b| usize::from(b.used)).sum());
        self.copy_onto(hot, &mut out);
        out
    }

    /// Appends the bytes of the open samples' entries.
    pub(crate) fn copy_onto(&self, hot: &Hot, out: &mut Vec<u8>) {
        self.blocks(hot)
            .for_each(|b| out.extend_from_slice(&b.data[..usize::from(b.used)]));
    }

    /// From the first to the last open sample, if there are any.
    pub(crate) fn range(&self, hot: &Hot) -> Option<TimeRange> {
        let first = (hot.count > 0).then(|| self.block(hot.head).data.first_chunk())??;
        Some(TimeRange::new(i64::from_le_bytes(*first), hot.last_t))
    }

    /// A copy of the open samples, if any may be in a closed range.
    pub(crate) fn run(&self, hot: &Hot, wanted: TimeRange) -> Option<OpenRun> {
        let range = self.range(hot).filter(|range| range.overlaps(&wanted))?;
        Some(OpenRun::new(self.copy(hot).into(), usize::from(hot.count), range))
    }

    /// Appends the open samples to columns.
    ///
    /// # Errors
    /// When memory is damaged.
    pub(crate) fn decode(
        &self,
        hot: &Hot,
        timestamps: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), koios_chunk::Error> {
        decode_open(&self.copy(hot), usize::from(hot.count), timestamps, values)
    }

    /// Appends the state of a series and its open samples, block by block, so that no entry crosses one when they are read
    /// back.
    pub(crate) fn copy_out(&self, hot: &Hot, out: &mut Vec<u8>) {
        out.extend_from_slice(&hot.last_t.to_le_bytes());
        out.extend_from_slice(&hot.last_v.to_bits().to_le_bytes());
        out.extend_from_slice(&hot.last_step.to_le_bytes());
        out.extend_from_slice(&hot.count.to_le_bytes());
        out.extend_from_slice(&[hot.exponent, u8::from(hot.has_last())]);
        let mut next = if hot.count > 0 { hot.head } else { NONE };
        while next != NONE {
            let block = self.block(next);
            out.push(block.used);
            out.extend_from_slice(&block.data[..usize::from(block.used)]);
            next = block.next;
        }
        out.push(0);
    }

    /// Reads over what [`Self::copy_out`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError`] when it ends early.
    pub(crate) fn pass(r: &mut Reader<'_>) -> Result<(), SnapshotError> {
        r.take(COPIED_STATE_BYTES)?;
        loop {
            match r.array()? {
                [0] => return Ok(()),
                [used] => r.take(usize::from(used))?,
            };
        }
    }

    /// Reads what [`Self::copy_out`] wrote, and appends the bytes of the entries to `entries`.
    ///
    /// # Errors
    /// [`SnapshotError`] when it is malformed.
    pub(crate) fn copy_in(
        &mut self,
        r: &mut Reader<'_>,
        entries: &mut Vec<u8>,
    ) -> Result<Hot, SnapshotError> {
        let mut hot = Hot {
            last_t: r.i64()?,
            last_v: f64::from_bits(r.u64()?),
            last_step: r.u32()?,
            count: u16::from_le_bytes(r.array()?),
            ..Hot::default()
        };
        let [exponent, has_last] = r.array()?;
        (hot.exponent, hot.flags) = (exponent, if has_last != 0 { HAS_LAST } else { 0 });
        loop {
            let [used] = r.array()?;
            if used == 0 {
                break;
            }
            let data = r.take(usize::from(used))?;
            entries.extend_from_slice(data);
            let id = self.allocate();
            match hot.head {
                NONE => hot.head = id,
                _ => self.block_mut(hot.tail).next = id,
            }
            hot.tail = id;
            let block = self.block_mut(id);
            block.used = used;
            let room = block.data.get_mut(..data.len()).ok_or(SnapshotError)?;
            room.copy_from_slice(data);
        }
        let is_whole = (hot.count == 0) == (hot.head == NONE);
        is_whole.then_some(hot).ok_or(SnapshotError)
    }

    /// Ends the run: gives its blocks back. The last time and value stay.
    pub(crate) fn release(&mut self, hot: &mut Hot) {
        if hot.count == 0 {
            return;
        }
        self.blocks.release(hot.head, hot.tail);
        (hot.head, hot.tail, hot.count) = (NONE, NONE, 0);
    }

    /// Gives back the memory of blocks that are free, given the state of all series there are.
    pub(crate) fn shrink(&mut self, all: &mut [Hot]) {
        let mut blocks = Slab::default();
        for hot in all.iter_mut().filter(|hot| hot.count > 0) {
            (hot.head, hot.tail) = self.blocks.copy_chain(hot.head, hot.tail, &mut blocks);
        }
        self.blocks = blocks;
    }

    /// Memory held, free blocks included.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.blocks.memory_bytes()
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
        pool.decode(hot, &mut ts, &mut vs).unwrap();
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
            let held = pool.memory_bytes();
            let mut all = [x, y];
            pool.shrink(&mut all);
            prop_assert!(pool.memory_bytes() <= held);
            prop_assert_eq!(open(&pool, &all[0]), vec![]);
            prop_assert_eq!(open(&pool, &all[1]), bits(&b));
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
        assert!(pool.memory_bytes() <= 16 * size_of::<Block>());
    }
}
