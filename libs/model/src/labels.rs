//! Label sets in one packed, canonical byte form.
//!
//! Packed form: for each label, in ascending order of name bytes: `varint(len(name)) name varint(len(value)) value`,
//! varints being LEB128. It is what is hashed, sent, logged and stored in heads, so a label set is encoded once.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// The label that holds the metric's name.
pub const METRIC_NAME: &str = "__name__";

/// Why bytes are not a packed label set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// The bytes end inside a label.
    #[error("packed labels end inside a label at byte {at}")]
    Truncated {
        /// Offset of the label.
        at: usize,
    },
    /// Not valid UTF-8.
    #[error("packed label at byte {at} is not valid UTF-8")]
    NotUtf8 {
        /// Offset of the string.
        at: usize,
    },
    /// Names are not strictly ascending.
    #[error("packed labels are not in ascending order of name at byte {at}")]
    NotSorted {
        /// Offset of the offending label.
        at: usize,
    },
    /// A name or value is empty.
    #[error("packed label at byte {at} has an empty name or value")]
    Empty {
        /// Offset of the offending label.
        at: usize,
    },
}

/// An owned, cheaply cloned label set: sorted by name, no duplicates, no empty names or values.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    packed: Arc<[u8]>,
}

/// A borrowed label set in packed form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LabelsRef<'a> {
    packed: &'a [u8],
}

/// Appends one label in packed form. The caller keeps names ascending.
pub fn write_packed_pair(out: &mut Vec<u8>, name: &str, value: &str) {
    write_packed_bytes(out, name.as_bytes(), value.as_bytes());
}

/// Appends one label whose bytes are known to be UTF-8 in packed form. The caller keeps names ascending.
pub fn write_packed_bytes(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    write_bytes(out, name);
    write_bytes(out, value);
}

fn write_bytes(out: &mut Vec<u8>, s: &[u8]) {
    let mut n = s.len();
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend_from_slice(s);
}

/// Whether bytes are UTF-8; fast for what labels mostly are, short and ASCII.
#[inline]
pub fn is_utf8(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}

#[inline]
fn read_bytes<'a>(buf: &'a [u8], pos: &mut usize) -> Option<&'a [u8]> {
    let mut len = usize::from(*buf.get(*pos)?);
    *pos += 1;
    if len >= 0x80 {
        len = read_long(buf, pos, len & 0x7f)?;
    }
    let end = pos.checked_add(len)?;
    let s = buf.get(*pos..end)?;
    *pos = end;
    Some(s)
}

/// The rest of a length of more than seven bits.
#[cold]
fn read_long(buf: &[u8], pos: &mut usize, low: usize) -> Option<usize> {
    let mut len = low;
    for shift in [7, 14, 21, 28] {
        let b = *buf.get(*pos)?;
        *pos += 1;
        len |= usize::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Some(len);
        }
    }
    None
}

impl<'a> LabelsRef<'a> {
    /// Wraps bytes that are known to be a packed label set, such as those a [`Labels`] or a checked batch holds.
    /// Wrong bytes give wrong or missing labels, never a panic.
    pub fn from_trusted(packed: &'a [u8]) -> Self {
        Self { packed }
    }

    /// Checks bytes from a peer or a file.
    ///
    /// # Errors
    /// [`PackedError`] when the bytes are cut, not UTF-8, unsorted, or hold an empty name or value.
    pub fn from_packed(packed: &'a [u8]) -> Result<Self, PackedError> {
        let mut pos = 0;
        let mut last: Option<&[u8]> = None;
        while pos < packed.len() {
            let at = pos;
            let name = read_bytes(packed, &mut pos).ok_or(PackedError::Truncated { at })?;
            let value = read_bytes(packed, &mut pos).ok_or(PackedError::Truncated { at })?;
            if name.is_empty() || value.is_empty() {
                return Err(PackedError::Empty { at });
            }
            if !is_utf8(name) || !is_utf8(value) {
                return Err(PackedError::NotUtf8 { at });
            }
            if last.is_some_and(|l| l >= name) {
                return Err(PackedError::NotSorted { at });
            }
            last = Some(name);
        }
        Ok(Self { packed })
    }

    /// The packed bytes.
    pub fn packed(&self) -> &'a [u8] {
        self.packed
    }

    /// The labels in ascending order of name.
    pub fn iter(&self) -> Iter<'a> {
        Iter {
            bytes: self.iter_bytes(),
        }
    }

    /// The labels in ascending order of name, as bytes: cheaper where they are only compared or copied.
    pub fn iter_bytes(&self) -> IterBytes<'a> {
        IterBytes {
            packed: self.packed,
            pos: 0,
        }
    }

    /// The value of `name`, or `None` when the set lacks it.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.iter_bytes().find(|(n, _)| *n == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    }

    /// An owned copy.
    pub fn to_labels(&self) -> Labels {
        Labels {
            packed: Arc::from(self.packed),
        }
    }

    /// How many labels there are.
    pub fn len(&self) -> usize {
        self.iter_bytes().count()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }
}

/// Iterator over `(name, value)`.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    bytes: IterBytes<'a>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.bytes.next()?;
        Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
    }
}

/// Iterator over `(name, value)` as bytes.
#[derive(Clone, Debug)]
pub struct IterBytes<'a> {
    packed: &'a [u8],
    pos: usize,
}

impl<'a> Iterator for IterBytes<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.pos >= self.packed.len() {
            return None;
        }
        let name = read_bytes(self.packed, &mut self.pos)?;
        let value = read_bytes(self.packed, &mut self.pos)?;
        Some((name, value))
    }
}

impl Ord for LabelsRef<'_> {
    /// Label order: pair by pair, name before value; a prefix sorts first (Prometheus `labels.Compare`).
    fn cmp(&self, other: &Self) -> Ordering {
        if self.packed == other.packed {
            return Ordering::Equal;
        }
        self.iter_bytes().cmp(other.iter_bytes())
    }
}

impl PartialOrd for LabelsRef<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for LabelsRef<'_> {
    /// Prometheus' form: `{a="b", c="d"}`, names that are not legacy identifiers quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            if is_legacy_name(name) {
                write!(f, "{name}={value:?}")?
            } else {
                write!(f, "{name:?}={value:?}")?
            }
        }
        f.write_str("}")
    }
}

fn is_legacy_name(name: &str) -> bool {
    let mut chars = name.bytes();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

impl fmt::Debug for LabelsRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Labels {
    /// The empty set.
    pub fn empty() -> Self {
        Self {
            packed: Arc::from(&[][..]),
        }
    }

    /// From pairs in any order; empty values are dropped; of equal names the last wins.
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut b = LabelsBuilder::default();
        for (n, v) in pairs {
            b.set(n.as_ref(), v.as_ref());
        }
        b.build()
    }

    /// Borrows it.
    pub fn as_ref(&self) -> LabelsRef<'_> {
        LabelsRef { packed: &self.packed }
    }

    /// The packed bytes.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The labels in ascending order of name.
    pub fn iter(&self) -> Iter<'_> {
        self.as_ref().iter()
    }

    /// The value of `name`, or `None`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.as_ref().get(name)
    }

    /// The metric's name, or "".
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or("")
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// How many labels there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// A builder that starts from this set.
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder {
            pairs: self.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        }
    }

    /// This set without the labels for which `drop` holds.
    pub fn without(&self, mut drop: impl FnMut(&str) -> bool) -> Self {
        let mut packed = Vec::with_capacity(self.packed.len());
        for (n, v) in self.iter() {
            if !drop(n) {
                write_packed_pair(&mut packed, n, v);
            }
        }
        if packed.len() == self.packed.len() {
            self.clone()
        } else {
            Self {
                packed: packed.into(),
            }
        }
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self::empty()
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_ref().cmp(&other.as_ref())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_ref(), f)
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_ref(), f)
    }
}

/// Builds or changes a label set.
#[derive(Clone, Debug, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Sets a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        match self.pairs.binary_search_by(|(n, _)| n.as_str().cmp(name)) {
            Ok(i) if value.is_empty() => {
                self.pairs.remove(i);
            }
            Ok(i) => value.clone_into(&mut self.pairs[i].1),
            Err(_) if value.is_empty() => {}
            Err(i) => self.pairs.insert(i, (name.to_owned(), value.to_owned())),
        }
        self
    }

    /// Removes a label if it is there.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.set(name, "")
    }

    /// The value set for `name`, or `None`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .binary_search_by(|(n, _)| n.as_str().cmp(name))
            .ok()
            .map(|i| self.pairs[i].1.as_str())
    }

    /// The label set.
    pub fn build(&self) -> Labels {
        let mut packed = Vec::with_capacity(self.pairs.iter().map(|(n, v)| n.len() + v.len() + 2).sum());
        for (n, v) in &self.pairs {
            write_packed_pair(&mut packed, n, v);
        }
        Labels {
            packed: packed.into(),
        }
    }
}

impl serde::Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_pair_by_pair() {
        let a = Labels::from_pairs([("a", "1")]);
        let ab = Labels::from_pairs([("b", "1"), ("a", "1")]);
        let long = Labels::from_pairs([("a", "1".repeat(200))]);
        assert!(a < ab && a < long && ab < long);
        assert_eq!(ab.to_string(), r#"{a="1", b="1"}"#);
    }

    #[test]
    fn rejects_bytes_that_are_no_label_set() {
        let mut packed = Vec::new();
        write_packed_pair(&mut packed, "b", "1");
        let sorted = packed.len();
        write_packed_pair(&mut packed, "a", "1");
        assert_eq!(
            LabelsRef::from_packed(&packed),
            Err(PackedError::NotSorted { at: sorted })
        );
        assert!(LabelsRef::from_packed(&packed[..sorted]).is_ok());
        assert_eq!(
            LabelsRef::from_packed(&packed[..sorted - 1]),
            Err(PackedError::Truncated { at: 0 })
        );
        assert!(LabelsRef::from_packed(&[0xff; 12]).is_err());
    }

    #[test]
    fn lengths_of_more_than_one_byte_are_read() {
        for len in [1, 127, 128, 16_383, 16_384, 70_000] {
            let value = "v".repeat(len);
            let l = Labels::from_pairs([("a", value.as_str()), ("b", "2")]);
            assert_eq!(l.get("a"), Some(value.as_str()), "{len}");
            assert_eq!((l.get("b"), l.len()), (Some("2"), 2), "{len}");
        }
    }

    #[test]
    fn builder_drops_empty_values_and_keeps_the_last() {
        let l = Labels::from_pairs([("x", "1"), ("y", ""), ("x", "2")]);
        assert_eq!(l.iter().collect::<Vec<_>>(), [("x", "2")]);
        assert_eq!(l.without(|n| n == "x"), Labels::empty());
    }
}
