//! A head as bytes, so that a restart need not apply the whole log again.
//!
//! A head is copied in strips of series while batches go on being applied between them, and its accounts last. A strip may
//! therefore hold samples of batches that others lack. That is harmless to whoever then applies every batch again that
//! came after the copy began, for applying is idempotent (I2). Only cuts must stand still meanwhile: a copy that had
//! some series before a cut and some after it could pass uncut samples for cut ones.
//!
//! The bytes are laid out as the head keeps them, little endian, and are checked for lengths only: their keeper has the
//! checksums. `crate::load` reads them back.

use bytes::Bytes;
use koios_chunk::encode_histograms;
use koios_model::{Labels, LabelsRef, Sample, TimeRange};

use crate::error::{Error, SnapshotError};
use crate::head::Head;
use crate::series::UNCUT;

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
pub(crate) const HISTOGRAMS_OPEN: u8 = 0;
/// The newest histogram in order, which a sealed chunk holds.
pub(crate) const HISTOGRAM_LAST: u8 = 1;
/// No histograms, but the start timestamps of unsealed floats.
pub(crate) const STARTS: u8 = 2;

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

    /// What a head knows beside its series: to be taken after all strips, and loaded after them.
    pub fn snapshot_accounts(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.forgotten_below_ms.to_le_bytes());
        self.windows.copy_out(&mut out);
        self.exemplars.copy_out(&mut out);
        out
    }

    /// Takes over what a head knew beside its series; after all strips were loaded.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no accounts; the head is of no use then.
    pub fn load_accounts(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.created();
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

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
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

    pub(crate) fn sample(&mut self) -> Result<Sample, SnapshotError> {
        let (t, v) = (self.i64()?, f64::from_bits(self.u64()?));
        Ok(Sample { t, v })
    }

    pub(crate) fn labels(&mut self) -> Result<Labels, SnapshotError> {
        let packed = LabelsRef::from_packed(self.bytes()?).map_err(|_| SnapshotError)?;
        Ok(packed.to_labels())
    }
}
