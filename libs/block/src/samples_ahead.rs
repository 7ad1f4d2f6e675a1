//! What of samples is fetched while their series are still looked for: where it is that they are. So the pages are all that has to
//! be waited for when the series are known.

use std::sync::Arc;

use arrow_schema::Schema;
use futures::future::join;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

use crate::Result;
use crate::group_rows::Candidates;
use crate::reader::GROUPS_AHEAD;
use crate::samples::SamplesTable;
use crate::schema::SERIES;

/// All of it as far as it can be had: who needs the rest is told why not.
impl SamplesTable {
    /// While labels are looked at that may not match: the footer of the samples alone.
    pub(crate) async fn fetch_footer(&self) {
        let _ = self.part.footer(Arc::<Schema>::clone).await;
    }

    /// While series are read that may match: the page indexes of the row groups that hold the first of them, as far as statistics
    /// tell, and the footer of times, with which their page indexes come.
    pub(crate) async fn fetch_indexes(&self, series: &Candidates) {
        let of_times = async {
            if let Some(times) = &self.times {
                let _ = times.part().footer(Arc::<Schema>::clone).await;
            }
        };
        let _ = join(self.fetch_indexes_of_samples(series), of_times).await;
    }

    async fn fetch_indexes_of_samples(&self, series: &Candidates) -> Result<()> {
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let groups = footer.metadata().row_groups().iter();
        let of_series = (0u32..)
            .zip(groups)
            .filter(|(_, group)| numbers_in(group).is_some_and(|(min, max)| series.any_in(min, max)));
        let of_series: Vec<u32> = of_series.map(|(number, _)| number).take(GROUPS_AHEAD).collect();
        self.part.group_indexes(&footer, &of_series).await?;
        Ok(())
    }
}

/// The least and the greatest number of a series in a row group.
fn numbers_in(group: &RowGroupMetaData) -> Option<(u64, u64)> {
    let mut columns = group.columns().iter();
    let column = columns.find(|c| c.column_path().parts() == [SERIES])?;
    let Some(Statistics::Int32(numbers)) = column.statistics() else {
        return None;
    };
    let number = |n: &i32| u64::from(n.cast_unsigned());
    numbers.min_opt().map(number).zip(numbers.max_opt().map(number))
}
