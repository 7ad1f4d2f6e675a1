//! Which batches a member holds: per stream, disjoint runs of sequence numbers.
//!
//! Members compare these sets to find what one lacks (repair), and manifests record them to say what a block covers.
//! A stream's set is nearly always one run from 0, the contiguous mark, with few or no gaps.

use std::collections::BTreeMap;

/// A distributor's stream: 128 random bits, new at every process start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u128);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl serde::Serialize for StreamId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        u128::from_str_radix(&s, 16)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// A set of sequence numbers as disjoint, non-adjacent runs `start -> end` (end excluded).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SequenceSet {
    runs: BTreeMap<u64, u64>,
}

impl SequenceSet {
    /// Adds one number; false when it was there.
    pub fn insert(&mut self, n: u64) -> bool {
        if self.contains(n) {
            return false;
        }
        self.insert_run(n, n + 1);
        true
    }

    /// Adds `start..end`.
    pub fn insert_run(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((&s, &e)) = self.runs.range(..=start).next_back()
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        let swallowed: Vec<u64> = self.runs.range(start..=end).map(|(&s, _)| s).collect();
        for s in swallowed {
            if let Some(e) = self.runs.remove(&s) {
                end = end.max(e);
            }
        }
        self.runs.insert(start, end);
    }

    /// Whether `n` is in it.
    pub fn contains(&self, n: u64) -> bool {
        self.runs.range(..=n).next_back().is_some_and(|(_, &e)| n < e)
    }

    /// The runs `(start, end)`, end excluded, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(&s, &e)| (s, e))
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &Self) {
        for (s, e) in other.runs() {
            self.insert_run(s, e);
        }
    }

    /// What is in `self` and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (s, e) in self.runs() {
            let mut at = s;
            let first = other.runs.range(..=s).next_back().map_or(s, |(&os, _)| os);
            for (&os, &oe) in other.runs.range(first..e) {
                if oe <= at {
                    continue;
                }
                out.insert_run(at, os.min(e).max(at));
                at = at.max(oe);
            }
            out.insert_run(at, e);
        }
        out
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many numbers it holds.
    pub fn len(&self) -> u64 {
        self.runs().map(|(s, e)| e - s).sum()
    }
}

/// The batches a member holds of one (partition, tenant).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BatchSet {
    streams: BTreeMap<StreamId, SequenceSet>,
}

impl BatchSet {
    /// Its batches, and all that come before one of them in its stream.
    #[must_use]
    pub fn with_earlier(&self) -> Self {
        let last = |set: &SequenceSet| set.runs.last_key_value().map(|(_, &end)| end);
        let mut all = Self::default();
        for (&stream, set) in &self.streams {
            all.insert_run(stream, 0, last(set).unwrap_or(0));
        }
        all
    }

    /// Adds a batch; false when it was there.
    pub fn insert(&mut self, stream: StreamId, sequence: u64) -> bool {
        self.streams.entry(stream).or_default().insert(sequence)
    }

    /// Adds `start..end` of a stream.
    pub fn insert_run(&mut self, stream: StreamId, start: u64, end: u64) {
        if start < end {
            self.streams.entry(stream).or_default().insert_run(start, end);
        }
    }

    /// Whether it holds a batch.
    pub fn contains(&self, stream: StreamId, sequence: u64) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.contains(sequence))
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &Self) {
        for (stream, set) in &other.streams {
            self.streams.entry(*stream).or_default().union_with(set);
        }
    }

    /// The batches in `self` and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::default();
        for (stream, set) in &self.streams {
            let left = match other.streams.get(stream) {
                Some(theirs) => set.difference(theirs),
                None => set.clone(),
            };
            if !left.is_empty() {
                out.streams.insert(*stream, left);
            }
        }
        out
    }

    /// Whether it holds every batch of `other`.
    pub fn includes(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// Whether it holds no batch.
    pub fn is_empty(&self) -> bool {
        self.streams.values().all(SequenceSet::is_empty)
    }

    /// How many batches it holds.
    pub fn len(&self) -> u64 {
        self.streams.values().map(SequenceSet::len).sum()
    }

    /// Whether it holds any batch of a stream.
    pub fn has_stream(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| !s.is_empty())
    }

    /// The sequences of a stream, if it holds any.
    pub fn of_stream(&self, stream: StreamId) -> Option<&SequenceSet> {
        self.streams.get(&stream)
    }

    /// Drops all batches of a stream.
    pub fn remove_stream(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    /// The streams with their sequence sets, ascending by stream.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, &SequenceSet)> + '_ {
        self.streams.iter().map(|(k, v)| (*k, v))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ns: &BTreeSet<u64>) -> SequenceSet {
        let mut s = SequenceSet::default();
        for &n in ns {
            s.insert(n);
        }
        s
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(a in proptest::collection::btree_set(0u64..40, 0..30),
                            b in proptest::collection::btree_set(0u64..40, 0..30)) {
            let (sa, sb) = (set(&a), set(&b));
            prop_assert_eq!(sa.len(), a.len() as u64);
            prop_assert_eq!(sa.difference(&sb), set(&a.difference(&b).copied().collect()));
            let mut u = sa;
            u.union_with(&sb);
            prop_assert_eq!(&u, &set(&a.union(&b).copied().collect()));
            prop_assert!((0..40).all(|n| u.contains(n) == (a.contains(&n) || b.contains(&n))));
        }
    }

    #[test]
    fn what_is_earlier_is_of_the_same_stream() {
        let mut s = BatchSet::default();
        s.insert_run(StreamId(7), 2, 4);
        s.insert(StreamId(7), 9);
        s.insert(StreamId(8), 0);
        let mut all = BatchSet::default();
        all.insert_run(StreamId(7), 0, 10);
        all.insert(StreamId(8), 0);
        assert_eq!(s.with_earlier(), all);
        assert_eq!(BatchSet::default().with_earlier(), BatchSet::default());
    }

    #[test]
    fn survives_json() {
        let mut s = BatchSet::default();
        s.insert(StreamId(7), 0);
        s.insert(StreamId(7), 2);
        let json = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<BatchSet>(&json).unwrap(), s);
        assert!(s.includes(&BatchSet::default()) && !BatchSet::default().includes(&s));
    }
}
