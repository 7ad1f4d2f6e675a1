//! The bytes that a read needs of a block: what a reader would fetch who knew where everything is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use koios_block::{
    BlockCache, BlockParts, BlockReader, META_PART, MemoryBlock, SAMPLES_PART, SERIES_PART, TIMES_PART,
};
use koios_model::{Matcher, Matchers, TimeRange};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::statistics::Statistics;

/// Of `series.parquet`, what makes a series.
const IDENTITY: [&str; 10] = [
    "k_id",
    "k_first_row",
    "k_row_count",
    "k_first_time",
    "k_last_time",
    "k_type",
    "k_unit",
    "k_help",
    "k_times_last_row",
    "k_times_row_count",
];

/// The bytes of `meta.json`; of the footers of the parts that something is read of; of the page indexes of the row groups that may hold
/// something; of the labels by which series are found there; and of all pages with rows of the series that match. By part.
pub(crate) async fn needed(block: &BlockParts, matchers: &[Matcher]) -> BTreeMap<&'static str, u64> {
    let cache = Arc::new(BlockCache::new(0, 64 << 20));
    let source = Arc::new(MemoryBlock::new(block));
    let reader = BlockReader::open(source, Arc::new(block.meta.clone()), cache).unwrap();
    let all = Matchers(matchers.to_vec());
    let found = reader.select(&all, TimeRange::ALL).await.unwrap();
    let (series, footer) = open(block, SERIES_PART);
    let mut of_series_part = footer;
    let ids: Vec<Range<u64>> = found
        .iter()
        .map(|s| u64::from(s.id)..u64::from(s.id) + 1)
        .collect();
    for (number, rows) in groups(&series) {
        let group = series.row_group(number);
        if matchers.iter().any(|m| is_excluded(group, m)) {
            continue;
        }
        of_series_part += index_bytes(group);
        let of_matchers = |name: &str| {
            let label = name.strip_prefix("l_");
            label.is_some_and(|label| matchers.iter().any(|m| m.name() == label))
        };
        of_series_part += pages(&series, number, of_matchers, std::slice::from_ref(&rows), &rows);
        let of_series = |name: &str| IDENTITY.contains(&name) || name == "labels";
        of_series_part += pages(&series, number, of_series, &ids, &rows);
    }
    let of_samples = found.iter();
    let of_samples = of_samples.map(|s| s.first_row..s.first_row + u64::from(s.row_count));
    let samples = rows_bytes(block, SAMPLES_PART, of_samples.collect(), |name| name != "series");
    let of_times = found.iter().map(|s| {
        let end = u64::from(s.times_last_row) + 1;
        end - u64::from(s.times_row_count)..end
    });
    let times = rows_bytes(block, TIMES_PART, of_times.collect(), |name| name == "timestamp");
    BTreeMap::from([
        (META_PART, block.meta.to_json().len() as u64),
        (SERIES_PART, of_series_part),
        (SAMPLES_PART, samples),
        (TIMES_PART, times),
    ])
}

/// A part's metadata, and how many bytes its footer has.
fn open(block: &BlockParts, part: &str) -> (ParquetMetaData, u64) {
    let (_, bytes) = block.parts.iter().find(|(name, _)| name == part).unwrap();
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
    let metadata = reader.parse_and_finish(bytes).unwrap();
    let length: [u8; 4] = bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap();
    (metadata, u64::from(u32::from_le_bytes(length)) + 8)
}

/// What some rows of a part need, if they are not none.
fn rows_bytes(
    block: &BlockParts,
    part: &str,
    mut wanted: Vec<Range<u64>>,
    columns: impl Fn(&str) -> bool,
) -> u64 {
    if wanted.is_empty() {
        return 0;
    }
    wanted.sort_by_key(|rows| (rows.start, rows.end));
    wanted.dedup();
    let (metadata, footer) = open(block, part);
    let of_groups =
        groups(&metadata).map(
            |(number, rows)| match pages(&metadata, number, &columns, &wanted, &rows) {
                0 => 0,
                pages => pages + index_bytes(metadata.row_group(number)),
            },
        );
    footer + of_groups.sum::<u64>()
}

/// The row groups, and which rows of the part they hold.
fn groups(metadata: &ParquetMetaData) -> impl Iterator<Item = (usize, Range<u64>)> {
    let rows = metadata.row_groups().iter().scan(0, |end, group| {
        let start = *end;
        *end += group.num_rows() as u64;
        Some(start..*end)
    });
    rows.enumerate()
}

fn index_bytes(group: &RowGroupMetaData) -> u64 {
    let lengths = group.columns().iter().map(|column| {
        let of_offsets = column.offset_index_length().unwrap_or(0);
        of_offsets + column.column_index_length().unwrap_or(0)
    });
    lengths.map(|length| length as u64).sum()
}

/// The bytes of those pages of some columns of a row group, which holds `rows`, that have wanted rows: these ascend where they start.
fn pages(
    metadata: &ParquetMetaData,
    group: usize,
    columns: impl Fn(&str) -> bool,
    wanted: &[Range<u64>],
    rows: &Range<u64>,
) -> u64 {
    let mut bytes = 0;
    for (number, column) in metadata.row_group(group).columns().iter().enumerate() {
        if !columns(&column.column_path().parts()[0]) {
            continue;
        }
        let offsets = metadata
            .page_index()
            .and_then(|index| index.offset_index(group, number));
        let offsets = offsets.unwrap().page_locations();
        let mut of_column = 0;
        for (place, page) in offsets.iter().enumerate() {
            let start = rows.start + page.first_row_index as u64;
            let end = offsets.get(place + 1);
            let end = end.map_or(rows.end, |next| rows.start + next.first_row_index as u64);
            if wanted.iter().any(|w| w.start < end && start < w.end) {
                of_column += page.compressed_page_size as u64;
            }
        }
        let dictionary = column.dictionary_page_offset();
        if let Some(dictionary) = dictionary.filter(|_| of_column > 0) {
            of_column += (column.data_page_offset() - dictionary) as u64;
        }
        bytes += of_column;
    }
    bytes
}

/// Whether statistics tell that no value of a row group matches.
fn is_excluded(group: &RowGroupMetaData, matcher: &Matcher) -> bool {
    let Some(literals) = matcher.literals() else {
        return false;
    };
    let name = format!("l_{}", matcher.name());
    let column = group.columns().iter().find(|c| c.column_path().string() == name);
    let Some(Statistics::ByteArray(values)) = column.and_then(|c| c.statistics()) else {
        return false;
    };
    let (min, max) = (values.min_bytes_opt().unwrap(), values.max_bytes_opt().unwrap());
    literals.iter().all(|l| l.as_bytes() < min || l.as_bytes() > max)
}
