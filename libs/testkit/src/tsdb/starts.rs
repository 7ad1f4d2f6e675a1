//! Start timestamps of samples.

use super::TsdbSample;
use super::bits::Bits;

/// Start timestamps: the header byte, and what is written after each sample.
#[derive(Default)]
pub(super) struct Starts {
    pub(super) header: u8,
    start: i64,
    before: i64,
}

impl Starts {
    pub(super) fn put(&mut self, bits: &mut Bits, i: usize, sample: &TsdbSample, previous: i64) {
        let changes_on = usize::from(self.header & 0x7f);
        if i == 0 {
            if sample.start != 0 {
                self.header |= 0x80;
                bits.varint(sample.t - sample.start);
            }
        } else if changes_on > 0 {
            bits.varbit_int((previous - sample.start) - self.before);
            self.before = previous - sample.start;
        } else if sample.start != self.start || i == 127 {
            self.header |= i as u8;
            self.before = previous - sample.start;
            bits.varbit_int(self.before);
        }
        self.start = sample.start;
    }
}
