//! Loading the strips of a snapshot (`crate::snapshot`). A start waits for it, so it is cut into what can be done at once:
//!
//! - [`Strip::open`] tells the series of a strip apart and checks their labels. It needs no head: the strips that come next can be
//!   opened meanwhile.
//! - [`Head::load_series`] creates the series: symbols, lookup.
//! - [`Holdings::load`] takes in what they hold: open samples and sealed chunks. These lie apart from all that tells who the series
//!   are, and the head lends them for that time; so it does the index, which takes the series of the strip before meanwhile.
//! - [`Head::take_back`] puts the two together, and loads what few series have.

use std::ops::Range;

use bytes::Bytes;
use koios_chunk::{Chunk, decode_open};
use koios_model::{LabelsRef, Sample, SeriesHash, TimeRange, window_start};

use crate::apply::{Applied, Tally};
use crate::chunks::{ChunkList, Chunks, New};
use crate::error::SnapshotError;
use crate::head::Head;
use crate::histograms::At;
use crate::index::{Index, Pair, Row};
use crate::open::{Hot, Pool};
use crate::series::Side;
use crate::snapshot::{HISTOGRAM_LAST, HISTOGRAMS_OPEN, Reader, STARTS, Strip};
use crate::starts::StartOf;

/// A strip whose series are told apart.
#[derive(Debug)]
pub struct OpenedStrip {
    strip: Strip,
    series: Vec<Extent>,
}

/// Where a series lies in its strip.
#[derive(Debug)]
struct Extent {
    /// Its packed labels, which are a label set.
    labels: Range<u32>,
    data: Range<u32>,
}

impl Strip {
    /// Tells its series apart.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no strip.
    pub fn open(self) -> Result<OpenedStrip, SnapshotError> {
        let (mut labels, mut data) = (Reader::new(&self.labels), Reader::new(&self.data));
        let at =
            |all: &[u8], rest: &Reader<'_>| u32::try_from(all.len() - rest.left()).map_err(|_| SnapshotError);
        let mut series = Vec::with_capacity(self.labels.len().min(self.series as usize));
        for _ in 0..self.series {
            let packed = labels.bytes()?;
            let end = at(&self.labels, &labels)?;
            let is_set = LabelsRef::from_packed(packed).is_ok_and(|labels| !labels.is_empty());
            let from = at(&self.data, &data)?;
            pass_series(&mut data)?;
            if !is_set {
                return Err(SnapshotError);
            }
            series.push(Extent {
                labels: end - packed.len() as u32..end,
                data: from..at(&self.data, &data)?,
            });
        }
        if !labels.is_done() || !data.is_done() {
            return Err(SnapshotError);
        }
        Ok(OpenedStrip { strip: self, series })
    }
}

impl OpenedStrip {
    fn data(&self, range: &Range<u32>) -> Reader<'_> {
        let data = self.strip.data.get(range.start as usize..range.end as usize);
        Reader::new(data.unwrap_or_default())
    }

    /// The reference and the labels of each series.
    fn identities(&self) -> impl Iterator<Item = (SeriesHash, LabelsRef<'_>)> + '_ {
        self.series.iter().map(|s| {
            let labels = self
                .strip
                .labels
                .get(s.labels.start as usize..s.labels.end as usize);
            let hash = self.data(&s.data).array().map_or(0, u128::from_le_bytes);
            (
                SeriesHash(hash),
                LabelsRef::from_trusted(labels.unwrap_or_default()),
            )
        })
    }
}

/// Reads over a series.
fn pass_series(data: &mut Reader<'_>) -> Result<(), SnapshotError> {
    data.take(size_of::<SeriesHash>())?;
    Pool::pass(data)?;
    for _ in 0..data.u32()? {
        data.take(2 * size_of::<u32>() + size_of::<TimeRange>())?;
        data.bytes()?;
    }
    for _ in 0..data.u32()? {
        data.sample()?;
    }
    for _ in 0..data.u32()? {
        data.take(1)?;
        data.bytes()?;
    }
    Ok(())
}

/// What the series of a head hold, lent by it.
#[derive(Debug)]
pub struct Holdings {
    pool: Pool,
    chunks: Chunks,
    window_ms: i64,
    index: Index,
    /// What the index lacks of strips before.
    rows: Vec<Row>,
    /// Labels that are new in the index.
    new: Vec<Pair>,
    /// What was loaded, by series of the strip.
    loaded: Vec<Loaded>,
    /// Memory of the series loaded last.
    entries: Vec<u8>,
    timestamps: Vec<i64>,
    values: Vec<f64>,
}

/// What was loaded of a series.
#[derive(Debug)]
struct Loaded {
    hot: Hot,
    sealed: ChunkList,
    late: Vec<Sample>,
    /// Where the rest of it lies.
    rest: Range<u32>,
}

impl Holdings {
    /// Takes in what the series of a strip hold.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are malformed.
    pub fn load(&mut self, strip: &OpenedStrip) -> Result<(), SnapshotError> {
        self.index.add_rows(&self.rows, &mut self.new);
        self.rows.clear();
        self.loaded.clear();
        self.loaded.reserve_exact(strip.series.len());
        for series in &strip.series {
            let mut data = strip.data(&series.data);
            data.take(size_of::<SeriesHash>())?;
            let hot = self.load_open(&mut data)?;
            let mut sealed = ChunkList::default();
            for _ in 0..data.u32()? {
                let (cut, samples, range) = (data.u32()?, data.u32()?, data.range()?);
                let new = New {
                    group: (window_start(range.min, self.window_ms), cut),
                    range,
                    samples,
                    bytes: data.bytes()?,
                };
                self.chunks.insert(&mut sealed, new);
            }
            let late = (0..data.u32()?).map(|_| data.sample());
            let late = late.collect::<Result<Vec<Sample>, SnapshotError>>()?;
            self.loaded.push(Loaded {
                hot,
                sealed,
                late,
                rest: series.data.end - data.left() as u32..series.data.end,
            });
        }
        Ok(())
    }

    /// The open samples, which must be what appending makes.
    fn load_open(&mut self, data: &mut Reader<'_>) -> Result<Hot, SnapshotError> {
        self.entries.clear();
        self.timestamps.clear();
        self.values.clear();
        let hot = self.pool.copy_in(data, &mut self.entries)?;
        let count = usize::from(hot.count);
        let decoded = decode_open(&self.entries, count, &mut self.timestamps, &mut self.values);
        decoded.map_err(|_| SnapshotError)?;
        Ok(hot)
    }
}

impl Head {
    /// Adds the series of a strip to a head that has none of them.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no strip; the head is of no use then.
    pub fn load(&mut self, strip: &OpenedStrip) -> Result<(), SnapshotError> {
        let mut holdings = self.lend_holdings();
        holdings.load(strip)?;
        let places = self.load_series(strip)?;
        self.take_back(strip, &places, holdings)?;
        self.created();
        Ok(())
    }

    /// Takes memory for so many series to be loaded, instead of growing, and so copying, with every strip.
    pub fn reserve(&mut self, series: usize) {
        self.series.reserve(series);
    }

    /// Lends what the series hold, until [`Self::take_back`].
    pub fn lend_holdings(&mut self) -> Holdings {
        Holdings {
            pool: std::mem::take(&mut self.pool),
            chunks: std::mem::take(&mut self.chunks),
            window_ms: self.windows.width_ms(),
            index: std::mem::take(&mut self.index),
            rows: self.creating.take_rows(),
            new: Vec::new(),
            loaded: Vec::new(),
            entries: Vec::new(),
            timestamps: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Creates the series of a strip, which hold nothing before [`Self::take_back`], and which the index has after the next strip or
    /// [`Self::load_accounts`]. Gives the place of each.
    ///
    /// # Errors
    /// [`SnapshotError`] when the head has one of them.
    pub fn load_series(&mut self, strip: &OpenedStrip) -> Result<Vec<u32>, SnapshotError> {
        let mut places = Vec::with_capacity(strip.series.len());
        for (hash, labels) in strip.identities() {
            if self.series.find_labels(hash, labels, &self.symbols).is_some() {
                return Err(SnapshotError);
            }
            places.push(self.create_unindexed(hash, labels));
        }
        self.creating.end();
        Ok(places)
    }

    /// Takes back what was lent, with what was loaded of a strip; `places` are those of its series.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are malformed; the head is of no use then.
    pub fn take_back(
        &mut self,
        strip: &OpenedStrip,
        places: &[u32],
        holdings: Holdings,
    ) -> Result<(), SnapshotError> {
        (self.pool, self.chunks) = (holdings.pool, holdings.chunks);
        self.index = holdings.index;
        self.index.add_values(&holdings.new, &mut self.symbols);
        for (&index, loaded) in places.iter().zip(holdings.loaded) {
            let i = index as usize;
            self.series.hot[i] = loaded.hot;
            let cold = &mut self.series.cold[i];
            cold.sealed = loaded.sealed;
            if !loaded.late.is_empty() {
                self.side_samples += loaded.late.len();
                let side = Side {
                    samples: loaded.late,
                    ..Side::default()
                };
                cold.side = Some(Box::new(side));
            }
            self.load_rest(index, &mut strip.data(&loaded.rest))?;
        }
        Ok(())
    }

    /// Loads unsealed histograms and start timestamps.
    fn load_rest(&mut self, index: u32, data: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let runs = data.u32()?;
        for _ in 0..runs {
            let ([kind], bytes) = (data.array()?, data.bytes()?);
            if kind == STARTS {
                self.load_starts(index, bytes)?;
                continue;
            }
            let chunk = Chunk::parse(Bytes::copy_from_slice(bytes)).map_err(|_| SnapshotError)?;
            let (mut histograms, mut starts): (Vec<At>, Vec<StartOf>) = (Vec::new(), Vec::new());
            chunk
                .decode_starts(TimeRange::ALL, &mut starts)
                .map_err(|_| SnapshotError)?;
            chunk
                .decode_histograms(TimeRange::ALL, &mut histograms)
                .map_err(|_| SnapshotError)?;
            match (kind, histograms.pop()) {
                (HISTOGRAM_LAST, Some(last)) => self.sealed_through(index, last),
                (HISTOGRAMS_OPEN, last) => {
                    histograms.extend(last);
                    let (mut tally, mut applied) = (Tally::new(0), Applied::default());
                    let run = histograms.iter().map(|(t, h)| (*t, h.as_ref()));
                    self.append_histogram_series(index, run.collect(), &starts, &mut tally, &mut applied);
                }
                _ => return Err(SnapshotError),
            }
        }
        Ok(())
    }

    fn load_starts(&mut self, index: u32, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut r = Reader::new(bytes);
        let hot = self.series.hot.get(index as usize).ok_or(SnapshotError)?;
        let newest_open = (hot.count > 0).then_some(hot.last_t);
        if self.open_starts(index).is_some_and(|starts| !starts.is_empty()) {
            return Err(SnapshotError);
        }
        for is_open in [true, false] {
            let mut before = None;
            for _ in 0..r.u32()? {
                let (t, start) = (r.i64()?, r.i64()?);
                if before >= Some(t) || (is_open && newest_open < Some(t)) {
                    return Err(SnapshotError);
                }
                before = Some(t);
                match is_open {
                    true => self.note_start(index, t, start),
                    false => self.note_late_start(index, t, start),
                }
            }
        }
        r.is_done().then_some(()).ok_or(SnapshotError)
    }
}
