//! A stream of bits, most significant first, and the numbers that chunks keep in one.
//!
//! **Source**: Prometheus `tsdb/docs/format/chunks.md`, `tsdb/chunkenc/varbit.go`, `xor.go`.

use crate::parse::unzigzag;

/// Reads bits; `None` where they end.
#[derive(Clone, Debug)]
pub(crate) struct Bits<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
}

/// Prefixes of ones, and how many bits follow each.
const WIDTHS: [u32; 9] = [0, 3, 6, 9, 12, 18, 25, 56, 64];

impl<'a> Bits<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bits are left.
    pub(crate) fn left(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.at)
    }

    #[inline]
    pub(crate) fn bit(&mut self) -> Option<bool> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    /// The next `n` bits, at most 64, as a number.
    #[inline]
    pub(crate) fn take(&mut self, n: u32) -> Option<u64> {
        if n == 0 {
            return Some(0);
        }
        if n > 56 {
            let high = self.take(n - 32)?;
            return Some(high << 32 | self.take(32)?);
        }
        if self.left() < n as usize {
            return None;
        }
        let from = self.at / 8;
        let word = match self.bytes.get(from..from + 8).and_then(|b| b.try_into().ok()) {
            Some(eight) => u64::from_be_bytes(eight),
            None => {
                let mut eight = [0; 8];
                for (to, byte) in eight.iter_mut().zip(self.bytes.iter().skip(from)) {
                    *to = *byte;
                }
                u64::from_be_bytes(eight)
            }
        };
        let skip = (self.at % 8) as u32;
        self.at += n as usize;
        Some(word << skip >> (64 - n))
    }

    /// How many ones come before the next zero, at most `most`; the zero is taken, too.
    #[inline]
    pub(crate) fn ones(&mut self, most: usize) -> Option<usize> {
        let mut ones = 0;
        while ones < most && self.bit()? {
            ones += 1;
        }
        Some(ones)
    }

    /// The next `n` bits as a number of which the upper half is negative, 2^(n-1) itself not.
    #[inline]
    pub(crate) fn signed(&mut self, n: u32) -> Option<i64> {
        let bits = self.take(n)?;
        if n == 0 || n == 64 || bits <= 1 << (n - 1) {
            return Some(bits.cast_signed());
        }
        Some(bits.wrapping_sub(1 << n).cast_signed())
    }

    /// As [`Self::signed`], in two's complement.
    #[inline]
    pub(crate) fn twos_complement(&mut self, n: u32) -> Option<i64> {
        let bits = self.take(n)?;
        let spare = 64 - n;
        Some(bits.wrapping_shl(spare).cast_signed().wrapping_shr(spare))
    }

    /// A signed number of few bits when it is small.
    #[inline]
    pub(crate) fn varbit_int(&mut self) -> Option<i64> {
        let width = *WIDTHS.get(self.ones(8)?)?;
        self.signed(width)
    }

    /// The same without sign.
    #[inline]
    pub(crate) fn varbit_uint(&mut self) -> Option<u64> {
        let width = *WIDTHS.get(self.ones(8)?)?;
        self.take(width)
    }

    pub(crate) fn float(&mut self) -> Option<f64> {
        self.take(64).map(f64::from_bits)
    }

    pub(crate) fn uvarint(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(8)?;
            if shift == 63 && byte > 1 {
                return None;
            }
            n |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    pub(crate) fn varint(&mut self) -> Option<i64> {
        self.uvarint().map(unzigzag)
    }
}

/// A float that is written as what changed of the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct XorValue {
    pub(crate) bits: u64,
    leading: u32,
    trailing: u32,
}

impl XorValue {
    pub(crate) fn starting_with(value: f64) -> Self {
        Self {
            bits: value.to_bits(),
            ..Self::default()
        }
    }

    pub(crate) fn value(&self) -> f64 {
        f64::from_bits(self.bits)
    }

    /// Reads the next one.
    #[inline]
    pub(crate) fn next(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        if !bits.bit()? {
            return Some(());
        }
        if bits.bit()? {
            self.read_window(bits)?;
        }
        self.change(bits)
    }

    /// Reads which bits change from here on.
    #[inline]
    pub(crate) fn read_window(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        self.leading = bits.take(5)? as u32;
        let significant = match bits.take(6)? as u32 {
            0 => 64,
            n => n,
        };
        // More than 64 in all is nothing that anybody writes.
        self.trailing = 64u32.checked_sub(self.leading)?.checked_sub(significant)?;
        Some(())
    }

    /// Reads and applies the bits that change.
    #[inline]
    pub(crate) fn change(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        self.bits ^= bits.take(64 - self.leading - self.trailing)? << self.trailing;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_taken_across_bytes_and_never_beyond_the_end() {
        let bytes = [0b1010_0110, 0xff, 0, 1, 2, 3, 4, 5, 6, 0b1000_0001];
        let mut bits = Bits::new(&bytes);
        assert_eq!(bits.bit(), Some(true));
        assert_eq!(bits.take(9), Some(0b0_1001_1011));
        assert_eq!(bits.ones(8), Some(6));
        assert_eq!(bits.left(), 80 - 17);
        assert_eq!(bits.take(64), None);
        let mut bits = Bits::new(&bytes);
        assert_eq!(
            bits.take(8).and_then(|_| bits.take(64)),
            Some(0xff00_0102_0304_0506)
        );
        assert_eq!((bits.take(8), bits.bit()), (Some(0x81), None));
    }

    #[test]
    fn the_largest_power_is_positive_and_all_above_is_negative() {
        for (bits, expected) in [(0b100, 4), (0b101, -3), (0b111, -1), (0b011, 3)] {
            assert_eq!(Bits::new(&[bits << 5]).signed(3), Some(expected), "{bits:b}");
        }
        assert_eq!(Bits::new(&[0b1000_0000]).twos_complement(3), Some(-4));
    }
}
