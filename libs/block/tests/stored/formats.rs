//! A block of every format that there ever was.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{BlockOptions, BlockParts, BlockWriter, Layout, RESOLUTION_5M_MS, SeriesColumns};
use koios_model::summary::downsample;
use koios_model::{Histogram, Labels, Sample, spans_of};

use super::common::{id, options, tiny};
use super::{Read, read_back, stored};

const STEP_MS: i64 = 15_000;

fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", i / 2)), ("i", i.to_string())])
}

/// Half of the series at the same times, one without some of them, one elsewhere.
fn floats(i: usize) -> Vec<Sample> {
    let value = |k: i64| match i {
        0 => k as f64 / 10.0,
        1 => k as f64 / 3.0,
        _ => (k * i as i64) as f64,
    };
    let sample = |k: i64| Sample {
        t: k * STEP_MS + k * k % 7 + if i == 5 { 40 } else { 0 },
        v: value(k),
    };
    (0..90).filter(|k| i != 3 || k % 8 != 5).map(sample).collect()
}

fn histograms(i: usize) -> Vec<(i64, Arc<Histogram>)> {
    let histogram = |k: i64| {
        let (positive_spans, positive_buckets) = spans_of([(-1, k as f64), (3, 2.0)]);
        Histogram {
            schema: 3,
            count: k as f64 + 2.0,
            sum: 12.5,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        }
    };
    let few = if i == 2 { 100..110 } else { 0..0 };
    few.map(|k| (k * STEP_MS, Arc::new(histogram(k)))).collect()
}

fn starts(i: usize) -> Vec<(i64, i64)> {
    let times = floats(i).into_iter().map(|s| s.t);
    times
        .skip(10)
        .map(|t| (t, 10 + i64::try_from(i).unwrap()))
        .collect()
}

/// What a block of a format holds.
fn read_of(format: u32, i: usize) -> Read {
    let samples = floats(i);
    let mut read = Read {
        floats: samples.iter().map(|s| (s.t, s.v.to_bits())).collect(),
        ..Read::default()
    };
    if [2, 5].contains(&format) {
        read.histograms = histograms(i);
    }
    if [3, 5].contains(&format) {
        read.starts = starts(i);
    }
    if format == 4 {
        read.summaries = downsample(&samples, &[], RESOLUTION_5M_MS).summaries;
        read.floats.clear();
    }
    read
}

fn write(format: u32) -> BlockParts {
    let layout = Layout {
        shared_times: format >= 5,
        ..tiny()
    };
    let mut writer = BlockWriter::new(BlockOptions {
        layout,
        starts: [3, 5].contains(&format),
        resolution_ms: if format == 4 { RESOLUTION_5M_MS } else { 0 },
        ..options(u128::from(format))
    })
    .unwrap();
    for i in 0..6 {
        let (samples, read) = (floats(i), read_of(format, i));
        if format == 4 {
            let kept = downsample(&samples, &[], RESOLUTION_5M_MS);
            writer.push_downsampled(&labels(i), None, &kept).unwrap();
            continue;
        }
        let (timestamps, values): (Vec<i64>, Vec<f64>) = samples.iter().map(|s| (s.t, s.v)).unzip();
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &read.histograms,
            starts: &read.starts,
        };
        writer.push_columns(&labels(i), None, columns).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

#[test]
fn blocks_of_every_format_are_read_as_they_were_written() {
    for format in 1..=5 {
        let name = format!("v{format}");
        let block = stored(&name, id(u128::from(format)), || write(format));
        let meta = block.meta();
        assert_eq!((meta.format, meta.series), (format, 6));
        assert_eq!(meta.may_have_starts(), [3, 5].contains(&format));
        let want: BTreeMap<Labels, Read> = (0..6).map(|i| (labels(i), read_of(format, i))).collect();
        assert_eq!(read_back(&block), want, "format {format}");
    }
}
