//! What the index of pages tells of a column of times.

use std::ops::Range;

use koios_model::TimeRange;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use crate::Result;
use crate::part::PartFile;
use crate::schema::TIMESTAMP;

/// A page.
#[derive(Clone, Debug)]
pub(crate) struct TimedPage {
    /// Relative to the row group; not empty.
    pub(crate) rows: Range<u64>,
    /// Its least and greatest time, where the index tells.
    pub(crate) times: Option<TimeRange>,
}

/// The pages of the one row group of `index`, ascending; `None` where there is no index.
pub(crate) fn timed_pages(part: &PartFile, index: &ArrowReaderMetadata) -> Result<Option<Vec<TimedPage>>> {
    let metadata = index.metadata();
    let rows = u64::try_from(metadata.row_group(0).num_rows()).unwrap_or(0);
    let column = index
        .parquet_schema()
        .columns()
        .iter()
        .position(|c| c.path().parts() == [TIMESTAMP])
        .ok_or_else(|| part.corrupt(format!("it lacks column {TIMESTAMP}")))?;
    let Some(provider) = metadata.page_index() else {
        return Ok(None);
    };
    let (Some(ColumnIndexMetaData::INT64(times)), Some(offsets)) =
        (provider.column_index(0, column), provider.offset_index(0, column))
    else {
        return Ok(None);
    };
    let starts: Vec<u64> = offsets
        .page_locations()
        .iter()
        .map(|p| u64::try_from(p.first_row_index).unwrap_or(u64::MAX))
        .collect();
    if !starts.is_sorted_by(|a, b| a < b) {
        return Err(part.corrupt(format!("the pages of {TIMESTAMP} are out of order")));
    }
    let mut pages = Vec::with_capacity(starts.len());
    for (page, &start) in starts.iter().enumerate() {
        let end = starts.get(page + 1).copied().unwrap_or(rows).min(rows);
        let ends = times.min_value(page).zip(times.max_value(page));
        if start < end {
            pages.push(TimedPage {
                rows: start..end,
                times: ends.map(|(&min, &max)| TimeRange::new(min, max)),
            });
        }
    }
    Ok(Some(pages))
}

/// The rows of a group on pages whose times overlap the range, ascending.
pub(crate) fn rows_in_range(
    part: &PartFile,
    index: &ArrowReaderMetadata,
    range: TimeRange,
) -> Result<Vec<Range<u64>>> {
    let Some(pages) = timed_pages(part, index)? else {
        let rows = u64::try_from(index.metadata().row_group(0).num_rows()).unwrap_or(0);
        return Ok(vec![0..rows; 1]);
    };
    let mut kept: Vec<Range<u64>> = Vec::new();
    for TimedPage { rows, times } in pages {
        if times.is_none_or(|times| range.overlaps(&times)) {
            match kept.last_mut() {
                Some(last) if last.end == rows.start => last.end = rows.end,
                _ => kept.push(rows),
            }
        }
    }
    Ok(kept)
}

/// The parts of `span` inside ascending, disjoint `kept`.
pub(crate) fn intersect(span: &Range<u64>, kept: &[Range<u64>]) -> Vec<Range<u64>> {
    let from = kept.partition_point(|k| k.end <= span.start);
    kept.iter()
        .skip(from)
        .take_while(|k| k.start < span.end)
        .map(|k| k.start.max(span.start)..k.end.min(span.end))
        .collect()
}
