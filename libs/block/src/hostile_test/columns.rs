//! Columns and row groups as no writer writes them.

use arrow_array::StringArray;
use arrow_schema::{Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::compute_leaves;

use super::*;

/// Columns of three samples at 5, 4 and 0 of six times, each of which a test may replace.
fn sample_columns() -> Vec<ArrayRef> {
    vec![
        Arc::new(UInt32Array::from(vec![0; 3])),
        Arc::new(UInt32Array::from(vec![5, 4, 0])),
        Arc::new(Int8Array::from(vec![1; 3])),
        Arc::new(Int64Array::from(vec![Some(15); 3])),
        Arc::new(Float64Array::from(vec![None; 3])),
    ]
}

fn time_columns() -> Vec<ArrayRef> {
    vec![
        Arc::new(UInt32Array::from((0..6).collect::<Vec<u32>>())),
        Arc::new(TimestampMillisecondArray::from(vec![5, 4, 3, 2, 1, 0]).with_timezone("UTC")),
    ]
}

/// A file of columns that all may be null.
fn with_nulls(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Vec<u8> {
    let nullable = schema
        .fields()
        .iter()
        .map(|f| f.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
    parquet(&RecordBatch::try_new(schema, columns).unwrap())
}

#[test]
fn i11_nulls_where_none_may_be_are_corrupt() {
    let (_, sound) = block_of_ticks();
    let samples = |columns| forge_samples(&sound, with_nulls(&samples_schema(true, false), columns));
    let times = |columns| forge_part(&sound, TIMES_PART, with_nulls(&times_schema(), columns));
    for block in [samples(sample_columns()), times(time_columns())] {
        for answer in answers(&block) {
            answer.unwrap();
        }
    }
    for place in 0..3 {
        let mut columns = sample_columns();
        let ticks = [Some(5), Some(4), Some(0)];
        let without = ticks
            .iter()
            .enumerate()
            .map(|(i, &tick)| tick.filter(|_| i != place));
        columns[1] = Arc::new(UInt32Array::from(without.collect::<Vec<_>>()));
        assert_corrupt(&samples(columns), SAMPLES_PART, "column tick");
        let mut columns = sample_columns();
        let exponents = (0..3).map(|i| Some(1).filter(|_| i != place));
        columns[2] = Arc::new(Int8Array::from(exponents.collect::<Vec<_>>()));
        assert_corrupt(&samples(columns), SAMPLES_PART, "column exponent");
    }
    for place in 0..6 {
        let mut columns = time_columns();
        let without = (0..6).map(|i| Some(5 - i as i64).filter(|_| i != place));
        let without = TimestampMillisecondArray::from(without.collect::<Vec<_>>());
        columns[1] = Arc::new(without.with_timezone("UTC"));
        assert_corrupt(&times(columns), TIMES_PART, "column timestamp");
        // Only other readers need the numbers.
        let mut columns = time_columns();
        let without = (0..6).map(|i| Some(i as u32).filter(|_| i != place));
        columns[0] = Arc::new(UInt32Array::from(without.collect::<Vec<_>>()));
        let [_, _, checked] = answers(&times(columns));
        let e = checked.unwrap_err();
        assert!(
            matches!(&e, Error::Corrupt { part, .. } if part == TIMES_PART),
            "{e}"
        );
    }
}

/// Columns of other types, in another order, and fewer of them.
#[test]
fn i11_columns_of_another_type_or_none_are_corrupt() {
    let (_, sound) = block_of_ticks();
    let of = |schema: SchemaRef, columns: Vec<ArrayRef>| -> Vec<u8> {
        let fields = schema.fields().iter().zip(&columns);
        let fields = fields.map(|(f, c)| Field::new(f.name(), c.data_type().clone(), f.is_nullable()));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        parquet(&RecordBatch::try_new(schema, columns).unwrap())
    };
    let wrong: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from(vec![1.0; 3])),
        Arc::new(StringArray::from(vec!["5", "4", "0"])),
    ];
    for column in 1..5 {
        for wrong in &wrong[usize::from(column == 4)..] {
            let mut columns = sample_columns();
            columns[column] = Arc::clone(wrong);
            let forged = forge_samples(&sound, of(samples_schema(true, false), columns));
            assert_corrupt(&forged, SAMPLES_PART, "column");
        }
        let mut columns = sample_columns();
        columns.remove(column);
        let mut fields: Vec<_> = samples_schema(true, false).fields().iter().cloned().collect();
        fields.remove(column);
        let forged = forge_samples(&sound, of(Arc::new(Schema::new(fields)), columns));
        assert_corrupt(&forged, SAMPLES_PART, "column");
    }
    let mut columns = time_columns();
    columns[1] = Arc::new(StringArray::from(vec!["0"; 6]));
    let forged = forge_part(&sound, TIMES_PART, of(times_schema(), columns));
    assert_corrupt(&forged, TIMES_PART, "column timestamp");
    let fields = vec![times_schema().field(0).clone()];
    let forged = of(Arc::new(Schema::new(fields)), vec![time_columns().remove(0); 1]);
    assert_corrupt(
        &forge_part(&sound, TIMES_PART, forged),
        TIMES_PART,
        "column timestamp",
    );
}

/// A file with row groups of these sizes, also of none, as no writer writes them.
fn in_groups(batch: &RecordBatch, sizes: &[usize]) -> Vec<u8> {
    let writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    let (mut file, columns) = writer.into_serialized_writer().unwrap();
    let mut at = 0;
    for (number, &rows) in sizes.iter().enumerate() {
        let mut group = file.next_row_group().unwrap();
        if rows == 0 {
            while let Some(column) = group.next_column().unwrap() {
                column.close().unwrap();
            }
        } else {
            let rows = batch.slice(at, rows);
            let mut columns = columns.create_column_writers(number).unwrap();
            let fields = rows.schema_ref().fields().iter().zip(rows.columns());
            let leaves = fields.flat_map(|(field, column)| compute_leaves(field, column).unwrap());
            for (column, leaf) in columns.iter_mut().zip(leaves) {
                column.write(&leaf).unwrap();
            }
            for column in columns {
                let column = column.close().unwrap();
                column.append_to_row_group(&mut group).unwrap();
            }
        }
        group.close().unwrap();
        at += rows;
    }
    assert_eq!(at, batch.num_rows());
    file.into_inner().unwrap()
}

/// The times of the samples of each series.
fn times_of(parts: &BlockParts) -> Result<Vec<Vec<i64>>> {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
    let source = Arc::new(MemoryBlock::new(parts));
    let block = BlockReader::open(source, Arc::new(parts.meta.clone()), cache)?;
    let series = block_on(block.select(&Matchers::default(), TimeRange::ALL))?;
    let samples = block_on(block.read_samples(&series, TimeRange::ALL))?;
    Ok(samples.into_iter().map(|samples| samples.timestamps).collect())
}

#[test]
fn i12_row_groups_without_rows_hold_nothing() {
    let (_, sound) = block_of_ticks();
    let samples = RecordBatch::try_new(samples_schema(true, false), sample_columns()).unwrap();
    for sizes in [&[3][..], &[0, 3], &[3, 0], &[2, 0, 0, 1], &[1, 0, 1, 1]] {
        let forged = forge_samples(&sound, in_groups(&samples, sizes));
        assert_eq!(times_of(&forged).unwrap(), [[0, 4, 5]], "{sizes:?}");
        for answer in answers(&forged) {
            answer.unwrap();
        }
    }
    let times = RecordBatch::try_new(times_schema(), time_columns()).unwrap();
    for sizes in [&[6][..], &[3, 3], &[1, 4, 1]] {
        let forged = forge_part(&sound, TIMES_PART, in_groups(&times, sizes));
        assert_eq!(times_of(&forged).unwrap(), [[0, 4, 5]], "{sizes:?}");
    }
    for sizes in [&[0, 6][..], &[6, 0], &[3, 0, 3]] {
        let forged = forge_part(&sound, TIMES_PART, in_groups(&times, sizes));
        assert_corrupt(&forged, TIMES_PART, "claims 0 rows");
    }
    let whole = block();
    let series = whole.parts.iter().find(|(name, _)| name == SERIES_PART).unwrap();
    let series = ParquetRecordBatchReaderBuilder::try_new(series.1.clone()).unwrap();
    let series = series.build().unwrap().next().unwrap().unwrap();
    for sizes in [&[12][..], &[0, 12], &[12, 0], &[5, 0, 7]] {
        let forged = forge_part(&whole, SERIES_PART, in_groups(&series, sizes));
        assert_eq!(times_of(&forged).unwrap(), times_of(&whole).unwrap(), "{sizes:?}");
        read(&forged).unwrap();
    }
}

/// The ticks at the ends of each part of such a series are looked up.
#[test]
fn i12_a_row_group_without_rows_amid_a_series_with_gaps_holds_nothing() {
    const SAMPLES: usize = 6000;
    const TICKS: u32 = 24_000;
    let (labels, good) = block_of_one(SAMPLES as i64, layout());
    let ids: Vec<u32> = (0..TICKS).collect();
    let times: Vec<i64> = (0..i64::from(TICKS)).rev().collect();
    let mut block = forge_part(&good, TIMES_PART, with_times(&ids, &times));
    block.meta.parts[2].rows = u64::from(TICKS);
    block.meta.range = TimeRange::new(0, i64::from(TICKS) - 1);
    let block = claim_times(&block, &labels, TICKS - 1, TICKS);
    let mut ticks: Vec<u32> = (0..SAMPLES as u32).map(|row| TICKS - 1 - row * 4).collect();
    ticks[SAMPLES - 1] = 0;
    let want: Vec<i64> = ticks.iter().rev().map(|&tick| i64::from(tick)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(vec![0; SAMPLES])),
        Arc::new(UInt32Array::from(ticks)),
        Arc::new(Int8Array::from(vec![1; SAMPLES])),
        Arc::new(Int64Array::from(vec![Some(15); SAMPLES])),
        Arc::new(Float64Array::from(vec![None; SAMPLES])),
    ];
    let samples = RecordBatch::try_new(samples_schema(true, false), columns).unwrap();
    for sizes in [&[6000][..], &[3000, 3000], &[3000, 0, 3000], &[0, 1, 0, 5999]] {
        let forged = forge_samples(&block, in_groups(&samples, sizes));
        assert!(times_of(&forged).unwrap() == [want.clone()], "{sizes:?}");
        for answer in answers(&forged) {
            answer.unwrap();
        }
    }
}
