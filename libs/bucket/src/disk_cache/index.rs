//! Which cells are where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_block::{BlockId, CellKey};
use koios_runtime::DiskFile;

use super::record::Header;

/// Where a cell is. It can be read from here even when its segment was removed meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Arc<dyn DiskFile>,
    /// Of the record.
    pub(super) offset: u64,
    pub(super) header: Header,
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
#[derive(Debug, Default)]
pub(super) struct Index {
    cells: BTreeMap<CellKey, Entry>,
    segments: BTreeMap<u64, Segment>,
}

impl Index {
    pub(super) fn place(&self, cell: &CellKey) -> Option<Place> {
        let entry = self.cells.get(cell)?;
        let segment = self.segments.get(&entry.segment)?;
        Some(Place {
            file: Arc::clone(&segment.file),
            offset: entry.offset,
            header: entry.header,
        })
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

    /// The number of the oldest segment, and the bytes of its file.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        let (number, segment) = self.segments.first_key_value()?;
        Some((*number, segment.bytes))
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
