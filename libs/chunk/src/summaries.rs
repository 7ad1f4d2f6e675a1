//! Chunks of summaries: what is kept of downsampled samples, on its way from blocks to queries.

use std::sync::Arc;

use bytes::Bytes;
use koios_model::{Histogram, Summary, TimeRange};

use crate::bits::{Cursor, write_varint, write_zigzag};
use crate::encode::Encoder;
use crate::histogram::encode_histograms;
use crate::view::Chunk;
use crate::{CHECKSUM_BYTES, Error, SAMPLES_MAX, VERSION_HISTOGRAMS, VERSION_SUMMARIES, VERSION_SUMS};

/// Summaries in a chunk: two weeks of 5 minutes.
const CHUNK_SUMMARIES: usize = 4096;
/// The same where histograms are summed, which are large.
const CHUNK_SUMS: usize = 240;
/// How many columns there are: one for each number of a summary but the time of its last sample.
const COLUMNS: usize = 9;
const FLAW: &str = "columns of summaries end early, differ in length, or overlap each other in time";
pub(crate) const SUMS_FLAW: &str = "sums of histograms end early, or are of no summary";

/// Encodes summaries, ascending and not overlapping, as chunks.
///
/// # Errors
/// [`Error::NotAscending`].
pub fn encode_summaries(summaries: &[Summary], out: &mut Vec<Chunk>) -> Result<(), Error> {
    let disjoint = |w: &[Summary]| w.first().map(|s| s.last_t) < w.get(1).map(|s| s.first_t);
    if let Some(at) = summaries.windows(2).position(|w| !disjoint(w)) {
        return Err(Error::NotAscending { at: at + 1 });
    }
    let mut encoder = Encoder::default();
    let at_once = match summaries.iter().any(|s| s.histogram_sum.is_some()) {
        true => CHUNK_SUMS,
        false => CHUNK_SUMMARIES,
    };
    for part in summaries.chunks(at_once) {
        out.push(encode_part(part, &mut encoder)?);
    }
    Ok(())
}

/// Encodes summaries, at least one and as [`encode_summaries`] wants them, as one chunk.
pub(crate) fn encode_part(part: &[Summary], encoder: &mut Encoder) -> Result<Chunk, Error> {
    let (Some(first), Some(last)) = (part.first(), part.last()) else {
        return Err(Error::Count { count: 0 });
    };
    let sums = encoded_sums(part)?;
    let version = match sums {
        Some(_) => VERSION_SUMS,
        None => VERSION_SUMMARIES,
    };
    let mut bytes = vec![version, 0];
    write_varint(&mut bytes, part.len() as u64);
    write_zigzag(&mut bytes, first.first_t);
    write_varint(&mut bytes, last.last_t.abs_diff(first.first_t));
    if let Some(sums) = sums {
        write_varint(&mut bytes, sums.len() as u64);
        bytes.extend_from_slice(&sums);
    }
    let places: Vec<i64> = (0..).take(part.len()).collect();
    let mut times: Vec<i64> = part.iter().map(|s| s.last_t).collect();
    for column in 0..COLUMNS {
        let values: Vec<f64> = part.iter().map(|s| number(s, column)).collect();
        let encoded = encoder.encode_fast(&times, &values)?;
        write_varint(&mut bytes, encoded.len() as u64);
        bytes.extend_from_slice(&encoded);
        // Times are told once.
        times.clone_from(&places);
    }
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    Chunk::parse(Bytes::from(bytes))
}

/// The sums of histograms that there are, as a chunk of histograms at the times of the last samples.
fn encoded_sums(part: &[Summary]) -> Result<Option<Bytes>, Error> {
    let sum = |s: &Summary| {
        s.histogram_sum
            .as_ref()
            .map(|sum| (s.last_t, sum.as_ref().clone()))
    };
    let sums = encode_histograms(part.iter().filter_map(sum), SAMPLES_MAX)?;
    Ok(sums.into_iter().next())
}

/// Opens the chunk of sums in a chunk of summaries; nothing where these have no place for it.
pub(crate) fn parse_sums(bytes: &Bytes, cursor: &mut Cursor<'_>) -> Option<Result<Chunk, Error>> {
    let len = usize::try_from(cursor.varint()?).ok()?;
    let from = cursor.pos();
    cursor.take(len)?;
    let sums = bytes.slice(from..from.checked_add(len)?);
    // No chunk of summaries within one.
    (sums.first() == Some(&VERSION_HISTOGRAMS)).then(|| Chunk::parse(sums))
}

/// A summary's number in a column.
fn number(s: &Summary, column: usize) -> f64 {
    let lasted = s.last_t.saturating_sub(s.first_t) as f64;
    let [first, last, sum, min, max, resets] = s.floats();
    let numbers: [f64; COLUMNS] = [
        lasted,
        f64::from(s.count),
        f64::from(s.histograms),
        first,
        last,
        sum,
        min,
        max,
        resets,
    ];
    numbers.get(column).copied().unwrap_or_default()
}

/// The columns of a chunk, still encoded, as its bytes from `body` on say.
fn columns(bytes: &Bytes, body: usize) -> Option<Vec<Bytes>> {
    let mut rest = bytes.slice(body..bytes.len().checked_sub(CHECKSUM_BYTES)?);
    let mut columns = Vec::with_capacity(COLUMNS);
    for _ in 0..COLUMNS {
        let mut cursor = Cursor::new(&rest);
        let len = usize::try_from(cursor.varint()?).ok()?;
        let from = cursor.pos();
        let to = from.checked_add(len).filter(|to| *to <= rest.len())?;
        columns.push(rest.slice(from..to));
        rest = rest.slice(to..);
    }
    rest.is_empty().then_some(columns)
}

/// Appends the summaries of a chunk that overlap a closed range.
pub(crate) fn decode(
    chunk: &Chunk,
    (body, sums): (usize, Option<&Chunk>),
    range: TimeRange,
    out: &mut Vec<Summary>,
) -> Result<(), Error> {
    let flaw = |what| Error::Malformed {
        len: chunk.bytes().len(),
        at: body,
        what,
    };
    let malformed = || flaw(FLAW);
    let columns = columns(chunk.bytes(), body).ok_or_else(malformed)?;
    let mut of_histograms: Vec<(i64, Arc<Histogram>)> = Vec::new();
    if let Some(sums) = sums {
        sums.decode_histograms(TimeRange::ALL, &mut of_histograms)?;
    }
    let mut of_histograms = of_histograms.into_iter().peekable();
    let (mut times, mut table) = (Vec::new(), Vec::with_capacity(COLUMNS));
    for (i, column) in columns.into_iter().enumerate() {
        let (mut places, mut values) = (Vec::new(), Vec::new());
        Chunk::parse(column)?.decode(&mut places, &mut values)?;
        if values.len() != chunk.count() {
            return Err(malformed());
        }
        if i == 0 {
            times = places;
        }
        table.push(values);
    }
    let had = out.len();
    let mut before = None;
    for (row, &last_t) in times.iter().enumerate() {
        let at = |column: usize| {
            table
                .get(column)
                .and_then(|c| c.get(row))
                .copied()
                .unwrap_or_default()
        };
        let first_t = last_t.saturating_sub(at(0) as i64);
        if first_t > last_t || before.is_some_and(|before| first_t <= before) {
            out.truncate(had);
            return Err(malformed());
        }
        before = Some(last_t);
        let summary = Summary {
            first_t,
            last_t,
            // Whoever wrote other numbers is held to whole ones.
            count: at(1) as u32,
            histograms: at(2) as u32,
            first: at(3),
            last: at(4),
            sum: at(5),
            min: at(6),
            max: at(7),
            resets: at(8),
            histogram_sum: of_histograms.next_if(|(t, _)| *t == last_t).map(|(_, sum)| sum),
        };
        if summary.range().overlaps(&range) {
            out.push(summary);
        }
    }
    if of_histograms.next().is_some() {
        out.truncate(had);
        return Err(flaw(SUMS_FLAW));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use koios_model::Sample;
    use koios_model::summary::downsample;
    use proptest::prelude::*;

    use super::*;

    fn any_summaries() -> impl Strategy<Value = Vec<Summary>> {
        prop::collection::vec((1i64..400, any::<u64>()), 1..200).prop_map(|gaps| {
            let mut t = -1000;
            let step = |(gap, bits): (i64, u64)| {
                t += gap;
                let v = if bits % 3 == 0 {
                    f64::from_bits(bits)
                } else {
                    (bits % 100) as f64 / 10.0
                };
                Sample { t, v }
            };
            let all: Vec<Sample> = gaps.into_iter().map(step).collect();
            downsample(&all, &[], 300).summaries
        })
    }

    /// Some of histograms, some of which nobody added up.
    fn with_sums(mut all: Vec<Summary>, which: u64) -> Vec<Summary> {
        for (i, s) in (0..).zip(&mut all) {
            if which >> (i % 60) & 1 == 1 && !s.is_stale() {
                s.histograms = 2;
                let sum = Histogram {
                    count: s.sum,
                    sum: i as f64,
                    ..Histogram::default()
                };
                s.histogram_sum =
                    (i % 5 != 0).then(|| Arc::new(if i % 7 == 0 { Histogram::stale() } else { sum }));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn summaries_come_back_bit_for_bit(
            all in any_summaries(), which in prop_oneof![Just(0), any::<u64>()], min in -1000i64..20_000, len in 0i64..20_000,
        ) {
            let all = with_sums(all, which);
            let mut chunks = Vec::new();
            encode_summaries(&all, &mut chunks).unwrap();
            prop_assert!(chunks.iter().all(|c| c.has_summaries() && !c.has_histograms() && !c.has_starts()));
            let range = TimeRange::new(min, min + len);
            let mut back = Vec::new();
            chunks.iter().for_each(|c| c.decode_summaries(range, &mut back).unwrap());
            let wanted: Vec<_> = all.iter().filter(|s| s.range().overlaps(&range)).cloned().collect();
            prop_assert_eq!(back, wanted);
            let summed = all.iter().any(|s| s.histogram_sum.is_some());
            prop_assert_eq!(chunks.iter().all(|c| c.bytes()[0] == VERSION_SUMMARIES), !summed);
            let (mut times, mut values) = (Vec::new(), Vec::new());
            chunks.iter().for_each(|c| c.decode(&mut times, &mut values).unwrap());
            prop_assert!(times.is_empty() && values.is_empty());
        }

        #[test]
        fn i12_damaged_summaries_are_an_error_and_nothing_else(
            all in any_summaries(), which in prop_oneof![Just(0), any::<u64>()], at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let all = with_sums(all, which);
            let mut chunks = Vec::new();
            encode_summaries(&all, &mut chunks).unwrap();
            let mut bytes = chunks[0].bytes().to_vec();
            let body = bytes.len() - CHECKSUM_BYTES;
            let place = at.index(body);
            bytes[place] ^= 1 << bit;
            prop_assert!(Chunk::parse(bytes.clone().into()).is_err());
            // As one who knows how to make a checksum would send it.
            let sum = crc32c::crc32c(&bytes[..body]).to_le_bytes();
            bytes[body..].copy_from_slice(&sum);
            if let Ok(chunk) = Chunk::parse(bytes.into()) {
                let _ = chunk.decode_summaries(TimeRange::ALL, &mut Vec::new());
            }
        }
    }

    #[test]
    fn i12_sums_within_sums_are_no_chunk() {
        let mut one = Summary::of_float(Sample { t: 1, v: 1.0 });
        (one.histograms, one.histogram_sum) = (1, Some(Arc::new(Histogram::default())));
        let mut chunks = Vec::new();
        encode_summaries(&[one], &mut chunks).unwrap();
        let mut nested = chunks.pop().unwrap().into_bytes();
        for _ in 0..3 {
            let mut bytes = vec![VERSION_SUMS, 0, 1, 2, 0];
            write_varint(&mut bytes, nested.len() as u64);
            bytes.extend_from_slice(&nested);
            let sum = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            nested = Bytes::from(bytes);
            assert!(Chunk::parse(nested.clone()).is_err());
        }
    }

    #[test]
    fn summaries_must_not_overlap() {
        let one = Summary::of_float(Sample { t: 1, v: 1.0 });
        assert!(matches!(
            encode_summaries(&[one.clone(), one], &mut Vec::new()),
            Err(Error::NotAscending { at: 1 })
        ));
    }
}
