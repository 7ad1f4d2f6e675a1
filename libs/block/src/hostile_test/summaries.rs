//! Sums of histograms as no writer writes them.

use arrow_array::cast::AsArray;
use arrow_array::{Array, StructArray};
use arrow_schema::{Field, Fields, Schema};
use koios_model::summary::downsample;
use koios_model::{Histogram, Sample, spans_of};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::meta::{RESOLUTION_5M_MS, SAMPLES_5M_PART};
use crate::schema::{COUNT, HISTOGRAM_SUM, HISTOGRAMS, POSITIVE, SCHEMA};

const MINUTE: i64 = 60_000;

/// Series of histograms, of whose summaries the first has no sum, and one of floats.
fn summarised() -> BlockParts {
    let options = BlockOptions {
        resolution_ms: RESOLUTION_5M_MS,
        histogram_sums: true,
        layout: layout(),
        ..BlockOptions::new(BlockId::new(1, 1), TenantId::anonymous(), TimeRange::ALL)
    };
    let mut writer = BlockWriter::new(options).unwrap();
    let histogram = |t: i64| {
        let (positive_spans, positive_buckets) = spans_of([(0, 1.0), (3, t as f64)]);
        let histogram = Histogram {
            count: t as f64 + 1.0,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        };
        (t * MINUTE, Arc::new(histogram))
    };
    let histograms: Vec<_> = (0..60).map(histogram).collect();
    let sample = |t: i64| Sample {
        t: t * MINUTE,
        v: t as f64,
    };
    let floats: Vec<Sample> = (0..60).map(sample).collect();
    for i in 0..4 {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:02}"))]);
        let mut kept = match i {
            3 => downsample(&floats, &[], RESOLUTION_5M_MS),
            _ => downsample(&[], &histograms, RESOLUTION_5M_MS),
        };
        let of_histograms = kept.summaries.iter_mut().filter(|s| s.histograms > 0);
        for (summary, (_, sum)) in of_histograms.zip(&histograms).skip(1) {
            summary.histogram_sum = Some(Arc::clone(sum));
        }
        writer.push_downsampled(&labels, None, &kept).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// Reads and decodes all of it, also out of the cache, and checks it.
fn read_sums(parts: &BlockParts) -> Result<()> {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20));
    let source = Arc::new(MemoryBlock::new(parts));
    let block = BlockReader::open(source, Arc::new(parts.meta.clone()), cache)?.with_histogram_sums(true);
    block_on(async {
        for _ in 0..2 {
            let series = block.select(&Matchers::default(), TimeRange::ALL).await?;
            for chunk in block.read_chunks(&series, TimeRange::ALL).await?.concat() {
                let _ = chunk.decode_summaries(TimeRange::ALL, &mut Vec::new());
            }
        }
        verify(&block).await
    })
}

/// The same block with its summaries' columns as `change` makes them.
fn with_columns(parts: &BlockParts, change: impl Fn(&str, ArrayRef) -> ArrayRef) -> BlockParts {
    let bytes = parts.parts.iter().find(|(name, _)| name == SAMPLES_5M_PART);
    let bytes = bytes.unwrap().1.clone();
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .unwrap()
        .build()
        .unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert!(batches.next().is_none());
    let schema = batch.schema();
    let named = schema.fields().iter().zip(batch.columns());
    let columns: Vec<ArrayRef> = named
        .map(|(field, column)| change(field.name(), Arc::clone(column)))
        .collect();
    let fields = schema.fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    forge_part(
        parts,
        SAMPLES_5M_PART,
        parquet(&RecordBatch::try_new(schema, columns).unwrap()),
    )
}

/// A struct with its columns as `change` makes them; those of which it makes nothing are left out.
fn with_inner(sums: &ArrayRef, change: impl Fn(&str, &ArrayRef) -> Option<ArrayRef>) -> ArrayRef {
    let sums = sums.as_struct();
    let named = sums.fields().iter().zip(sums.columns());
    let changed =
        named.filter_map(|(field, column)| Some((field.name().clone(), change(field.name(), column)?)));
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = changed
        .map(|(name, column)| (Field::new(name, column.data_type().clone(), true), column))
        .unzip();
    Arc::new(StructArray::try_new(Fields::from(fields), columns, sums.nulls().cloned()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn i12_changed_sums_with_agreeing_checksums_never_panic(
        part in 1usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let good = summarised();
        let mut bytes = good.parts[part].1.to_vec();
        for (at, byte, near_the_end) in changes {
            let from = if near_the_end { bytes.len() / 2 } else { 0 };
            let at = from + at.index(bytes.len() - from);
            bytes[at] = byte;
        }
        let _ = read_sums(&forge(&good, part, bytes));
    }
}

#[test]
fn i11_sums_that_no_writer_writes_are_corrupt() {
    let good = summarised();
    read_sums(&good).unwrap();
    let of_sums = |change: &dyn Fn(&str, &ArrayRef) -> Option<ArrayRef>| {
        with_columns(&good, |name, column| match name {
            HISTOGRAM_SUM => with_inner(&column, change),
            _ => column,
        })
    };
    read_sums(&of_sums(&|_, column| Some(Arc::clone(column)))).unwrap();
    let no_buckets = of_sums(&|name, column| (name != POSITIVE).then(|| Arc::clone(column)));
    let no_schemas = of_sums(&|name, column| match name {
        SCHEMA => Some(Arc::new(Int8Array::from(vec![None::<i8>; column.len()]))),
        _ => Some(Arc::clone(column)),
    });
    let no_floats = of_sums(&|name, column| match name {
        COUNT => Some(Arc::new(Int64Array::from(vec![1; column.len()]))),
        _ => Some(Arc::clone(column)),
    });
    let no_struct = with_columns(&good, |name, column| match name {
        HISTOGRAM_SUM => Arc::new(Float64Array::from(vec![1.0; column.len()])),
        _ => column,
    });
    let of_nothing = with_columns(&good, |name, column| match name {
        HISTOGRAMS => Arc::new(UInt32Array::from(vec![0; column.len()])),
        _ => column,
    });
    for (block, words) in [
        (no_buckets, "column positive"),
        (no_schemas, "column schema"),
        (no_floats, "column count"),
        (no_struct, "column histogram_sum"),
        (of_nothing, "without histograms"),
    ] {
        let e = read_sums(&block).unwrap_err();
        assert!(
            matches!(&e, Error::Corrupt { part, .. } if part == SAMPLES_5M_PART),
            "{e}"
        );
        assert!(e.to_string().contains(words), "{e}");
    }
}
