//! Chunks of floats.

use koios_model::STALE_NAN_BITS;

use super::bits::Bits;
use super::starts::Starts;
use super::{TsdbChunk, TsdbSample, Value};

#[derive(Clone, Copy)]
pub(super) struct Xor {
    bits: u64,
    window: Option<(u32, u32)>,
}

impl Xor {
    pub(super) fn new(v: f64) -> Self {
        Self {
            bits: v.to_bits(),
            window: None,
        }
    }

    /// What changes, and whether it fits the window before.
    fn change(&mut self, v: f64) -> (u64, bool) {
        let delta = self.bits ^ v.to_bits();
        let (leading, trailing) = (delta.leading_zeros().min(31), delta.trailing_zeros());
        let fits = self.window.is_some_and(|(l, t)| leading >= l && trailing >= t);
        if delta != 0 && !fits {
            self.window = Some((leading, trailing));
        }
        self.bits = v.to_bits();
        (delta, fits)
    }

    fn put_window(&self, bits: &mut Bits) {
        let (leading, trailing) = self.window.expect("a window");
        bits.put(u64::from(leading), 5);
        bits.put(u64::from((64 - leading - trailing) % 64), 6);
    }

    fn put_delta(&self, bits: &mut Bits, delta: u64) {
        let (leading, trailing) = self.window.expect("a window");
        bits.put(delta >> trailing, 64 - leading - trailing);
    }

    pub(super) fn next(&mut self, bits: &mut Bits, v: f64) {
        let (delta, fits) = self.change(v);
        match (delta, fits) {
            (0, _) => bits.put(0, 1),
            (_, true) => {
                bits.put(0b10, 2);
                self.put_delta(bits, delta);
            }
            _ => {
                bits.put(0b11, 2);
                self.put_window(bits);
                self.put_delta(bits, delta);
            }
        }
    }
}

fn float_of(sample: &TsdbSample) -> f64 {
    match &sample.value {
        Value::Float(v) => *v,
        Value::Histogram(_) => panic!("a histogram in a chunk of floats"),
    }
}

pub(super) fn xor(chunk: &TsdbChunk) -> Bits {
    let mut bits = Bits::default();
    let (mut t, mut step, mut value) = (0i64, 0i64, Xor::new(0.0));
    for (i, sample) in chunk.samples.iter().enumerate() {
        let v = float_of(sample);
        let now = sample.t.wrapping_sub(t);
        match i {
            0 => {
                bits.varint(sample.t);
                bits.float(v);
                value = Xor::new(v);
            }
            1 => {
                bits.uvarint(now as u64);
                value.next(&mut bits, v);
            }
            _ => {
                let change = now.wrapping_sub(step);
                let fits = |width: u32| -((1i64 << (width - 1)) - 1) <= change && change <= 1 << (width - 1);
                match [14, 17, 20]
                    .into_iter()
                    .enumerate()
                    .find(|(_, width)| fits(*width))
                {
                    _ if change == 0 => bits.put(0, 1),
                    Some((ones, width)) => bits.prefixed(ones as u32 + 1, change as u64, width),
                    None => {
                        bits.put(0b1111, 4);
                        bits.put(change as u64, 64);
                    }
                }
                value.next(&mut bits, v);
            }
        }
        (t, step) = (sample.t, if i == 0 { 0 } else { now });
    }
    bits
}

pub(super) fn xor2(chunk: &TsdbChunk) -> (Bits, Starts) {
    let (mut bits, mut starts) = (Bits::default(), Starts::default());
    let (mut t, mut step, mut value) = (0i64, 0i64, Xor::new(0.0));
    let is_stale = |v: f64| v.to_bits() == STALE_NAN_BITS;
    for (i, sample) in chunk.samples.iter().enumerate() {
        let v = float_of(sample);
        let now = sample.t.wrapping_sub(t);
        let alone = |bits: &mut Bits, value: &mut Xor| {
            if is_stale(v) {
                return bits.put(0b111, 3);
            }
            let (delta, fits) = value.change(v);
            match (delta, fits) {
                (0, _) => bits.put(0, 1),
                (_, true) => {
                    bits.put(0b10, 2);
                    value.put_delta(bits, delta);
                }
                _ => {
                    bits.put(0b110, 3);
                    value.put_window(bits);
                    value.put_delta(bits, delta);
                }
            }
        };
        match i {
            0 => {
                bits.varint(sample.t);
                bits.float(v);
                if !is_stale(v) {
                    value = Xor::new(v);
                }
            }
            1 => {
                bits.uvarint(now as u64);
                alone(&mut bits, &mut value);
            }
            _ => {
                let change = now.wrapping_sub(step);
                if change != 0 {
                    match change {
                        -4096..=4095 => bits.prefixed(2, change as u64, 13),
                        -524_288..=524_287 => bits.prefixed(3, change as u64, 20),
                        _ => bits.prefixed(4, change as u64, 64),
                    }
                    alone(&mut bits, &mut value);
                } else if is_stale(v) {
                    bits.put(0b11111, 5);
                } else {
                    let (delta, fits) = value.change(v);
                    match (delta, fits) {
                        (0, _) => bits.put(0, 1),
                        (_, true) => {
                            bits.put(0b100, 3);
                            value.put_delta(&mut bits, delta);
                        }
                        _ => {
                            bits.put(0b101, 3);
                            value.put_window(&mut bits);
                            value.put_delta(&mut bits, delta);
                        }
                    }
                }
            }
        }
        starts.put(&mut bits, i, sample, t);
        (t, step) = (sample.t, if i == 0 { 0 } else { now });
    }
    (bits, starts)
}
