//! Cells that one read holds: those fetched for it ahead, and those that it may want again. The cache that all reads share may turn
//! them away, let them go for others, or because what they hold is kept in another form.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cell_store::CellKey;

/// The memory that the cells of all reads share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HeldBudget {
    used: Arc<AtomicU64>,
    bytes_max: u64,
}

impl HeldBudget {
    /// With so many bytes for all reads together.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            used: Arc::default(),
            bytes_max,
        }
    }

    /// How many are in use, or promised to what is being fetched.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What a read may have that has `own` bytes: half of what others leave, so that some is left for each that comes.
    fn share(&self, own: u64) -> u64 {
        self.share_of(self.used(), own)
    }

    fn share_of(&self, used: u64, own: u64) -> u64 {
        let others = used.saturating_sub(own);
        self.bytes_max.saturating_sub(others) / 2
    }

    /// Takes bytes for a read that has `own`, if its share allows it. It is looked at and taken at once: of reads that ask at the same
    /// time each would else be given half of the same room.
    fn take(&self, own: u64, bytes: u64) -> bool {
        let taken = |used: u64| {
            let fits = own.saturating_add(bytes) <= self.share_of(used, own);
            fits.then(|| used.saturating_add(bytes))
        };
        let update = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        update.is_ok()
    }
}

/// Cells of one read. Cheap to clone; all go with the last clone.
///
/// A read goes through turns: cells that neither the present one nor the one before asked for make room for others.
#[derive(Clone, Debug)]
pub struct HeldCells(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    budget: HeldBudget,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cells: BTreeMap<CellKey, Cell>,
    /// Of all cells, and what is reserved for others.
    bytes: u64,
    turn: u64,
}

#[derive(Debug)]
struct Cell {
    bytes: Bytes,
    /// When it was last asked for.
    turn: u64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let bytes = self.state.get_mut().bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl HeldCells {
    /// None yet.
    pub fn new(budget: &HeldBudget) -> Self {
        Self(Arc::new(Shared {
            budget: budget.clone(),
            state: Mutex::default(),
        }))
    }

    /// Another of the same budget.
    pub(crate) fn beside(&self) -> Self {
        Self::new(&self.0.budget)
    }

    /// How many bytes it may hold, as things are.
    pub fn bytes_max(&self) -> u64 {
        let own = self.0.state.lock().bytes;
        self.0.budget.share(own)
    }

    /// Begins the next turn.
    pub fn next_turn(&self) {
        self.0.state.lock().turn += 1;
    }

    /// The same for who never comes back: what was not asked for in the turn that ends goes at once.
    pub(crate) fn go_on(&self) {
        let mut state = self.0.state.lock();
        let ended = state.turn;
        state.turn += 1;
        let before: u64 = bytes_of(&state.cells);
        state.cells.retain(|_, cell| cell.turn == ended);
        let gone = before - bytes_of(&state.cells);
        self.give_back(&mut state, gone);
    }

    /// A cell, which so stays for this turn and the next.
    pub(crate) fn cell(&self, key: &CellKey) -> Option<Bytes> {
        let mut state = self.0.state.lock();
        let turn = state.turn;
        let cell = state.cells.get_mut(key)?;
        cell.turn = turn;
        Some(cell.bytes.clone())
    }

    /// Whether a cell is held; this does not ask for it.
    pub(crate) fn has(&self, key: &CellKey) -> bool {
        self.0.state.lock().cells.contains_key(key)
    }

    /// Room for so many bytes, if there is or can be made: for cells, or for what else a read holds.
    pub fn reserve(&self, bytes: u64) -> Option<HeldRoom> {
        let mut state = self.0.state.lock();
        if !self.take(&mut state, bytes) {
            self.let_go(&mut state, bytes);
            if !self.take(&mut state, bytes) {
                return None;
            }
        }
        Some(HeldRoom {
            held: self.clone(),
            left: bytes,
        })
    }

    /// Takes bytes of the budget, if the share allows it.
    fn take(&self, state: &mut State, bytes: u64) -> bool {
        let taken = self.0.budget.take(state.bytes, bytes);
        if taken {
            state.bytes += bytes;
        }
        taken
    }

    fn give_back(&self, state: &mut State, bytes: u64) {
        state.bytes = state.bytes.saturating_sub(bytes);
        self.0.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Lets cells go that nobody asked for in this turn and the last, those first that wait longest, until there is room.
    fn let_go(&self, state: &mut State, bytes: u64) {
        let now = state.turn;
        let old = state.cells.iter().filter(|(_, cell)| cell.turn + 1 < now);
        let mut old: Vec<(u64, CellKey)> = old.map(|(&key, cell)| (cell.turn, key)).collect();
        old.sort_unstable();
        for (_, key) in old {
            if state.bytes.saturating_add(bytes) <= self.0.budget.share(state.bytes) {
                return;
            }
            if let Some(cell) = state.cells.remove(&key) {
                self.give_back(state, cell.bytes.len() as u64);
            }
        }
    }
}

fn bytes_of(cells: &BTreeMap<CellKey, Cell>) -> u64 {
    cells.values().map(|cell| cell.bytes.len() as u64).sum()
}

/// Room for cells that are being fetched; what is not used of it is given back with this.
#[derive(Debug)]
pub struct HeldRoom {
    held: HeldCells,
    left: u64,
}

impl HeldRoom {
    /// Holds a cell, as long as there is room.
    pub(crate) fn put(&mut self, key: CellKey, bytes: Bytes) {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return;
        };
        self.left = left;
        let mut state = self.held.0.state.lock();
        let turn = state.turn;
        if let Some(before) = state.cells.insert(key, Cell { bytes, turn }) {
            self.held.give_back(&mut state, before.bytes.len() as u64);
        }
    }
}

impl Drop for HeldRoom {
    fn drop(&mut self) {
        let mut state = self.held.0.state.lock();
        self.held.give_back(&mut state, self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockId;

    fn key(cell: u32) -> CellKey {
        CellKey {
            block: BlockId::new(0, 0),
            part: 0,
            cell,
        }
    }

    fn put(held: &HeldCells, cell: u32, bytes: usize) -> bool {
        let room = held.reserve(bytes as u64);
        room.map(|mut room| room.put(key(cell), vec![0; bytes].into()))
            .is_some()
    }

    #[test]
    fn i12_a_read_has_half_of_what_others_leave_and_all_is_given_back() {
        let budget = HeldBudget::new(1000);
        let first = HeldCells::new(&budget);
        assert!(put(&first, 1, 400) && put(&first, 2, 100) && !put(&first, 3, 1));
        let second = HeldCells::new(&budget);
        assert_eq!(second.bytes_max(), 250);
        assert!(!put(&second, 1, 251) && put(&second, 1, 250));
        assert_eq!(budget.used(), 750);
        // The same cell again takes no more.
        drop(first);
        assert!(put(&second, 1, 250));
        assert_eq!(budget.used(), 250);
        let mut room = second.reserve(100).unwrap();
        room.put(key(7), vec![0; 101].into());
        room.put(key(8), vec![0; 60].into());
        assert_eq!(budget.used(), 350);
        drop(room);
        assert_eq!(budget.used(), 310);
        assert!(second.cell(&key(7)).is_none() && second.cell(&key(8)).is_some());
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn i12_reads_that_ask_at_once_have_no_more_than_there_is() {
        const READS: usize = 4;
        let budget = HeldBudget::new(1000);
        let begin = std::sync::Barrier::new(READS);
        // The room that one of them is given is all that a second may not have.
        let ask = || {
            let held = HeldCells::new(&budget);
            begin.wait();
            let used = (0..50_000).filter_map(|_| held.reserve(500).map(|_| budget.used()));
            used.max()
        };
        let most = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..READS).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|asked| asked.join().unwrap()).max()
        });
        assert_eq!(most, Some(Some(500)));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn cells_that_two_turns_did_not_ask_for_make_room() {
        let held = HeldCells::new(&HeldBudget::new(600));
        assert!(put(&held, 1, 100) && put(&held, 2, 100) && put(&held, 3, 100));
        held.next_turn();
        assert!(!put(&held, 4, 100));
        assert!(held.cell(&key(2)).is_some());
        held.next_turn();
        // One goes, as no more has to.
        assert!(put(&held, 4, 100));
        assert!(held.cell(&key(1)).is_none() && held.cell(&key(3)).is_some());
        assert!(!put(&held, 5, 100));
        held.next_turn();
        assert!(put(&held, 5, 100) && held.cell(&key(2)).is_none());
        assert!(held.cell(&key(3)).is_some() && held.cell(&key(4)).is_some());
        held.go_on();
        assert!(held.cell(&key(3)).is_some());
        held.go_on();
        assert!(held.has(&key(3)) && !held.has(&key(4)) && !held.has(&key(5)));
        assert_eq!(held.0.budget.used(), 100);
    }
}
