//! Which cells are where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_block::{BlockId, CellKey};
use koios_runtime::DiskFile;

use super::record::Header;
use super::segment::Generation;

/// Of four parts of what is kept three are for cells that were read again.
const AGAIN_SHARE: u64 = 3;

/// Where a cell is. It can be read from here even when its segment was removed meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Arc<dyn DiskFile>,
    /// Of the record.
    pub(super) offset: u64,
    pub(super) header: Header,
    /// Whether a read of it is a reason to keep it once more: it was read once until now, or will go soon.
    pub(super) is_due: bool,
}

#[derive(Debug)]
struct Entry {
    segment: u64,
    offset: u64,
    header: Header,
}

#[derive(Debug)]
struct Segment {
    file: Arc<dyn DiskFile>,
    bytes: u64,
    keys: BTreeSet<CellKey>,
}

/// The cells of all segments.
#[derive(Debug)]
pub(super) struct Index {
    /// Most bytes of all files.
    bytes_max: u64,
    cells: BTreeMap<CellKey, Entry>,
    segments: BTreeMap<u64, Segment>,
}

impl Index {
    /// Of no segments.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            cells: BTreeMap::new(),
            segments: BTreeMap::new(),
        }
    }

    pub(super) fn place(&self, cell: &CellKey) -> Option<Place> {
        let entry = self.cells.get(cell)?;
        let segment = self.segments.get(&entry.segment)?;
        Some(Place {
            file: Arc::clone(&segment.file),
            offset: entry.offset,
            header: entry.header,
            is_due: self.is_due(entry.segment),
        })
    }

    /// Whether a cell that is read goes to the end of its generation: from the older one always, else when that is nearly full
    /// and the cell is in its oldest quarter, so that it is not written with every read.
    fn is_due(&self, segment: u64) -> bool {
        let numbers = Generation::Again.numbers();
        match Generation::of(segment) {
            Generation::Once => true,
            Generation::Again => {
                let all = self.segments.range(numbers.clone()).count();
                let older = self.segments.range(*numbers.start()..segment).count();
                let nearly_full = self.bytes_max / 32 * (8 * AGAIN_SHARE - 3);
                older * 4 < all && self.bytes_of(Generation::Again) >= nearly_full
            }
        }
    }

    /// Adds a segment, or says that one has grown.
    pub(super) fn add_segment(&mut self, number: u64, file: &Arc<dyn DiskFile>, bytes: u64) {
        let segment = self.segments.entry(number).or_insert_with(|| Segment {
            file: Arc::clone(file),
            bytes,
            keys: BTreeSet::new(),
        });
        segment.bytes = bytes;
    }

    /// Adds records of a segment; of cells that are kept twice the last one counts.
    pub(super) fn add_records(&mut self, number: u64, records: &[(u64, Header)]) {
        for &(offset, header) in records {
            self.forget(&header.key);
            let Some(segment) = self.segments.get_mut(&number) else {
                return;
            };
            segment.keys.insert(header.key);
            let entry = Entry {
                segment: number,
                offset,
                header,
            };
            self.cells.insert(header.key, entry);
        }
    }

    /// The segment that goes to make room for a number of bytes of a generation, and the bytes of its file: the oldest one of
    /// the generation that has more than its share.
    pub(super) fn leaving(&self, generation: Generation, bytes: u64) -> Option<(u64, u64)> {
        let coming = |g| if g == generation { bytes } else { 0 };
        let again = self
            .bytes_of(Generation::Again)
            .saturating_add(coming(Generation::Again));
        let all = self.bytes().saturating_add(bytes);
        let order = if again / AGAIN_SHARE > all / 4 {
            [Generation::Again, Generation::Once]
        } else {
            [Generation::Once, Generation::Again]
        };
        let oldest = |g: Generation| self.segments.range(g.numbers()).next();
        let (number, segment) = order.into_iter().find_map(oldest)?;
        Some((*number, segment.bytes))
    }

    fn bytes_of(&self, generation: Generation) -> u64 {
        self.segments
            .range(generation.numbers())
            .map(|(_, s)| s.bytes)
            .sum()
    }

    /// Forgets a segment, and tells how many cells it had.
    pub(super) fn drop_segment(&mut self, number: u64) -> usize {
        let Some(segment) = self.segments.remove(&number) else {
            return 0;
        };
        for key in &segment.keys {
            self.cells.remove(key);
        }
        segment.keys.len()
    }

    /// The segments of which nothing is needed any more.
    pub(super) fn empty_segments(&self) -> Vec<u64> {
        let empty = self.segments.iter().filter(|(_, s)| s.keys.is_empty());
        empty.map(|(number, _)| *number).collect()
    }

    pub(super) fn forget(&mut self, cell: &CellKey) {
        if let Some(entry) = self.cells.remove(cell)
            && let Some(segment) = self.segments.get_mut(&entry.segment)
        {
            segment.keys.remove(cell);
        }
    }

    pub(super) fn forget_block(&mut self, block: BlockId) {
        let key = |part, cell| CellKey { block, part, cell };
        let cells = self.cells.range(key(0, 0)..=key(u8::MAX, u32::MAX));
        for cell in cells.map(|(cell, _)| *cell).collect::<Vec<_>>() {
            self.forget(&cell);
        }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum()
    }

    pub(super) fn cells(&self) -> u64 {
        self.cells.len() as u64
    }
}
