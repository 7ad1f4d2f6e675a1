//! Which rows of samples are read, and of which pages that is to be had.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use futures::future::try_join;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_model::TimeRange;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};

use crate::Result;
use crate::part::{GroupRead, PartFile};
use crate::reader::{BlockSeries, GROUPS_AHEAD};
use crate::row_plan::{GroupPlan, Piece, Span, plan};
use crate::sample_rows::dense_ticks;
use crate::samples::{BATCH_ROWS, SamplesTable};
use crate::schema::{EXPONENT, FLOAT, MANTISSA, START_TIMESTAMP, TICK, TIMESTAMP};
use crate::timed_pages::{intersect, rows_in_range};
use crate::times::{TimeGroups, TimePages};

/// A series to read, and whether all of it (and kept by the reader) or what lies on pages around a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) series: &'a BlockSeries,
    pub(crate) whole: bool,
}

/// The samples of a block whose footers have been read.
#[derive(Clone, Debug)]
pub(crate) struct OpenSamples {
    pub(crate) part: PartFile,
    pub(crate) footer: ArrowReaderMetadata,
    /// Where samples have ticks.
    pub(crate) times: Option<TimeGroups>,
}

/// What is read of a piece.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) piece: Piece,
    /// Relative to the row group.
    pub(crate) rows: Vec<Range<u64>>,
    /// Those that samples in range may have; none where samples have times.
    pub(crate) ticks: Range<u64>,
}

impl Chosen {
    fn new(piece: Piece, rows: Vec<Range<u64>>, ticks: Range<u64>) -> Self {
        Self { piece, rows, ticks }
    }

    pub(crate) fn row_count(&self) -> usize {
        let rows = self.rows.iter().map(|rows| rows.end - rows.start);
        usize::try_from(rows.sum::<u64>()).unwrap_or(usize::MAX)
    }
}

/// What is read of a row group.
#[derive(Debug)]
pub(crate) struct GroupChoice {
    group: u32,
    /// The row group alone (it is number 0) with its page index.
    pub(crate) index: ArrowReaderMetadata,
    pub(crate) chosen: Vec<Chosen>,
}

impl OpenSamples {
    /// Reads footers, and splits by row group the rows of series that are in the block's order.
    pub(crate) async fn open<'a>(
        table: SamplesTable,
        wanted: impl Iterator<Item = Wanted<'a>>,
    ) -> Result<(Self, Vec<GroupPlan>)> {
        let span = |Wanted { series, whole }: Wanted<'a>| -> Result<Span<'a>> {
            let times = table.times.as_ref().map(|times| times.span(series));
            Ok(Span {
                series: &series.labels,
                first_row: series.first_row,
                row_count: series.row_count,
                whole,
                times: times.transpose()?,
            })
        };
        let spans: Vec<Span<'a>> = wanted.map(span).collect::<Result<_>>()?;
        let open_times = async {
            match &table.times {
                Some(times) => times.open().await.map(Some),
                None => Ok(None),
            }
        };
        let (footer, times) = try_join(table.part.footer(Arc::<Schema>::clone), open_times).await?;
        let plans = plan(&table.part, &footer, spans.into_iter())?;
        let open = Self {
            part: table.part,
            footer,
            times,
        };
        Ok((open, plans))
    }

    /// What to read of row groups, in their order. Indexes of both parts come together.
    pub(crate) async fn choose(&self, plans: Vec<GroupPlan>, range: TimeRange) -> Result<Vec<GroupChoice>> {
        let known = plans
            .into_iter()
            .map(|GroupPlan { group, mut pieces }| async move {
                look_up_ticks(self, group, &mut pieces).await?;
                Ok::<_, crate::Error>((group, pieces))
            });
        let known = stream::iter(known).buffered(GROUPS_AHEAD);
        let known: Vec<(u32, Vec<Piece>)> = known.try_collect().await?;
        let (groups, pieces): (Vec<u32>, Vec<Vec<Piece>>) = known.into_iter().unzip();
        let indexes = self.part.group_indexes(&self.footer, &groups);
        let times = pieces.iter().flatten().filter_map(possible_times).collect();
        let (indexes, times) = try_join(indexes, time_pages(self, times)).await?;
        let choices = groups.into_iter().zip(indexes).zip(pieces);
        let choice = |((group, index), pieces)| {
            let chosen = choose(&self.part, &index, times.as_ref(), pieces, range)?;
            Ok(GroupChoice { group, index, chosen })
        };
        choices.map(choice).collect()
    }
}

impl GroupChoice {
    /// How its rows are read, if it has any.
    pub(crate) fn read(&self) -> Option<GroupRead> {
        let row_group = self.index.metadata().row_groups().first();
        let total = row_group.map_or(0, |group| usize::try_from(group.num_rows()).unwrap_or(0));
        let ranges = self.chosen.iter().flat_map(|chosen| &chosen.rows);
        let ranges = ranges.map(|r| r.start as usize..r.end as usize);
        let selection = RowSelection::from_consecutive_ranges(ranges, total);
        let columns = [TIMESTAMP, TICK, EXPONENT, MANTISSA, FLOAT, START_TIMESTAMP];
        selection.selects_any().then(|| GroupRead {
            group: self.group,
            columns: ProjectionMask::columns(self.index.parquet_schema(), columns),
            selection: Some(selection),
        })
    }

    /// The rows of series that are read whole.
    pub(crate) fn whole_rows(&self) -> Vec<Range<u64>> {
        let whole = self.chosen.iter().map(|chosen| &chosen.piece).filter(|p| p.whole);
        whole.map(|p| p.rows.clone()).collect()
    }
}

/// The rows of the part with times that hold the ticks that were chosen, where samples have ticks.
pub(crate) fn rows_of_times<'a>(chosen: impl Iterator<Item = &'a Chosen>) -> Vec<Range<u64>> {
    let chosen = chosen.filter(|chosen| !chosen.rows.is_empty());
    let rows = chosen.filter_map(|chosen| Some(chosen.piece.times.as_ref()?.rows_of(&chosen.ticks)));
    rows.collect()
}

/// Chooses rows, as far as the indexes of pages tell which are in range.
fn choose(
    part: &PartFile,
    index: &ArrowReaderMetadata,
    times: Option<&TimePages>,
    pieces: Vec<Piece>,
    range: TimeRange,
) -> Result<Vec<Chosen>> {
    let Some(times) = times else {
        let kept = rows_in_range(part, index, range)?;
        let chosen = |piece: Piece| {
            let rows = match piece.whole {
                true => vec![piece.rows.clone(); 1],
                false => intersect(&piece.rows, &kept),
            };
            Chosen::new(piece, rows, 0..0)
        };
        return Ok(pieces.into_iter().map(chosen).collect());
    };
    let chosen = |piece: Piece| {
        let lost = || part.corrupt(format!("the times of {} are nowhere", piece.series));
        let span = piece.times.as_ref().ok_or_else(lost)?;
        let mut ticks = piece.ticks(span);
        let mut rows = piece.rows.clone();
        if !piece.whole {
            ticks = times.ticks_in(span, ticks, range);
            rows = piece.rows_with(span, &ticks);
        }
        let rows = match ticks.is_empty() || rows.is_empty() {
            true => Vec::new(),
            false => vec![rows; 1],
        };
        Ok(Chosen::new(piece, rows, ticks))
    };
    pieces.into_iter().map(chosen).collect()
}

/// Looks up the ticks at the ends of pieces that might have very many more than they do: the first and the last one at most.
async fn look_up_ticks(open: &OpenSamples, group: u32, pieces: &mut [Piece]) -> Result<()> {
    let ends = |piece: &Piece| {
        let rows = piece.rows.start as usize..piece.rows.end as usize;
        [
            rows.start..rows.start + 1,
            rows.end.max(rows.start + 2) - 1..rows.end,
        ]
    };
    let vague = pieces.iter().filter(|piece| piece.is_vague());
    let rows: Vec<Range<usize>> = vague.flat_map(ends).filter(|rows| !rows.is_empty()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let groups = open.footer.metadata().row_groups();
    let total = groups.get(group as usize).map_or(0, |group| group.num_rows());
    let total = usize::try_from(total).unwrap_or(0);
    let read = GroupRead {
        group,
        columns: ProjectionMask::columns(open.footer.parquet_schema(), [TICK]),
        selection: Some(RowSelection::from_consecutive_ranges(rows.into_iter(), total)),
    };
    let add = |part: &PartFile, ticks: &mut Vec<u32>, batch: RecordBatch| {
        ticks.extend(dense_ticks(part, &batch)?);
        Ok(())
    };
    let ticks = open
        .part
        .fold_group(&open.footer, read, BATCH_ROWS, Vec::new(), add);
    let mut ticks = ticks.await?.into_iter();
    for piece in pieces.iter_mut().filter(|piece| piece.is_vague()) {
        let newest = ticks.next();
        let oldest = match piece.rows.end - piece.rows.start {
            1 => newest,
            _ => ticks.next(),
        };
        if !newest
            .zip(oldest)
            .is_some_and(|(newest, oldest)| piece.know(newest, oldest))
        {
            return Err(open.part.corrupt(format!(
                "the ticks of series {} are none of those that its rows can have",
                piece.series
            )));
        }
    }
    Ok(())
}

/// The pages of the times that the pieces can have, where samples have ticks.
async fn time_pages(open: &OpenSamples, rows: Vec<Range<u64>>) -> Result<Option<TimePages>> {
    match &open.times {
        Some(times) => times.pages(rows).await.map(Some),
        None => Ok(None),
    }
}

/// The rows of the part with times that a piece can have, where samples have ticks.
fn possible_times(piece: &Piece) -> Option<Range<u64>> {
    let span = piece.times.as_ref()?;
    Some(span.rows_of(&piece.ticks(span)))
}
