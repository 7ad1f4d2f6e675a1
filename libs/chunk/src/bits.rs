//! Varints, zigzag and bit packing.

/// Most bytes of a varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

/// Maps small values of either sign to small unsigned ones.
pub(crate) fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(v: u64) -> i64 {
    ((v >> 1) as i64) ^ -((v & 1) as i64)
}

/// How many bits `v` needs.
pub(crate) fn bit_len(v: u64) -> u32 {
    64 - v.leading_zeros()
}

/// How many bytes a varint of a value of `bits` bits takes.
pub(crate) fn varint_len(bits: u32) -> u32 {
    bits.div_ceil(7).max(1)
}

/// Appends LEB128.
pub(crate) fn write_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8 & 0x7f) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a signed value as zigzag LEB128.
pub(crate) fn write_zigzag(out: &mut Vec<u8>, v: i64) {
    write_varint(out, zigzag(v));
}

/// A position in bytes that are not trusted: every read may fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    pub(crate) fn at_end(&self) -> bool {
        self.pos >= self.bytes.len()
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.pos)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        let b = *self.bytes.get(self.pos)?;
        self.pos += 1;
        Some(b)
    }

    /// `None` when the bytes end or the value does not fit 64 bits.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut v = 0u64;
        for i in 0..VARINT_BYTES_MAX {
            let b = self.u8()?;
            let low = u64::from(b & 0x7f);
            if i == VARINT_BYTES_MAX - 1 && low > 1 {
                return None;
            }
            v |= low << (7 * i);
            if b < 0x80 {
                return Some(v);
            }
        }
        None
    }

    pub(crate) fn zigzag(&mut self) -> Option<i64> {
        self.varint().map(unzigzag)
    }

    /// All that is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.pos..).unwrap_or_default()
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.pos.checked_add(len)?;
        let s = self.bytes.get(self.pos..end)?;
        self.pos = end;
        Some(s)
    }
}

/// How many bytes `n` values of `width` bits take.
pub(crate) fn packed_len(n: usize, width: u32) -> usize {
    (n * width as usize).div_ceil(8)
}

/// Appends the low `width` bits of each value, least significant bit first, padded with zeros to a whole byte.
pub(crate) fn pack(out: &mut Vec<u8>, values: &[u64], width: u32) {
    if width == 0 {
        return;
    }
    let mask = u64::MAX >> (64 - width);
    let (mut acc, mut used) = (0u128, 0u32);
    for &v in values {
        acc |= u128::from(v & mask) << used;
        used += width;
        if used >= 64 {
            out.extend_from_slice(&(acc as u64).to_le_bytes());
            acc >>= 64;
            used -= 64;
        }
    }
    let rest = acc.to_le_bytes();
    out.extend(rest.iter().take(used.div_ceil(8) as usize));
}

/// Most values unpacked at once.
pub(crate) const UNPACKED_MAX: usize = 64;
/// Values that are unpacked together: they begin and end at whole bytes, whatever their width.
const GROUP: usize = 8;
/// How far the word of a group's last value may reach beyond the group.
const BEYOND: usize = 8;
/// Most bytes of [`UNPACKED_MAX`] values, and what may be read beyond them.
const PADDED_BYTES: usize = UNPACKED_MAX * 8 + BEYOND;

/// Fills `out`, at most [`UNPACKED_MAX`], with the bits of values of `width` (0 to 64) bits that `bytes` begin with; bytes that are
/// missing read as zero, those that follow are not looked at.
pub(crate) fn unpack(bytes: &[u8], width: u32, out: &mut [i64]) {
    let out = out.split_at_mut(out.len().min(UNPACKED_MAX)).0;
    let read = out.len().div_ceil(GROUP) * width as usize + BEYOND;
    if let Some(bytes) = bytes.get(..read) {
        return unpack_words(bytes, width, out);
    }
    let mut padded = [0u8; PADDED_BYTES];
    let len = packed_len(out.len(), width).min(bytes.len());
    let (to, from) = (padded.get_mut(..len), bytes.get(..len));
    if let (Some(to), Some(from)) = (to, from) {
        to.copy_from_slice(from);
    }
    unpack_words(&padded, width, out);
}

/// As [`unpack`], of bytes that reach [`BEYOND`] the last group of values.
fn unpack_words(bytes: &[u8], width: u32, out: &mut [i64]) {
    // A loop for each width: places and shifts of a group's values are then constants.
    macro_rules! widths {
        ($($width:literal)*) => {
            match width {
                0 => out.fill(0),
                $($width => unpack_groups::<$width>(bytes, out),)*
                _ => unpack_wide(bytes, width, out),
            }
        };
    }
    widths!(
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29
        30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57
    );
}

/// Values of up to 57 bits, each of which lies within eight bytes.
fn unpack_groups<const WIDTH: usize>(bytes: &[u8], out: &mut [i64]) {
    let mask = u64::MAX >> (64 - WIDTH);
    let value = |group: &[u8], i: usize| {
        let bit = i * WIDTH;
        let word = group.get(bit / 8..).and_then(<[u8]>::first_chunk::<8>);
        word.map_or(0, |w| (u64::from_le_bytes(*w) >> (bit % 8) & mask) as i64)
    };
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let mut at = 0;
    for values in groups {
        let Some(group) = bytes.get(at..at + WIDTH + BEYOND) else {
            return;
        };
        for (i, v) in values.iter_mut().enumerate() {
            *v = value(group, i);
        }
        at += WIDTH;
    }
    let group = bytes.get(at..).unwrap_or_default();
    for (i, v) in rest.iter_mut().enumerate() {
        *v = value(group, i);
    }
}

/// Values of any width.
fn unpack_wide(bytes: &[u8], width: u32, out: &mut [i64]) {
    let mask = u64::MAX >> (64 - width);
    let mut words = bytes.as_chunks::<8>().0.iter();
    let (mut acc, mut have) = (0u128, 0u32);
    for v in out {
        if have < width {
            acc |= u128::from(words.next().map_or(0, |w| u64::from_le_bytes(*w))) << have;
            have += 64;
        }
        *v = (acc as u64 & mask) as i64;
        acc >>= width;
        have -= width;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_survives(width in 0u32..=64, values in proptest::collection::vec(any::<u64>(), 0..=64)) {
            let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
            let values: Vec<u64> = values.into_iter().map(|v| v & mask).collect();
            let mut packed = Vec::new();
            pack(&mut packed, &values, width);
            prop_assert_eq!(packed.len(), packed_len(values.len(), width));
            let mut out = vec![0; values.len()];
            unpack(&packed, width, &mut out);
            prop_assert!(out.iter().map(|&v| v as u64).eq(values.iter().copied()));
            // What follows changes nothing.
            for more in [1, 7, 8, 9, 600] {
                packed.resize(packed_len(values.len(), width) + more, 0xff);
                out.fill(-1);
                unpack(&packed, width, &mut out);
                prop_assert!(out.iter().map(|&v| v as u64).eq(values.iter().copied()));
            }
        }

        #[test]
        fn varints_survive(v in any::<i64>()) {
            let mut b = Vec::new();
            write_zigzag(&mut b, v);
            prop_assert_eq!(b.len() as u32, varint_len(bit_len(zigzag(v))));
            let mut c = Cursor::new(&b);
            prop_assert_eq!(c.zigzag(), Some(v));
            prop_assert!(c.at_end());
        }
    }

    #[test]
    fn i12_overlong_varints_are_refused() {
        assert_eq!(Cursor::new(&[0x80; 10]).varint(), None);
        assert_eq!(Cursor::new(&[0x80; 3]).varint(), None);
        let mut over = [0xff; 10];
        over[9] = 2;
        assert_eq!(Cursor::new(&over).varint(), None);
    }
}
