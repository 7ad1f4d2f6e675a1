//! Sorted strings, side by side in memory.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Strings in ascending order of bytes, each once. Cheap to clone: clones share the memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StringList {
    shared: Arc<Sorted>,
}

#[derive(Default, PartialEq, Eq)]
struct Sorted {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

impl Sorted {
    fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before));
        self.text.get(start.copied().unwrap_or(0)..end)
    }
}

impl StringList {
    /// From strings in ascending order; equal neighbours are kept once.
    pub fn from_sorted<'a>(strings: impl IntoIterator<Item = &'a str>) -> Self {
        let mut sorted = Sorted::default();
        let mut last = None;
        for string in strings {
            if last != Some(string) {
                sorted.push(string);
            }
            last = Some(string);
        }
        // What a cache keeps should be no larger than what it counts.
        sorted.text.shrink_to_fit();
        sorted.ends.shrink_to_fit();
        Self {
            shared: Arc::new(sorted),
        }
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.shared.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shared.ends.is_empty()
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The strings of both lists. Blocks of one tenant mostly have the same, which costs one comparison of bytes.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self == other || other.is_empty() {
            return self.clone();
        }
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        let merged = std::iter::from_fn(|| match (ours.peek(), theirs.peek()) {
            (Some(a), Some(b)) if a.cmp(b) == Ordering::Greater => theirs.next(),
            (Some(_), _) => ours.next(),
            (None, _) => theirs.next(),
        });
        Self::from_sorted(merged)
    }

    /// The first of the strings, at most so many.
    #[must_use]
    pub fn first(self, count: usize) -> Self {
        match self.len() <= count {
            true => self,
            false => Self::from_sorted(self.iter().take(count)),
        }
    }

    /// The string at place `i`, "" past the end.
    pub(crate) fn get(&self, i: usize) -> &str {
        self.shared.get(i).unwrap_or("")
    }

    /// How many bytes the strings at these places have together.
    pub(crate) fn bytes_of(&self, places: Range<usize>) -> usize {
        let ends = |i: usize| {
            let before = i.checked_sub(1).and_then(|i| self.shared.ends.get(i));
            before.copied().unwrap_or(0)
        };
        ends(places.end).saturating_sub(ends(places.start))
    }

    /// Where `string` is, or where it would be.
    pub(crate) fn position(&self, string: &str) -> Result<usize, usize> {
        let i = self.first_from(string);
        if i < self.len() && self.get(i) == string {
            Ok(i)
        } else {
            Err(i)
        }
    }

    /// The place of the first string that is not below `string`.
    fn first_from(&self, string: &str) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle) < string {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Bytes held.
    pub fn memory_size(&self) -> usize {
        self.shared.text.len() + self.shared.ends.len() * size_of::<usize>()
    }
}

impl fmt::Debug for StringList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn list(strings: &BTreeSet<String>) -> StringList {
        StringList::from_sorted(strings.iter().map(String::as_str))
    }

    proptest! {
        #[test]
        fn a_union_is_that_of_the_sets(
            a in proptest::collection::btree_set("[a-cä]{0,3}", 0..20),
            b in proptest::collection::btree_set("[a-cä]{0,3}", 0..20),
        ) {
            prop_assert_eq!(list(&a).union(&list(&b)), list(&(&a | &b)));
        }

        #[test]
        fn strings_are_found_where_they_are(a in proptest::collection::btree_set("[a-c]{0,3}", 0..20), s in "[a-c]{0,3}") {
            let sorted: Vec<&String> = a.iter().collect();
            prop_assert_eq!(list(&a).position(&s), sorted.binary_search(&&s));
        }
    }
}
