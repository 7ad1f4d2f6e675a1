//! The content of a batch, who it is of left out: samples, histograms, exemplars, metadata. The same bytes travel and are
//! logged, so they are compressed once.

use koios_model::{BatchColumns, BatchExemplar, BatchHistogram, Metadata};

use super::bytes::{Reader, section, unzigzag, write_varint, zigzag};
use super::{BatchError, DECODED_BYTES_MAX, values};

const TAG_SAMPLE_COUNTS: u8 = 4;
const TAG_TIMESTAMPS: u8 = 5;
const TAG_VALUES: u8 = 6;
const TAG_METADATA: u8 = 7;
const TAG_HISTOGRAM_SERIES: u8 = 8;
const TAG_HISTOGRAMS: u8 = 9;
const TAG_EXEMPLARS: u8 = 10;
const TAG_STARTS: u8 = 11;
const TAG_HISTOGRAM_STARTS: u8 = 12;
const TAG_EXPONENTS: u8 = 13;
const TAG_MANTISSAS: u8 = 14;

/// The sections, not compressed yet.
pub(super) fn encode(c: &BatchColumns) -> Vec<u8> {
    let mut out = Vec::with_capacity(c.sample_counts.len() + c.values.len() * 10 + 64);
    section(&mut out, TAG_SAMPLE_COUNTS, |o| {
        c.sample_counts
            .iter()
            .for_each(|&n| write_varint(o, u64::from(n)))
    });
    section(&mut out, TAG_TIMESTAMPS, |o| {
        let mut last = 0i64;
        for &t in &c.timestamps {
            write_varint(o, zigzag(t.wrapping_sub(last)));
            last = t;
        }
    });
    write_values(&mut out, &c.values);
    if !c.starts.is_empty() {
        section(&mut out, TAG_STARTS, |o| {
            write_starts(o, c.starts.iter().copied())
        });
    }
    if !c.histograms.is_empty() {
        section(&mut out, TAG_HISTOGRAM_SERIES, |o| {
            c.histograms
                .iter()
                .for_each(|h| write_varint(o, u64::from(h.series)))
        });
        let packed = koios_chunk::pack_histograms(c.histograms.iter().map(|h| (h.t, &h.histogram)));
        section(&mut out, TAG_HISTOGRAMS, |o| o.extend_from_slice(&packed));
        let starts = c.histograms.iter().map(|h| h.start);
        if starts.clone().any(|start| start != 0) {
            section(&mut out, TAG_HISTOGRAM_STARTS, |o| write_starts(o, starts));
        }
    }
    if !c.exemplars.is_empty() {
        section(&mut out, TAG_EXEMPLARS, |o| {
            for BatchExemplar { series, exemplar } in &c.exemplars {
                write_varint(o, u64::from(*series));
                write_varint(o, zigzag(exemplar.t));
                o.extend_from_slice(&exemplar.v.to_bits().to_le_bytes());
                write_varint(o, exemplar.labels.packed().len() as u64);
                o.extend_from_slice(exemplar.labels.packed());
            }
        });
    }
    if !c.metadata.is_empty() {
        section(&mut out, TAG_METADATA, |o| {
            for (metric, m) in &c.metadata {
                for s in [metric, &m.kind, &m.help, &m.unit] {
                    write_varint(o, s.len() as u64);
                    o.extend_from_slice(s.as_bytes());
                }
            }
        });
    }
    out
}

/// Values as decimals, unless as floats they are smaller.
fn write_values(out: &mut Vec<u8>, values: &[f64]) {
    let (mut exponents, mut mantissas) = (
        Vec::with_capacity(values.len()),
        Vec::with_capacity(values.len() * 4),
    );
    values::encode(values, &mut exponents, &mut mantissas);
    if exponents.len() + mantissas.len() < size_of_val(values) {
        section(out, TAG_EXPONENTS, |o| o.extend_from_slice(&exponents));
        section(out, TAG_MANTISSAS, |o| o.extend_from_slice(&mantissas));
        return;
    }
    section(out, TAG_VALUES, |o| {
        values
            .iter()
            .for_each(|v| o.extend_from_slice(&v.to_bits().to_le_bytes()))
    });
}

/// Start timestamps: 0 for none, else the zigzag form of the difference to the one set before. That of a start of 0 is
/// not needed, so those below it are written one larger.
fn write_starts(out: &mut Vec<u8>, starts: impl Iterator<Item = i64>) {
    let mut last = 0i64;
    for start in starts {
        if start == 0 {
            write_varint(out, 0);
            continue;
        }
        let (difference, unused) = (zigzag(start.wrapping_sub(last)), zigzag(last.wrapping_neg()));
        write_varint(out, difference + u64::from(difference < unused));
        last = start;
    }
}

fn read_starts(s: &mut Reader<'_>, most: usize) -> Result<Vec<i64>, BatchError> {
    let mut last = 0i64;
    read_column(s, "starts", most, |s| {
        let written = s.varint()?;
        if written == 0 {
            return Ok(0);
        }
        let unused = zigzag(last.wrapping_neg());
        last = last.wrapping_add(unzigzag(written - u64::from(written <= unused)));
        Ok(last)
    })
}

/// Reads a section to its end, but no more than `most` entries: in memory they can be many times what they are here.
fn read_column<'a, T>(
    s: &mut Reader<'a>,
    column: &'static str,
    most: usize,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<T, BatchError>,
) -> Result<Vec<T>, BatchError> {
    // Numbers take a byte at least, and larger entries more.
    let bytes_each = (size_of::<T>() / size_of::<u64>()).max(1);
    let mut entries = Vec::with_capacity(most.min(s.left() / bytes_each));
    while !s.done() {
        if entries.len() == most {
            let reason = format!("more than {most}");
            return Err(BatchError::Column { column, reason });
        }
        entries.push(read(s)?);
    }
    Ok(entries)
}

/// How many entries of a kind a batch may have.
const fn most_of<T>() -> usize {
    DECODED_BYTES_MAX / size_of::<T>()
}

/// What the largest column takes in memory, bytes, strings and buckets left out: of each [`decode`] takes [`DECODED_BYTES_MAX`] at most.
pub(super) fn largest_column(c: &BatchColumns) -> usize {
    let samples = values::samples_bytes(c.values.len());
    let others = [
        size_of_val(c.histograms.as_slice()),
        size_of_val(c.exemplars.as_slice()),
        size_of_val(c.metadata.as_slice()),
    ];
    others.into_iter().fold(samples, usize::max)
}

/// The columns of the sections, for as many series; those of identity stay empty.
pub(super) fn decode(raw: &[u8], series: usize) -> Result<BatchColumns, BatchError> {
    let mut c = BatchColumns::default();
    let (mut histogram_series, mut histograms): (Vec<u32>, &[u8]) = (Vec::new(), &[]);
    let (mut histogram_starts, mut exponents): (Vec<i64>, &[u8]) = (Vec::new(), &[]);
    let mut samples = 0usize;
    let mut r = Reader::new(raw);
    while !r.done() {
        let (tag, mut s) = r.section()?;
        match tag {
            // Written before all that there is an entry of per sample.
            TAG_SAMPLE_COUNTS => {
                c.sample_counts = read_column(&mut s, "sample counts", series, Reader::varint_u32)?;
                samples = samples_of(&c)?;
            }
            TAG_TIMESTAMPS => {
                let mut t = 0i64;
                c.timestamps = read_column(&mut s, "timestamps", samples, |s| {
                    t = t.wrapping_add(unzigzag(s.varint()?));
                    Ok(t)
                })?;
            }
            // Of values there is one form.
            TAG_VALUES | TAG_MANTISSAS if !c.values.is_empty() => {
                return Err(BatchError::Column {
                    column: "values",
                    reason: "in two sections".to_owned(),
                });
            }
            TAG_VALUES => {
                let (values, rest) = s.rest().as_chunks();
                if !rest.is_empty() {
                    return Err(BatchError::Truncated { at: raw.len() });
                }
                c.values = values
                    .iter()
                    .map(|v| f64::from_bits(u64::from_le_bytes(*v)))
                    .collect();
            }
            TAG_EXPONENTS => exponents = s.rest(),
            TAG_MANTISSAS => c.values = values::decode(exponents, &mut s)?,
            TAG_METADATA => {
                let most = most_of::<(String, Metadata)>();
                c.metadata = read_column(&mut s, "metadata", most, |s| {
                    let mut string = || s.string("metadata");
                    let metric = string()?;
                    let (kind, help, unit) = (string()?, string()?, string()?);
                    Ok((metric, Metadata { kind, help, unit }))
                })?;
            }
            TAG_HISTOGRAM_SERIES => {
                let (column, most) = ("series of histograms", most_of::<BatchHistogram>());
                histogram_series = read_column(&mut s, column, most, Reader::varint_u32)?;
            }
            TAG_HISTOGRAMS => histograms = s.rest(),
            TAG_STARTS => c.starts = read_starts(&mut s, samples)?,
            TAG_HISTOGRAM_STARTS => histogram_starts = read_starts(&mut s, histogram_series.len())?,
            TAG_EXEMPLARS => {
                let most = most_of::<BatchExemplar>();
                c.exemplars = read_column(&mut s, "exemplars", most, Reader::exemplar)?;
            }
            // A section this version does not know holds samples it would lose: refuse.
            other => return Err(BatchError::unknown_section(other)),
        }
    }
    let unpacked = koios_chunk::unpack_histograms(histograms, histogram_series.len());
    let unpacked = unpacked.map_err(|e| BatchError::Column {
        column: "histograms",
        reason: e.to_string(),
    })?;
    if !histogram_starts.is_empty() && histogram_starts.len() != unpacked.len() {
        return Err(BatchError::Column {
            column: "starts of histograms",
            reason: format!("{} for {} histograms", histogram_starts.len(), unpacked.len()),
        });
    }
    let placed = histogram_series.into_iter().zip(unpacked).enumerate();
    c.histograms = placed
        .map(|(at, (series, (t, histogram)))| BatchHistogram {
            series,
            t,
            start: histogram_starts.get(at).copied().unwrap_or(0),
            histogram,
        })
        .collect();
    check(&c, series)?;
    Ok(c)
}

/// How many samples the counts say there are.
fn samples_of(c: &BatchColumns) -> Result<usize, BatchError> {
    let samples = c.sample_counts.iter().map(|&n| n as usize);
    let samples = samples.fold(0usize, usize::saturating_add);
    match values::samples_bytes(samples) {
        0..=DECODED_BYTES_MAX => Ok(samples),
        declared => Err(BatchError::TooLarge { declared }),
    }
}

fn check(c: &BatchColumns, series: usize) -> Result<(), BatchError> {
    let fail = |column, reason: String| Err(BatchError::Column { column, reason });
    if c.sample_counts.len() != series {
        return fail(
            "sample counts",
            format!("{} for {series} series", c.sample_counts.len()),
        );
    }
    let samples: u64 = c.sample_counts.iter().map(|&n| u64::from(n)).sum();
    if samples != c.timestamps.len() as u64 || samples != c.values.len() as u64 {
        let reason = format!(
            "{} timestamps, {} values, counts say {samples}",
            c.timestamps.len(),
            c.values.len()
        );
        return fail("samples", reason);
    }
    if c.starts.len() as u64 > samples {
        let reason = format!("{} for {samples} samples", c.starts.len());
        return fail("start timestamps", reason);
    }
    let mut of_histograms = c.histograms.iter().map(|h| h.series as usize);
    let mut of_exemplars = c.exemplars.iter().map(|e| e.series as usize);
    let ascending = of_histograms.clone().is_sorted() && of_exemplars.clone().is_sorted();
    if !ascending || of_histograms.any(|place| place >= series) || of_exemplars.any(|place| place >= series) {
        return fail(
            "series of histograms and exemplars",
            "out of order, or beyond the last".to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of one series with two samples, and a section of as many zeros.
    fn with_zeros(tag: u8, zeros: usize) -> Result<BatchColumns, BatchError> {
        let mut raw = Vec::new();
        section(&mut raw, TAG_SAMPLE_COUNTS, |o| o.push(2));
        section(&mut raw, TAG_TIMESTAMPS, |o| o.extend([2, 2]));
        section(&mut raw, TAG_VALUES, |o| o.extend([0; 16]));
        section(&mut raw, tag, |o| o.resize(o.len() + zeros, 0));
        decode(&raw, 1)
    }

    #[test]
    fn no_column_is_longer_than_what_it_is_of() {
        assert!(with_zeros(TAG_STARTS, 2).is_ok());
        for (tag, zeros, column) in [
            (TAG_SAMPLE_COUNTS, 2, "sample counts"),
            (TAG_TIMESTAMPS, 3, "timestamps"),
            (TAG_STARTS, 3, "starts"),
            (TAG_HISTOGRAM_STARTS, 1, "starts"),
            (
                TAG_METADATA,
                4 * (most_of::<(String, Metadata)>() + 1),
                "metadata",
            ),
            (
                TAG_HISTOGRAM_SERIES,
                most_of::<BatchHistogram>() + 1,
                "series of histograms",
            ),
            (TAG_EXEMPLARS, 11 * (most_of::<BatchExemplar>() + 1), "exemplars"),
        ] {
            let error = with_zeros(tag, zeros).unwrap_err();
            assert!(
                matches!(error, BatchError::Column { column: c, .. } if c == column),
                "{tag}: {error}"
            );
        }
    }

    #[test]
    fn i1_what_is_too_large_to_be_decoded_is_known_before() {
        let mut columns = BatchColumns::default();
        let nothing = (String::new(), Metadata::default());
        columns
            .metadata
            .resize(most_of::<(String, Metadata)>(), nothing.clone());
        assert!(largest_column(&columns) <= DECODED_BYTES_MAX);
        assert!(decode(&encode(&columns), 0).is_ok());
        columns.metadata.push(nothing);
        assert!(largest_column(&columns) > DECODED_BYTES_MAX);
        assert!(decode(&encode(&columns), 0).is_err());
    }

    #[test]
    fn counts_say_first_what_samples_would_take() {
        let mut raw = Vec::new();
        section(&mut raw, TAG_SAMPLE_COUNTS, |o| write_varint(o, 1 << 30));
        let error = decode(&raw, 1).unwrap_err();
        assert!(
            matches!(error, BatchError::TooLarge { declared } if declared == 16 << 30),
            "{error}"
        );
    }
}
