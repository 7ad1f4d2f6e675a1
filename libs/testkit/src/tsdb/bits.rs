//! Numbers of as many bits or bytes as they need.

pub(super) fn uvarint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn varint(out: &mut Vec<u8>, n: i64) {
    uvarint(out, (n << 1 ^ n >> 63) as u64);
}

/// Bits, most significant first.
#[derive(Default)]
pub(super) struct Bits {
    pub(super) bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    pub(super) fn put(&mut self, bits: u64, n: u32) {
        for i in (0..n).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if bits >> i & 1 == 1 {
                *self.bytes.last_mut().expect("a byte was pushed") |= 0x80 >> (self.used % 8);
            }
            self.used += 1;
        }
    }

    pub(super) fn varint(&mut self, n: i64) {
        let mut bytes = Vec::new();
        varint(&mut bytes, n);
        bytes.iter().for_each(|b| self.put(u64::from(*b), 8));
    }

    pub(super) fn uvarint(&mut self, n: u64) {
        let mut bytes = Vec::new();
        uvarint(&mut bytes, n);
        bytes.iter().for_each(|b| self.put(u64::from(*b), 8));
    }

    /// `ones` ones and a zero, and then a number of `width` bits.
    pub(super) fn prefixed(&mut self, ones: u32, number: u64, width: u32) {
        self.put((1 << (ones + 1)) - 2, ones + 1);
        self.put(number, width);
    }

    pub(super) fn varbit_int(&mut self, n: i64) {
        let fits = |width: u32| -((1i64 << (width - 1)) - 1) <= n && n <= 1 << (width - 1);
        if n == 0 {
            return self.put(0, 1);
        }
        for (ones, width) in [3, 6, 9, 12, 18, 25, 56].into_iter().enumerate() {
            if fits(width) {
                return self.prefixed(ones as u32 + 1, n as u64, width);
            }
        }
        self.put(0xff, 8);
        self.put(n as u64, 64);
    }

    pub(super) fn varbit_uint(&mut self, n: u64) {
        if n == 0 {
            return self.put(0, 1);
        }
        for (ones, width) in [3, 6, 9, 12, 18, 25, 56].into_iter().enumerate() {
            if n < 1 << width {
                return self.prefixed(ones as u32 + 1, n, width);
            }
        }
        self.put(0xff, 8);
        self.put(n, 64);
    }

    pub(super) fn float(&mut self, v: f64) {
        self.put(v.to_bits(), 64);
    }
}
