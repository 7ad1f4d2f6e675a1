//! By what the rows of `series.parquet` are chosen before they are read: statistics, columns of labels, and times.

use std::sync::Arc;

use arrow_array::RecordBatch;
use koios_model::Matcher;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::file::statistics::Statistics;

use crate::Result;
use crate::cache::SeriesTimes;
use crate::label_column::LabelColumn;
use crate::part::PartFile;
use crate::row_chunk::{strings, times};
use crate::schema::{K_FIRST_TIME, K_LAST_TIME, LABEL_COLUMN_PREFIX};

/// What rows are chosen by.
pub(crate) struct Filters {
    pub(crate) columns: Vec<Arc<LabelColumn>>,
    pub(crate) times: Option<Arc<SeriesTimes>>,
}

impl Filters {
    pub(crate) fn decode(
        part: &PartFile,
        batches: &[RecordBatch],
        names: &[String],
        by_time: bool,
    ) -> Result<Self> {
        let column = |name: &String| {
            let pieces = batches.iter().map(|b| strings(part, b, name));
            let pieces = pieces.collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(LabelColumn::new(&pieces)))
        };
        let all_times = |name: &str| {
            let pieces = batches.iter().map(|b| times(part, b, name));
            Ok(pieces.collect::<Result<Vec<_>>>()?.concat())
        };
        let decoded_times = || {
            Ok(Arc::new(SeriesTimes {
                first: all_times(K_FIRST_TIME)?,
                last: all_times(K_LAST_TIME)?,
            }))
        };
        Ok(Self {
            columns: names.iter().map(column).collect::<Result<Vec<_>>>()?,
            times: by_time.then(decoded_times).transpose()?,
        })
    }
}

/// Whether the statistics of a row group rule out every value that a matcher accepts.
pub(crate) fn excluded_by_statistics(footer: &ArrowReaderMetadata, group: u32, matcher: &Matcher) -> bool {
    let Some(literals) = matcher.literals().filter(|_| !matcher.matches_empty()) else {
        return false;
    };
    let Some(group) = footer.metadata().row_groups().get(group as usize) else {
        return false;
    };
    // A path of one part: labels' names may contain dots.
    let is_it = |path: &[String]| match path {
        [column] => column.strip_prefix(LABEL_COLUMN_PREFIX) == Some(matcher.name()),
        _ => false,
    };
    let found = group.columns().iter().find(|c| is_it(c.column_path().parts()));
    let Some(Statistics::ByteArray(s)) = found.and_then(|c| c.statistics()) else {
        return false;
    };
    let (Some(min), Some(max)) = (s.min_bytes_opt(), s.max_bytes_opt()) else {
        return false;
    };
    literals.iter().all(|l| l.as_bytes() < min || l.as_bytes() > max)
}
