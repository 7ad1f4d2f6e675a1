//! The labels of all series of a head, as symbol ids: one after the other, without an allocation each.

use crate::index::Pair;
use crate::varint;

/// Where the labels of a series begin, in [`UNIT`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LabelsAt(u32);

impl LabelsAt {
    /// There are none.
    pub(crate) const NOWHERE: Self = Self(u32::MAX);
}

impl Default for LabelsAt {
    fn default() -> Self {
        Self::NOWHERE
    }
}

/// Places are told in so many bytes: 16 GiB of labels can be.
const UNIT: usize = 4;
/// Bytes of series that are gone which are never worth the work.
const GONE_BYTES_MIN: usize = 4096;

/// For each series the length and then the ids of name, value, name, value, … as LEB128.
#[derive(Debug, Default)]
pub(crate) struct PackedLabels {
    bytes: Vec<u8>,
    /// Bytes of series that are gone.
    gone: usize,
    /// Memory of the labels added last.
    scratch: Vec<u8>,
}

impl PackedLabels {
    /// Adds the labels of a series.
    pub(crate) fn add(&mut self, pairs: impl Iterator<Item = Pair>) -> LabelsAt {
        let mut packed = std::mem::take(&mut self.scratch);
        packed.clear();
        for pair in pairs {
            varint::push(&mut packed, pair.name);
            varint::push(&mut packed, pair.value);
        }
        let at = self.push(&packed);
        self.scratch = packed;
        at
    }

    fn push(&mut self, packed: &[u8]) -> LabelsAt {
        if packed.is_empty() {
            return LabelsAt::NOWHERE;
        }
        let at = LabelsAt((self.bytes.len() / UNIT) as u32);
        let wanted = packed.len() + UNIT + 4;
        if self.bytes.capacity() - self.bytes.len() < wanted {
            self.bytes.reserve_exact(wanted.max(self.bytes.len() / 8));
        }
        varint::push(&mut self.bytes, packed.len() as u32);
        self.bytes.extend_from_slice(packed);
        self.bytes.resize(self.bytes.len().next_multiple_of(UNIT), 0);
        at
    }

    fn packed(&self, at: LabelsAt) -> &[u8] {
        let from = at.0 as usize * UNIT;
        let mut rest = self.bytes.get(from..).unwrap_or_default();
        let len = varint::take(&mut rest).unwrap_or(0);
        rest.get(..len as usize).unwrap_or_default()
    }

    /// The labels there.
    pub(crate) fn ids(&self, at: LabelsAt) -> LabelIds<'_> {
        LabelIds {
            bytes: self.packed(at),
        }
    }

    /// Gives the labels of a series up; true when most of what is kept is of such, and it is time for [`Self::gather`].
    pub(crate) fn remove(&mut self, at: LabelsAt) -> bool {
        let packed = self.packed(at);
        if !packed.is_empty() {
            self.gone += (packed.len() + varint::len(packed.len() as u32)).next_multiple_of(UNIT);
        }
        self.gone > (self.bytes.len() / 2).max(GONE_BYTES_MIN)
    }

    /// Keeps nothing but the labels at these places, which change.
    pub(crate) fn gather<'a>(&mut self, places: impl Iterator<Item = &'a mut LabelsAt>) {
        let mut new = Self::default();
        new.bytes
            .reserve_exact(self.bytes.len().saturating_sub(self.gone));
        for at in places {
            *at = new.push(self.packed(*at));
        }
        *self = new;
    }

    /// Memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Iterates over the labels of a series as symbol ids, in label order.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelIds<'a> {
    bytes: &'a [u8],
}

impl Iterator for LabelIds<'_> {
    type Item = Pair;

    fn next(&mut self) -> Option<Pair> {
        Some(Pair {
            name: varint::take(&mut self.bytes)?,
            value: varint::take(&mut self.bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn labels_read_back_whatever_goes(
            sets in prop::collection::vec(
                (prop::collection::vec((any::<u32>(), 0..300u32), 0..40), any::<bool>()), 1..200),
        ) {
            let (mut labels, mut held) = (PackedLabels::default(), Vec::new());
            for (set, goes) in sets {
                let set: Vec<Pair> = set.into_iter().map(|(name, value)| Pair { name, value }).collect();
                held.push((labels.add(set.iter().copied()), set));
                if goes {
                    let (at, _) = held.swap_remove(held.len() / 2);
                    if labels.remove(at) {
                        labels.gather(held.iter_mut().map(|(at, _)| at));
                        let live: usize = held.iter().map(|(_, set)| set.len() * 10 + 8).sum();
                        prop_assert!(labels.memory_bytes() <= live);
                    }
                }
                for (at, set) in &held {
                    prop_assert_eq!(&labels.ids(*at).collect::<Vec<_>>(), set);
                    prop_assert_eq!(*at == LabelsAt::NOWHERE, set.is_empty());
                }
            }
        }
    }
}
