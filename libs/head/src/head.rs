//! The head itself: its parts, and what it tells about them.

use bytes::Bytes;
use koios_chunk::{Chunk, Encoder, SAMPLES_MAX, Starts};
use koios_model::{Sample, TimeRange};
use roaring::RoaringBitmap;

use crate::chunks::{Chunks, New};
use crate::create::Creating;
use crate::exemplars::Exemplars;
use crate::index::Index;
use crate::metadata::MetadataTable;
use crate::open::Pool;
use crate::resolve::Resolutions;
use crate::series::{SeriesTable, UNCUT};
use crate::starts::{StartOf, StartsTable};
use crate::symbols::Symbols;
use crate::waiting::Waiting;
use crate::windows::{WindowState, Windows};

/// How a head divides time and samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadOptions {
    /// Width of a window in milliseconds; windows are aligned to the epoch. Default 2 h.
    pub window_ms: i64,
    /// Samples after which a chunk is sealed. Default 120: larger chunks save a little in the sealed part and cost as
    /// much in the open one.
    pub samples_per_chunk: usize,
    /// How many exemplars are kept at first; the newest. Default 20,000: some 6 MB, at most about 60.
    pub exemplars_max: usize,
    /// Key of the hashes of strings that senders choose, which they must not know. Default 0, which everybody knows.
    pub seed: u64,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self {
            window_ms: 2 * 3600 * 1000,
            samples_per_chunk: 120,
            exemplars_max: 20_000,
            seed: 0,
        }
    }
}

/// The recent samples of one tenant in one partition. See the crate's page.
#[derive(Debug)]
pub struct Head {
    pub(crate) samples_per_chunk: u16,
    pub(crate) symbols: Symbols,
    pub(crate) series: SeriesTable,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    pub(crate) windows: Windows,
    pub(crate) metadata: MetadataTable,
    pub(crate) forgotten_below_ms: i64,
    pub(crate) applied_lsn: Option<u64>,
    pub(crate) chunks: Chunks,
    pub(crate) side_samples: usize,
    /// Series that may have late samples which were not compared yet.
    pub(crate) unchecked: RoaringBitmap,
    /// What unsealed histograms occupy.
    pub(crate) histogram_bytes: usize,
    pub(crate) starts: StartsTable,
    pub(crate) exemplars: Exemplars,
    pub(crate) exemplars_max: usize,
    pub(crate) encoder: Encoder,
    pub(crate) creating: Creating,
    pub(crate) resolutions: Resolutions,
    pub(crate) waiting: Waiting,
    /// Series were dropped since memory was given back.
    pub(crate) unshrunk: bool,
    pub(crate) scratch: Scratch,
}

/// Memory reused from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) late: Vec<Sample>,
    pub(crate) existing: Vec<Sample>,
    pub(crate) started: Vec<Sample>,
    pub(crate) starts: Vec<StartOf>,
    pub(crate) timestamps: Vec<i64>,
    pub(crate) values: Vec<f64>,
    pub(crate) encoded: Vec<u8>,
}

impl Head {
    /// An empty head.
    pub fn new(options: HeadOptions) -> Self {
        // Late samples are sealed in chunks of up to twice as many.
        let most = SAMPLES_MAX / 2;
        Self {
            samples_per_chunk: options.samples_per_chunk.clamp(1, most) as u16,
            symbols: Symbols::new(options.seed),
            series: SeriesTable::default(),
            index: Index::default(),
            pool: Pool::default(),
            windows: Windows::new(options.window_ms),
            metadata: MetadataTable::default(),
            forgotten_below_ms: i64::MIN,
            applied_lsn: None,
            chunks: Chunks::default(),
            side_samples: 0,
            unchecked: RoaringBitmap::new(),
            histogram_bytes: 0,
            starts: StartsTable::default(),
            exemplars: Exemplars::default(),
            exemplars_max: options.exemplars_max,
            encoder: Encoder::default(),
            creating: Creating::default(),
            resolutions: Resolutions::default(),
            waiting: Waiting::default(),
            unshrunk: false,
            scratch: Scratch::default(),
        }
    }

    /// How many series have samples here.
    pub fn series_count(&self) -> usize {
        self.index.all.len() as usize
    }

    /// What is held per window, ascending; windows of which nothing is held are absent.
    pub fn windows(&self) -> Vec<WindowState> {
        let mut states = self.windows.states();
        for w in &mut states {
            w.uncut_exemplars = self.exemplars.uncut(w.start);
            let of_exemplars = self.exemplars.unlisted_from_lsn(w.start);
            w.unlisted_from_lsn = w.unlisted_from_lsn.into_iter().chain(of_exemplars).min();
        }
        states
    }

    /// The range that all samples held lie in; `None` when there are none. May be wider than needed after forgetting.
    pub fn time_range(&self) -> Option<TimeRange> {
        self.windows.seen()
    }

    /// Below this time the head may have forgotten samples; `i64::MIN` when it never forgot any. Never falls.
    pub fn forgotten_below_ms(&self) -> i64 {
        self.forgotten_below_ms
    }

    /// Notes that samples below a time may be missing, as after a restart that replays only what no block holds.
    pub fn mark_forgotten_below(&mut self, ms: i64) {
        self.forgotten_below_ms = self.forgotten_below_ms.max(ms);
    }

    /// The greatest log position applied.
    pub fn applied_lsn(&self) -> Option<u64> {
        self.applied_lsn
    }

    /// The first log position with a sample or an exemplar that no listed cut holds; `None` when blocks hold everything.
    pub fn unlisted_from_lsn(&self) -> Option<u64> {
        self.windows().iter().filter_map(|w| w.unlisted_from_lsn).min()
    }

    /// Notes that what no listed cut holds was logged once more: the log is needed from `lsn` on.
    pub fn log_begins_at(&mut self, lsn: u64) {
        self.windows.log_begins_at(lsn);
        self.exemplars.log_begins_at(lsn);
    }

    /// Seals the open samples of a series.
    #[expect(
        clippy::expect_used,
        reason = "a failure here is a bug that would otherwise lose samples"
    )]
    pub(crate) fn seal_open(&mut self, index: u32) {
        let i = index as usize;
        if self.waiting.is_open {
            return self.waiting.take(index, &mut self.series.hot[i], &mut self.pool);
        }
        let (mut ts, mut vs) = self.take_columns();
        let hot = &mut self.series.hot[i];
        let decoded = self.pool.decode(hot, &mut ts, &mut vs);
        decoded.expect("the open samples of a series are the entries that were appended");
        self.pool.release(hot);
        let starts = self.take_open_starts(index);
        self.seal_run(index, &ts, &vs, &starts);
        self.give_columns(ts, vs);
    }

    /// Seals the late samples of a series that lie in `range`, which is within one window.
    pub(crate) fn seal_side(&mut self, index: u32, range: TimeRange) {
        let (mut ts, mut vs) = self.take_columns();
        let cold = &mut self.series.cold[index as usize];
        if let Some(side) = &mut cold.side {
            let from = side.samples.partition_point(|s| s.t < range.min);
            let to = side.samples.partition_point(|s| s.t <= range.max);
            for s in side.samples.drain(from..to) {
                ts.push(s.t);
                vs.push(s.v);
            }
            if side.holds_no_sample() && side.histograms.last_t().is_none() {
                cold.side = None;
            }
        }
        self.side_samples = self.side_samples.saturating_sub(ts.len());
        let starts = Starts::of(&ts, self.late_starts(index));
        self.seal_run(index, &ts, &vs, &starts);
        self.prune_late_starts(index);
        self.give_columns(ts, vs);
    }

    #[expect(
        clippy::expect_used,
        reason = "a failure here is a bug that would otherwise lose samples"
    )]
    fn seal_run(&mut self, index: u32, timestamps: &[i64], values: &[f64], starts: &Starts) {
        let most = self.chunk_samples_max();
        let mut encoder = std::mem::take(&mut self.encoder);
        let mut encoded = std::mem::take(&mut self.scratch.encoded);
        encode_chunks(
            &mut encoder,
            &mut encoded,
            most,
            (timestamps, values),
            |range, samples, bytes| {
                if starts.is_empty() {
                    return self.seal(index, range, samples, bytes);
                }
                let chunk = Chunk::parse(Bytes::copy_from_slice(bytes));
                let started = chunk.and_then(|chunk| chunk.with_starts(starts));
                let started = started.expect("what was just encoded is a chunk");
                self.seal(index, range, samples, started.bytes());
            },
        );
        (self.encoder, self.scratch.encoded) = (encoder, encoded);
    }

    /// Most samples of a chunk: side buffers may hold more than one chunk's worth when a batch brought much at once.
    pub(crate) fn chunk_samples_max(&self) -> usize {
        usize::from(self.samples_per_chunk) * 2
    }

    /// Adds a sealed chunk that no cut has taken.
    pub(crate) fn seal(&mut self, index: u32, range: TimeRange, samples: usize, bytes: &[u8]) {
        let sealed = New {
            group: (self.windows.range_of(range.min).min, UNCUT),
            range,
            samples: samples as u32,
            bytes,
        };
        self.insert_sealed(index, sealed);
    }

    pub(crate) fn take_columns(&mut self) -> (Vec<i64>, Vec<f64>) {
        let mut ts = std::mem::take(&mut self.scratch.timestamps);
        let mut vs = std::mem::take(&mut self.scratch.values);
        ts.clear();
        vs.clear();
        (ts, vs)
    }

    pub(crate) fn give_columns(&mut self, ts: Vec<i64>, vs: Vec<f64>) {
        (self.scratch.timestamps, self.scratch.values) = (ts, vs);
    }
}

/// Encodes samples of a series as chunks of at most so many; `take` gets the range of each, how many samples it has, and its bytes.
#[expect(
    clippy::expect_used,
    reason = "a failure here is a bug that would otherwise lose samples"
)]
pub(crate) fn encode_chunks(
    encoder: &mut Encoder,
    encoded: &mut Vec<u8>,
    most: usize,
    (timestamps, values): (&[i64], &[f64]),
    mut take: impl FnMut(TimeRange, usize, &[u8]),
) {
    for (ts, vs) in timestamps.chunks(most).zip(values.chunks(most)) {
        let (Some(&min), Some(&max)) = (ts.first(), ts.last()) else {
            break;
        };
        encoded.clear();
        encoder
            .encode_onto(ts, vs, encoded)
            .expect("open and late samples are kept in strictly ascending time");
        take(TimeRange::new(min, max), ts.len(), encoded);
    }
}
