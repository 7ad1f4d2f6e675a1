//! Strings that are not in a request as they are meant, kept as long as what borrows from the request.

use std::cell::{Cell, OnceCell};

/// Cells of the first segment; each further one has twice as many.
const FIRST_CELLS: usize = 64;
/// Enough for any number of strings that fits in memory.
const SEGMENTS: usize = 26;
/// What a string occupies beside its bytes: its cell, twice for the segment's growth, and what the allocator adds.
const OVERHEAD: usize = 48;

type Segment = Box<[OnceCell<Box<[u8]>>]>;

/// Grows while its strings are borrowed, up to a limit.
#[derive(Debug)]
pub struct Strings {
    segments: [OnceCell<Segment>; SEGMENTS],
    len: Cell<usize>,
    bytes: Cell<usize>,
    limit: usize,
}

/// The limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) limit: usize,
}

impl Strings {
    /// None yet; together they may occupy `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            segments: [const { OnceCell::new() }; SEGMENTS],
            len: Cell::new(0),
            bytes: Cell::new(0),
            limit,
        }
    }

    /// What they occupy.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// How many bytes the next may have.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.bytes.get())
    }

    /// That there is no more room.
    pub(crate) fn full(&self) -> Full {
        Full { limit: self.limit }
    }

    /// Keeps a copy of `text`.
    pub(crate) fn add(&self, text: &[u8]) -> Result<&[u8], Full> {
        let full = self.full();
        if text.is_empty() {
            return Ok(&[]);
        }
        let bytes = self.bytes.get().saturating_add(text.len() + OVERHEAD);
        if bytes > self.limit {
            return Err(full);
        }
        let at = self.len.get();
        let number = (at / FIRST_CELLS + 1).ilog2() as usize;
        let within = at.saturating_sub(FIRST_CELLS * ((1 << number) - 1));
        let cells = FIRST_CELLS << number;
        let segment = self.segments.get(number).ok_or(full)?;
        let segment = segment.get_or_init(|| (0..cells).map(|_| OnceCell::new()).collect());
        let cell = segment.get(within).ok_or(full)?;
        self.bytes.set(bytes);
        self.len.set(at + 1);
        Ok(cell.get_or_init(|| text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_stay_where_they_are_while_more_come() {
        let strings = Strings::new(1 << 20);
        let kept: Vec<&[u8]> = (0..5_000)
            .map(|i: u32| strings.add(i.to_string().as_bytes()).unwrap())
            .collect();
        for (i, text) in kept.iter().enumerate() {
            assert_eq!(*text, i.to_string().as_bytes());
        }
    }

    #[test]
    fn i12_the_limit_holds() {
        let strings = Strings::new(200);
        let kept = (0..100).take_while(|_| strings.add(b"four").is_ok()).count();
        assert_eq!(kept, 3);
        assert_eq!(strings.add(b"four"), Err(Full { limit: 200 }));
        assert!(strings.bytes() <= 200);
    }
}
