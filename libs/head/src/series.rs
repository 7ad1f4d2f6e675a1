//! Series by dense index: identity, hot and cold state.

use std::cmp::Ordering;

use hashbrown::HashTable;
use koios_model::{Labels, LabelsRef, Sample, SeriesHash, write_packed_pair};

use crate::chunks::ChunkList;
use crate::histograms::HistogramSeries;
use crate::index::Pair;
use crate::late::Unchecked;
use crate::open::Hot;
use crate::packed::{LabelIds, LabelsAt, PackedLabels};
use crate::symbols::Symbols;

/// A series of one head, from a select on it. It stays valid until the series is forgotten and is never given to
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// The cut that a sealed chunk belongs to; 0 is none.
pub(crate) type CutTag = u32;
/// Not taken by any cut.
pub(crate) const UNCUT: CutTag = 0;
/// Places of series that are added at least.
const PLACES_MIN: usize = 16;
/// Rank of a series that came after the last ranking.
pub(crate) const UNRANKED: u32 = u32::MAX;

/// What reads and cuts touch, beside the hot state.
#[derive(Debug, Default)]
pub(crate) struct Cold {
    labels: LabelsAt,
    pub(crate) sealed: ChunkList,
    /// What few series have.
    pub(crate) side: Option<Box<Side>>,
}

/// What is not sealed yet of a series, beside floats in order.
#[derive(Debug, Default)]
pub(crate) struct Side {
    /// Floats that came late, strictly ascending in time.
    pub(crate) samples: Vec<Sample>,
    /// Those of them that were not compared with the others.
    pub(crate) unchecked: Unchecked,
    /// Native histograms.
    pub(crate) histograms: HistogramSeries,
}

impl Side {
    /// Whether it holds no sample, even if it remembers one that is sealed.
    pub(crate) fn holds_no_sample(&self) -> bool {
        self.samples.is_empty() && self.histograms.is_empty()
    }
}

impl Cold {
    /// The late samples, ascending.
    pub(crate) fn side(&self) -> &[Sample] {
        self.side.as_ref().map_or(&[], |s| &s.samples)
    }

    /// The native histograms that are not sealed, if there ever were any.
    pub(crate) fn histograms(&self) -> Option<&HistogramSeries> {
        self.side.as_ref().map(|s| &s.histograms)
    }

    /// Whether no sample is held, open floats left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.side.as_ref().is_none_or(|s| s.holds_no_sample())
    }
}

/// All series of a head.
#[derive(Debug, Default)]
pub(crate) struct SeriesTable {
    pub(crate) hashes: Vec<SeriesHash>,
    pub(crate) hot: Vec<Hot>,
    pub(crate) cold: Vec<Cold>,
    generations: Vec<u32>,
    /// That of places that are new: those before had lower ones.
    first_generation: u32,
    /// What whoever logs the series keeps beside it.
    pub(crate) marks: Vec<u64>,
    /// Place in label order among the series ranked together.
    pub(crate) ranks: Vec<u32>,
    lookup: HashTable<u32>,
    /// How often a series came under a hash that another had.
    shared_hashes: u64,
    free: Vec<u32>,
    labels: PackedLabels,
}

/// What a reference stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// This series.
    One(u32),
    /// Several series share the hash: only labels tell them apart.
    Ambiguous,
    /// No series.
    None,
}

fn table_hash(hash: SeriesHash) -> u64 {
    hash.0 as u64
}

impl SeriesTable {
    /// The series under a hash that is expected at a place: series mostly come in the order in which they were created, and then
    /// nothing but the dense array of hashes is touched.
    pub(crate) fn find_at(&self, hash: SeriesHash, expected: u32) -> Found {
        // A free place has the hash 0, and two series under one hash are told apart by their labels only.
        let is_there = self.hashes.get(expected as usize) == Some(&hash);
        if is_there && hash != SeriesHash(0) && self.shared_hashes == 0 {
            return Found::One(expected);
        }
        self.find(hash)
    }

    /// Whether a series ever came under a hash that another had.
    pub(crate) fn shares_hashes(&self) -> bool {
        self.shared_hashes > 0
    }

    /// The series under a hash, when its labels don't matter.
    pub(crate) fn find(&self, hash: SeriesHash) -> Found {
        let mut found = Found::None;
        for &i in self.lookup.iter_hash(table_hash(hash)) {
            if self.hashes[i as usize] == hash {
                if found != Found::None {
                    return Found::Ambiguous;
                }
                found = Found::One(i);
            }
        }
        found
    }

    /// The series with these labels.
    pub(crate) fn find_labels(
        &self,
        hash: SeriesHash,
        labels: LabelsRef<'_>,
        symbols: &Symbols,
    ) -> Option<u32> {
        self.lookup
            .find(table_hash(hash), |&i| {
                self.hashes[i as usize] == hash && self.has_labels(i, labels, None, symbols)
            })
            .copied()
    }

    /// The same where it is expected at a place, and mostly shares labels with the series found `before`.
    pub(crate) fn find_labels_at(
        &self,
        hash: SeriesHash,
        labels: LabelsRef<'_>,
        expected: u32,
        before: Option<(u32, LabelsRef<'_>)>,
        symbols: &Symbols,
    ) -> Option<u32> {
        let is_there = self.hashes.get(expected as usize) == Some(&hash) && self.is_used(expected);
        if is_there && self.has_labels(expected, labels, before, symbols) {
            return Some(expected);
        }
        self.find_labels(hash, labels, symbols)
    }

    /// Whether a series has these labels. What it shares with the one before need not be looked up: a string has one id.
    fn has_labels(
        &self,
        index: u32,
        labels: LabelsRef<'_>,
        before: Option<(u32, LabelsRef<'_>)>,
        symbols: &Symbols,
    ) -> bool {
        let mut ids = self.label_ids(index);
        let is = |id, bytes| symbols.resolve(id).as_bytes() == bytes;
        let (labels_before, ids_before) = match before {
            Some((place, labels)) => (labels, self.label_ids(place)),
            None => (LabelsRef::from_trusted(&[]), LabelIds::default()),
        };
        let mut known = labels_before.iter_bytes().zip(ids_before);
        let mut next = known.next();
        for (name, value) in labels.iter_bytes() {
            let Some(pair) = ids.next() else { return false };
            let here = loop {
                match next {
                    Some(((n, v), same)) if n == name => {
                        next = known.next();
                        break Some((v, same));
                    }
                    Some(((n, _), _)) if n < name => next = known.next(),
                    _ => break None,
                }
            };
            let has_it = match here {
                Some((v, same)) if v == value => same == pair,
                Some((_, same)) => same.name == pair.name && is(pair.value, value),
                None => is(pair.name, name) && is(pair.value, value),
            };
            if !has_it {
                return false;
            }
        }
        ids.next().is_none()
    }

    /// Adds a series at a place that [`Self::place`] gave.
    pub(crate) fn create(&mut self, index: u32, hash: SeriesHash, pairs: impl Iterator<Item = Pair>) {
        let labels = self.labels.add(pairs);
        self.shared_hashes += u64::from(self.find(hash) != Found::None);
        let i = index as usize;
        self.hashes[i] = hash;
        self.cold[i].labels = labels;
        let hashes = &self.hashes;
        self.lookup.insert_unique(table_hash(hash), index, |&other| {
            table_hash(hashes[other as usize])
        });
    }

    /// A place for a new series.
    pub(crate) fn place(&mut self) -> u32 {
        if let Some(index) = self.free.pop() {
            // Whatever was written there since it was freed belongs to no series.
            self.hot[index as usize] = Hot::default();
            self.marks[index as usize] = 0;
            return index;
        }
        push(&mut self.hashes, SeriesHash(0));
        push(&mut self.hot, Hot::default());
        push(&mut self.cold, Cold::default());
        push(&mut self.generations, self.first_generation);
        push(&mut self.marks, 0);
        push(&mut self.ranks, UNRANKED);
        (self.hashes.len() - 1) as u32
    }

    /// Takes the memory that so many more series need, at once instead of by and by.
    pub(crate) fn reserve(&mut self, series: usize) {
        self.hashes.reserve_exact(series);
        self.hot.reserve_exact(series);
        self.cold.reserve_exact(series);
        self.generations.reserve_exact(series);
        self.marks.reserve_exact(series);
        self.ranks.reserve_exact(series);
        let hashes = &self.hashes;
        let hash_of = |&index: &u32| table_hash(hashes[index as usize]);
        self.lookup.reserve(series, hash_of);
    }

    /// Removes a series that has no samples left; its id is never valid again.
    pub(crate) fn remove(&mut self, index: u32) {
        let i = index as usize;
        if let Ok(entry) = self
            .lookup
            .find_entry(table_hash(self.hashes[i]), |&other| other == index)
        {
            entry.remove();
        }
        self.hashes[i] = SeriesHash(0);
        self.hot[i] = Hot::default();
        let cold = std::mem::take(&mut self.cold[i]);
        if self.labels.remove(cold.labels) {
            self.labels
                .gather(self.cold.iter_mut().map(|cold| &mut cold.labels));
        }
        self.generations[i] = self.generations[i].wrapping_add(1);
        self.ranks[i] = UNRANKED;
        self.marks[i] = 0;
        self.free.push(index);
    }

    /// How many places there are, free ones included.
    pub(crate) fn places(&self) -> usize {
        self.hashes.len()
    }

    /// Gives back the places from `len` on, which are free. The lowest of the others are given out first, so that more can
    /// be given back another time.
    pub(crate) fn truncate(&mut self, len: usize) {
        let gone = self.generations.get(len..).unwrap_or_default();
        let newest = gone.iter().max().map_or(0, |newest| newest.saturating_add(1));
        self.first_generation = self.first_generation.max(newest);
        self.free.retain(|&index| (index as usize) < len);
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        self.hashes.truncate(len);
        self.hot.truncate(len);
        self.cold.truncate(len);
        self.generations.truncate(len);
        self.marks.truncate(len);
        self.ranks.truncate(len);
        self.hashes.shrink_to_fit();
        self.hot.shrink_to_fit();
        self.cold.shrink_to_fit();
        self.generations.shrink_to_fit();
        self.marks.shrink_to_fit();
        self.ranks.shrink_to_fit();
        self.free.shrink_to_fit();
        let hashes = &self.hashes;
        self.lookup
            .shrink_to_fit(|&index| table_hash(hashes[index as usize]));
        self.labels
            .gather(self.cold.iter_mut().map(|cold| &mut cold.labels));
        if len == 0 {
            self.shared_hashes = 0;
        }
    }

    /// The id to give out for a series.
    pub(crate) fn id(&self, index: u32) -> SeriesId {
        SeriesId {
            index,
            generation: self.generations[index as usize],
        }
    }

    /// Whether an id given out still means its series.
    pub(crate) fn is_current(&self, id: SeriesId) -> bool {
        self.generations.get(id.index as usize) == Some(&id.generation)
    }

    /// Whether there is a series of this index.
    pub(crate) fn is_used(&self, index: u32) -> bool {
        self.cold
            .get(index as usize)
            .is_some_and(|c| c.labels != LabelsAt::NOWHERE)
    }

    /// The labels of a series as symbol ids.
    pub(crate) fn label_ids(&self, index: u32) -> LabelIds<'_> {
        self.labels.ids(self.cold[index as usize].labels)
    }

    /// The labels of a series.
    pub(crate) fn labels(&self, index: u32, symbols: &Symbols) -> Labels {
        let mut packed = Vec::new();
        self.write_labels(index, symbols, &mut packed);
        LabelsRef::from_trusted(&packed).to_labels()
    }

    /// Appends the packed labels of a series.
    pub(crate) fn write_labels(&self, index: u32, symbols: &Symbols, out: &mut Vec<u8>) {
        for p in self.label_ids(index) {
            write_packed_pair(out, symbols.resolve(p.name), symbols.resolve(p.value));
        }
    }

    /// Compares two series by label order.
    pub(crate) fn compare(&self, a: u32, b: u32, symbols: &Symbols) -> Ordering {
        let (ra, rb) = (self.ranks[a as usize], self.ranks[b as usize]);
        if ra != UNRANKED && rb != UNRANKED {
            return ra.cmp(&rb);
        }
        self.compare_labels(a, b, |x, y| symbols.resolve(x).cmp(symbols.resolve(y)))
    }

    /// Compares the labels of two series, given the order of different symbols.
    pub(crate) fn compare_labels(&self, a: u32, b: u32, order: impl Fn(u32, u32) -> Ordering) -> Ordering {
        let (mut xs, mut ys) = (self.label_ids(a), self.label_ids(b));
        let symbol = |x, y| if x == y { Ordering::Equal } else { order(x, y) };
        loop {
            let (x, y) = match (xs.next(), ys.next()) {
                (Some(x), Some(y)) => (x, y),
                (x, y) => return x.is_some().cmp(&y.is_some()),
            };
            let o = symbol(x.name, y.name).then_with(|| symbol(x.value, y.value));
            if o.is_ne() {
                return o;
            }
        }
    }

    /// Estimate of the memory held, chunks and open samples excluded.
    pub(crate) fn memory_bytes(&self) -> usize {
        let per_slot = size_of::<SeriesHash>() + size_of::<Hot>() + size_of::<Cold>() + 8 + 4 + 4;
        self.hashes.capacity() * per_slot
            + self.lookup.capacity() * 5
            + self.free.capacity() * 4
            + self.labels.memory_bytes()
    }
}

/// Appends to one of the arrays of all series. They grow by little: doubled, half of them would be unused at times.
fn push<T>(all: &mut Vec<T>, item: T) {
    if all.len() == all.capacity() {
        all.reserve_exact((all.len() / 8).max(PLACES_MIN));
    }
    all.push(item);
}
