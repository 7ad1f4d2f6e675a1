//! A head as bytes, so that a restart need not apply the whole log again.
//!
//! A head is copied in strips of series while batches go on being applied between them, and its accounts last. A strip may
//! therefore hold samples of batches that others lack. That is harmless to whoever then applies every batch again that
//! came after the copy began, for applying is idempotent (I2). Only cuts must stand still meanwhile: a copy that had
//! some series before a cut and some after it could pass uncut samples for cut ones.
//!
//! The bytes are laid out as the head keeps them, little endian, and are checked for lengths only: their keeper has the
//! checksums.

use bytes::Bytes;
use koios_chunk::{Chunk, encode_histograms};
use koios_model::{Labels, LabelsRef, Sample, SeriesHash, TimeRange};

use crate::apply::{Applied, Tally};
use crate::chunks::New;
use crate::error::{Error, SnapshotError};
use crate::head::Head;
use crate::histograms::At;
use crate::series::{Side, UNCUT};
use crate::starts::StartOf;

/// Some series of a head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strip {
    /// How many.
    pub series: u32,
    /// Their labels, which compress well.
    pub labels: Vec<u8>,
    /// All else of them, which does not.
    pub data: Vec<u8>,
}

/// An unsealed run of histograms.
const HISTOGRAMS_OPEN: u8 = 0;
/// The newest histogram in order, which a sealed chunk holds.
const HISTOGRAM_LAST: u8 = 1;
/// No histograms, but the start timestamps of unsealed floats.
const STARTS: u8 = 2;

impl Head {
    /// Copies series from a place on until `bytes_max` is reached, or a series with late samples that were not compared yet:
    /// the accounts, which are copied later, must not lack what the copy has. The first place is 0. Gives the place to go on
    /// from, after [`Self::check_late_from`] there; none at the end.
    ///
    /// # Errors
    /// [`Error::Chunk`] when histograms in memory are damaged.
    pub fn snapshot(&self, from: u32, bytes_max: usize) -> Result<(Strip, Option<u32>), Error> {
        let mut out = Strip::default();
        let mut next = from;
        while let Some(index) = self.next_series(next) {
            next = index.saturating_add(1);
            let i = index as usize;
            // One that waits to be given up may come again under another place.
            if self.series.hot[i].count == 0 && self.series.cold[i].is_empty() {
                continue;
            }
            if out.data.len() + out.labels.len() >= bytes_max || self.unchecked.contains(index) {
                return Ok((out, Some(index)));
            }
            self.copy_series(index, &mut out)?;
        }
        Ok((out, None))
    }

    /// The first series from a place on.
    fn next_series(&self, from: u32) -> Option<u32> {
        let mut series = self.index.all.iter();
        series.advance_to(from);
        series.next()
    }

    fn copy_series(&self, index: u32, strip: &mut Strip) -> Result<(), Error> {
        let (i, out) = (index as usize, &mut strip.data);
        let from = strip.labels.len();
        strip.labels.extend_from_slice(&[0; 4]);
        self.series.write_labels(index, &self.symbols, &mut strip.labels);
        let len = (strip.labels.len() - from - 4) as u32;
        strip.labels[from..from + 4].copy_from_slice(&len.to_le_bytes());
        strip.series += 1;
        out.extend_from_slice(&self.series.hashes[i].0.to_le_bytes());
        self.pool.copy_out(&self.series.hot[i], out);
        let cold = &self.series.cold[i];
        put_len(out, self.chunks.of(cold.sealed).count());
        for s in self.chunks.of(cold.sealed) {
            out.extend_from_slice(&s.cut().to_le_bytes());
            out.extend_from_slice(&s.samples().to_le_bytes());
            put_range(out, s.range());
            put_bytes(out, s.bytes());
        }
        put_len(out, cold.side().len());
        for s in cold.side() {
            put_sample(out, *s);
        }
        let histograms = self.copied_histograms(index)?;
        put_len(out, histograms.len());
        for (kind, chunk) in histograms {
            out.push(kind);
            put_bytes(out, &chunk);
        }
        Ok(())
    }

    fn copied_histograms(&self, index: u32) -> Result<Vec<(u8, Bytes)>, Error> {
        let mut runs = Vec::new();
        self.read_unsealed_histograms(index, TimeRange::ALL, &mut runs)?;
        let mut out = Vec::new();
        if let Some((t, last)) = self.sealed_last_histogram(index) {
            let chunks = encode_histograms([(t, last.as_ref().clone())], 1)?;
            out.extend(chunks.into_iter().map(|chunk| (HISTOGRAM_LAST, chunk)));
        }
        for run in runs {
            if let koios_chunk::Run::Chunk(chunk) = run {
                out.push((HISTOGRAMS_OPEN, Bytes::copy_from_slice(chunk.bytes())));
            }
        }
        out.extend(self.copied_starts(index).map(|starts| (STARTS, starts)));
        Ok(out)
    }

    fn copied_starts(&self, index: u32) -> Option<Bytes> {
        let (open, late) = (self.open_starts(index)?.steps(), self.late_starts(index));
        let mut out = Vec::new();
        for starts in [open, late] {
            put_len(&mut out, starts.len());
            for (t, start) in starts {
                out.extend_from_slice(&t.to_le_bytes());
                out.extend_from_slice(&start.to_le_bytes());
            }
        }
        (open.len() + late.len() > 0).then(|| out.into())
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

    /// What a head knows beside its series: to be taken after all strips, and loaded after them.
    pub fn snapshot_accounts(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.forgotten_below_ms.to_le_bytes());
        self.windows.copy_out(&mut out);
        self.exemplars.copy_out(&mut out);
        out
    }

    /// Adds the series of a strip to a head that has none of them.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no strip; the head is of no use then.
    pub fn load(&mut self, strip: &Strip) -> Result<(), SnapshotError> {
        let (mut labels, mut data) = (Reader::new(&strip.labels), Reader::new(&strip.data));
        for _ in 0..strip.series {
            let packed = LabelsRef::from_packed(labels.bytes()?).map_err(|_| SnapshotError)?;
            self.load_series(packed, &mut data)?;
        }
        self.created();
        (labels.is_done() && data.is_done())
            .then_some(())
            .ok_or(SnapshotError)
    }

    fn load_series(&mut self, labels: LabelsRef<'_>, data: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let hash = SeriesHash(u128::from_le_bytes(data.array()?));
        if labels.is_empty() || self.series.find_labels(hash, labels, &self.symbols).is_some() {
            return Err(SnapshotError);
        }
        let index = self.create(hash, labels);
        let i = index as usize;
        let hot = self.pool.copy_in(data)?;
        let (mut ts, mut vs) = self.take_columns();
        let open = self.pool.decode(&hot, &mut ts, &mut vs);
        self.give_columns(ts, vs);
        open.map_err(|_| SnapshotError)?;
        self.series.hot[i] = hot;
        let sealed = data.u32()?;
        for _ in 0..sealed {
            let (cut, samples, range) = (data.u32()?, data.u32()?, data.range()?);
            let sealed = New {
                group: (self.windows.range_of(range.min).min, cut),
                range,
                samples,
                bytes: data.bytes()?,
            };
            self.insert_sealed(index, sealed);
        }
        let late = data.u32()?;
        if late > 0 {
            let samples = (0..late).map(|_| data.sample());
            let samples = samples.collect::<Result<Vec<Sample>, SnapshotError>>()?;
            self.side_samples += samples.len();
            let side = Side {
                samples,
                ..Side::default()
            };
            self.series.cold[i].side = Some(Box::new(side));
        }
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

    /// Takes over what a head knew beside its series; after all strips were loaded.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no accounts; the head is of no use then.
    pub fn load_accounts(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut r = Reader::new(bytes);
        self.forgotten_below_ms = i64::from_le_bytes(r.array()?);
        self.windows.copy_in(&mut r)?;
        self.exemplars.copy_in(&mut r)?;
        if !r.is_done() {
            return Err(SnapshotError);
        }
        let windows = &self.windows;
        let pages = &mut self.chunks.pages;
        pages.regroup(|(window, cut)| (cut != UNCUT && !windows.is_listed(cut)).then_some((window, UNCUT)));
        Ok(())
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(crate) fn put_range(out: &mut Vec<u8>, range: TimeRange) {
    out.extend_from_slice(&range.min.to_le_bytes());
    out.extend_from_slice(&range.max.to_le_bytes());
}

fn put_sample(out: &mut Vec<u8>, s: Sample) {
    out.extend_from_slice(&s.t.to_le_bytes());
    out.extend_from_slice(&s.v.to_bits().to_le_bytes());
}

/// Reads what was put, from the front.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(SnapshotError)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        self.take(N)?.try_into().map_err(|_| SnapshotError)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, SnapshotError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// What [`put_bytes`] wrote.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], SnapshotError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(crate) fn range(&mut self) -> Result<TimeRange, SnapshotError> {
        let (min, max) = (self.i64()?, self.i64()?);
        Ok(TimeRange { min, max })
    }

    fn sample(&mut self) -> Result<Sample, SnapshotError> {
        let (t, v) = (self.i64()?, f64::from_bits(self.u64()?));
        Ok(Sample { t, v })
    }

    pub(crate) fn labels(&mut self) -> Result<Labels, SnapshotError> {
        let packed = LabelsRef::from_packed(self.bytes()?).map_err(|_| SnapshotError)?;
        Ok(packed.to_labels())
    }
}
