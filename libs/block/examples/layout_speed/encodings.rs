//! Columns by themselves, encoded as in blocks and otherwise.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, Int64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int64Type, UInt32Type};
use arrow_array::{Array, ArrayRef, Float64Array, Int8Array, Int64Array, RecordBatch, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use koios_block::Layout;
use koios_chunk::decimal;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{DeltaBinaryPackedEncoderOptions, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::bench::{Bench, seconds};
use crate::fleet::{Kind, Order, Times};
use crate::{Series, Size, What, series_of};

/// Rows handed to an encoder at a time.
const BATCH_ROWS: usize = 64 * 1024;

/// How a column is encoded.
#[derive(Clone, Copy, PartialEq)]
enum Encoded {
    Plain,
    ByteStreamSplit,
    /// With a dictionary as long as that is small, as most writers do by default.
    Dictionary,
    /// In the smallest blocks.
    Delta,
}

/// A Parquet file by itself, of columns with an encoding each, pages and row groups as blocks have them.
struct Table {
    file: ArrowWriter<Vec<u8>>,
    schema: Arc<Schema>,
}

impl Table {
    fn new(layout: Layout, columns: &[(&str, DataType, bool, Encoded)]) -> Self {
        let level = ZstdLevel::try_new(layout.zstd_level).expect("there is the level");
        let blocks = DeltaBinaryPackedEncoderOptions::try_new(128, 4).expect("they are possible");
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_data_page_row_count_limit(layout.page_rows)
            .set_max_row_group_row_count(Some(layout.group_rows))
            .set_delta_binary_packed_encoder_options(blocks);
        for (name, _, _, encoded) in columns {
            let path = || ColumnPath::new(vec![(*name).to_owned()]);
            properties = properties.set_column_dictionary_enabled(path(), *encoded == Encoded::Dictionary);
            properties = match encoded {
                Encoded::Plain | Encoded::Dictionary => properties,
                Encoded::ByteStreamSplit => {
                    properties.set_column_encoding(path(), Encoding::BYTE_STREAM_SPLIT)
                }
                Encoded::Delta => properties.set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED),
            };
        }
        let field = |(name, kind, nullable, _): &(&str, DataType, bool, Encoded)| {
            Field::new(*name, kind.clone(), *nullable)
        };
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let file = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties.build()));
        Self {
            file: file.expect("the columns are possible"),
            schema,
        }
    }

    fn write(&mut self, columns: Vec<ArrayRef>) {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).expect("columns fit");
        self.file.write(&batch).expect("it encodes");
    }

    fn finish(self) -> Bytes {
        self.file.into_inner().expect("it encodes").into()
    }
}

/// All batches of a file.
fn batches(file: &Bytes) -> impl Iterator<Item = RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).expect("it is Parquet");
    let reader = reader.with_batch_size(16 * 1024).build().expect("it is Parquet");
    reader.map(|batch| batch.expect("what was written can be decoded"))
}

/// A way to store values.
#[derive(Clone, Copy)]
enum ValueForm {
    /// As blocks have them, what has no mantissa as doubles so encoded.
    Decimal(Encoded),
    Doubles(Encoded),
}

impl ValueForm {
    const ALL: [(&'static str, Self); 5] = [
        ("mantissas and exponents", Self::Decimal(Encoded::Plain)),
        (
            "the same, floats BYTE_STREAM_SPLIT",
            Self::Decimal(Encoded::ByteStreamSplit),
        ),
        ("doubles, plain", Self::Doubles(Encoded::Plain)),
        (
            "doubles, BYTE_STREAM_SPLIT",
            Self::Doubles(Encoded::ByteStreamSplit),
        ),
        ("doubles, dictionary", Self::Doubles(Encoded::Dictionary)),
    ];

    /// All values, those of a series from the last to the first, as blocks have them.
    fn write(self, all: &[Series], layout: Layout) -> Bytes {
        match self {
            Self::Decimal(floats) => write_decimals(all, layout, floats),
            Self::Doubles(encoded) => {
                let mut table = Table::new(layout, &[("value", DataType::Float64, false, encoded)]);
                let mut rows = Vec::<f64>::new();
                for (i, series) in all.iter().enumerate() {
                    rows.extend(series.values.iter().rev());
                    if rows.len() >= BATCH_ROWS || i + 1 == all.len() {
                        table.write(vec![Arc::new(Float64Array::from(std::mem::take(&mut rows)))]);
                    }
                }
                table.finish()
            }
        }
    }

    /// All values as columns of them, in a buffer that is used again: how many.
    fn read(self, file: &Bytes) -> usize {
        let (mut values, mut rows) = (Vec::<f64>::new(), 0);
        for batch in batches(file) {
            values.clear();
            match self {
                Self::Doubles(_) => {
                    values.extend_from_slice(batch.column(0).as_primitive::<Float64Type>().values());
                }
                Self::Decimal(_) => add_decimals(&batch, &mut values),
            }
            rows += black_box(&values).len();
        }
        rows
    }
}

fn write_decimals(all: &[Series], layout: Layout, floats_as: Encoded) -> Bytes {
    let columns = [
        ("exponent", DataType::Int8, false, Encoded::Dictionary),
        ("mantissa", DataType::Int64, true, Encoded::Delta),
        ("float", DataType::Float64, true, floats_as),
    ];
    let mut table = Table::new(layout, &columns);
    let mut exponents = Vec::new();
    let mut mantissas = Int64Builder::new();
    let mut floats = Float64Builder::new();
    for (i, series) in all.iter().enumerate() {
        let exponent = decimal::exponent_for_run(&series.values);
        exponents.resize(exponents.len() + series.values.len(), exponent as i8);
        for &value in series.values.iter().rev() {
            let mantissa = decimal::to_mantissa(value, exponent);
            mantissas.append_option(mantissa);
            floats.append_option(mantissa.is_none().then_some(value));
        }
        if exponents.len() >= BATCH_ROWS || i + 1 == all.len() {
            table.write(vec![
                Arc::new(Int8Array::from(std::mem::take(&mut exponents))),
                Arc::new(mantissas.finish()),
                Arc::new(floats.finish()),
            ]);
        }
    }
    table.finish()
}

fn add_decimals(batch: &RecordBatch, values: &mut Vec<f64>) {
    let exponents = batch.column(0).as_primitive::<Int8Type>().values();
    let mantissas = batch.column(1).as_primitive::<Int64Type>();
    let floats = batch.column(2).as_primitive::<Float64Type>();
    let pairs = exponents.iter().zip(mantissas.values());
    let of = |(&exponent, &mantissa): (&i8, &i64)| decimal::from_mantissa(mantissa, exponent as u8);
    if floats.null_count() == floats.len() {
        values.extend(pairs.map(of));
    } else if mantissas.null_count() == mantissas.len() {
        values.extend_from_slice(floats.values());
    } else {
        values.extend(pairs.enumerate().map(|(i, pair)| match floats.is_valid(i) {
            true => floats.value(i),
            false => of(pair),
        }));
    }
}

/// A way to store times.
#[derive(Clone, Copy)]
enum TimeForm {
    WithEachSample(Encoded),
    /// Those of a target once, and with each sample how many rows they are from its series' oldest.
    Once,
}

impl TimeForm {
    const ALL: [(&'static str, Self); 4] = [
        ("once for all series of a target, and ticks", Self::Once),
        (
            "with each sample, DELTA_BINARY_PACKED",
            Self::WithEachSample(Encoded::Delta),
        ),
        ("with each sample, plain", Self::WithEachSample(Encoded::Plain)),
        (
            "with each sample, BYTE_STREAM_SPLIT",
            Self::WithEachSample(Encoded::ByteStreamSplit),
        ),
    ];

    /// The files, and the row of the oldest time of each series where these are stored once. Whose times are the same is known here by
    /// looking all known runs up; a block's writer finds parts of them, too.
    fn write(self, all: &[Series], layout: Layout) -> (Vec<Bytes>, Vec<usize>) {
        let mut rows = Vec::<i64>::new();
        let Self::WithEachSample(encoded) = self else {
            return write_times_once(all, layout);
        };
        let mut table = Table::new(layout, &[("timestamp", DataType::Int64, false, encoded)]);
        for (i, series) in all.iter().enumerate() {
            rows.extend(series.times.iter().rev());
            if rows.len() >= BATCH_ROWS || i + 1 == all.len() {
                table.write(vec![Arc::new(Int64Array::from(std::mem::take(&mut rows)))]);
            }
        }
        (vec![table.finish()], Vec::new())
    }

    fn read(self, files: &[Bytes], last_rows: &[usize]) -> usize {
        let (mut times, mut read) = (Vec::<i64>::new(), 0);
        match (self, files) {
            (Self::WithEachSample(_), [file]) => {
                for batch in batches(file) {
                    times.clear();
                    times.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
                    read += black_box(&times).len();
                }
            }
            (Self::Once, [runs, ticks]) => {
                let mut known = Vec::new();
                for batch in batches(runs) {
                    known.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
                }
                let (mut series, mut is_done) = (0, true);
                for batch in batches(ticks) {
                    times.clear();
                    for &tick in batch.column(0).as_primitive::<UInt32Type>().values() {
                        // Ticks fall to 0 in each series.
                        series += usize::from(is_done && read + times.len() > 0);
                        is_done = tick == 0;
                        let row = last_rows.get(series).copied().unwrap_or(0);
                        times.push(known[row - tick as usize]);
                    }
                    read += black_box(&times).len();
                }
            }
            _ => {}
        }
        read
    }
}

fn write_times_once(all: &[Series], layout: Layout) -> (Vec<Bytes>, Vec<usize>) {
    let mut runs = Table::new(layout, &[("timestamp", DataType::Int64, false, Encoded::Delta)]);
    let mut ticks = Table::new(layout, &[("tick", DataType::UInt32, false, Encoded::Delta)]);
    let (mut known, mut last_rows) = (BTreeMap::<&[i64], usize>::new(), Vec::new());
    let (mut rows, mut new, mut of_samples) = (0, Vec::<i64>::new(), Vec::<u32>::new());
    for (i, series) in all.iter().enumerate() {
        let last_row = *known.entry(&series.times).or_insert_with(|| {
            new.extend(series.times.iter().rev());
            rows += series.times.len();
            rows - 1
        });
        last_rows.push(last_row);
        of_samples.extend((0..series.times.len() as u32).rev());
        let is_last = i + 1 == all.len();
        if new.len() >= BATCH_ROWS || is_last {
            runs.write(vec![Arc::new(Int64Array::from(std::mem::take(&mut new)))]);
        }
        if of_samples.len() >= BATCH_ROWS || is_last {
            ticks.write(vec![Arc::new(UInt32Array::from(std::mem::take(&mut of_samples)))]);
        }
    }
    (vec![runs.finish(), ticks.finish()], last_rows)
}

/// Values and times, in the form that blocks have them and in those that were not taken.
pub(crate) fn encodings(bench: &mut Bench, size: Size) {
    let (order, layout) = (Order::MetricFirst, size.layout());
    println!("| Values | stored as | B/sample | written | read whole |");
    println!("|---|---|---|---|---|");
    let kinds = Kind::ALL.map(|kind| (kind.name(), What::Floats(kind)));
    for (name, what) in [("the fleet", What::Fleet)].into_iter().chain(kinds) {
        let all = series_of(what, order, Times::Regular, size);
        let samples: u64 = all.iter().map(|s| s.values.len() as u64).sum();
        for (form_name, form) in ValueForm::ALL {
            let file = form.write(&all, layout);
            let write = bench.rate("values written", samples, || {
                seconds(|| form.write(&all, layout)).0
            });
            let read = bench.rate("values read", samples, || {
                let (seconds, read) = seconds(|| form.read(&file));
                assert_eq!(read as u64, samples);
                seconds
            });
            let per_sample = file.len() as f64 / samples as f64;
            println!("| {name} | {form_name} | {per_sample:.3} | {write:.1} | {read:.1} |");
        }
    }
    println!("\n| Times | stored | B/sample | written | read whole |");
    println!("|---|---|---|---|---|");
    for times in [Times::Jittered, Times::Regular, Times::NothingShared] {
        let all = series_of(What::Floats(Kind::Constant), order, times, size);
        let samples: u64 = all.iter().map(|s| s.times.len() as u64).sum();
        for (form_name, form) in TimeForm::ALL {
            let (files, last_rows) = form.write(&all, layout);
            let write = bench.rate("times written", samples, || {
                seconds(|| form.write(&all, layout)).0
            });
            let read = bench.rate("times read", samples, || {
                let (seconds, read) = seconds(|| form.read(&files, &last_rows));
                assert_eq!(read as u64, samples);
                seconds
            });
            let per_sample = files.iter().map(Bytes::len).sum::<usize>() as f64 / samples as f64;
            println!(
                "| {} | {form_name} | {per_sample:.3} | {write:.1} | {read:.1} |",
                times.name()
            );
        }
    }
}
