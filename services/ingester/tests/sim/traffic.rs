//! What is sent: samples in order, late, repeated and in conflict, of several tenants and partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::{
    BatchColumns, Labels, PartitionId, Sample, SeriesHash, StreamId, TenantId, TenantSeed, stale_nan,
};
use koios_runtime::RngHandle;
use koios_wire::{Batch, BatchHeader};

/// The first moment of a window.
pub(crate) const T0: i64 = 1_700_006_400_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const TENANTS: [&str; 2] = ["team-a", "team-b"];
const PARTITIONS: u32 = 2;
/// Series of one tenant in one partition.
const SERIES: u64 = 4;

/// A tenant in a partition.
pub(crate) type Place = (PartitionId, TenantId);

/// Samples by series.
pub(crate) type Series = Vec<(Labels, Vec<Sample>)>;

/// A batch, and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) place: Place,
    pub(crate) batch: Arc<Batch>,
    pub(crate) series: Series,
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

/// Label of a series of start timestamps.
const STARTS: &str = "starts_of";

/// Where the start timestamps of a series are judged as its samples are: of several at one time the largest wins, as of their
/// bits as values.
pub(crate) fn starts_of(labels: &Labels) -> Labels {
    let pairs = labels.iter().chain([(STARTS, "it")]);
    Labels::from_pairs(pairs)
}

/// The series that start timestamps are of, or the series itself.
pub(crate) fn sampled(labels: &Labels) -> Labels {
    Labels::from_pairs(labels.iter().filter(|(name, _)| *name != STARTS))
}

/// Start timestamps as samples.
pub(crate) fn as_samples(starts: &[(i64, i64)]) -> Vec<Sample> {
    let sample = |(t, start): &(i64, i64)| Sample {
        t: *t,
        v: f64::from_bits(start.cast_unsigned()),
    };
    starts.iter().map(sample).collect()
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
    sent: BTreeMap<Place, Vec<(u64, Sample)>>,
}

impl Traffic {
    pub(crate) fn new(rng: RngHandle) -> Self {
        Self {
            stream: StreamId(rng.u128()),
            rng,
            sequences: BTreeMap::new(),
            newest: places().into_iter().map(|p| (p, T0)).collect(),
            sent: BTreeMap::new(),
        }
    }

    /// A sender started again: a stream of its own.
    pub(crate) fn new_stream(&mut self) {
        self.stream = StreamId(self.rng.u128());
        self.sequences.clear();
    }

    /// The next batch for a random place.
    pub(crate) fn batch(&mut self, epoch_of: impl Fn(PartitionId) -> u64, now_ms: i64) -> Sent {
        let places = places();
        let place = places[self.rng.below(places.len() as u64) as usize].clone();
        self.advance(&place);
        let mut by_series: BTreeMap<u64, BTreeMap<i64, (f64, i64)>> = BTreeMap::new();
        for _ in 0..=self.rng.below(3) {
            let first = self.rng.below(SERIES);
            for _ in 0..=self.rng.below(4) {
                let (series, sample) = self.sample(&place, first);
                let start = self.start(sample.t);
                by_series
                    .entry(series)
                    .or_default()
                    .insert(sample.t, (sample.v, start));
            }
        }
        self.seal(place, by_series, epoch_of, now_ms)
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

    fn sample(&mut self, place: &Place, series: u64) -> (u64, Sample) {
        let newest = self.newest.get(place).copied().unwrap_or(T0);
        let sent = self.sent.entry(place.clone()).or_default();
        let before = match sent.len() as u64 {
            0 => None,
            n => sent.get(self.rng.below(n) as usize).copied(),
        };
        let v = value(&self.rng);
        match (self.rng.below(10), before) {
            // The same again.
            (0, Some(same)) => same,
            // Another value at the same time.
            (1, Some((series, s))) => {
                sent.push((series, Sample { t: s.t, v }));
                (series, Sample { t: s.t, v })
            }
            (kind, _) => {
                let late = match kind {
                    2 => self.rng.below(5 * HOUR as u64) as i64,
                    3 => self.rng.below(10 * MINUTE as u64) as i64,
                    _ => self.rng.below(2000) as i64,
                };
                let sample = Sample { t: newest - late, v };
                sent.push((series, sample));
                (series, sample)
            }
        }
    }

    /// Most samples have none, and many the same.
    fn start(&self, t: i64) -> i64 {
        match self.rng.below(8) {
            0..5 => 0,
            5 | 6 => T0 - HOUR,
            _ => t - self.rng.below(3 * MINUTE as u64) as i64,
        }
    }

    fn seal(
        &mut self,
        place: Place,
        by_series: BTreeMap<u64, BTreeMap<i64, (f64, i64)>>,
        epoch_of: impl Fn(PartitionId) -> u64,
        now_ms: i64,
    ) -> Sent {
        let (partition, tenant) = place.clone();
        let seed = TenantSeed::new(b"", &tenant);
        let (mut columns, mut series) = (BatchColumns::default(), Series::new());
        for (number, samples) in by_series {
            let labels = series_labels(partition, number);
            let hash = SeriesHash::new(seed, labels.as_ref());
            match self.rng.below(3) {
                0 => columns.push_series(hash, labels.as_ref()),
                _ => columns.push_known_series(hash, labels.as_ref()),
            }
            for (&t, &(v, start)) in &samples {
                columns.push_sample(t, v);
                columns.set_last_start(start);
            }
            let starts = samples.iter().map(|(&t, &(_, start))| (t, start));
            let starts: Vec<(i64, i64)> = starts.filter(|s| s.1 != 0).collect();
            if !starts.is_empty() {
                series.push((starts_of(&labels), as_samples(&starts)));
            }
            let samples = samples.into_iter().map(|(t, (v, _))| Sample { t, v });
            series.push((labels, samples.collect()));
        }
        let sequence = self.sequences.entry(place.clone()).or_default();
        let header = BatchHeader {
            tenant,
            stream: self.stream,
            sequence: *sequence,
            settled_below: 0,
            partition,
            epoch: epoch_of(partition),
            admission_ms: now_ms,
        };
        *sequence += 1;
        Sent {
            place,
            batch: Arc::new(Batch::new(header, columns)),
            series,
        }
    }
}

/// Any bits, or those that tempt.
fn value(rng: &RngHandle) -> f64 {
    match rng.below(12) {
        0 => f64::from_bits(rng.u64()),
        1 => stale_nan(),
        2 => [-0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0][rng.below(5) as usize],
        3..6 => rng.below(1000) as f64 / 8.0,
        _ => rng.below(1 << 40) as f64,
    }
}
