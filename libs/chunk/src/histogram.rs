//! Runs of native histograms: each as what changed since the one before, from the first append to the block.
//!
//! A histogram's time and sum are written as a sample of an open run (`open`); then come its buckets, as differences to
//! those of the histogram before when they are the same buckets and all counts are whole.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use koios_model::{HISTOGRAM_LIST_MAX, Histogram, ResetHint, Span, TimeRange};

use crate::bits::{Cursor, write_varint, write_zigzag};
use crate::column::Flaw;
use crate::open::{EntryReader, OpenState, float};
use crate::{CHECKSUM_BYTES, Error, SAMPLES_MAX, Starts, VERSION_HISTOGRAMS, VERSION_STARTS};

/// The buckets are those of the histogram before.
const SAME_LAYOUT: u8 = 1;
/// All counts are whole numbers, written as such.
const WHOLE: u8 = 2;
/// Where the two bits of the reset hint begin.
const HINT_SHIFT: u8 = 2;
/// Most buckets, spans and bounds that a list of a histogram may have: what bounds the memory of a reader.
const LIST_MAX: u64 = HISTOGRAM_LIST_MAX as u64;
/// Most memory of histograms that are unpacked at once.
const UNPACKED_BYTES_MAX: usize = 1 << 30;
/// Counts beyond are not told apart by floats.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Histograms of one series that are still appended to.
#[derive(Clone, Debug)]
pub struct OpenHistograms {
    state: OpenState,
    last: Histogram,
    bytes: Vec<u8>,
    count: usize,
    first_t: i64,
    cells: usize,
    starts: Starts,
}

impl OpenHistograms {
    /// Starts a run.
    pub fn first(t: i64, histogram: Histogram) -> Self {
        let (state, entry) = OpenState::first(t, histogram.sum);
        let mut open = Self {
            state,
            last: Histogram::default(),
            bytes: entry.bytes().to_vec(),
            count: 1,
            first_t: t,
            cells: 0,
            starts: Starts::default(),
        };
        open.push(histogram, false);
        open
    }

    /// Adds a histogram. The caller sees to it that it is later, and that a run keeps below [`SAMPLES_MAX`].
    pub fn append(&mut self, t: i64, histogram: Histogram) {
        let entry = self.state.append_stored(t, histogram.sum);
        self.bytes.extend_from_slice(entry.bytes());
        self.count += 1;
        let same = self.last.same_layout(&histogram);
        self.push(histogram, same);
    }

    fn push(&mut self, histogram: Histogram, same: bool) {
        let whole = counts(&histogram).all(is_whole);
        let hint = match histogram.reset_hint {
            ResetHint::Unknown => 0,
            ResetHint::Reset => 1,
            ResetHint::NotReset => 2,
            ResetHint::Gauge => 3,
        };
        let out = &mut self.bytes;
        let layout = if same { SAME_LAYOUT } else { 0 };
        out.push(layout | if whole { WHOLE } else { 0 } | (hint << HINT_SHIFT));
        if !same {
            write_layout(out, &histogram);
        }
        if !whole {
            counts(&histogram).for_each(|v| out.extend_from_slice(&v.to_bits().to_le_bytes()));
        } else if same && counts(&self.last).all(is_whole) {
            for (v, before) in counts(&histogram).zip(counts(&self.last)) {
                write_zigzag(out, v as i64 - before as i64);
            }
        } else {
            counts(&histogram).for_each(|v| write_zigzag(out, v as i64));
        }
        self.cells = self.cells.max(cells(&histogram));
        self.last = histogram;
    }

    /// Gives the newest a start timestamp, 0 for none; of each at most once.
    pub fn set_last_start(&mut self, start: i64) {
        self.starts.push(self.state.t, start);
    }

    /// The start timestamps.
    pub fn starts(&self) -> &Starts {
        &self.starts
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Time of the first and the newest.
    pub fn time_range(&self) -> TimeRange {
        TimeRange::new(self.first_t, self.state.t)
    }

    /// Time of the newest, and the newest.
    pub fn last(&self) -> (i64, &Histogram) {
        (self.state.t, &self.last)
    }

    /// What it occupies on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.last.heap_bytes() + self.starts.heap_bytes()
    }

    /// The run as a chunk.
    pub fn chunk(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + 32);
        let is_started = !self.starts.is_empty();
        let version = VERSION_HISTOGRAMS + if is_started { VERSION_STARTS } else { 0 };
        out.extend_from_slice(&[version, 0]);
        write_varint(&mut out, self.count as u64);
        write_zigzag(&mut out, self.first_t);
        write_varint(&mut out, self.state.t.wrapping_sub(self.first_t) as u64);
        write_varint(&mut out, self.cells as u64);
        if is_started {
            self.starts.write(self.first_t, &mut out);
        }
        out.extend_from_slice(&self.bytes);
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        Bytes::from(out)
    }
}

/// Encodes histograms of strictly ascending time as chunks of at most `most` each; none for none.
///
/// # Errors
/// [`Error::NotAscending`].
pub fn encode_histograms(
    histograms: impl IntoIterator<Item = (i64, Histogram)>,
    most: usize,
) -> Result<Vec<Bytes>, Error> {
    let most = most.clamp(1, SAMPLES_MAX);
    let (mut chunks, mut open): (Vec<Bytes>, Option<OpenHistograms>) = (Vec::new(), None);
    for (at, (t, histogram)) in histograms.into_iter().enumerate() {
        if open.as_ref().is_some_and(|open| open.state.t >= t) {
            return Err(Error::NotAscending { at });
        }
        match &mut open {
            Some(open) if open.count < most => open.append(t, histogram),
            full => {
                let next = OpenHistograms::first(t, histogram);
                chunks.extend(full.replace(next).map(|full| full.chunk()));
            }
        }
    }
    chunks.extend(open.map(|open| open.chunk()));
    Ok(chunks)
}

/// Writes histograms in any order of time, one after the other; [`unpack_histograms`] reads them. For what carries its
/// own checksum and count.
pub fn pack_histograms<'a>(histograms: impl IntoIterator<Item = (i64, &'a Histogram)>) -> Vec<u8> {
    let mut run: Option<OpenHistograms> = None;
    for (t, histogram) in histograms {
        match &mut run {
            Some(run) => run.append(t, histogram.clone()),
            none => *none = Some(OpenHistograms::first(t, histogram.clone())),
        }
    }
    run.map(|run| run.bytes).unwrap_or_default()
}

/// Reads what [`pack_histograms`] wrote; there must be `count` of them and no bytes more.
///
/// # Errors
/// [`Error::Malformed`].
pub fn unpack_histograms(bytes: &[u8], count: usize) -> Result<Vec<(i64, Histogram)>, Error> {
    let mut cursor = Cursor::new(bytes);
    let mut out = Vec::new();
    let mut total = 0;
    let read = read_entries(&mut cursor, count, 8 * LIST_MAX, |t, h| {
        total += decoded_bytes(cells(h));
        if total > UNPACKED_BYTES_MAX {
            return Err("the histograms take more memory than they may");
        }
        out.push((t, h.clone()));
        Ok(())
    });
    let what = match read {
        Some(Ok(())) if cursor.at_end() => return Ok(out),
        Some(Ok(())) => "bytes follow the last histogram",
        Some(Err(what)) => what,
        None => ENDS_EARLY,
    };
    Err(Error::Malformed {
        len: bytes.len(),
        at: cursor.pos(),
        what,
    })
}

/// The counts in the order they are written.
fn counts(h: &Histogram) -> impl Iterator<Item = f64> + '_ {
    let buckets = h.positive_buckets.iter().chain(&h.negative_buckets);
    [h.count, h.zero_count].into_iter().chain(buckets.copied())
}

/// Entries of all lists of a histogram.
fn cells(h: &Histogram) -> usize {
    let lists = h.positive_buckets.len() + h.negative_buckets.len() + h.custom_bounds.len();
    lists + h.positive_spans.len() + h.negative_spans.len()
}

fn is_whole(v: f64) -> bool {
    v.abs() <= WHOLE_MAX && (v as i64 as f64).to_bits() == v.to_bits()
}

fn write_layout(out: &mut Vec<u8>, h: &Histogram) {
    write_zigzag(out, i64::from(h.schema));
    out.extend_from_slice(&h.zero_threshold.to_bits().to_le_bytes());
    write_varint(out, h.custom_bounds.len() as u64);
    for bound in &h.custom_bounds {
        out.extend_from_slice(&bound.to_bits().to_le_bytes());
    }
    for spans in [&h.positive_spans, &h.negative_spans] {
        write_varint(out, spans.len() as u64);
        for span in spans {
            write_zigzag(out, i64::from(span.offset));
            write_varint(out, u64::from(span.length));
        }
    }
}

/// The header's part that only histograms have, and where it ends.
pub(crate) fn read_cells(cursor: &mut Cursor<'_>) -> Option<usize> {
    cursor
        .varint()
        .filter(|cells| *cells <= 8 * LIST_MAX)
        .map(|cells| cells as usize)
}

/// What a decoded histogram of so many cells occupies.
pub(crate) fn decoded_bytes(cells: usize) -> usize {
    // Two counts of an Arc.
    let fixed = size_of::<(i64, Arc<Histogram>)>() + size_of::<Histogram>() + 2 * size_of::<usize>();
    fixed + cells * size_of::<f64>()
}

/// A chunk of histograms as its header describes it.
pub(crate) struct Described<'a> {
    pub(crate) bytes: &'a Bytes,
    pub(crate) body: usize,
    pub(crate) count: usize,
    pub(crate) range: TimeRange,
    pub(crate) cells: usize,
}

impl Described<'_> {
    /// Appends the histograms of a closed range.
    pub(crate) fn decode(
        &self,
        wanted: TimeRange,
        out: &mut Vec<(i64, Arc<Histogram>)>,
    ) -> Result<(), Error> {
        let had = out.len();
        let end = self.bytes.len().saturating_sub(CHECKSUM_BYTES);
        let content = self.bytes.get(..end).unwrap_or_default();
        let mut cursor = Cursor::new(content);
        cursor.take(self.body);
        let mut newest = None;
        let decoded = read_entries(&mut cursor, self.count, self.cells as u64, |t, h| {
            if newest.is_some_and(|newest| newest >= t) {
                return Err("times do not ascend");
            }
            newest = Some(t);
            if wanted.contains(t) {
                out.push((t, Arc::new(h.clone())));
            }
            Ok(())
        });
        let what = match decoded {
            Some(Ok(())) if !cursor.at_end() => "bytes follow the last histogram",
            Some(Ok(())) if newest == Some(self.range.max) => return Ok(()),
            Some(Ok(())) => "the last time is not that of the header",
            Some(Err(what)) => what,
            None => ENDS_EARLY,
        };
        out.truncate(had);
        Err(Error::Malformed {
            len: self.bytes.len(),
            at: cursor.pos(),
            what,
        })
    }
}

const ENDS_EARLY: Flaw = "a histogram ends early";
const TOO_MANY: Flaw = "a histogram has more buckets than it may";

/// Reads `count` histograms, none of more than `cells`; nothing when the bytes end before.
fn read_entries(
    cursor: &mut Cursor<'_>,
    count: usize,
    cells: u64,
    mut each: impl FnMut(i64, &Histogram) -> Result<(), Flaw>,
) -> Option<Result<(), Flaw>> {
    let mut entry: Option<EntryReader> = None;
    let mut current = Histogram::default();
    let mut was_whole = false;
    for _ in 0..count {
        let entry = match &mut entry {
            Some(entry) => {
                entry.next(cursor)?;
                entry
            }
            none => none.insert(EntryReader::first(cursor)?),
        };
        let flags = cursor.u8()?;
        let same = flags & SAME_LAYOUT != 0;
        if !same && let Err(what) = read_layout(cursor, cells, &mut current)? {
            return Some(Err(what));
        }
        let whole = flags & WHOLE != 0;
        let differences = same && was_whole;
        let h = &mut current;
        let buckets = h.positive_buckets.iter_mut().chain(&mut h.negative_buckets);
        for count in [&mut h.count, &mut h.zero_count].into_iter().chain(buckets) {
            *count = match (whole, differences) {
                (false, _) => float(cursor)?,
                (true, true) => (*count as i64).wrapping_add(cursor.zigzag()?) as f64,
                (true, false) => cursor.zigzag()? as f64,
            };
        }
        was_whole = whole;
        h.sum = entry.v;
        h.reset_hint = match (flags >> HINT_SHIFT) & 3 {
            0 => ResetHint::Unknown,
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            _ => ResetHint::Gauge,
        };
        if let Err(what) = each(entry.t, &current) {
            return Some(Err(what));
        }
    }
    Some(Ok(()))
}

/// Reads which buckets there are, and makes room for their counts.
fn read_layout(cursor: &mut Cursor<'_>, cells: u64, h: &mut Histogram) -> Option<Result<(), Flaw>> {
    h.schema = cursor.zigzag()? as i32;
    h.zero_threshold = float(cursor)?;
    let mut left = cells;
    let mut take = |n: u64| {
        left = left.checked_sub(n)?;
        (n <= LIST_MAX).then_some(0..n)
    };
    let Some(bounds) = take(cursor.varint()?) else {
        return Some(Err(TOO_MANY));
    };
    h.custom_bounds = bounds.map(|_| float(cursor)).collect::<Option<_>>()?;
    let mut read_side = || -> Option<Option<(Vec<Span>, Vec<f64>)>> {
        let Some(places) = take(cursor.varint()?) else {
            return Some(None);
        };
        let spans = read_spans(cursor, places)?;
        let buckets: u64 = spans.iter().map(|s| u64::from(s.length)).sum();
        // A byte or more of each is to follow: before it is seen, no room is made for what cannot come.
        if buckets <= LIST_MAX && buckets > cursor.left() as u64 {
            return None;
        }
        Some(take(buckets).map(|buckets: Range<u64>| (spans, buckets.map(|_| 0.0).collect())))
    };
    let (Some(positive), Some(negative)) = (read_side()?, read_side()?) else {
        return Some(Err(TOO_MANY));
    };
    (h.positive_spans, h.positive_buckets) = positive;
    (h.negative_spans, h.negative_buckets) = negative;
    Some(Ok(()))
}

fn read_spans(cursor: &mut Cursor<'_>, places: Range<u64>) -> Option<Vec<Span>> {
    places
        .map(|_| {
            Some(Span {
                offset: cursor.zigzag()? as i32,
                length: u32::try_from(cursor.varint()?).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use koios_model::{CUSTOM_BOUNDS_SCHEMA, spans_of, stale_nan};
    use proptest::prelude::*;

    use super::*;
    use crate::Chunk;

    fn any_count() -> impl Strategy<Value = f64> {
        prop_oneof![
            (0u32..1000).prop_map(f64::from),
            (0.0f64..1e18),
            Just(9_007_199_254_740_993.0),
            any::<u64>().prop_map(f64::from_bits),
        ]
    }

    fn any_side() -> impl Strategy<Value = (Vec<Span>, Vec<f64>)> {
        proptest::collection::btree_map(-20i32..20, any_count(), 0..12).prop_map(spans_of)
    }

    prop_compose! {
        fn any_histogram()(
            schema in -4i32..=8, hint in 0usize..4, custom in proptest::option::of(proptest::collection::vec(-9.0f64..9.0, 1..6)),
            (zero_threshold, zero_count, count) in (any_count(), any_count(), any_count()),
            sum in prop_oneof![any_count(), Just(stale_nan()), -1000.0f64..1000.0],
            (positive_spans, positive_buckets) in any_side(),
            (negative_spans, negative_buckets) in any_side(),
        ) -> Histogram {
            Histogram {
                reset_hint: [ResetHint::Unknown, ResetHint::Reset, ResetHint::NotReset, ResetHint::Gauge][hint],
                schema: if custom.is_some() { CUSTOM_BOUNDS_SCHEMA } else { schema },
                zero_threshold, zero_count, count, sum,
                positive_spans, negative_spans, positive_buckets, negative_buckets,
                custom_bounds: custom.unwrap_or_default(),
            }
        }
    }

    /// Some histograms as they are, and some that only count on from the one before.
    fn any_run() -> impl Strategy<Value = Vec<(i64, Histogram)>> {
        let step = (1i64..100_000, any_histogram(), any::<bool>(), 0u32..50);
        proptest::collection::vec(step, 1..30).prop_map(|steps| {
            let mut run: Vec<(i64, Histogram)> = Vec::new();
            for (step, mut histogram, counts_on, more) in steps {
                let t = run.last().map_or(-7, |(t, _)| t + step);
                if let Some((_, before)) = run.last().filter(|_| counts_on) {
                    histogram = before.clone();
                    histogram.count += f64::from(more);
                    histogram.sum += f64::from(more) * 0.25;
                    histogram
                        .positive_buckets
                        .iter_mut()
                        .for_each(|b| *b += f64::from(more));
                }
                run.push((t, histogram));
            }
            run
        })
    }

    fn decoded(chunks: &[Bytes], range: TimeRange) -> Vec<(i64, Arc<Histogram>)> {
        let mut out = Vec::new();
        for chunk in chunks {
            let chunk = Chunk::parse(chunk.clone()).unwrap();
            let (mut times, mut values) = (Vec::new(), Vec::new());
            chunk.decode(&mut times, &mut values).unwrap();
            assert!(times.is_empty() && values.is_empty(), "a histogram is no float");
            chunk.decode_histograms(range, &mut out).unwrap();
        }
        out
    }

    proptest! {
        #[test]
        fn histograms_read_back_bit_for_bit(run in any_run(), most in 1usize..40, min in -10i64..500_000, len in 0i64..500_000) {
            let chunks = encode_histograms(run.clone(), most).unwrap();
            prop_assert_eq!(chunks.len(), run.len().div_ceil(most));
            for range in [TimeRange::ALL, TimeRange::new(min, min + len)] {
                let got = decoded(&chunks, range);
                let wanted: Vec<_> = run.iter().filter(|(t, _)| range.contains(*t)).collect();
                prop_assert_eq!(got.len(), wanted.len());
                for ((t, h), (want_t, want)) in got.iter().zip(wanted) {
                    prop_assert_eq!(t, want_t);
                    prop_assert!(h.bits_cmp(want).is_eq(), "{h:?} {want:?}");
                }
            }
        }

        #[test]
        fn histograms_keep_their_starts(run in any_run(), min in -10i64..500_000, len in 0i64..500_000) {
            let mut open: Option<OpenHistograms> = None;
            for (t, histogram) in &run {
                match &mut open {
                    Some(open) => open.append(*t, histogram.clone()),
                    none => *none = Some(OpenHistograms::first(*t, histogram.clone())),
                }
                open.iter_mut().for_each(|open| open.set_last_start(t % 3));
            }
            let bytes = open.map(|open| open.chunk()).unwrap();
            let range = TimeRange::new(min, min + len);
            let mut starts = Vec::new();
            let chunk = Chunk::parse(bytes.clone()).unwrap();
            chunk.decode_starts(range, &mut starts).unwrap();
            let times = run.iter().map(|(t, _)| *t).filter(|t| range.contains(*t));
            let wanted: Vec<_> = times.map(|t| (t, t % 3)).filter(|s| s.1 != 0).collect();
            prop_assert_eq!(starts, wanted);
            let (mut got, mut bare) = (Vec::new(), Vec::new());
            chunk.decode_histograms(range, &mut got).unwrap();
            let plain = encode_histograms(run, SAMPLES_MAX).unwrap().remove(0);
            let plain = Chunk::parse(plain).unwrap();
            plain.decode_histograms(range, &mut bare).unwrap();
            prop_assert_eq!(format!("{got:?}"), format!("{bare:?}"));
            let again = plain.with_starts(&chunk.starts().unwrap()).unwrap();
            prop_assert_eq!(again.bytes(), &bytes);
        }

        #[test]
        fn packed_histograms_keep_their_order(mut run in any_run()) {
            run.reverse();
            let packed = pack_histograms(run.iter().map(|(t, h)| (*t, h)));
            let back = unpack_histograms(&packed, run.len()).unwrap();
            prop_assert!(back.iter().zip(&run).all(|(a, b)| a.0 == b.0 && a.1.bits_cmp(&b.1).is_eq()));
            prop_assert!(unpack_histograms(&packed, run.len() + 1).is_err());
            prop_assert!(unpack_histograms(&packed[..packed.len() - 1], run.len()).is_err());
        }

        #[test]
        fn i11_any_flipped_bit_of_histograms_is_noticed(run in any_run(), at in any::<usize>(), bit in 0u8..8) {
            let mut bytes = encode_histograms(run, SAMPLES_MAX).unwrap().remove(0).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Chunk::parse(bytes.into()).is_err());
        }

        #[test]
        fn i12_arbitrary_bytes_are_no_histograms(
            run in any_run(), cut in any::<usize>(), junk in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = encode_histograms(run, SAMPLES_MAX).unwrap().remove(0).to_vec();
            bytes.truncate(2 + cut % bytes.len());
            bytes.extend_from_slice(&junk);
            let sum = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            if let Ok(chunk) = Chunk::parse(bytes.into()) {
                let mut out = Vec::new();
                let decoded = chunk.decode_histograms(TimeRange::ALL, &mut out);
                prop_assert_eq!(out.len(), if decoded.is_ok() { chunk.count() } else { 0 });
                for (_, h) in &out {
                    prop_assert!(cells(h) * size_of::<f64>() <= chunk.decoded_bytes());
                }
            }
        }
    }

    #[test]
    fn a_histogram_that_counts_on_takes_a_byte_per_bucket() {
        let (positive_spans, positive_buckets) = spans_of((-8..8).map(|i| (i, f64::from(i + 100))));
        let mut h = Histogram {
            schema: 3,
            zero_threshold: 1e-128,
            count: 1_000_000.0,
            sum: 512.25,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        };
        let mut open = OpenHistograms::first(0, h.clone());
        let first = open.chunk().len();
        for i in 1..=100 {
            h.count += 16.0;
            h.sum += 0.5;
            h.positive_buckets.iter_mut().for_each(|b| *b += 1.0);
            open.append(i * 15_000, h.clone());
        }
        let each = (open.chunk().len() - first) / 100;
        assert!(each <= 16 + 6, "{each}");
    }
}
