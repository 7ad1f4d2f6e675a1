//! Series of several row groups, found and fetched together: so that who looks through a large block waits for few requests.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use futures::FutureExt;
use futures::future::{join, try_join_all};
use koios_model::{Matchers, TimeRange};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::file::metadata::ColumnChunkMetaData;

use crate::Result;
use crate::cache::{Table, TablePiece};
use crate::group_rows::GroupRows;
use crate::samples::SamplesTable;
use crate::schema::LABEL_COLUMN_PREFIX;
use crate::series::{CHUNK_ROWS, SeriesTable, first_number, label_column};
use crate::series_filters::excluded_by_statistics;

impl SeriesTable {
    /// Whether statistics tell that no series of a row group matches.
    pub(crate) fn is_excluded(&self, footer: &ArrowReaderMetadata, group: u32, matchers: &Matchers) -> bool {
        let in_column = |name: &str| label_column(footer, name).is_some();
        let mut matchers = matchers.iter().filter(|m| in_column(m.name()));
        matchers.any(|m| excluded_by_statistics(footer, group, m))
    }

    /// About how many bytes of memory it takes to look at a row group with others: label columns that matchers name are decoded, and what
    /// makes a series comes as it is stored.
    pub(crate) fn bytes_to_look_at(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
    ) -> u64 {
        let Some(group) = footer.metadata().row_groups().get(group as usize) else {
            return 0;
        };
        let names = matchers.iter().map(|m| label_column(footer, m.name()));
        let named: BTreeSet<usize> = names.flatten().collect();
        let bytes = |column: &ColumnChunkMetaData| {
            let name = column.column_path().parts().first();
            let place = name.and_then(|name| footer.schema().index_of(name).ok());
            let is_label = name.is_some_and(|name| name.starts_with(LABEL_COLUMN_PREFIX));
            match place.is_some_and(|place| named.contains(&place)) {
                true => column.uncompressed_size(),
                false if is_label => 0,
                false => column.compressed_size(),
            }
        };
        let bytes = group.columns().iter().map(|column| bytes(column).unsigned_abs());
        bytes.fold(0, u64::saturating_add)
    }

    /// The rows of some row groups, side by side, that label columns and times leave; none of those that have none. Where these have to
    /// be fetched, so is where `following` samples are, and the page indexes of all these row groups.
    pub(crate) async fn candidates_of(
        &self,
        footer: &ArrowReaderMetadata,
        groups: &[u32],
        matchers: &Matchers,
        range: TimeRange,
        following: Option<&SamplesTable>,
    ) -> Result<Vec<GroupRows>> {
        let of_group = |(place, &group): (usize, &u32)| {
            let following = following.filter(|_| place == 0).map(|samples| (samples, groups));
            self.candidates(footer, group, matchers, range, following).boxed()
        };
        let found: Vec<_> = groups.iter().enumerate().map(of_group).collect();
        Ok(try_join_all(found).await?.into_iter().flatten().collect())
    }

    /// Fetches what makes the series of these rows, as far as it is not decoded yet, for this read to hold until it does; with it
    /// where `following` samples are, which then is done.
    pub(crate) async fn fetch_rows_ahead(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &VecDeque<GroupRows>,
        following: &mut Option<SamplesTable>,
    ) -> Result<()> {
        let (mut groups, mut reads) = (Vec::new(), Vec::new());
        for rows in rows {
            let spans = self.undecoded(rows);
            if !spans.is_empty() {
                groups.push(rows.group());
                reads.push(self.identity(footer, rows, spans)?);
            }
        }
        if groups.is_empty() {
            return Ok(());
        }
        let pages = async {
            let indexes = self.part().group_indexes(footer, &groups).await?;
            let reads = reads.into_iter().zip(indexes).collect();
            self.part().fetch_groups_ahead(reads).await
        };
        let fetched = match following.take() {
            Some(samples) => {
                let candidates = |rows: &GroupRows| rows.candidates(first_number(footer, rows.group()));
                let may_match: Vec<_> = rows.iter().map(candidates).collect();
                join(pages, samples.fetch_indexes(&may_match)).await.0
            }
            None => pages.await,
        };
        match fetched {
            // Who comes to what is damaged is told.
            Err(e) if e.is_corrupt() => Ok(()),
            fetched => fetched,
        }
    }

    /// The rows of chunks that may have matching rows and are not decoded.
    fn undecoded(&self, rows: &GroupRows) -> Vec<Range<usize>> {
        let chunks = rows.next_chunks(usize::MAX, CHUNK_ROWS, usize::MAX).into_iter();
        let numbers = chunks.map(|chunk| chunk.chunk);
        let missing = numbers.filter(|&number| {
            let key = self.key(rows.group(), TablePiece::Chunk(number));
            !matches!(self.part().cache().table(&key), Some(Table::Chunk(_)))
        });
        missing
            .map(|n| n * CHUNK_ROWS..((n + 1) * CHUNK_ROWS).min(rows.rows()))
            .collect()
    }
}
