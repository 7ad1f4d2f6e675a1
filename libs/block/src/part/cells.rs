//! The bytes of a part, in cells of which each has its checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use super::PartFile;
use crate::Result;
use crate::cell_store::CellKey;
use crate::held_cells::HeldRoom;
use crate::meta::{CELL_BYTES, PartMeta};
use crate::tail::Tail;
use crate::used_up::{UsedUp, used_up};

/// Cells this close together, in bytes, are fetched by one request: at object stores a request costs as much as a megabyte.
const GAP_BYTES_MAX: u64 = 2 * CELL_BYTES;
/// The same where cells are small: of a dozen columns a page each is read there, and over larger gaps all of the columns would be.
const SMALL_GAP_BYTES_MAX: u64 = CELL_BYTES / 4;
/// Further gaps are bridged, the smallest first, up to so many bytes of all of them: a read of one series has two or three left, each
/// of which would be a request more of every block.
const BRIDGED_BYTES_MAX: u64 = 2 * CELL_BYTES;
/// Largest single request, in bytes.
const RUN_BYTES_MAX: u64 = 128 * CELL_BYTES;
/// Most bytes one step of a read may ask for; a sound row group needs a tenth of it.
const FETCH_BYTES_MAX: u64 = 256 << 20;

/// Cells by their number; `None` for those that are still to be fetched.
type Cells = BTreeMap<u64, Option<Bytes>>;

impl PartFile {
    /// The bytes of each range, from cells whose checksums were verified.
    pub(crate) async fn fetch(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(known) = self.known_end(ranges) {
            return Ok(known);
        }
        let mut cells = self.known_cells(ranges)?;
        let missing = missing(&cells);
        if !missing.is_empty() {
            let room = self.held.as_ref();
            let room = room.and_then(|held| held.reserve(self.bytes_to_hold(&missing, &cells)));
            self.fetch_cells(&missing, &mut cells, room).await?;
        }
        ranges.iter().map(|r| self.assemble(r, &cells)).collect()
    }

    /// The same, where `meta.json` has them.
    fn known_end(&self, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let part = self.part();
        let end = part.end.as_ref().filter(|_| !ranges.is_empty())?;
        end.read(part.bytes, ranges)
    }

    /// Fetches the cells of these ranges that are not held or cached, for this read to hold until it comes to them; none where it
    /// has no room for them.
    pub(crate) async fn fetch_ahead(&self, ranges: &[Range<u64>]) -> Result<()> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let mut cells = self.known_cells(ranges)?;
        let missing = missing(&cells);
        let to_fetch = self.bytes_to_hold(&missing, &cells);
        // What the cache has now it need not have when this read comes to it.
        let cached = cells
            .iter()
            .filter_map(|(&cell, bytes)| Some((self.key(cell), bytes.clone()?)));
        let cached: Vec<_> = cached.filter(|(key, _)| held.cell(key).is_none()).collect();
        let to_hold: u64 = cached.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let Some(mut room) = held.reserve(to_fetch.saturating_add(to_hold)) else {
            return Ok(());
        };
        for (key, bytes) in cached {
            room.put(key, bytes);
        }
        match missing.is_empty() {
            true => Ok(()),
            false => self.fetch_cells(&missing, &mut cells, Some(room)).await,
        }
    }

    /// The cells of ranges, as far as they are held or cached.
    fn known_cells(&self, ranges: &[Range<u64>]) -> Result<Cells> {
        let size = self.part().bytes;
        let mut total = 0u64;
        let mut cells = Cells::new();
        for r in ranges {
            if r.start > r.end || r.end > size {
                return Err(self.corrupt(format!("it refers to bytes {r:?} of its {size}")));
            }
            total = total.saturating_add(r.end - r.start);
            if total > FETCH_BYTES_MAX {
                return Err(self.corrupt(format!("one read needs over {FETCH_BYTES_MAX} bytes")));
            }
            for cell in self.part().cells_of(r) {
                cells.entry(cell).or_insert_with(|| self.known_cell(cell));
            }
        }
        Ok(cells)
    }

    fn known_cell(&self, cell: u64) -> Option<Bytes> {
        let key = self.key(cell);
        let held = self.held.as_ref().and_then(|held| held.cell(&key));
        held.or_else(|| self.cache.cell(&key))
    }

    /// How much of what the requests for missing cells bring is new to this read.
    fn bytes_to_hold(&self, missing: &[u64], cells: &Cells) -> u64 {
        let come = coalesce(self.part(), missing).into_iter().flatten();
        let new = come.filter(|&cell| !self.is_here(cell, cells));
        new.map(|cell| length(&self.part().cell_range(cell))).sum()
    }

    /// Whether a cell is known to this read already.
    fn is_here(&self, cell: u64, cells: &Cells) -> bool {
        match cells.get(&cell) {
            Some(of_ranges) => of_ranges.is_some(),
            None => self.held.as_ref().is_some_and(|held| held.has(&self.key(cell))),
        }
    }

    /// Keeps the cells of a tail of this part that pass their checksums; who reads the others is told why they do not.
    pub(crate) fn keep(&self, tail: &Tail) {
        let ends = tail.from.checked_add(tail.bytes.len() as u64) == Some(self.part().bytes);
        if !ends {
            return;
        }
        let cells = self.part().cells_of(&(tail.from..self.part().bytes));
        let whole = cells.map(|cell| (cell, self.part().cell_range(cell)));
        for (cell, range) in whole.filter(|(_, range)| tail.from <= range.start) {
            let bytes = within(&tail.bytes, tail.from, &range);
            if self.check_cell(cell, bytes).is_err() {
                return;
            }
        }
    }

    /// Lets cells go of which hardly anybody needs a byte once all samples in `rows` of a row group are cached as chunks:
    /// those that at least half of is of such samples. Every column of every read ends inside of a cell, and what is left of
    /// these would soon fill as much memory as the chunks. Rows of earlier reads count too: of many blocks few series are
    /// read at a time, a part of a page of each. While the cache of chunks is full all stay: it may not take them.
    ///
    /// A read that holds them still has them.
    pub(crate) fn forget_used_up(&self, group: u32, index: &ArrowReaderMetadata, rows: &[Range<u64>]) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return;
        };
        if !self.cache.takes_samples() {
            return;
        }
        let runs = self.cache.add_used_up(self.index_key(Some(group)), rows);
        let UsedUp { bytes, near } = used_up(index, &runs, &(first.start..last.end));
        let is_near = |cell: &u64| {
            let Range { start, end } = self.part().cell_range(*cell);
            near.iter().any(|near| near.start < end && start < near.end)
        };
        let cells = bytes.iter().flat_map(|b| mostly_within(b, self.part()));
        for cell in cells.filter(is_near) {
            self.cache.forget_cell(&self.key(cell));
        }
    }

    fn key(&self, cell: u64) -> CellKey {
        CellKey {
            block: self.meta.block,
            part: self.index,
            cell: u32::try_from(cell).unwrap_or(u32::MAX),
        }
    }

    /// Fetches cells, and holds them where there is room. Of damaged ones the first is told, once all others are kept.
    async fn fetch_cells(
        &self,
        missing: &[u64],
        cells: &mut Cells,
        mut room: Option<HeldRoom>,
    ) -> Result<()> {
        let missing = self.take_kept(missing, cells, &mut room).await;
        if missing.is_empty() {
            return Ok(());
        }
        let runs = coalesce(self.part(), &missing);
        let range = |run: &Range<u64>| {
            let (first, last) = (run.start, run.end.saturating_sub(1));
            self.part().cell_range(first).start..self.part().cell_range(last).end
        };
        let ranges: Vec<Range<u64>> = runs.iter().map(range).collect();
        let fetched = self.source.read(&self.part().name, &ranges).await?;
        if fetched.len() != ranges.len() {
            return Err(self.corrupt("the storage answered with another number of ranges"));
        }
        let mut damage = None;
        for ((run, range), bytes) in runs.into_iter().zip(&ranges).zip(fetched) {
            if bytes.len() as u64 != range.end - range.start {
                return Err(self.corrupt(format!("{} bytes came for range {range:?}", bytes.len())));
            }
            for cell in run {
                // It came once more only because it lies between.
                if self.is_here(cell, cells) {
                    continue;
                }
                let chunk = within(&bytes, range.start, &self.part().cell_range(cell));
                // What came only because it lies between is not cached, but this read may come to it yet.
                let checked = match cells.get_mut(&cell) {
                    Some(slot) => self
                        .check_cell(cell, chunk)
                        .map(|bytes| slot.insert(bytes).clone()),
                    None if room.is_some() && self.is_right(cell, chunk) => Ok(Bytes::copy_from_slice(chunk)),
                    None => continue,
                };
                match (checked, &mut room) {
                    (Ok(bytes), Some(room)) => room.put(self.key(cell), bytes),
                    (Ok(_), None) => {}
                    (Err(e), _) => damage = damage.or(Some(e)),
                }
            }
        }
        damage.map_or(Ok(()), Err)
    }

    /// Takes the cells that are kept below memory, and tells which are still missing.
    async fn take_kept(&self, missing: &[u64], cells: &mut Cells, room: &mut Option<HeldRoom>) -> Vec<u64> {
        let Some(store) = self.cache.cell_store().filter(|_| !missing.is_empty()) else {
            return missing.to_vec();
        };
        let keys: Vec<CellKey> = missing.iter().map(|&cell| self.key(cell)).collect();
        let mut kept = store.get(&keys).await.into_iter();
        let mut left = Vec::new();
        for (&cell, key) in missing.iter().zip(keys) {
            let bytes = kept.next().flatten();
            let is_right = bytes.as_ref().is_some_and(|bytes| self.is_right(cell, bytes));
            match bytes {
                Some(bytes) if is_right => {
                    self.cache.put_cell(key, bytes.clone());
                    if let Some(room) = room {
                        room.put(key, bytes.clone());
                    }
                    cells.insert(cell, Some(bytes));
                }
                Some(_) => {
                    store.forget(key);
                    left.push(cell);
                }
                None => left.push(cell),
            }
        }
        left
    }

    /// Whether these are the bytes of a cell.
    fn is_right(&self, cell: u64, bytes: &[u8]) -> bool {
        self.part().checksum(cell) == Some(crc32c::crc32c(bytes))
    }

    /// Verifies a cell that was fetched and caches a copy of its own, so that the large buffer it came in can go.
    fn check_cell(&self, cell: u64, bytes: &[u8]) -> Result<Bytes> {
        if !self.is_right(cell, bytes) {
            return Err(self.corrupt(format!(
                "cell {cell} (from byte {}) failed its checksum",
                self.part().cell_range(cell).start
            )));
        }
        let bytes = Bytes::copy_from_slice(bytes);
        self.cache.put_cell(self.key(cell), bytes.clone());
        if let Some(store) = self.cache.cell_store() {
            store.put(self.key(cell), bytes.clone());
        }
        Ok(bytes)
    }

    fn assemble(&self, range: &Range<u64>, cells: &Cells) -> Result<Bytes> {
        let of_range = self.part().cells_of(range);
        let is_in_one = of_range.end.saturating_sub(of_range.start) <= 1;
        let mut pieces = of_range.map(|cell| {
            let bytes = cells.get(&cell).and_then(Option::as_ref)?;
            let base = self.part().cell_range(cell).start;
            let from = range.start.saturating_sub(base) as usize;
            let to = (range.end - base).min(bytes.len() as u64) as usize;
            (from <= to).then(|| bytes.slice(from..to))
        });
        let lost = || self.corrupt(format!("bytes {range:?} are missing"));
        if is_in_one {
            return match pieces.next() {
                Some(piece) => piece.ok_or_else(lost),
                None => Ok(Bytes::new()),
            };
        }
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        for piece in pieces {
            out.extend_from_slice(&piece.ok_or_else(lost)?);
        }
        Ok(out.freeze())
    }
}

/// Those that are still to be fetched, ascending.
fn missing(cells: &Cells) -> Vec<u64> {
    let missing = cells.iter().filter(|(_, bytes)| bytes.is_none());
    missing.map(|(&cell, _)| cell).collect()
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// The bytes of a range, of some that begin at `from`; fewer where these end early.
fn within<'a>(bytes: &'a [u8], from: u64, range: &Range<u64>) -> &'a [u8] {
    let place = |at: u64| (at.saturating_sub(from)).min(bytes.len() as u64) as usize;
    bytes
        .get(place(range.start)..place(range.end))
        .unwrap_or_default()
}

/// The cells of a part of which at least half lies in `bytes`.
fn mostly_within(bytes: &Range<u64>, part: &PartMeta) -> impl Iterator<Item = u64> {
    let bytes = bytes.start..bytes.end.min(part.bytes);
    part.cells_of(&bytes).filter(move |&cell| {
        let whole = part.cell_range(cell);
        let inside = bytes.start.max(whole.start)..bytes.end.min(whole.end);
        length(&inside) * 2 >= length(&whole)
    })
}

/// Joins ascending cells into runs, bridging small gaps, also of what is here already: to fetch that once more costs less than another
/// request.
fn coalesce(part: &PartMeta, cells: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &cell in cells {
        let to = part.cell_range(cell);
        let gap_max = match part.has_small(cell) {
            true => SMALL_GAP_BYTES_MAX,
            false => GAP_BYTES_MAX,
        };
        let is_bridged = |run: &Range<u64>| {
            let from = part.cell_range(run.start).start..part.cell_range(run.end.saturating_sub(1)).end;
            to.start <= from.end + gap_max && to.start < from.start + RUN_BYTES_MAX
        };
        match runs.last_mut().filter(|run| is_bridged(run)) {
            Some(run) => run.end = cell + 1,
            None => runs.push(cell..cell + 1),
        }
    }
    bridge(part, runs)
}

/// Bridges the smallest gaps that are left between runs, as long as all of them are few bytes.
fn bridge(part: &PartMeta, runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let bytes =
        |run: &Range<u64>| part.cell_range(run.start).start..part.cell_range(run.end.saturating_sub(1)).end;
    let between = runs.windows(2).filter_map(|pair| {
        let [before, after] = pair else { return None };
        let (before, after) = (bytes(before), bytes(after));
        let joined = after.end - before.start <= RUN_BYTES_MAX;
        joined.then(|| (after.start.saturating_sub(before.end), after.start))
    });
    let mut gaps: Vec<(u64, u64)> = between.filter(|(gap, _)| *gap <= BRIDGED_BYTES_MAX).collect();
    gaps.sort_unstable();
    let mut left = BRIDGED_BYTES_MAX;
    let is_within = |(gap, _): &(u64, u64)| {
        let rest = left.checked_sub(*gap);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let bridged = gaps.into_iter().take_while(is_within);
    let bridged: BTreeSet<u64> = bridged.map(|(_, at)| at).collect();
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(runs.len());
    for run in runs {
        let is_bridged = bridged.contains(&bytes(&run).start);
        match joined
            .last_mut()
            .filter(|last| is_bridged && bytes(&run).end - bytes(last).start <= RUN_BYTES_MAX)
        {
            Some(last) => last.end = run.end,
            None => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: u64) -> PartMeta {
        PartMeta::of("part", 0, &vec![0; bytes as usize])
    }

    #[test]
    fn near_cells_share_a_request_and_far_ones_do_not() {
        let part = part(300 * CELL_BYTES);
        let coalesce = |cells: &[u64]| coalesce(&part, cells);
        assert_eq!(coalesce(&[0, 1, 4, 8, 20]), [0..5, 8..9, 20..21]);
        assert_eq!(coalesce(&[0, 4, 8, 12, 16]), [0..1, 4..5, 8..9, 12..13, 16..17]);
        let long: Vec<u64> = (0..300).collect();
        assert_eq!(coalesce(&long), [0..128, 128..256, 256..300]);
        assert!(coalesce(&[]).is_empty());
    }

    fn part_of_small_cells() -> PartMeta {
        let bytes = vec![0; 5 * CELL_BYTES as usize];
        part(5 * CELL_BYTES).with_small_cells(0, CELL_BYTES / 8, &bytes)
    }

    #[test]
    fn near_means_nearer_where_cells_are_small() {
        // Eight small ones to each of the others, from the third of these on.
        let part = part(5 * CELL_BYTES).with_small_cells(
            2 * CELL_BYTES,
            CELL_BYTES / 8,
            &vec![0; 5 * CELL_BYTES as usize],
        );
        let coalesce = |cells: &[u64]| coalesce(&part, cells);
        assert_eq!(coalesce(&[0, 1, 2, 5, 9]), [0..10; 1]);
        assert_eq!(coalesce(&[0, 2]), [0..3; 1]);
        // Further ones are bridged up to 16 small cells in all, the smallest first.
        let part = part_of_small_cells();
        let coalesce = |cells: &[u64]| super::coalesce(&part, cells);
        assert_eq!(coalesce(&[0, 7, 14, 21]), [0..15, 21..22]);
        assert_eq!(coalesce(&[0, 17, 21]), [0..1, 17..22]);
        assert_eq!(coalesce(&[0, 18]), [0..1, 18..19]);
    }

    #[test]
    fn a_cell_that_is_half_used_up_goes() {
        let cell = CELL_BYTES;
        let part = part(3 * cell + 100);
        let all = |bytes: Range<u64>| mostly_within(&bytes, &part).collect::<Vec<_>>();
        assert_eq!(all(cell / 2..2 * cell), [0, 1]);
        assert_eq!(all(cell / 2 + 1..2 * cell + cell / 2 - 1), [1]);
        // The last one is shorter.
        assert_eq!(all(3 * cell..3 * cell + 50), [3]);
        assert_eq!(all(3 * cell + 60..3 * cell + 100), Vec::<u64>::new());
        assert_eq!(all(0..0), Vec::<u64>::new());
    }
}
