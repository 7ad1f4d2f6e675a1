//! One label of a row group's series: which value is on which rows.

use std::ops::Range;

use arrow_array::types::Int32Type;
use arrow_array::{Array, DictionaryArray, StringArray};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};
use koios_model::Matcher;

use crate::series::VALUE_BYTES;
use crate::strings::StringList;

/// The distinct values of a label and the rows of each, so that a matcher looks at a value once, however many rows have
/// it, and finds a literal without looking at the others.
#[derive(Debug)]
pub(crate) struct LabelColumn {
    values: StringList,
    /// The rows of the first value, ascending, then those of the second, and so on; those without the label come last.
    rows: Vec<u32>,
    /// Where the rows of each value end in `rows`.
    ends: Vec<u32>,
}

impl LabelColumn {
    /// From the column's pieces.
    pub(crate) fn new(pieces: &[Strings<'_>]) -> Self {
        let values = {
            let mut all: Vec<&str> = pieces.iter().flat_map(Strings::used).collect();
            all.sort_unstable();
            StringList::from_sorted(all)
        };
        let absent = values.len();
        let mut places: Vec<u32> = Vec::new();
        for piece in pieces {
            let place_of = |value: &str| values.position(value).unwrap_or(absent) as u32;
            let by_key: Vec<u32> = (0..piece.values.len())
                .map(|key| piece.value(key).map_or(absent as u32, place_of))
                .collect();
            let keys = piece.keys().map(|key| key.and_then(|k| by_key.get(k).copied()));
            places.extend(keys.map(|place| place.unwrap_or(absent as u32)));
        }
        let (rows, mut ends) = sort_by_place(&places, absent + 1);
        ends.truncate(absent);
        Self { values, rows, ends }
    }

    /// How many rows there are.
    pub(crate) fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Every value there is.
    pub(crate) fn values(&self) -> &StringList {
        &self.values
    }

    /// The values on some rows.
    pub(crate) fn values_of(&self, rows: &BooleanBuffer) -> StringList {
        let on_rows = |i: &usize| self.rows_of(*i).iter().any(|&row| is_set(rows, row));
        let found = (0..self.values.len()).filter(on_rows);
        StringList::from_sorted(found.map(|i| self.values.get(i)))
    }

    /// How many bytes have to be looked at to tell which values match, a few for each value included.
    pub(crate) fn bytes_to_look_at(&self, matchers: &[Matcher]) -> usize {
        let (values, bytes) = match matchers.iter().find_map(Matcher::literals) {
            Some(literals) => (literals.len(), literals.iter().map(|l| l.len()).sum()),
            None => {
                let places = self.with_prefixes(matchers);
                (places.len(), self.values.bytes_of(places))
            }
        };
        let each = values.saturating_mul(VALUE_BYTES).saturating_add(bytes);
        each.saturating_mul(matchers.len())
    }

    /// The rows on which all of `matchers`, which are about this label, hold.
    pub(crate) fn matching(&self, matchers: &[Matcher]) -> BooleanBuffer {
        let mut found = BooleanBufferBuilder::new(self.rows.len());
        found.append_n(self.rows.len(), false);
        let mut add = |rows: &[u32]| rows.iter().for_each(|&row| found.set_bit(row as usize, true));
        let holds = |value: &str| matchers.iter().all(|m| m.matches(value));
        if let Some(literals) = matchers.iter().find_map(Matcher::literals) {
            let places = literals.into_iter().filter(|l| holds(l));
            places
                .filter_map(|l| self.values.position(l).ok())
                .for_each(|i| add(self.rows_of(i)));
        } else {
            let places = self.with_prefixes(matchers);
            places
                .filter(|&i| holds(self.values.get(i)))
                .for_each(|i| add(self.rows_of(i)));
        }
        if holds("") {
            add(self.rows_without());
        }
        found.finish()
    }

    /// The values that may match by the prefixes that matchers ask for.
    fn with_prefixes(&self, matchers: &[Matcher]) -> Range<usize> {
        let Some(prefix) = matchers.iter().find_map(Matcher::prefix) else {
            return 0..self.values.len();
        };
        let (Ok(from) | Err(from)) = self.values.position(prefix);
        let mut to = from;
        while to < self.values.len() && self.values.get(to).starts_with(prefix) {
            to += 1;
        }
        from..to
    }

    fn rows_of(&self, i: usize) -> &[u32] {
        let end = self.ends.get(i).copied().unwrap_or(0);
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before));
        let start = start.copied().unwrap_or(0);
        self.rows.get(start as usize..end as usize).unwrap_or(&[])
    }

    fn rows_without(&self) -> &[u32] {
        let start = self.ends.last().copied().unwrap_or(0);
        self.rows.get(start as usize..).unwrap_or(&[])
    }

    /// Bytes held.
    pub(crate) fn memory_size(&self) -> usize {
        self.values.memory_size() + (self.rows.len() + self.ends.len()) * size_of::<u32>()
    }
}

fn is_set(rows: &BooleanBuffer, row: u32) -> bool {
    (row as usize) < rows.len() && rows.value(row as usize)
}

/// Row numbers in the order of their places, and where each place ends: places are below `count`, rows below 2^32.
fn sort_by_place(places: &[u32], count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut ends = vec![0u32; count];
    for &place in places {
        ends[place as usize] += 1;
    }
    let mut end = 0;
    for e in &mut ends {
        end += *e;
        *e = end;
    }
    let mut rows = vec![0u32; places.len()];
    let mut next = ends.clone();
    // Backwards, so that rows ascend inside a place.
    for (row, &place) in places.iter().enumerate().rev() {
        let at = &mut next[place as usize];
        *at -= 1;
        rows[*at as usize] = row as u32;
    }
    (rows, ends)
}

/// A dictionary column, checked to be one of strings. An empty string is as good as none.
pub(crate) struct Strings<'a> {
    array: &'a DictionaryArray<Int32Type>,
    values: &'a StringArray,
}

impl<'a> Strings<'a> {
    pub(crate) fn new(array: &'a DictionaryArray<Int32Type>) -> Option<Self> {
        let values = array.values().as_any().downcast_ref::<StringArray>()?;
        Some(Self { array, values })
    }

    fn keys(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        let keys = self.array.keys().iter();
        keys.map(|k| k.and_then(|k| usize::try_from(k).ok()))
    }

    fn value(&self, key: usize) -> Option<&'a str> {
        let there = key < self.values.len() && self.values.is_valid(key);
        there.then(|| self.values.value(key)).filter(|v| !v.is_empty())
    }

    /// The values that are on any row: a dictionary may hold others.
    fn used(&self) -> impl Iterator<Item = &'a str> {
        let mut used = vec![false; self.values.len()];
        for key in self.keys().flatten() {
            if let Some(used) = used.get_mut(key) {
                *used = true;
            }
        }
        let keys = used.into_iter().enumerate().filter(|&(_, used)| used);
        keys.filter_map(|(key, _)| self.value(key))
    }

    pub(crate) fn get(&self, row: usize) -> Option<&'a str> {
        let keys = self.array.keys();
        if row >= keys.len() || keys.is_null(row) {
            return None;
        }
        self.value(usize::try_from(keys.value(row)).ok()?)
    }
}
