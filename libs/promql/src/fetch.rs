//! Reading what a query needs. Series that only one part of the query looks at, one after the other, are handed to that
//! part as they arrive and are gone then, so that a query over much data holds little of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::channel::{mpsc, oneshot};
use futures::future::try_join;
use futures::lock::Mutex;
use futures::sink::SinkExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_model::Labels;

use crate::annotations::Annotations;
use crate::context::{QueryContext, QueryStats, check};
use crate::engine::{EngineOptions, Prepared};
use crate::error::QueryError;
use crate::eval::leaf::LeafFold;
use crate::memory::{Memory, of_labels};
use crate::queryable::{Completeness, Queryable, SelectRequest, Series, SeriesStream, StreamItem};

/// How many reads of storage one query runs at once.
const READS_AT_ONCE: usize = 8;
/// Bytes of series that are computed together, while more arrive: enough to keep all cores busy for a millisecond or two.
/// Less than that is computed when all is there. A few times as much waits at most.
const COMPUTED_BYTES: usize = 512 << 10;

/// A planned query with the data it needs; evaluating it needs nothing else.
pub struct Fetched {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) completeness: Completeness,
    pub(crate) annotations: Annotations,
    pub(crate) stats: QueryStats,
    /// What is held, the series included.
    pub(crate) memory: Arc<Memory>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("prepared", &self.prepared)
            .field("completeness", &self.completeness)
            .finish_non_exhaustive()
    }
}

/// What one read brought.
pub(crate) enum Answer {
    /// All its series.
    Kept(Vec<Series>),
    /// A leaf of the plan that took in some of them, and the rest.
    Leaf(usize, Box<LeafFold>, Vec<Series>),
}

/// One read, to its end.
struct Read {
    answer: Answer,
    completeness: Completeness,
    warnings: Vec<String>,
}

impl Prepared {
    /// Reads everything the query needs, and computes what can be computed meanwhile.
    ///
    /// # Errors
    /// Any [`QueryError`]: what storage fails with, the limits on what is fetched, and what evaluation fails with.
    pub async fn fetch(
        self,
        queryable: &dyn Queryable,
        ctx: &dyn QueryContext,
    ) -> Result<Fetched, QueryError> {
        check(ctx)?;
        let prepared = Arc::new(self);
        let memory = Memory::new(prepared.options().max_memory_bytes);
        let meter = Meter::new(prepared.options(), &memory);
        let selects: Vec<(usize, SelectRequest)> = prepared.selects().iter().cloned().enumerate().collect();
        let mut leaf_of = vec![None; selects.len()];
        for (i, leaf) in prepared.leaves().iter().enumerate() {
            if let Some(of) = leaf_of.get_mut(leaf.source) {
                *of = Some(i);
            }
        }
        let reads: Vec<Read> = stream::iter(selects)
            .map(|(source, request)| {
                let leaf = leaf_of.get(source).copied().flatten();
                let answer = Answer::empty(&prepared, leaf, &memory);
                let meter = &meter;
                async move { read(queryable, request, answer?, meter, ctx).await }
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let mut fetched = Fetched {
            prepared,
            answers: Vec::with_capacity(reads.len()),
            completeness: Completeness::Complete,
            annotations: Annotations::default(),
            stats: meter.stats(),
            memory: Arc::clone(&memory),
        };
        for read in reads {
            fetched.completeness.merge(read.completeness);
            read.warnings
                .into_iter()
                .for_each(|w| fetched.annotations.add_from_storage(w));
            fetched.answers.push(read.answer);
        }
        Ok(fetched)
    }
}

impl Answer {
    fn empty(prepared: &Arc<Prepared>, leaf: Option<usize>, memory: &Memory) -> Result<Self, QueryError> {
        Ok(match leaf {
            Some(leaf) => {
                let fold = LeafFold::new(Arc::clone(prepared), leaf, memory)?;
                Self::Leaf(leaf, Box::new(fold), Vec::new())
            }
            None => Self::Kept(Vec::new()),
        })
    }

    fn waiting(&mut self) -> &mut Vec<Series> {
        match self {
            Self::Kept(series) | Self::Leaf(_, _, series) => series,
        }
    }

    /// Computes a batch of a leaf.
    async fn compute(
        self,
        batch: Vec<Series>,
        ctx: &dyn QueryContext,
        meter: &Meter<'_>,
    ) -> Result<Self, QueryError> {
        let Self::Leaf(leaf, mut fold, waiting) = self else {
            return Err(QueryError::internal(
                "series were passed on to no leaf".to_owned(),
            ));
        };
        let _turn = meter.computing.lock().await;
        let waited = bytes_of(&batch);
        let (done, result) = oneshot::channel();
        let shared = ctx.shared();
        let job = move || {
            let pushed = fold.push(batch, shared.as_ref());
            // Whoever gave up the query does not want the result.
            let _ = done.send(pushed.map(|()| fold));
        };
        ctx.offload(Box::new(job)).await;
        let fold = result
            .await
            .map_err(|_| QueryError::internal("a part of the query was not computed".to_owned()))??;
        meter.memory.give(waited);
        Ok(Self::Leaf(leaf, fold, waiting))
    }
}

/// Reads one answer to its end; while series arrive, those before them are computed.
async fn read(
    queryable: &dyn Queryable,
    request: SelectRequest,
    mut answer: Answer,
    meter: &Meter<'_>,
    ctx: &dyn QueryContext,
) -> Result<Read, QueryError> {
    let stream = queryable.select(request).await?;
    let (sender, mut batches) = mpsc::channel(0);
    let sender = matches!(answer, Answer::Leaf(..)).then_some(sender);
    let compute = async {
        while let Some(batch) = batches.next().await {
            answer = answer.compute(batch, ctx, meter).await?;
        }
        Ok(answer)
    };
    let (arrived, mut answer) = try_join(arrive(stream, sender, meter, ctx), compute).await?;
    answer.waiting().extend(arrived.rest);
    Ok(Read {
        answer,
        completeness: arrived.completeness,
        warnings: arrived.warnings,
    })
}

/// What a stream of series came to.
struct Arrived {
    /// Series that were not passed on.
    rest: Vec<Series>,
    completeness: Completeness,
    warnings: Vec<String>,
}

/// Reads a stream to its end, checking what storage promises. Passes series on, a batch at a time, if anyone takes them.
async fn arrive(
    mut stream: SeriesStream,
    mut sender: Option<mpsc::Sender<Vec<Series>>>,
    meter: &Meter<'_>,
    ctx: &dyn QueryContext,
) -> Result<Arrived, QueryError> {
    let (mut waiting, mut waiting_bytes) = (Vec::<Series>::new(), 0);
    let mut warnings = Vec::new();
    let mut last: Option<Labels> = None;
    while let Some(item) = stream.next().await {
        check(ctx)?;
        match item? {
            StreamItem::Series(batch) => {
                waiting_bytes += meter.count(&batch)?;
                let mut previous = last.as_ref();
                for series in &batch {
                    if previous.is_some_and(|previous| *previous >= series.labels) {
                        return Err(QueryError::internal(format!(
                            "storage answered series {} out of order",
                            series.labels
                        )));
                    }
                    previous = Some(&series.labels);
                }
                last = previous.cloned();
                waiting.extend(batch);
                if waiting_bytes >= COMPUTED_BYTES
                    && let Some(sender) = &mut sender
                {
                    // It fails only where computing has failed, whose error is then the answer.
                    let _ = sender.send(std::mem::take(&mut waiting)).await;
                    waiting_bytes = 0;
                }
            }
            StreamItem::Warning(text) => warnings.push(text),
            StreamItem::End(completeness) => {
                return Ok(Arrived {
                    rest: waiting,
                    completeness,
                    warnings,
                });
            }
        }
    }
    Err(QueryError::unavailable("storage broke off its answer"))
}

/// Counts what a query fetches, against its limits.
struct Meter<'a> {
    memory: &'a Memory,
    /// Held by the part of the query that is computed: one at a time, so that what they need meanwhile does not add up
    /// as it happens. Each runs on as many cores as there are.
    computing: Mutex<()>,
    series: AtomicU64,
    bytes: AtomicU64,
    max_series: u64,
    max_bytes: u64,
}

impl<'a> Meter<'a> {
    fn new(options: &EngineOptions, memory: &'a Memory) -> Self {
        Self {
            memory,
            computing: Mutex::new(()),
            series: 0.into(),
            bytes: 0.into(),
            max_series: options.max_series_fetched,
            max_bytes: options.max_bytes_fetched,
        }
    }

    /// Counts a batch and gives its bytes.
    fn count(&self, batch: &[Series]) -> Result<usize, QueryError> {
        let more = batch.len() as u64;
        let series = self.series.fetch_add(more, Ordering::Relaxed) + more;
        if self.max_series > 0 && series > self.max_series {
            return Err(limit("series", self.max_series));
        }
        let more: usize = batch.iter().map(|s| s.data.encoded_bytes()).sum();
        let bytes = self.bytes.fetch_add(more as u64, Ordering::Relaxed) + more as u64;
        if self.max_bytes > 0 && bytes > self.max_bytes {
            return Err(limit("bytes", self.max_bytes));
        }
        self.memory.take(bytes_of(batch))?;
        Ok(more)
    }

    fn stats(&self) -> QueryStats {
        QueryStats {
            series_fetched: self.series.load(Ordering::Relaxed),
            bytes_fetched: self.bytes.load(Ordering::Relaxed),
            ..QueryStats::default()
        }
    }
}

/// What fetched series occupy in memory.
pub(crate) fn bytes_of(series: &[Series]) -> usize {
    let own = |s: &Series| size_of::<Series>() + of_labels(&s.labels) + s.data.encoded_bytes();
    series.iter().map(own).sum()
}

fn limit(what: &str, max: u64) -> QueryError {
    QueryError::LimitExceeded(format!(
        "query fetched too many {what} (limit {max}): select fewer series or a shorter time range, or raise the limit"
    ))
}
