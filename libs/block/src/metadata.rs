//! Metadata of the metrics of a block.

use std::sync::Arc;

use koios_model::{Matchers, Metadata, TimeRange};

use crate::Result;
use crate::reader::{BlockReader, SeriesCursor};

/// Rows that are looked at together.
const ROWS_AT_ONCE: usize = 1 << 16;

/// A metric's name, and what is known of it.
pub type MetricMetadata = (String, Arc<Metadata>);

/// A place among the series of a block, for those who want to know of their metrics only.
#[derive(Debug)]
pub struct MetadataCursor(SeriesCursor);

impl BlockReader {
    /// Goes through the metadata of the metrics of matching series with samples around `range`.
    pub fn metadata_cursor(&self, matchers: Matchers, range: TimeRange) -> MetadataCursor {
        MetadataCursor(self.series_cursor(matchers, range))
    }
}

impl MetadataCursor {
    /// Some metadata, mostly each entry once; `None` at the end. No label set is built for it.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn next(&mut self) -> Result<Option<Vec<MetricMetadata>>> {
        let Some(found) = self.0.next_matching(ROWS_AT_ONCE).await? else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for (chunk, rows) in &found {
            chunk.add_metadata_of(rows, &mut all);
        }
        Ok(Some(all))
    }
}
