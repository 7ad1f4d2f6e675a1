//! What of samples is fetched before anybody decodes it: where it is that they are, while their series are still looked for; and
//! the pages of many series at once, so that who decodes some series after the other waits for none of them.

use std::ops::Range;
use std::sync::Arc;

use arrow_schema::Schema;
use futures::future::{join, try_join};
use koios_model::TimeRange;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

use crate::Result;
use crate::group_rows::Candidates;
use crate::part::{GroupRead, PartFile};
use crate::row_plan::{GroupPlan, Span, plan};
use crate::samples::SamplesTable;
use crate::samples_choice::{GroupChoice, OpenSamples, Wanted, rows_of_times};
use crate::schema::SERIES;

/// Most row groups of which what decoding begins with is fetched at once: their indexes take some tens of kilobytes each.
const GROUPS_TOGETHER: usize = 256;
/// Most row groups of samples whose indexes are fetched while it is not known yet which series match.
const INDEXES_AHEAD: usize = 64;

/// All of it as far as it can be had: who needs the rest is told why not.
impl SamplesTable {
    /// While labels are looked at that may not match: the footer of the samples alone.
    pub(crate) async fn fetch_footer(&self) {
        let _ = self.part.footer(Arc::<Schema>::clone).await;
    }

    /// While series are read that may match: the page indexes of the row groups that hold the first of them, as far as statistics
    /// tell, and the footer of times, with which their page indexes come.
    pub(crate) async fn fetch_indexes(&self, series: &[Candidates]) {
        let of_times = async {
            if let Some(times) = &self.times {
                let _ = times.part().footer(Arc::<Schema>::clone).await;
            }
        };
        let _ = join(self.fetch_indexes_of_samples(series), of_times).await;
    }

    async fn fetch_indexes_of_samples(&self, series: &[Candidates]) -> Result<()> {
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let groups = footer.metadata().row_groups().iter();
        let any_in = |(min, max)| series.iter().any(|series| series.any_in(min, max));
        let of_series = (0u32..)
            .zip(groups)
            .filter(|(_, group)| numbers_in(group).is_some_and(any_in));
        let of_series: Vec<u32> = of_series.map(|(number, _)| number).take(INDEXES_AHEAD).collect();
        self.part.group_indexes(&footer, &of_series).await?;
        Ok(())
    }

    /// Fetches the pages of series that are in the block's order, for this read to hold until it decodes them.
    pub(crate) async fn fetch_pages(&self, wanted: Vec<Wanted<'_>>, range: TimeRange) -> Result<()> {
        let (open, mut plans) = OpenSamples::open(self.clone(), wanted.into_iter()).await?;
        while !plans.is_empty() {
            let rest = plans.split_off(plans.len().min(GROUPS_TOGETHER));
            let choices = open.choose(plans, range).await?;
            let reads = choices
                .iter()
                .filter_map(|c| c.read().map(|read| (read, c.index.clone())));
            let samples = open.part.fetch_groups_ahead(reads.collect());
            let of_times = async {
                match &open.times {
                    Some(times) => times.fetch_ahead(times_of(&choices)).await,
                    None => Ok(()),
                }
            };
            try_join(samples, of_times).await?;
            plans = rest;
        }
        Ok(())
    }
}

fn times_of(choices: &[GroupChoice]) -> Vec<Range<u64>> {
    rows_of_times(choices.iter().flat_map(|choice| &choice.chosen))
}

/// The same of a part whose series have all that they need in rows of their own.
pub(crate) async fn fetch_rows(
    part: &PartFile,
    spans: Vec<Span<'_>>,
    columns: impl FnOnce(&ArrowReaderMetadata) -> ProjectionMask,
) -> Result<()> {
    let footer = part.footer(Arc::<Schema>::clone).await?;
    let columns = columns(&footer);
    let plans = plan(part, &footer, spans.into_iter())?;
    for plans in plans.chunks(GROUPS_TOGETHER) {
        let groups: Vec<u32> = plans.iter().map(|plan| plan.group).collect();
        let indexes = part.group_indexes(&footer, &groups).await?;
        let read = |GroupPlan { group, pieces }: &GroupPlan| {
            let total = footer.metadata().row_groups().get(*group as usize);
            let total = total.map_or(0, |g| usize::try_from(g.num_rows()).unwrap_or(0));
            let rows = pieces.iter().map(|p| p.rows.start as usize..p.rows.end as usize);
            GroupRead {
                group: *group,
                columns: columns.clone(),
                selection: Some(RowSelection::from_consecutive_ranges(rows, total)),
            }
        };
        let reads = plans.iter().map(read).zip(indexes).collect();
        part.fetch_groups_ahead(reads).await?;
    }
    Ok(())
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
