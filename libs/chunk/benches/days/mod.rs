//! A day of the series of some targets, in the order of a block: metric first. 40% integer counters, 30% gauges of 2 or 3
//! decimals, 20% constants, 10% random walks of full precision, every 15 s with a few milliseconds of jitter.
#![allow(dead_code, reason = "each benchmark uses its part")]

mod noise;

use koios_model::{Labels, STALE_NAN_BITS};
use noise::Noise;

/// Samples of a series.
pub(crate) const SAMPLES: usize = 5_760;
/// How many targets there are: with a day of each, more times than a thread keeps.
pub(crate) const TARGETS: usize = 30;
/// Metrics. Of the first half a target has one series each, of the others [`WIDE`].
const METRICS: usize = 20;
const WIDE: usize = 4;
/// A target restarts about every so many samples, and its series end with a stale marker.
const RESTARTS_EACH: u64 = 500;

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Constant,
    FullPrecision,
    /// A counter that is stale now and then. Not in the fleet.
    Restarted,
}

impl Kind {
    fn of(metric: usize) -> Self {
        match metric % 10 {
            0..=3 => Self::Counter,
            4..=6 => Self::Gauge,
            7 | 8 => Self::Constant,
            _ => Self::FullPrecision,
        }
    }
}

/// Whose times they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Times {
    /// All series of a target have the same.
    OfTarget,
    /// No two series have the same.
    Own,
}

/// A series.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) labels: Labels,
    pub(crate) timestamps: Vec<i64>,
    pub(crate) values: Vec<f64>,
}

/// All series.
pub(crate) fn fleet(times: Times) -> impl Iterator<Item = Series> {
    (0..METRICS).flat_map(move |metric| {
        let width = if metric < METRICS / 2 { 1 } else { WIDE };
        of_metric(metric, Kind::of(metric), width, times)
    })
}

/// The series of one metric of one kind.
pub(crate) fn of_kind(kind: Kind, times: Times) -> impl Iterator<Item = Series> {
    of_metric(0, kind, WIDE, times)
}

fn of_metric(metric: usize, kind: Kind, width: usize, times: Times) -> impl Iterator<Item = Series> {
    (0..TARGETS * width).map(move |i| {
        let (target, mode) = (i / width, i % width);
        let own = ((metric * WIDE + mode + 1) * TARGETS + target) as u64;
        let labels = [
            ("__name__", format!("metric_{metric:02}")),
            ("instance", format!("host-{target:04}:9100")),
            ("mode", mode.to_string()),
        ];
        Series {
            labels: Labels::from_pairs(labels),
            timestamps: timestamps(match times {
                Times::OfTarget => target as u64,
                Times::Own => own,
            }),
            values: values(kind, own),
        }
    })
}

fn timestamps(seed: u64) -> Vec<i64> {
    let mut noise = Noise(seed);
    let start = 1_700_000_000_000 + noise.below(15_000) as i64;
    (0..SAMPLES as i64)
        .map(|k| start + k * 15_000 + noise.below(7) as i64 - 3)
        .collect()
}

fn values(kind: Kind, seed: u64) -> Vec<f64> {
    let mut noise = Noise(seed);
    let scale = [100.0, 1000.0][noise.below(2) as usize];
    let rate = 1 + noise.below(300);
    let mut at = noise.below(1_000_000) as f64;
    let mut next = || {
        match kind {
            Kind::Constant => {}
            Kind::Gauge => at = ((at + (noise.unit() - 0.5) * 0.2) * scale).round() / scale,
            Kind::FullPrecision => at += noise.unit() - 0.5,
            Kind::Restarted if noise.below(RESTARTS_EACH) == 0 => {
                at = 0.0;
                return f64::from_bits(STALE_NAN_BITS);
            }
            Kind::Counter | Kind::Restarted => at += (rate + noise.below(rate / 2 + 2)) as f64,
        }
        at
    };
    (0..SAMPLES).map(|_| next()).collect()
}
