//! Reads `samples.parquet`: the rows of chosen series inside a range of times.

use std::collections::VecDeque;
use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use futures::Stream;
use futures::future::try_join;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use koios_chunk::{Chunk, Encoder};
use koios_model::{Labels, TimeRange};

use crate::Result;
use crate::part::PartFile;
use crate::reader::BlockSeries;
use crate::row_plan::{GroupPlan, Piece};
use crate::sample_rows::SampleRows;
use crate::samples_choice::{Chosen, GroupChoice, OpenSamples, Wanted, rows_of_times};
use crate::times::{Times, TimesTable};

/// Decoded at a time: a row is 25 bytes then, and several row groups are decoded at once.
pub(crate) const BATCH_ROWS: usize = 1 << 14;

/// The samples of a block.
#[derive(Clone, Debug)]
pub(crate) struct SamplesTable {
    pub(crate) part: PartFile,
    /// Where samples have ticks.
    pub(crate) times: Option<TimesTable>,
}

/// The samples of one series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeriesSamples {
    /// Milliseconds since the epoch, strictly ascending.
    pub timestamps: Vec<i64>,
    /// Values, bit-exact, as many as timestamps.
    pub values: Vec<f64>,
    /// Start timestamps of those that have one, each with the time of its sample, strictly ascending.
    pub starts: Vec<(i64, i64)>,
}

/// A form that the rows of a series are given in.
pub(crate) trait Form: Default + Send + Sized + 'static {
    /// From neighbouring rows of a series, which descend in time; their times ascend.
    fn new(
        rows: &SampleRows<'_>,
        at: Range<usize>,
        timestamps: &[i64],
        series: &Labels,
        scratch: &mut Scratch,
    ) -> Result<Self>;

    /// How many samples it has.
    fn count(&self) -> usize;

    /// Its first and last time, if it has any samples.
    fn ends(&self) -> Option<TimeRange>;

    /// Moves what comes after it in time to its end.
    fn append(&mut self, later: &mut Self);
}

/// What forms are made with, kept from one series to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    encoder: Encoder,
    mantissas: Vec<i64>,
}

impl Form for SeriesSamples {
    fn new(
        rows: &SampleRows<'_>,
        at: Range<usize>,
        timestamps: &[i64],
        _: &Labels,
        _: &mut Scratch,
    ) -> Result<Self> {
        let mut samples = Self {
            timestamps: timestamps.to_vec(),
            values: Vec::with_capacity(at.len()),
            starts: Vec::new(),
        };
        rows.starts(at.clone(), timestamps)
            .append_at(timestamps, &mut samples.starts);
        rows.append_values(at, &mut samples.values)?;
        samples.values.reverse();
        Ok(samples)
    }

    fn count(&self) -> usize {
        self.timestamps.len()
    }

    fn ends(&self) -> Option<TimeRange> {
        let ends = self.timestamps.first().zip(self.timestamps.last());
        ends.map(|(&first, &last)| TimeRange::new(first, last))
    }

    fn append(&mut self, later: &mut Self) {
        self.timestamps.append(&mut later.timestamps);
        self.values.append(&mut later.values);
        self.starts.append(&mut later.starts);
    }
}

impl Form for Vec<Chunk> {
    fn new(
        rows: &SampleRows<'_>,
        at: Range<usize>,
        timestamps: &[i64],
        series: &Labels,
        scratch: &mut Scratch,
    ) -> Result<Self> {
        let mut chunks = Self::new();
        let starts = rows.starts(at.clone(), timestamps);
        let Scratch { encoder, mantissas } = scratch;
        let encoded = if let Some((decimals, exponent)) = rows.decimals(&at)? {
            mantissas.clear();
            mantissas.extend(decimals.iter().rev());
            encoder.encode_decimals(timestamps, mantissas, exponent, &mut chunks)
        } else {
            let mut values = Vec::with_capacity(at.len());
            rows.append_values(at, &mut values)?;
            values.reverse();
            encoder.encode_run(timestamps, &values, &mut chunks)
        };
        let started = encoded.and_then(|()| match starts.is_empty() {
            true => Ok(chunks),
            false => chunks.into_iter().map(|c| c.with_starts(&starts)).collect(),
        });
        started.map_err(|e| rows.part().corrupt_samples(series, e))
    }

    fn count(&self) -> usize {
        self.iter().map(Chunk::count).sum()
    }

    fn ends(&self) -> Option<TimeRange> {
        let (first, last) = self.first().zip(self.last())?;
        Some(first.time_range().union(&last.time_range()))
    }

    fn append(&mut self, later: &mut Self) {
        Self::append(self, later);
    }
}

/// What the rows of a piece became.
#[derive(Debug)]
struct Made<F> {
    form: F,
    piece: Piece,
}

/// Streams the samples inside `range` of series that are in the block's order.
pub(crate) fn stream(
    table: SamplesTable,
    series: Vec<BlockSeries>,
    range: TimeRange,
    groups_ahead: usize,
) -> BoxStream<'static, Result<SeriesSamples>> {
    stream::once(async move {
        let wanted = series.iter().map(|series| Wanted { series, whole: false });
        read(table, wanted, range, groups_ahead).await
    })
    .try_flatten()
    .boxed()
}

/// Reads series that are in the block's order, in either form; one item for each.
pub(crate) async fn read<'a, F: Form>(
    table: SamplesTable,
    wanted: impl Iterator<Item = Wanted<'a>>,
    range: TimeRange,
    groups_ahead: usize,
) -> Result<BoxStream<'static, Result<F>>> {
    let (open, plans) = OpenSamples::open(table, wanted).await?;
    let part = open.part.clone();
    let pieces = stream::iter(plans)
        .map(move |plan| {
            let open = open.clone();
            async move { read_group(&open, plan, range).await }
        })
        .buffered(groups_ahead)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok)))
        .try_flatten();
    Ok(join_pieces(part, pieces.boxed()).boxed())
}

/// A series split over row groups becomes one item again.
fn join_pieces<F: Form>(
    part: PartFile,
    pieces: BoxStream<'static, Result<Made<F>>>,
) -> impl Stream<Item = Result<F>> + Send + use<F> {
    stream::try_unfold((part, pieces), |(part, mut pieces)| async move {
        let mut of_series = Vec::new();
        while let Some(Made { form, piece }) = pieces.try_next().await? {
            of_series.push(form);
            if piece.last {
                let whole = join(of_series).map_err(|e| part.corrupt_samples(&piece.series, e))?;
                return Ok(Some((whole, (part, pieces))));
            }
        }
        Ok(None)
    })
}

/// Joins what row groups hold of a series, in their order: rows descend in time, also from one row group to the next.
fn join<F: Form>(mut newest_first: Vec<F>) -> Result<F, koios_chunk::Error> {
    let mut whole = newest_first.pop().unwrap_or_default();
    while let Some(mut later) = newest_first.pop() {
        if let Some((before, after)) = whole.ends().zip(later.ends())
            && before.max >= after.min
        {
            return Err(koios_chunk::Error::NotAscending { at: whole.count() });
        }
        whole.append(&mut later);
    }
    Ok(whole)
}

async fn read_group<F: Form>(open: &OpenSamples, plan: GroupPlan, range: TimeRange) -> Result<Vec<Made<F>>> {
    let OpenSamples { part, footer, .. } = open;
    let group = plan.group;
    let choice = open.choose(vec![plan], range).await?.pop();
    let choice = choice.ok_or_else(|| part.corrupt(format!("it lacks row group {group}")))?;
    let (read, kept_by_reader) = (choice.read(), choice.whole_rows());
    let GroupChoice { index, chosen, .. } = choice;
    let mut reading = Reading {
        range,
        times: None,
        pieces: VecDeque::new(),
        carried: Vec::new(),
        carried_rows: 0,
        timestamps: Vec::new(),
        scratch: Scratch::default(),
        made: Vec::new(),
    };
    if let Some(read) = read {
        // The pages of both parts come together.
        let fetch = part.fetch_group(footer, read, BATCH_ROWS);
        let (fetched, times) = try_join(fetch, read_times(open, &chosen)).await?;
        reading.times = times;
        reading.pieces = chosen.into();
        let fold = part.fold_fetched(fetched, reading, |part, reading, batch| reading.add(part, &batch));
        reading = fold.await?;
    } else {
        reading.pieces = chosen.into();
    }
    let made = reading.finish(part)?;
    part.forget_used_up(group, &index, &kept_by_reader);
    Ok(made)
}

/// The times of the ticks that were chosen, where samples have ticks.
async fn read_times(open: &OpenSamples, chosen: &[Chosen]) -> Result<Option<Times>> {
    match &open.times {
        Some(times) => times.read(rows_of_times(chosen.iter())).await.map(Some),
        None => Ok(None),
    }
}

/// The rows of a group on their way to what is made of them.
#[derive(Debug)]
struct Reading<F> {
    range: TimeRange,
    /// Where samples have ticks.
    times: Option<Times>,
    /// What is still to be made.
    pieces: VecDeque<Chosen>,
    /// Rows of the first of them from batches before.
    carried: Vec<RecordBatch>,
    carried_rows: usize,
    /// Kept from one series to the next.
    timestamps: Vec<i64>,
    scratch: Scratch,
    made: Vec<Made<F>>,
}

impl<F: Form> Reading<F> {
    /// Takes the next rows.
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let ticks = self.times.is_some();
        let rows = SampleRows::new(part, batch, ticks)?;
        let mut at = 0;
        while at < batch.num_rows() {
            self.make_empty_ones();
            let Some(chosen) = self.pieces.pop_front() else {
                return Err(part.corrupt("a page holds more rows than its index says"));
            };
            let count = chosen.row_count();
            let needed = count - self.carried_rows;
            let here = needed.min(batch.num_rows() - at);
            if here == count {
                self.make(&rows, at..at + here, chosen)?;
            } else {
                self.carried.push(batch.slice(at, here));
                self.carried_rows += here;
                if here < needed {
                    self.pieces.push_front(chosen);
                } else {
                    let joined = concat_batches(batch.schema_ref(), &std::mem::take(&mut self.carried));
                    let joined = joined.map_err(|e| part.corrupt(e))?;
                    self.carried_rows = 0;
                    self.make(&SampleRows::new(part, &joined, ticks)?, 0..count, chosen)?;
                }
            }
            at += here;
        }
        Ok(())
    }

    fn make(&mut self, rows: &SampleRows<'_>, at: Range<usize>, chosen: Chosen) -> Result<()> {
        let Chosen { piece, ticks, .. } = chosen;
        let (at, timestamps) = match &self.times {
            Some(times) => rows.timestamps_of_ticks(at, &piece, &ticks, times, &mut self.timestamps)?,
            None => rows.timestamps_beside(at, &mut self.timestamps),
        };
        let wanted = if piece.whole { TimeRange::ALL } else { self.range };
        let inside = wanted.places_in(timestamps);
        // Rows descend in time.
        let at = at.end - inside.end..at.end - inside.start;
        let timestamps = timestamps.get(inside).unwrap_or_default();
        let form = F::new(rows, at, timestamps, &piece.series, &mut self.scratch)?;
        self.made.push(Made { form, piece });
        Ok(())
    }

    /// Pieces of which nothing is in range.
    fn make_empty_ones(&mut self) {
        while self.pieces.front().is_some_and(|chosen| chosen.row_count() == 0) {
            let form = F::default();
            let made = self
                .pieces
                .pop_front()
                .map(|Chosen { piece, .. }| Made { form, piece });
            self.made.extend(made);
        }
    }

    fn finish(mut self, part: &PartFile) -> Result<Vec<Made<F>>> {
        self.make_empty_ones();
        match self.pieces.is_empty() {
            true => Ok(self.made),
            false => Err(part.corrupt("a page holds fewer rows than its index says")),
        }
    }
}
