//! The inverted index: which series carry which label.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hashbrown::HashTable;
use roaring::RoaringBitmap;

use crate::symbols::Symbols;

/// A label as the ids of its name and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) name: u32,
    pub(crate) value: u32,
}

impl Pair {
    /// Splitmix64's finaliser: the ids are dense, the table wants all bits mixed.
    fn hash(self) -> u64 {
        let z = (u64::from(self.name) << 32) | u64::from(self.value);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The series that carry one label. Most labels that tell series apart are carried by one only.
#[derive(Debug)]
pub(crate) enum Postings {
    /// One series.
    One(u32),
    /// Any number.
    Many(Box<RoaringBitmap>),
}

impl Postings {
    /// Of series in a row, at least one.
    fn new(series: Range<u32>) -> Self {
        match series.len() {
            1 => Self::One(series.start),
            _ => {
                let mut all = RoaringBitmap::new();
                all.insert_range(series);
                Self::Many(Box::new(all))
            }
        }
    }

    /// Adds series in a row.
    fn insert(&mut self, series: Range<u32>) {
        match self {
            Self::One(only) if series.len() == 1 && *only == series.start => {}
            Self::One(only) => {
                let mut all = RoaringBitmap::from([*only]);
                all.insert_range(series);
                *self = Self::Many(Box::new(all));
            }
            Self::Many(all) => {
                all.insert_range(series);
            }
        }
    }

    fn remove_all(&mut self, dead: &RoaringBitmap) -> bool {
        match self {
            Self::One(only) => dead.contains(*only),
            Self::Many(all) => {
                **all -= dead;
                all.is_empty()
            }
        }
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Many(all) => all.len(),
        }
    }

    /// Adds them to a set.
    pub(crate) fn add_to(&self, set: &mut RoaringBitmap) {
        match self {
            Self::One(only) => {
                set.insert(*only);
            }
            Self::Many(all) => *set |= &**all,
        }
    }

    /// Takes them from a set.
    pub(crate) fn subtract_from(&self, set: &mut RoaringBitmap) {
        match self {
            Self::One(only) => {
                set.remove(*only);
            }
            Self::Many(all) => *set -= &**all,
        }
    }

    /// Whether a set has any of them.
    pub(crate) fn intersects(&self, set: &RoaringBitmap) -> bool {
        match self {
            Self::One(only) => set.contains(*only),
            Self::Many(all) => !all.is_disjoint(set),
        }
    }
}

/// Symbol ids in the order of their strings, kept sorted but for the latest few: insertion is amortised.
#[derive(Debug, Default)]
pub(crate) struct SortedSymbols {
    sorted: Vec<u32>,
    recent: Vec<u32>,
}

impl SortedSymbols {
    fn insert(&mut self, id: u32, symbols: &Symbols) {
        self.recent.push(id);
        if self.recent.len() > 32 + self.sorted.len() / 8 {
            self.sorted = self.merged(symbols);
            self.recent.clear();
        }
    }

    /// All ids in the order of their strings.
    pub(crate) fn merged(&self, symbols: &Symbols) -> Vec<u32> {
        let mut recent = self.recent.clone();
        recent.sort_unstable_by(|a, b| symbols.resolve(*a).cmp(symbols.resolve(*b)));
        let mut out = Vec::with_capacity(self.sorted.len() + recent.len());
        let mut rest = self.sorted.as_slice();
        for id in recent {
            let s = symbols.resolve(id);
            let (before, after) = rest.split_at(rest.partition_point(|x| symbols.resolve(*x) < s));
            out.extend_from_slice(before);
            out.push(id);
            rest = after;
        }
        out.extend_from_slice(rest);
        out
    }

    /// The ids whose strings start with `prefix`, in no particular order.
    pub(crate) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
        symbols: &'a Symbols,
    ) -> impl Iterator<Item = u32> + 'a {
        let start = self.sorted.partition_point(|x| symbols.resolve(*x) < prefix);
        let has = move |id: &u32| symbols.resolve(*id).starts_with(prefix);
        let sorted = self.sorted.get(start..).unwrap_or(&[]);
        let sorted = sorted.iter().copied().take_while(has);
        sorted.chain(self.recent.iter().copied().filter(has))
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.sorted.len() + self.recent.len()
    }

    fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.sorted.retain(|&id| keep(id));
        self.recent.retain(|&id| keep(id));
    }

    fn memory_bytes(&self) -> usize {
        (self.sorted.capacity() + self.recent.capacity()) * 4
    }
}

/// What is known of one label name.
#[derive(Debug, Default)]
pub(crate) struct NameIndex {
    /// Its values.
    pub(crate) values: SortedSymbols,
    /// The series that carry it, with any value.
    pub(crate) series: RoaringBitmap,
}

/// Series in a row, and what they have in common.
#[derive(Debug)]
pub(crate) enum Row {
    /// They are new.
    Series(Range<u32>),
    /// They carry a name, each with some value.
    Named(u32, Range<u32>),
    /// They carry a label.
    Labelled(Pair, Range<u32>),
}

/// The inverted index of a head.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pairs: HashTable<(Pair, Postings)>,
    names: BTreeMap<u32, NameIndex>,
    /// Every live series.
    pub(crate) all: RoaringBitmap,
    /// Postings entries, for the memory estimate.
    entries: u64,
}

impl Index {
    /// The series that carry a label.
    pub(crate) fn postings(&self, pair: Pair) -> Option<&Postings> {
        self.pairs.find(pair.hash(), |(p, _)| *p == pair).map(|(_, p)| p)
    }

    /// What is known of a name.
    pub(crate) fn name(&self, name: u32) -> Option<&NameIndex> {
        self.names.get(&name)
    }

    /// All names in use, in no particular order of strings.
    pub(crate) fn names(&self) -> impl Iterator<Item = (u32, &NameIndex)> {
        self.names.iter().map(|(id, n)| (*id, n))
    }

    /// Takes rows in. Labels that no series had are put onto `new`, and are among the values of their names after
    /// [`Self::add_values`].
    pub(crate) fn add_rows(&mut self, rows: &[Row], new: &mut Vec<Pair>) {
        for row in rows {
            match row {
                Row::Series(series) => {
                    self.all.insert_range(series.clone());
                }
                Row::Named(_, series) | Row::Labelled(_, series) if series.is_empty() => {}
                Row::Named(name, series) => {
                    let of_name = self.names.entry(*name).or_default();
                    of_name.series.insert_range(series.clone());
                }
                Row::Labelled(pair, series) => self.add(*pair, series.clone(), new),
            }
        }
    }

    fn add(&mut self, pair: Pair, series: Range<u32>, new: &mut Vec<Pair>) {
        self.entries += series.len() as u64;
        if let Some((_, postings)) = self.pairs.find_mut(pair.hash(), |(p, _)| *p == pair) {
            postings.insert(series);
            return;
        }
        new.push(pair);
        let postings = Postings::new(series);
        self.pairs
            .insert_unique(pair.hash(), (pair, postings), |(p, _)| p.hash());
    }

    /// Notes the values of labels that are new.
    pub(crate) fn add_values(&mut self, new: &[Pair], symbols: &mut Symbols) {
        for pair in new {
            symbols.acquire(pair.name);
            symbols.acquire(pair.value);
            let name = self.names.entry(pair.name).or_default();
            name.values.insert(pair.value, symbols);
        }
    }

    /// Removes series and every label that no other carries. `pairs` are the labels of the dead.
    pub(crate) fn remove(&mut self, dead: &RoaringBitmap, mut pairs: Vec<Pair>, symbols: &mut Symbols) {
        self.all -= dead;
        self.entries = self.entries.saturating_sub(pairs.len() as u64);
        pairs.sort_unstable();
        pairs.dedup();
        let mut gone = BTreeSet::new();
        for pair in pairs {
            if let Ok(mut entry) = self.pairs.find_entry(pair.hash(), |(p, _)| *p == pair)
                && entry.get_mut().1.remove_all(dead)
            {
                entry.remove();
                gone.insert(pair);
            }
            if let Some(name) = self.names.get_mut(&pair.name)
                && !name.series.is_disjoint(dead)
            {
                name.series -= dead;
            }
        }
        self.drop_values(&gone, symbols);
    }

    fn drop_values(&mut self, gone: &BTreeSet<Pair>, symbols: &mut Symbols) {
        let names: BTreeSet<u32> = gone.iter().map(|p| p.name).collect();
        for name in names {
            let empty = self.names.get_mut(&name).is_some_and(|n| {
                n.values.retain(|value| !gone.contains(&Pair { name, value }));
                n.values.len() == 0
            });
            if empty {
                self.names.remove(&name);
            }
        }
        for pair in gone {
            symbols.release(pair.name);
            symbols.release(pair.value);
        }
    }

    /// Gives back memory of labels that are gone.
    pub(crate) fn shrink(&mut self) {
        self.pairs.shrink_to_fit(|(p, _)| p.hash());
        for name in self.names.values_mut() {
            name.values.sorted.shrink_to_fit();
            name.values.recent.shrink_to_fit();
        }
    }

    /// Estimate of the memory held: entries take about two bytes in each of two bitmaps.
    pub(crate) fn memory_bytes(&self) -> usize {
        let names: usize = self.names.values().map(|n| 128 + n.values.memory_bytes()).sum();
        names + self.pairs.capacity() * (size_of::<(Pair, Postings)>() + 1) + self.entries as usize * 4
    }
}
