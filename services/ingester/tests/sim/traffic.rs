//! What is sent: samples in order, late, repeated and in conflict, exemplars beside them and metadata, of several tenants and partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::{
    BatchColumns, Exemplar, Labels, Metadata, PartitionId, SeriesHash, StreamId, TenantId, TenantSeed,
    stale_nan,
};
use koios_runtime::RngHandle;
use koios_wire::{Batch, BatchHeader};

use crate::histograms::histogram;
use crate::values::{Found, Point, Series, Value, of_starts, put_exemplars, starts_of};

/// The first moment of a window.
pub(crate) const T0: i64 = 1_700_006_400_000;
const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
const TENANTS: [&str; 2] = ["team-a", "team-b"];
const PARTITIONS: u32 = 2;
/// Series of one tenant in one partition: some of floats, then some of histograms, which send the other kind rarely.
pub(crate) const SERIES: u64 = 6;
const FLOAT_SERIES: u64 = 4;
/// How wrong the clocks of senders may be.
const SENDER_WRONG_MS: i64 = 6 * HOUR;

/// A tenant in a partition.
pub(crate) type Place = (PartitionId, TenantId);

/// A batch, and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) place: Place,
    pub(crate) batch: Arc<Batch>,
    pub(crate) series: Series,
    pub(crate) metadata: Vec<(String, Metadata)>,
}

impl Sent {
    pub(crate) fn admission_ms(&self) -> i64 {
        self.batch.header().admission_ms
    }
}

/// All places.
pub(crate) fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for partition in 0..PARTITIONS {
        for tenant in TENANTS {
            let tenant = TenantId::new(tenant).unwrap();
            places.push((PartitionId(partition), tenant));
        }
    }
    places
}

/// Whether a series is of a partition: it says so itself, for blocks don't say it per series.
pub(crate) fn is_of(labels: &Labels, partition: PartitionId) -> bool {
    labels.get("partition") == Some(partition.0.to_string().as_str())
}

/// The labels of a series.
pub(crate) fn series_labels(partition: PartitionId, series: u64) -> Labels {
    Labels::from_pairs([
        ("__name__", "sim"),
        ("partition", &partition.0.to_string()),
        ("series", &series.to_string()),
    ])
}

/// What a batch has of a series.
#[derive(Debug, Default)]
struct OfSeries {
    /// By time, with their start timestamps.
    samples: BTreeMap<i64, (Value, i64)>,
    exemplars: Vec<Exemplar>,
}

/// Makes batches.
#[derive(Debug)]
pub(crate) struct Traffic {
    rng: RngHandle,
    stream: StreamId,
    /// Sequences per place.
    sequences: BTreeMap<Place, u64>,
    /// Times of samples per place: the newest, and those sent before.
    newest: BTreeMap<Place, i64>,
    sent: BTreeMap<Place, Vec<(u64, Point)>>,
    /// How far the sender's clock is ahead.
    ahead_ms: i64,
    described: u64,
}

impl Traffic {
    pub(crate) fn new(rng: RngHandle) -> Self {
        Self {
            stream: StreamId(rng.u128()),
            rng,
            sequences: BTreeMap::new(),
            newest: places().into_iter().map(|p| (p, T0)).collect(),
            sent: BTreeMap::new(),
            ahead_ms: 0,
            described: 0,
        }
    }

    /// A sender started again: a stream of its own, and a clock.
    pub(crate) fn new_stream(&mut self) {
        self.stream = StreamId(self.rng.u128());
        self.sequences.clear();
        self.ahead_ms = self.rng.below(2 * SENDER_WRONG_MS as u64) as i64 - SENDER_WRONG_MS;
    }

    /// The next batch for a random place.
    pub(crate) fn batch(&mut self, epoch_of: impl Fn(PartitionId) -> u64, now_ms: i64) -> Sent {
        let places = places();
        let place = places[self.rng.below(places.len() as u64) as usize].clone();
        self.advance(&place);
        let mut by_series: BTreeMap<u64, OfSeries> = BTreeMap::new();
        for _ in 0..=self.rng.below(3) {
            let first = self.rng.below(SERIES);
            for _ in 0..=self.rng.below(4) {
                let (series, point) = self.point(&place, first);
                let start = self.start(point.t);
                let of_series = by_series.entry(series).or_default();
                if self.rng.below(6) == 0 {
                    let exemplar = self.exemplar(point.t);
                    of_series.exemplars.push(exemplar);
                }
                of_series.samples.insert(point.t, (point.v, start));
            }
        }
        let metadata = self.metadata();
        let admission_ms = now_ms + self.ahead_ms;
        self.seal(place, by_series, metadata, epoch_of, admission_ms)
    }

    /// Time goes on: mostly by seconds, at times by so much that windows pass.
    fn advance(&mut self, place: &Place) {
        let by = match self.rng.below(12) {
            0..2 => 20 * MINUTE + self.rng.below(120 * MINUTE as u64) as i64,
            2..4 => self.rng.below(4 * MINUTE as u64) as i64,
            _ => 1 + self.rng.below(15_000) as i64,
        };
        if let Some(newest) = self.newest.get_mut(place) {
            *newest += by;
        }
    }

    fn point(&mut self, place: &Place, series: u64) -> (u64, Point) {
        let newest = self.newest.get(place).copied().unwrap_or(T0);
        let sent = self.sent.entry(place.clone()).or_default();
        let before = match sent.len() as u64 {
            0 => None,
            n => sent.get(self.rng.below(n) as usize).cloned(),
        };
        let rng = &self.rng;
        match (rng.below(10), before) {
            // The same again.
            (0, Some(same)) => same,
            // Another value at the same time.
            (1, Some((series, before))) => {
                let point = Point {
                    t: before.t,
                    v: value(rng, series, sent),
                };
                sent.push((series, point.clone()));
                (series, point)
            }
            (kind, _) => {
                let late = match kind {
                    2 => rng.below(5 * HOUR as u64) as i64,
                    3 => rng.below(10 * MINUTE as u64) as i64,
                    _ => rng.below(2000) as i64,
                };
                let point = Point {
                    t: newest - late,
                    v: value(rng, series, sent),
                };
                sent.push((series, point.clone()));
                (series, point)
            }
        }
    }

    /// With a trace of few, so that one comes with several values and series.
    fn exemplar(&self, t: i64) -> Exemplar {
        let trace = self.rng.below(50).to_string();
        Exemplar {
            t: t - self.rng.below(3) as i64 * 20,
            v: float(&self.rng),
            labels: match self.rng.below(6) {
                0 => Labels::empty(),
                _ => Labels::from_pairs([("trace_id", &trace)]),
            },
        }
    }

    /// Rarely some, often the same as before.
    fn metadata(&mut self) -> Vec<(String, Metadata)> {
        if self.rng.below(5) > 0 {
            return Vec::new();
        }
        let metrics = (0..=self.rng.below(2)).map(|_| ["sim", "other", "more"][self.rng.below(3) as usize]);
        let mut metrics: Vec<&str> = metrics.collect();
        metrics.sort_unstable();
        metrics.dedup();
        let rng = &self.rng;
        let described = &mut self.described;
        let describe = |metric: &str| {
            *described += rng.below(2);
            let metadata = Metadata {
                kind: ["gauge", "counter", "histogram"][rng.below(3) as usize].to_owned(),
                help: format!("described the {described}th time"),
                unit: String::new(),
            };
            (metric.to_owned(), metadata)
        };
        metrics.into_iter().map(describe).collect()
    }

    /// Most samples have none, and many the same.
    fn start(&self, t: i64) -> i64 {
        match self.rng.below(8) {
            0..5 => 0,
            5 | 6 => T0 - HOUR,
            _ => t - self.rng.below(3 * MINUTE as u64) as i64,
        }
    }

    /// The same samples in a batch of their own.
    pub(crate) fn anew(&mut self, sent: &Sent) -> Sent {
        let next = self.sequences.entry(sent.place.clone()).or_default();
        let header = BatchHeader {
            stream: self.stream,
            sequence: *next,
            ..sent.batch.header().clone()
        };
        *next += 1;
        let batch = Arc::new(Batch::new(header, sent.batch.columns().clone()));
        Sent {
            batch,
            ..sent.clone()
        }
    }

    fn seal(
        &mut self,
        place: Place,
        by_series: BTreeMap<u64, OfSeries>,
        metadata: Vec<(String, Metadata)>,
        epoch_of: impl Fn(PartitionId) -> u64,
        admission_ms: i64,
    ) -> Sent {
        let (partition, tenant) = place.clone();
        let seed = TenantSeed::new(b"", &tenant);
        let (mut columns, mut series, mut beside) = (BatchColumns::default(), Series::new(), Found::new());
        for (number, OfSeries { samples, exemplars }) in by_series {
            let labels = series_labels(partition, number);
            let hash = SeriesHash::new(seed, labels.as_ref());
            match self.rng.below(3) {
                0 => columns.push_series(hash, labels.as_ref()),
                _ => columns.push_known_series(hash, labels.as_ref()),
            }
            for (&t, (v, start)) in &samples {
                match v {
                    Value::Float(v) => {
                        columns.push_sample(t, *v);
                        columns.set_last_start(*start);
                    }
                    Value::Histogram(h) => columns.push_started_histogram(t, *start, h.as_ref().clone()),
                }
            }
            exemplars.iter().for_each(|e| columns.push_exemplar(e.clone()));
            put_exemplars(&mut beside, &labels, &exemplars);
            let starts = samples.iter().map(|(&t, (_, start))| (t, *start));
            let starts: Vec<(i64, i64)> = starts.filter(|s| s.1 != 0).collect();
            if !starts.is_empty() {
                series.push((starts_of(&labels), of_starts(&starts)));
            }
            let points = samples.into_iter().map(|(t, (v, _))| Point { t, v });
            series.push((labels, points.collect()));
        }
        series.extend(beside);
        columns.metadata.clone_from(&metadata);
        let sequence = self.sequences.entry(place.clone()).or_default();
        let header = BatchHeader {
            tenant,
            stream: self.stream,
            sequence: *sequence,
            settled_below: 0,
            partition,
            epoch: epoch_of(partition),
            admission_ms,
        };
        *sequence += 1;
        Sent {
            place,
            batch: Arc::new(Batch::new(header, columns)),
            series,
            metadata,
        }
    }
}

/// A value for a series, of which others were sent.
fn value(rng: &RngHandle, series: u64, sent: &[(u64, Point)]) -> Value {
    let is_of_floats = series < FLOAT_SERIES;
    let is_other_kind = rng.below(16) == 0;
    if is_of_floats != is_other_kind {
        return Value::Float(float(rng));
    }
    let last = sent.iter().rev().find_map(|(of, point)| match &point.v {
        Value::Histogram(h) if *of == series => Some(h.as_ref()),
        _ => None,
    });
    Value::Histogram(Arc::new(histogram(rng, last)))
}

/// Any bits, or those that tempt.
fn float(rng: &RngHandle) -> f64 {
    match rng.below(12) {
        0 => f64::from_bits(rng.u64()),
        1 => stale_nan(),
        2 => [-0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0][rng.below(5) as usize],
        3..6 => rng.below(1000) as f64 / 8.0,
        _ => rng.below(1 << 40) as f64,
    }
}
