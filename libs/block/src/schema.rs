//! Column names and Arrow types of the parts. docs/formats/block.md describes them for other readers.

use std::sync::Arc;

use arrow_array::builder::MapFieldNames;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Prefix of the columns that hold one frequent label each.
pub(crate) const LABEL_COLUMN_PREFIX: &str = "l_";
/// Most label names that get a column of their own.
pub(crate) const LABEL_COLUMNS_MAX: usize = 256;

pub(crate) const K_ID: &str = "k_id";
pub(crate) const K_FIRST_ROW: &str = "k_first_row";
pub(crate) const K_ROW_COUNT: &str = "k_row_count";
pub(crate) const K_HISTOGRAM_FIRST_ROW: &str = "k_histogram_first_row";
pub(crate) const K_HISTOGRAM_COUNT: &str = "k_histogram_row_count";
/// Where in `times.parquet` the times of a series' floats are: the row of the oldest, and how many rows there are from the
/// newest to it.
pub(crate) const K_TIMES_LAST_ROW: &str = "k_times_last_row";
pub(crate) const K_TIMES_ROW_COUNT: &str = "k_times_row_count";
pub(crate) const K_FIRST_TIME: &str = "k_first_time";
pub(crate) const K_LAST_TIME: &str = "k_last_time";
pub(crate) const K_COUNT: &str = "k_count";
pub(crate) const K_TYPE: &str = "k_type";
pub(crate) const K_UNIT: &str = "k_unit";
pub(crate) const K_HELP: &str = "k_help";
pub(crate) const LABELS: &str = "labels";

pub(crate) const SERIES: &str = "series";
pub(crate) const TIMESTAMP: &str = "timestamp";
/// Of a sample whose time is in `times.parquet`: how many rows before that of its series' oldest.
pub(crate) const TICK: &str = "tick";
/// Of a time: its row.
pub(crate) const TIME_ID: &str = "id";
pub(crate) const EXPONENT: &str = "exponent";
pub(crate) const MANTISSA: &str = "mantissa";
pub(crate) const FLOAT: &str = "float";
/// Of samples and histograms, where any has one.
pub(crate) const START_TIMESTAMP: &str = "start_timestamp";

/// Of summaries: the time of the first sample, how many floats and how many histograms, and what is kept of the floats.
pub(crate) const FIRST_TIMESTAMP: &str = "first_timestamp";
pub(crate) const HISTOGRAMS: &str = "histograms";
pub(crate) const AGGREGATES: [&str; 6] = ["first", "last", "sum", "min", "max", "resets"];
/// Of summaries, where there are histograms: their sum.
pub(crate) const HISTOGRAM_SUM: &str = "histogram_sum";

pub(crate) const RESET_HINT: &str = "reset_hint";
pub(crate) const SCHEMA: &str = "schema";
pub(crate) const SUM: &str = "sum";
pub(crate) const COUNT: &str = "count";
pub(crate) const ZERO_COUNT: &str = "zero_count";
pub(crate) const ZERO_THRESHOLD: &str = "zero_threshold";
pub(crate) const POSITIVE: &str = "positive";
pub(crate) const POSITIVE_COUNTS: &str = "positive_counts";
pub(crate) const NEGATIVE: &str = "negative";
pub(crate) const NEGATIVE_COUNTS: &str = "negative_counts";
pub(crate) const CUSTOM_BOUNDS: &str = "custom_bounds";

pub(crate) const EXEMPLAR_VALUE: &str = "value";
pub(crate) const EXEMPLAR_LABELS: &str = "exemplar_labels";
/// The column of the metric's name.
pub(crate) const METRIC_COLUMN: &str = "l___name__";

/// Names of the MAP's inner groups, as the Parquet specification has them.
const MAP_ENTRY: &str = "key_value";
const MAP_KEY: &str = "key";
const MAP_VALUE: &str = "value";

/// An instant: milliseconds since the epoch, UTC.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some(Arc::from("UTC")))
}

/// Strings of which few differ.
pub(crate) fn dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The column of start timestamps, if there is one.
fn start_field(starts: bool) -> Option<Field> {
    starts.then(|| Field::new(START_TIMESTAMP, time_type(), true))
}

/// Columns of `samples.parquet`. Samples have ticks where their times are in `times.parquet`.
pub(crate) fn samples_schema(ticks: bool, starts: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(SERIES, DataType::UInt32, false),
        match ticks {
            true => Field::new(TICK, DataType::UInt32, false),
            false => Field::new(TIMESTAMP, time_type(), false),
        },
        Field::new(EXPONENT, DataType::Int8, false),
        Field::new(MANTISSA, DataType::Int64, true),
        Field::new(FLOAT, DataType::Float64, true),
    ];
    fields.extend(start_field(starts));
    Arc::new(Schema::new(fields))
}

/// Columns of `times.parquet`.
pub(crate) fn times_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(TIME_ID, DataType::UInt32, false),
        Field::new(TIMESTAMP, time_type(), false),
    ]))
}

/// The column of an aggregate's mantissas.
pub(crate) fn mantissa_of(aggregate: &str) -> String {
    format!("{aggregate}_mantissa")
}

/// The column of an aggregate's floats.
pub(crate) fn float_of(aggregate: &str) -> String {
    format!("{aggregate}_float")
}

/// Columns of `samples-5m.parquet` and `samples-1h.parquet`, and that of the sums of histograms if they may have some.
pub(crate) fn summaries_schema(histogram_sums: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(SERIES, DataType::UInt32, false),
        Field::new(FIRST_TIMESTAMP, time_type(), false),
        Field::new(TIMESTAMP, time_type(), false),
        Field::new(COUNT, DataType::UInt32, false),
        Field::new(HISTOGRAMS, DataType::UInt32, false),
        Field::new(EXPONENT, DataType::Int8, false),
    ];
    for name in AGGREGATES {
        fields.push(Field::new(mantissa_of(name), DataType::Int64, true));
        fields.push(Field::new(float_of(name), DataType::Float64, true));
    }
    fields.extend(histogram_sums.then(|| Field::new_struct(HISTOGRAM_SUM, histogram_fields(), true)));
    Arc::new(Schema::new(fields))
}

/// The entries of lists of buckets: an index, and a count.
pub(crate) fn bucket_fields() -> [Field; 2] {
    [DataType::Int32, DataType::Float64].map(|entry| Field::new("element", entry, false))
}

/// Columns of `histograms.parquet`.
pub(crate) fn histograms_schema(starts: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(SERIES, DataType::UInt32, false),
        Field::new(TIMESTAMP, time_type(), false),
    ];
    fields.extend(histogram_fields());
    fields.extend(start_field(starts));
    Arc::new(Schema::new(fields))
}

/// What a histogram has.
pub(crate) fn histogram_fields() -> Vec<Field> {
    let [indices, counts] = bucket_fields().map(|field| DataType::List(Arc::new(field)));
    let column = |name, kind: &DataType| Field::new(name, kind.clone(), false);
    let mut fields = vec![
        column(RESET_HINT, &DataType::Int8),
        column(SCHEMA, &DataType::Int8),
    ];
    fields.extend([SUM, COUNT, ZERO_COUNT, ZERO_THRESHOLD].map(|name| column(name, &DataType::Float64)));
    for (name, name_of_counts) in [(POSITIVE, POSITIVE_COUNTS), (NEGATIVE, NEGATIVE_COUNTS)] {
        fields.push(column(name, &indices));
        fields.push(column(name_of_counts, &counts));
    }
    fields.push(column(CUSTOM_BOUNDS, &counts));
    fields
}

/// A MAP of labels.
fn map_field(name: &str) -> Field {
    let key = Field::new(MAP_KEY, DataType::Utf8, false);
    let entries = Field::new_struct(MAP_ENTRY, vec![key, map_value_field()], false);
    Field::new(name, DataType::Map(Arc::new(entries), false), false)
}

/// The values of a MAP of labels.
pub(crate) fn map_value_field() -> Field {
    Field::new(MAP_VALUE, DataType::Utf8, false)
}

/// The names within a MAP of labels.
pub(crate) fn map_field_names() -> MapFieldNames {
    MapFieldNames {
        entry: MAP_ENTRY.to_owned(),
        key: MAP_KEY.to_owned(),
        value: MAP_VALUE.to_owned(),
    }
}

/// Columns of `exemplars.parquet`.
pub(crate) fn exemplars_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(TIMESTAMP, time_type(), false),
        Field::new(EXEMPLAR_VALUE, DataType::Float64, false),
        map_field(EXEMPLAR_LABELS),
        map_field(LABELS),
        Field::new(METRIC_COLUMN, dictionary_type(), true),
    ]))
}

/// Columns of `series.parquet` with a column for each of `frequent`, and where times and histograms are if there are such
/// parts.
pub(crate) fn series_schema(frequent: &[String], times: bool, histograms: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(K_ID, DataType::UInt32, false),
        Field::new(K_FIRST_ROW, DataType::UInt64, false),
        Field::new(K_ROW_COUNT, DataType::UInt32, false),
        Field::new(K_COUNT, DataType::UInt64, false),
        Field::new(K_TYPE, dictionary_type(), true),
        Field::new(K_UNIT, dictionary_type(), true),
        Field::new(K_HELP, dictionary_type(), true),
    ];
    if times {
        fields.push(Field::new(K_TIMES_LAST_ROW, DataType::UInt32, false));
        fields.push(Field::new(K_TIMES_ROW_COUNT, DataType::UInt32, false));
    }
    if histograms {
        fields.push(Field::new(K_HISTOGRAM_FIRST_ROW, DataType::UInt64, false));
        fields.push(Field::new(K_HISTOGRAM_COUNT, DataType::UInt32, false));
    }
    // By far the largest column of what makes a series. Before it is what is read of it for series that were found, after it what they
    // are found by: either is little, and comes together.
    fields.push(map_field(LABELS));
    fields.push(Field::new(K_FIRST_TIME, time_type(), false));
    fields.push(Field::new(K_LAST_TIME, time_type(), false));
    for name in frequent {
        fields.push(Field::new(
            format!("{LABEL_COLUMN_PREFIX}{name}"),
            dictionary_type(),
            true,
        ));
    }
    Arc::new(Schema::new(fields))
}

/// Whether a column of `series.parquet` is read as a dictionary of strings.
pub(crate) fn is_dictionary_column(name: &str) -> bool {
    matches!(name, K_TYPE | K_UNIT | K_HELP) || name.starts_with(LABEL_COLUMN_PREFIX)
}
