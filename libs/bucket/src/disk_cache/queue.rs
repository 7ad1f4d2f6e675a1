//! What waits to be written.

use std::collections::BTreeSet;

use bytes::Bytes;
use koios_block::CellKey;
use parking_lot::Mutex;

use super::segment::Generation;

/// Bytes of cells that may wait to be written; further ones are not kept.
const QUEUE_BYTES: u64 = 64 << 20;

/// A cell that is to be written.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) key: CellKey,
    pub(super) bytes: Bytes,
    pub(super) generation: Generation,
}

/// Whether a cell may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Added,
    /// It waits already: two readers fetched, or read, it at once.
    Known,
    /// Too much waits.
    Full,
}

/// The cells in the queue, and those that are being written: each once.
#[derive(Debug, Default)]
pub(super) struct QueueAccount {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    cells: BTreeSet<(CellKey, Generation)>,
}

impl QueueAccount {
    /// Counts a cell that is to wait.
    pub(super) fn enter(&self, cell: &Waiting) -> Entry {
        let mut state = self.state.lock();
        if state.cells.contains(&(cell.key, cell.generation)) {
            return Entry::Known;
        }
        let bytes = state.bytes.saturating_add(cell.bytes.len() as u64);
        if bytes > QUEUE_BYTES {
            return Entry::Full;
        }
        state.bytes = bytes;
        state.cells.insert((cell.key, cell.generation));
        Entry::Added
    }

    /// Forgets a cell that waits no more.
    pub(super) fn leave(&self, (key, generation, bytes): (CellKey, Generation, u64)) {
        let mut state = self.state.lock();
        if state.cells.remove(&(key, generation)) {
            state.bytes = state.bytes.saturating_sub(bytes);
        }
    }
}
