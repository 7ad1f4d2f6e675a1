//! The content of a batch, who it is of left out: samples, histograms, exemplars, metadata. The same bytes travel and are
//! logged, so they are compressed once.

use koios_model::{BatchColumns, BatchExemplar, BatchHistogram, Metadata};

use super::bytes::{Reader, section, unzigzag, write_varint, zigzag};
use super::{BatchError, values};

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

fn read_starts(s: &mut Reader<'_>) -> Result<Vec<i64>, BatchError> {
    let (mut starts, mut last) = (Vec::new(), 0i64);
    while !s.done() {
        let written = s.varint()?;
        if written == 0 {
            starts.push(0);
            continue;
        }
        let unused = zigzag(last.wrapping_neg());
        last = last.wrapping_add(unzigzag(written - u64::from(written <= unused)));
        starts.push(last);
    }
    Ok(starts)
}

/// The columns of the sections, for as many series; those of identity stay empty.
pub(super) fn decode(raw: &[u8], series: usize) -> Result<BatchColumns, BatchError> {
    let mut c = BatchColumns::default();
    let (mut histogram_series, mut histograms): (Vec<u32>, &[u8]) = (Vec::new(), &[]);
    let (mut histogram_starts, mut exponents): (Vec<i64>, &[u8]) = (Vec::new(), &[]);
    let mut r = Reader::new(raw);
    while !r.done() {
        let (tag, mut s) = r.section()?;
        match tag {
            TAG_SAMPLE_COUNTS => {
                c.sample_counts.reserve(series.min(raw.len()));
                while !s.done() {
                    c.sample_counts.push(s.varint_u32()?);
                }
            }
            TAG_TIMESTAMPS => {
                // Each takes a byte at least.
                let samples: u64 = c.sample_counts.iter().map(|&n| u64::from(n)).sum();
                let samples = usize::try_from(samples).unwrap_or(usize::MAX);
                c.timestamps.reserve(samples.min(s.left()));
                let mut t = 0i64;
                while !s.done() {
                    t = t.wrapping_add(unzigzag(s.varint()?));
                    c.timestamps.push(t);
                }
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
                while !s.done() {
                    let metric = s.string("metadata")?;
                    let (kind, help, unit) = (
                        s.string("metadata")?,
                        s.string("metadata")?,
                        s.string("metadata")?,
                    );
                    c.metadata.push((metric, Metadata { kind, help, unit }));
                }
            }
            TAG_HISTOGRAM_SERIES => {
                while !s.done() {
                    histogram_series.push(s.varint_u32()?);
                }
            }
            TAG_HISTOGRAMS => histograms = s.rest(),
            TAG_STARTS => c.starts = read_starts(&mut s)?,
            TAG_HISTOGRAM_STARTS => histogram_starts = read_starts(&mut s)?,
            TAG_EXEMPLARS => {
                while !s.done() {
                    c.exemplars.push(s.exemplar()?);
                }
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
    if c.starts.len() > c.values.len() {
        let reason = format!("{} for {samples} samples", c.starts.len());
        return fail("starts", reason);
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
