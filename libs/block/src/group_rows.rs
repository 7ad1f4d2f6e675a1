//! The rows of a row group of series that may match, read in several steps: a bit for each, not series, is what waits.

use std::collections::BTreeSet;
use std::ops::Range;

use arrow_buffer::BooleanBuffer;

/// Rows that may match, and how far they were read.
#[derive(Debug)]
pub(crate) struct GroupRows {
    group: u32,
    rows: usize,
    /// Which rows may match; `None` for all.
    mask: Option<BooleanBuffer>,
    /// The first row that was not read yet.
    at: usize,
    /// Chunks that were found to be too large to be held.
    too_large: BTreeSet<usize>,
}

/// Which series may match, as their numbers in the block.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    /// The number of the first row.
    first: u64,
    rows: usize,
    mask: Option<BooleanBuffer>,
}

impl Candidates {
    /// Whether any of these numbers, both ends included, may.
    pub(crate) fn any_in(&self, first: u64, last: u64) -> bool {
        let row = |number: u64| usize::try_from(number).map_or(self.rows, |row| row.min(self.rows));
        let from = row(first.saturating_sub(self.first));
        let to = row(last.saturating_add(1).saturating_sub(self.first));
        from < to
            && self
                .mask
                .as_ref()
                .is_none_or(|mask| mask.slice(from, to - from).count_set_bits() > 0)
    }
}

/// Rows of one chunk, as ascending runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChunkRows {
    /// The chunk's number in the row group.
    pub(crate) chunk: usize,
    /// Relative to the row group; not empty.
    pub(crate) runs: Vec<Range<usize>>,
}

impl ChunkRows {
    /// The row after them.
    pub(crate) fn end(&self) -> usize {
        self.runs.last().map_or(0, |r| r.end)
    }

    /// The runs relative to the chunk.
    pub(crate) fn in_chunk(&self, chunk_rows: usize) -> Vec<Range<usize>> {
        let base = self.chunk * chunk_rows;
        let runs = self.runs.iter();
        runs.map(|r| r.start.saturating_sub(base)..r.end.saturating_sub(base))
            .collect()
    }

    /// The first of them, at most `count`.
    pub(crate) fn first(&self, count: usize) -> Self {
        let (mut left, mut runs) = (count, Vec::new());
        for run in &self.runs {
            let end = run.end.min(run.start.saturating_add(left));
            if run.start < end {
                runs.push(run.start..end);
                left -= end - run.start;
            }
        }
        Self {
            chunk: self.chunk,
            runs,
        }
    }
}

impl GroupRows {
    pub(crate) fn new(group: u32, rows: usize, mask: Option<BooleanBuffer>) -> Self {
        Self {
            group,
            rows,
            mask,
            at: 0,
            too_large: BTreeSet::new(),
        }
    }

    /// The row group.
    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    /// How many rows the group has.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Which rows may match; `None` for all.
    pub(crate) fn mask(&self) -> Option<&BooleanBuffer> {
        self.mask.as_ref()
    }

    /// The series that may match, where the first row is that of the series with this number.
    pub(crate) fn candidates(&self, first: u64) -> Candidates {
        Candidates {
            first,
            rows: self.rows,
            mask: self.mask.clone(),
        }
    }

    /// Whether all were read.
    pub(crate) fn done(&self) -> bool {
        self.at >= self.rows
    }

    /// Whether a chunk was found to be too large to be held.
    pub(crate) fn is_too_large(&self, chunk: usize) -> bool {
        self.too_large.contains(&chunk)
    }

    /// Remembers that: whoever reads on in it need not try again, even where nothing is cached.
    pub(crate) fn set_too_large(&mut self, chunk: usize) {
        self.too_large.insert(chunk);
    }

    /// All rows before `at` were read.
    pub(crate) fn advance(&mut self, at: usize) {
        self.at = at;
    }

    /// The next rows that may match, at most `rows_max` of at most `chunks_max` chunks; empty when there are no more.
    pub(crate) fn next_chunks(
        &self,
        rows_max: usize,
        chunk_rows: usize,
        chunks_max: usize,
    ) -> Vec<ChunkRows> {
        let (mut found, mut left) = (Vec::<ChunkRows>::new(), rows_max);
        let rest = self.rows.saturating_sub(self.at);
        let (mut masked, mut whole) = (None, None);
        match &self.mask {
            Some(mask) => masked = Some(mask.slice(self.at, rest)),
            None => whole = Some((0, rest)),
        }
        let masked = masked.as_ref().map(BooleanBuffer::set_slices);
        for (from, to) in masked.into_iter().flatten().chain(whole) {
            let (mut from, to) = (self.at + from, self.at + to);
            while from < to {
                let chunk = from / chunk_rows;
                let end = to.min((chunk + 1) * chunk_rows).min(from.saturating_add(left));
                let full = found.len() == chunks_max;
                match found.last_mut() {
                    Some(last) if last.chunk == chunk => last.runs.push(from..end),
                    _ if full => return found,
                    _ => found.push(ChunkRows {
                        chunk,
                        runs: vec![from..end; 1],
                    }),
                }
                left -= end - from;
                if left == 0 {
                    return found;
                }
                from = end;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(mut rows: GroupRows, rows_max: usize, chunks_max: usize) -> Vec<usize> {
        let mut all = Vec::new();
        while !rows.done() {
            let found = rows.next_chunks(rows_max, 10, chunks_max);
            let count: usize = found
                .iter()
                .flat_map(|c| &c.runs)
                .map(ExactSizeIterator::len)
                .sum();
            assert!(count <= rows_max && found.len() <= chunks_max);
            for chunk in &found {
                for (run, inside) in chunk.runs.iter().zip(chunk.in_chunk(10)) {
                    assert!(inside.end <= 10 && inside.start + chunk.chunk * 10 == run.start);
                    all.extend(run.clone());
                }
            }
            rows.advance(found.last().map_or_else(|| rows.rows(), ChunkRows::end));
        }
        all
    }

    #[test]
    fn every_row_that_may_match_comes_once_however_small_the_steps() {
        let set = |row: usize| row % 7 < 3 && !(20..40).contains(&row);
        for (rows_max, chunks_max) in [(1, 1), (3, 2), (1000, 1), (1000, 100)] {
            let mask = BooleanBuffer::collect_bool(95, set);
            let masked = walk(GroupRows::new(0, 95, Some(mask)), rows_max, chunks_max);
            assert_eq!(masked, (0..95).filter(|&r| set(r)).collect::<Vec<_>>());
            let all = walk(GroupRows::new(0, 95, None), rows_max, chunks_max);
            assert_eq!(all, (0..95).collect::<Vec<_>>());
        }
    }

    #[test]
    fn numbers_of_series_that_may_match_are_found() {
        let mask = BooleanBuffer::collect_bool(50, |row| row == 20 || row == 21);
        let some = GroupRows::new(1, 50, Some(mask)).candidates(1000);
        for (first, last, any) in [
            (0, u64::MAX, true),
            (0, 999, false),
            (1000, 1019, false),
            (1020, 1020, true),
            (1021, 5000, true),
            (1022, 5000, false),
            (2000, 5000, false),
            (1021, 1020, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(some.any_in(first, last), any, "{first} to {last}");
        }
        let all = GroupRows::new(0, 50, None).candidates(0);
        assert!(all.any_in(49, 49) && !all.any_in(50, 60));
        assert!(!GroupRows::new(0, 0, None).candidates(7).any_in(0, 100));
    }

    #[test]
    fn the_first_rows_of_a_chunk_end_where_they_are_enough() {
        let rows = ChunkRows {
            chunk: 0,
            runs: vec![0..2, 5..9],
        };
        assert_eq!(rows.first(3).runs, [0..2, 5..6]);
        assert_eq!(rows.first(100).runs, [0..2, 5..9]);
    }
}
