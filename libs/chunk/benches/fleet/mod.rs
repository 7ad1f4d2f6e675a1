//! Series as a fleet has them: 40% integer counters, 30% gauges of 2 or 3 decimals, 20% constants, 10% random walks of
//! full precision; 15 s apart, with jitter of a few milliseconds where asked for.

#[path = "../days/noise.rs"]
mod noise;

use noise::Noise;

/// Samples per series.
pub(crate) const SAMPLES: usize = 120;
/// Series in the fleet.
pub(crate) const SERIES: usize = 1000;

/// The timestamps and values of series `i`, always the same.
pub(crate) fn series(i: usize, jitter: bool) -> (Vec<i64>, Vec<f64>) {
    let mut noise = Noise(i as u64);
    let start = 1_700_000_000_000 + noise.below(15_000) as i64;
    let timestamps = (0..SAMPLES as i64)
        .map(|k| start + k * 15_000 + if jitter { noise.below(7) as i64 - 3 } else { 0 })
        .collect();
    let scale = [100.0, 1000.0][i % 2];
    let mut at = (noise.below(1_000_000)) as f64;
    let rate = 1 + noise.below(300);
    let values = (0..SAMPLES)
        .map(|_| match i % 10 {
            0..=3 => {
                at += (rate + noise.below(rate / 2 + 2)) as f64;
                at
            }
            4..=6 => {
                at += (noise.unit() - 0.5) * 20.0;
                (at / 100.0 * scale).round() / scale
            }
            7..=8 => (i % 3) as f64,
            _ => {
                at += noise.unit() - 0.5;
                at
            }
        })
        .collect();
    (timestamps, values)
}
