//! The fleet that the tables are measured on: series of many targets, the same ones in every run.
#![allow(dead_code, reason = "each example uses its part")]
#![expect(
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use koios_block::{BlockParts, MemoryBlock, RangeRead, Result, SAMPLES_PART, SERIES_PART, TIMES_PART};
use koios_model::{Histogram, Labels, spans_of};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

/// Series per target of the one metric that has many (think of CPUs times modes).
const WIDE: usize = 16;

/// Which series lie side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    MetricFirst,
    TargetFirst,
}

impl Order {
    /// The label of the target: as label order is byte order, its first letter decides whether it sorts before
    /// `__name__`.
    pub(crate) fn target_label(self) -> &'static str {
        match self {
            Self::MetricFirst => "instance",
            Self::TargetFirst => "Instance",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MetricFirst => "metric first",
            Self::TargetFirst => "target first",
        }
    }
}

/// Splitmix64: the same numbers in every run.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// When the samples of a target's series are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Times {
    /// Every 15 s from a start of the target's own, with a jitter of 3 ms that all its series share.
    Jittered,
    /// The same without jitter.
    Regular,
    /// As the first, but half of the series came later or went earlier than others, and half of them lack one in twenty.
    ComingAndGoing,
    /// As the first, with jitter that no other series has.
    NothingShared,
}

impl Times {
    pub(crate) const ALL: [Self; 4] = [
        Self::Jittered,
        Self::Regular,
        Self::ComingAndGoing,
        Self::NothingShared,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Jittered => "jittered",
            Self::Regular => "regular",
            Self::ComingAndGoing => "coming and going, with gaps",
            Self::NothingShared => "nothing shared",
        }
    }

    pub(crate) fn of(self, target: usize, series: usize, samples: usize) -> Vec<i64> {
        let seed = match self {
            Self::NothingShared => (series as u64 + 1) << 32,
            _ => 0,
        };
        let mut random = Random(seed | target as u64);
        let start = 1_700_000_000_000 + random.below(15_000) as i64;
        let jitter = if self == Self::Regular { 1 } else { 7 };
        let mut times: Vec<i64> = (0..samples as i64)
            .map(|i| start + i * 15_000 + random.below(jitter) as i64 - 3)
            .collect();
        if self == Self::ComingAndGoing {
            let mut random = Random((series as u64) << 32 | target as u64);
            if series % 2 == 1 {
                times.truncate(samples - random.below(samples as u64 / 2) as usize);
                times.drain(..random.below(samples as u64 / 3) as usize);
            }
            if series % 4 > 1 {
                times.retain(|_| random.below(20) > 0);
            }
        }
        times
    }
}

/// What the values of a series are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Constant,
    /// A counter that rises by up to 200 between two samples.
    Counter,
    /// One that rises by one in twenty samples.
    IdleCounter,
    /// A gauge of two decimals.
    Decimal,
    /// A gauge in whole pages of memory.
    Pages,
    /// A random walk of full precision.
    FullPrecision,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Counter,
        Self::IdleCounter,
        Self::Decimal,
        Self::Pages,
        Self::Constant,
        Self::FullPrecision,
    ];

    /// 40 % constants, 20 % busy and 10 % idle integer counters, 20 % gauges (half decimal, half in whole pages of memory),
    /// 10 % full-precision random walks.
    pub(crate) fn of(series: usize) -> Self {
        match series % 10 {
            0..=3 => Self::Constant,
            4 | 5 => Self::Counter,
            6 => Self::IdleCounter,
            7 => Self::Decimal,
            8 => Self::Pages,
            _ => Self::FullPrecision,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Constant => "constants",
            Self::Counter => "integer counters",
            Self::IdleCounter => "idle counters",
            Self::Decimal => "decimal gauges",
            Self::Pages => "gauges in pages",
            Self::FullPrecision => "full precision",
        }
    }

    /// The values of a series.
    pub(crate) fn values(self, target: usize, series: usize, samples: usize) -> Vec<f64> {
        let mut random = Random((target as u64) << 32 | series as u64);
        let mut level = (random.unit() * 1e4).round();
        (0..samples)
            .map(|_| {
                match self {
                    Self::Constant => {}
                    Self::Counter => level += random.below(200) as f64,
                    Self::IdleCounter => level += f64::from(u8::from(random.below(20) == 0)),
                    Self::Decimal => level = ((level + random.unit() - 0.5) * 100.0).round() / 100.0,
                    Self::Pages => level += 4096.0 * (random.below(9) as f64 - 4.0),
                    Self::FullPrecision => level += random.unit() - 0.5,
                }
                level
            })
            .collect()
    }
}

/// The name of a target.
pub(crate) fn host(target: usize) -> String {
    format!("host-{target:04}.example.org:9100")
}

/// The name of a metric.
pub(crate) fn metric(number: usize) -> String {
    format!("node_metric_{number:04}_total")
}

/// The labels of one of a target's series.
pub(crate) fn labels(order: Order, target: usize, series: usize) -> Labels {
    let (number, mode) = if series < WIDE { (0, series) } else { (series, 0) };
    Labels::from_pairs([
        ("__name__", metric(number)),
        (order.target_label(), host(target)),
        ("job", "node".to_owned()),
        ("mode", format!("mode-{mode:02}")),
    ])
}

/// A native histogram: 20 observations before each time, log-normal around a level of the series, in buckets 9% wide. It begins anew
/// half way.
pub(crate) fn histograms(
    target: usize,
    series: usize,
    times: impl ExactSizeIterator<Item = i64>,
) -> Vec<(i64, Arc<Histogram>)> {
    let mut random = Random((target as u64) << 32 | series as u64);
    let level = 40.0 * random.unit();
    let (mut buckets, mut sum) = (BTreeMap::<i32, f64>::new(), 0.0);
    let restart = times.len() / 2;
    let histogram = |(i, t): (usize, i64)| {
        if i == restart {
            (buckets, sum) = (BTreeMap::new(), 0.0);
        }
        for _ in 0..20 {
            // Nearly normal, of variance 1.
            let normal = (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
            let exponent = level + 8.0 * normal;
            *buckets.entry(exponent as i32).or_default() += 1.0;
            sum += (exponent / 8.0).exp2();
        }
        let (positive_spans, positive_buckets) = spans_of(buckets.clone());
        let histogram = Histogram {
            schema: 3,
            count: buckets.values().sum(),
            sum,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        };
        (t, Arc::new(histogram))
    };
    times.enumerate().map(histogram).collect()
}

/// A block in memory that counts what is read of it.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: MemoryBlock,
    /// Whether `series.parquet` is counted, too.
    with_series: bool,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    pub(crate) fn new(parts: &BlockParts, with_series: bool) -> Self {
        Self {
            inner: MemoryBlock::new(parts),
            with_series,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Requests and bytes so far.
    pub(crate) fn read_so_far(&self) -> (u64, u64) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

#[async_trait]
impl RangeRead for Counting {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.with_series || part != SERIES_PART {
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            self.requests.fetch_add(ranges.len() as u64, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.inner.read(part, ranges).await
    }
}

/// Stored bytes of all parts.
pub(crate) fn block_bytes(parts: &BlockParts) -> u64 {
    parts.meta.parts.iter().map(|part| part.bytes).sum()
}

/// Stored bytes of some columns of a part, 0 where there is none such.
pub(crate) fn column_bytes(parts: &BlockParts, part: &str, columns: &[&str]) -> u64 {
    let Some((_, bytes)) = parts.parts.iter().find(|(name, _)| name == part) else {
        return 0;
    };
    let file = SerializedFileReader::new(bytes.clone()).expect("it is Parquet");
    let groups = file.metadata().row_groups().iter();
    let all = groups.flat_map(|group| group.columns());
    all.filter(|column| columns.contains(&column.column_path().string().as_str()))
        .map(|column| column.compressed_size() as u64)
        .sum()
}

/// What times take, wherever they are.
pub(crate) fn time_bytes(parts: &BlockParts) -> u64 {
    let own = parts.meta.part(TIMES_PART).map_or(0, |part| part.bytes);
    let spans = ["k_times_last_row", "k_times_row_count"];
    own + column_bytes(parts, SERIES_PART, &spans) + column_bytes(parts, SAMPLES_PART, &["timestamp", "tick"])
}

/// What values take.
pub(crate) fn value_bytes(parts: &BlockParts) -> u64 {
    column_bytes(parts, SAMPLES_PART, &["exponent", "mantissa", "float"])
}
