//! Chunks of histograms.

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, ResetHint, Span};

use super::bits::Bits;
use super::floats::Xor;
use super::starts::Starts;
use super::{TsdbChunk, Value};

fn spans(bits: &mut Bits, spans: &[Span]) {
    bits.varbit_uint(spans.len() as u64);
    for span in spans {
        bits.varbit_uint(u64::from(span.length));
        bits.varbit_int(i64::from(span.offset));
    }
}

fn layout(bits: &mut Bits, h: &Histogram) {
    let exponent = h.zero_threshold.log2();
    if h.zero_threshold == 0.0 {
        bits.put(0, 8);
    } else if exponent.fract() == 0.0 && (-243.0..=10.0).contains(&exponent) {
        bits.put((exponent + 244.0) as u64, 8);
    } else {
        bits.put(255, 8);
        bits.float(h.zero_threshold);
    }
    bits.varbit_int(i64::from(h.schema));
    spans(bits, &h.positive_spans);
    spans(bits, &h.negative_spans);
    if h.schema == CUSTOM_BOUNDS_SCHEMA {
        bits.varbit_uint(h.custom_bounds.len() as u64);
        for bound in &h.custom_bounds {
            let thousandths = bound * 1000.0;
            if (0.0..=33_554_430.0).contains(&thousandths) && (thousandths.round() / 1000.0) == *bound {
                bits.varbit_uint(thousandths.round() as u64 + 1);
            } else {
                bits.put(0, 1);
                bits.float(*bound);
            }
        }
    }
}

/// Whole numbers: each bucket differs from the one before.
fn whole(buckets: &[f64]) -> Vec<i64> {
    let mut before = 0;
    let delta = |b: &f64| {
        let delta = *b as i64 - before;
        before = *b as i64;
        delta
    };
    buckets.iter().map(delta).collect()
}

pub(super) fn histograms(
    chunk: &TsdbChunk,
    encoding: u8,
    with_starts: bool,
    is_whole: bool,
) -> (u8, Vec<u8>) {
    let (mut bits, mut starts) = (Bits::default(), Starts::default());
    let (mut t, mut step) = (0i64, 0i64);
    let mut counts: Vec<(i64, i64)> = Vec::new();
    let mut floats: Vec<Xor> = Vec::new();
    let mut sum = Xor::new(0.0);
    let mut gauge = false;
    for (i, sample) in chunk.samples.iter().enumerate() {
        let Value::Histogram(h) = &sample.value else {
            panic!("a float in a chunk of histograms")
        };
        gauge |= h.reset_hint == ResetHint::Gauge;
        let stale = h.is_stale();
        let buckets = || h.positive_buckets.iter().chain(&h.negative_buckets);
        let numbers: Vec<i64> = [h.count as i64, h.zero_count as i64]
            .into_iter()
            .chain(whole(&h.positive_buckets))
            .chain(whole(&h.negative_buckets))
            .collect();
        let values: Vec<f64> = [h.count, h.zero_count]
            .into_iter()
            .chain(buckets().copied())
            .collect();
        if i == 0 {
            layout(&mut bits, h);
            bits.varbit_int(sample.t);
            if is_whole {
                bits.varbit_uint(numbers[0] as u64);
                bits.varbit_uint(numbers[1] as u64);
                bits.float(h.sum);
                numbers[2..].iter().for_each(|n| bits.varbit_int(*n));
                counts = numbers.iter().map(|n| (*n, 0)).collect();
            } else {
                bits.float(values[0]);
                bits.float(values[1]);
                bits.float(h.sum);
                values[2..].iter().for_each(|v| bits.float(*v));
                floats = values.iter().map(|v| Xor::new(*v)).collect();
            }
            sum = Xor::new(h.sum);
        } else {
            let now = sample.t - t;
            bits.varbit_int(now - step);
            step = now;
            let upto = if stale { 2 } else { values.len() };
            for at in 0..upto {
                if at == 2 {
                    sum.next(&mut bits, h.sum);
                }
                if is_whole {
                    let (before, delta) = counts[at];
                    let now = numbers[at] - before;
                    bits.varbit_int(if stale { 0 } else { now - delta });
                    counts[at] = (numbers[at], now);
                } else {
                    floats[at].next(&mut bits, values[at]);
                }
            }
            if upto == 2 {
                sum.next(&mut bits, h.sum);
            }
        }
        if with_starts {
            starts.put(&mut bits, i, sample, t);
        }
        t = sample.t;
    }
    let flags = if gauge { 0b11u16 } else { 0 };
    let count = chunk.samples.len() as u16;
    let header = match with_starts {
        true => [&(flags << 14 | count).to_be_bytes()[..], &[starts.header]].concat(),
        false => [&count.to_be_bytes()[..], &[(flags << 6) as u8]].concat(),
    };
    (encoding, [header, bits.bytes].concat())
}
