//! Which samples a batch has, by series: a sample that is lost to another of its own batch is not kept, however many rows
//! of the batch are of the series. Found out when a conflict asks for it.

use std::cmp::Ordering;

use koios_model::{BatchColumns, BatchHistogram, Histogram};

/// The rows of a batch that is being applied.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    batch: &'a BatchColumns,
    /// The series of each.
    indices: &'a [u32],
    /// The one whose samples are appended.
    place: u32,
    found: Option<Found<'a>>,
}

/// Series, time, the value's bits, and row.
type Float = (u32, i64, u64, u32);

#[derive(Debug)]
struct Found<'a> {
    /// Where the floats of each row begin.
    begins: Vec<usize>,
    /// The floats of series that have several rows, ascending.
    floats: Vec<Float>,
    /// Their histograms, by series, time, value and row.
    histograms: Vec<&'a BatchHistogram>,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(batch: &'a BatchColumns, indices: &'a [u32]) -> Self {
        Self {
            batch,
            indices,
            place: 0,
            found: None,
        }
    }

    /// Goes on to a row.
    pub(crate) fn enter(&mut self, place: u32) {
        self.place = place;
    }

    /// Whether a row before has a float of the series.
    pub(crate) fn had_float(&mut self, index: u32, t: i64, v: f64) -> bool {
        let place = self.place;
        let first = self.found().first_float(index, t, v);
        first.is_some_and(|first| first < place)
    }

    /// Whether this row has it, or any other.
    pub(crate) fn has_float(&mut self, index: u32, t: i64, v: f64) -> bool {
        let (batch, place) = (self.batch, self.place);
        let found = self.found();
        let mut own = found.floats_of(batch, place);
        own.any(|(at, own)| at == t && own.to_bits() == v.to_bits())
            || found.first_float(index, t, v).is_some()
    }

    /// Whether a row before has a histogram of the series.
    pub(crate) fn had_histogram(&mut self, index: u32, t: i64, histogram: &Histogram) -> bool {
        let (indices, place) = (self.indices, self.place);
        let histograms = &self.found().histograms;
        let before = |h: &&BatchHistogram| by_value(indices, h, (index, t, histogram)).is_lt();
        let first = histograms.get(histograms.partition_point(before));
        first.is_some_and(|h| h.series < place && by_value(indices, h, (index, t, histogram)).is_eq())
    }

    fn found(&mut self) -> &Found<'a> {
        let (batch, indices) = (self.batch, self.indices);
        self.found.get_or_insert_with(|| Found::of(batch, indices))
    }
}

impl<'a> Found<'a> {
    fn of(batch: &'a BatchColumns, indices: &[u32]) -> Self {
        let begin = |at: &mut usize, count: &u32| {
            let begin = *at;
            *at += *count as usize;
            Some(begin)
        };
        let mut found = Self {
            begins: batch.sample_counts.iter().scan(0, begin).collect(),
            floats: Vec::new(),
            histograms: Vec::new(),
        };
        // Mostly ascending already, and each series once.
        let mut rows: Vec<(u32, u32)> = indices.iter().copied().zip(0..).collect();
        rows.sort_unstable();
        let several = rows.chunk_by(|a, b| a.0 == b.0);
        let several = several.filter(|rows| rows.len() > 1);
        let mut floats = Vec::new();
        let mut places = Vec::new();
        for (index, place) in several.flatten() {
            let of_row = found.floats_of(batch, *place);
            floats.extend(of_row.map(|(t, v)| (*index, t, v.to_bits(), *place)));
            places.push(*place);
        }
        floats.sort_unstable();
        places.sort_unstable();
        found.floats = floats;
        let histograms = batch.histograms.iter();
        found.histograms = histograms
            .filter(|h| places.binary_search(&h.series).is_ok())
            .collect();
        found.histograms.sort_by(|a, b| {
            let index = indices.get(b.series as usize).copied().unwrap_or_default();
            by_value(indices, a, (index, b.t, &b.histogram)).then(a.series.cmp(&b.series))
        });
        found
    }

    fn floats_of(&self, batch: &'a BatchColumns, place: u32) -> impl Iterator<Item = (i64, f64)> + use<'a> {
        let place = place as usize;
        let begin = self.begins.get(place).copied().unwrap_or(0);
        let end = begin + batch.sample_counts.get(place).map_or(0, |count| *count as usize);
        let times = batch.timestamps.get(begin..end).unwrap_or(&[]);
        let values = batch.values.get(begin..end).unwrap_or(&[]);
        times.iter().copied().zip(values.iter().copied())
    }

    /// The first row that has a float of a series that has several rows.
    fn first_float(&self, index: u32, t: i64, v: f64) -> Option<u32> {
        let wanted = (index, t, v.to_bits());
        let at = self.floats.partition_point(|f| (f.0, f.1, f.2) < wanted);
        let first = self.floats.get(at).filter(|f| (f.0, f.1, f.2) == wanted);
        first.map(|f| f.3)
    }
}

/// The order of histograms by series, time and value.
fn by_value(indices: &[u32], h: &BatchHistogram, (index, t, histogram): (u32, i64, &Histogram)) -> Ordering {
    let own = indices.get(h.series as usize).copied().unwrap_or_default();
    (own, h.t)
        .cmp(&(index, t))
        .then_with(|| h.histogram.bits_cmp(histogram))
}
