//! The way of a query: plan, fetch, evaluate.
//!
//! The steps are apart so that the caller chooses where they run: planning and evaluation are synchronous CPU work,
//! fetching is asynchronous, waits for storage, and hands what can be computed meanwhile to the query's context.

use std::collections::HashMap;
use std::sync::Arc;

use koios_model::Labels;

use crate::ast::{Ast, ValueType};
use crate::context::{Account, PHASE_PARSING, QueryContext, check_in};
use crate::error::QueryError;
use crate::eval::leaf::LeafResult;
use crate::eval::matrix::RangeSeries;
use crate::eval::row::{self, Row, Scalars, is_metadata_label, merge_equal_labels, same_labelset};
use crate::eval::{Evaluated, Evaluator};
use crate::fetch::{Answer, Fetched, bytes_of};
use crate::memory::{LABELS_ENTRY_BYTES, Memory, of_labels};
use crate::parser::{ParseError, ParseOptions, parse_with, parse_within};
use crate::plan::{Leaf, Nodes, Plan, PlanContext, plan};
use crate::queryable::{Queryable, SelectRequest};
use crate::steps::Steps;
use crate::value::{MatrixSeries, Points, QueryOutput, SampleValue, Value, VectorSample};
use crate::work::Work;

/// How queries are evaluated, and their limits.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// How old the newest sample of a series may be for it to count as current, milliseconds.
    pub lookback_delta_ms: i64,
    /// Most samples a query may hold at once.
    pub max_samples: usize,
    /// Most series a query may fetch; 0 for no limit.
    pub max_series_fetched: u64,
    /// Most bytes a query may fetch, as storage keeps them in memory; 0 for no limit.
    pub max_bytes_fetched: u64,
    /// Most bytes a query may hold at once: what it fetched, decoded samples, labels, intermediate results and the output.
    pub max_memory_bytes: usize,
    /// The resolution of subqueries that do not name one, milliseconds.
    pub default_subquery_step_ms: i64,
    /// Whether start timestamps tell counter resets.
    pub use_start_timestamps: bool,
    /// Whether the `__type__` label, rather than the name, tells whether a metric is a counter.
    pub type_and_unit_labels: bool,
    /// Whether who asks lets summaries take the place of samples that are kept, so that answers do not call these gone.
    pub summaries_asked_for: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            lookback_delta_ms: 300_000,
            max_samples: 50_000_000,
            max_series_fetched: 0,
            max_bytes_fetched: 0,
            max_memory_bytes: 1 << 30,
            default_subquery_step_ms: 60_000,
            use_start_timestamps: true,
            type_and_unit_labels: false,
            summaries_asked_for: false,
        }
    }
}

/// A parsed query with its text, which positions refer to.
#[derive(Clone, Debug)]
pub struct Query {
    text: Arc<str>,
    ast: Ast,
}

impl Query {
    /// Parses a query.
    ///
    /// # Errors
    /// [`ParseError`] when the text is no PromQL.
    pub fn parse(text: &str, options: &ParseOptions) -> Result<Self, ParseError> {
        Ok(Self {
            text: text.into(),
            ast: parse_with(text, options)?,
        })
    }

    /// Parses a query, which may take long, unless `ctx` wants to stop.
    ///
    /// # Errors
    /// [`QueryError::BadData`] with the text of a [`ParseError`], or why it was stopped.
    pub fn parse_within(
        text: &str,
        options: &ParseOptions,
        ctx: &dyn QueryContext,
    ) -> Result<Self, QueryError> {
        let parsed = parse_within(text, options, ctx);
        check_in(ctx, PHASE_PARSING)?;
        Ok(Self {
            text: text.into(),
            ast: parsed.map_err(|e| QueryError::BadData(e.to_string()))?,
        })
    }

    /// A query from a tree; `text` is what its positions refer to.
    pub fn new(text: &str, ast: Ast) -> Self {
        Self {
            text: text.into(),
            ast,
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The tree.
    pub fn ast(&self) -> &Ast {
        &self.ast
    }
}

/// Evaluates queries.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    options: EngineOptions,
}

impl Engine {
    /// An engine with these options.
    pub fn new(options: EngineOptions) -> Self {
        Self { options }
    }

    /// The options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The same engine with another lookback, milliseconds.
    #[must_use]
    pub fn with_lookback_delta(&self, lookback_delta_ms: i64) -> Self {
        Self {
            options: EngineOptions {
                lookback_delta_ms,
                ..self.options.clone()
            },
        }
    }

    /// Plans a query at one time (milliseconds).
    ///
    /// # Errors
    /// [`QueryError::BadData`] for durations that cannot be.
    pub fn prepare_instant(&self, query: &Query, at_ms: i64) -> Result<Prepared, QueryError> {
        self.prepare(query, at_ms, at_ms, 0)
    }

    /// Plans a query over time: from `start_ms` to `end_ms`, both included, every `step_ms`.
    ///
    /// # Errors
    /// [`QueryError::BadData`] for times or a type of query that cannot be.
    pub fn prepare_range(
        &self,
        query: &Query,
        start_ms: i64,
        end_ms: i64,
        step_ms: i64,
    ) -> Result<Prepared, QueryError> {
        if step_ms <= 0 {
            return Err(QueryError::BadData(format!(
                "step of {step_ms}ms: must be greater than 0"
            )));
        }
        if end_ms < start_ms {
            return Err(QueryError::BadData(
                "end timestamp must not be before start time".to_owned(),
            ));
        }
        let kind = query.ast.value_type();
        if !matches!(kind, ValueType::Scalar | ValueType::Vector) {
            return Err(QueryError::BadData(format!(
                "invalid expression type {:?} for range query, must be Scalar or instant Vector",
                kind.documented()
            )));
        }
        self.prepare(query, start_ms, end_ms, step_ms)
    }

    fn prepare(
        &self,
        query: &Query,
        start_ms: i64,
        end_ms: i64,
        step_ms: i64,
    ) -> Result<Prepared, QueryError> {
        let context = PlanContext {
            start_ms,
            end_ms,
            step_ms,
            lookback_ms: self.options.lookback_delta_ms,
            default_subquery_step_ms: self.options.default_subquery_step_ms,
        };
        Ok(Prepared {
            plan: plan(&query.ast, context)?,
            kind: query.ast.value_type(),
            instant: step_ms == 0,
            text: Arc::clone(&query.text),
            options: self.options.clone(),
        })
    }

    /// Plans, fetches and evaluates a query at one time (milliseconds).
    ///
    /// # Errors
    /// Any [`QueryError`].
    pub async fn instant(
        &self,
        queryable: &dyn Queryable,
        query: &Query,
        at_ms: i64,
        ctx: &dyn QueryContext,
    ) -> Result<QueryOutput, QueryError> {
        self.prepare_instant(query, at_ms)?
            .fetch(queryable, ctx)
            .await?
            .evaluate(ctx)
    }

    /// Plans, fetches and evaluates a query over time, see [`Self::prepare_range`].
    ///
    /// # Errors
    /// Any [`QueryError`].
    pub async fn range(
        &self,
        queryable: &dyn Queryable,
        query: &Query,
        (start_ms, end_ms, step_ms): (i64, i64, i64),
        ctx: &dyn QueryContext,
    ) -> Result<QueryOutput, QueryError> {
        self.prepare_range(query, start_ms, end_ms, step_ms)?
            .fetch(queryable, ctx)
            .await?
            .evaluate(ctx)
    }
}

/// A planned query.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    kind: ValueType,
    instant: bool,
    text: Arc<str>,
    options: EngineOptions,
}

impl Prepared {
    /// What will be read from storage.
    pub fn selects(&self) -> &[SelectRequest] {
        &self.plan.selects
    }

    /// The times it will be evaluated at.
    pub fn steps(&self) -> Steps {
        self.plan.steps
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn options(&self) -> &EngineOptions {
        &self.options
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.plan.nodes
    }

    pub(crate) fn leaves(&self) -> &[Leaf] {
        &self.plan.leaves
    }

    /// A new account with the query's limit on samples, whose bytes are counted in `memory`.
    pub(crate) fn account(&self, memory: Arc<Memory>) -> Account {
        Account::new(self.options.max_samples, memory)
    }
}

impl Fetched {
    /// Computes the result. Takes CPU only; asks `ctx` every few milliseconds of work whether to go on.
    ///
    /// # Errors
    /// [`QueryError`], except what only storage fails with.
    pub fn evaluate(self, ctx: &dyn QueryContext) -> Result<QueryOutput, QueryError> {
        let Self {
            prepared,
            answers,
            completeness,
            annotations,
            mut stats,
            memory,
        } = self;
        let account = prepared.account(memory);
        let mut leaves: Vec<Option<LeafResult>> = Vec::new();
        leaves.resize_with(prepared.plan.leaves.len(), || None);
        let mut kept = Vec::with_capacity(answers.len());
        for answer in answers {
            let (leaf, result) = match answer {
                Answer::Kept(series) => {
                    kept.push(series);
                    continue;
                }
                Answer::Leaf(leaf, mut fold, rest) => {
                    let waiting = bytes_of(&rest);
                    fold.push(rest, ctx)?;
                    account.memory.give(waiting);
                    (leaf, fold.finish(ctx)?)
                }
            };
            // Sources are known by their place.
            kept.push(Vec::new());
            // Until the node that uses it.
            account.set_aside(result.held)?;
            stats.samples_total += result.account.total() as u64;
            stats.samples_peak = stats.samples_peak.max(result.account.peak() as u64);
            if let Some(slot) = leaves.get_mut(leaf) {
                *slot = Some(result);
            }
        }
        let mut evaluator = Evaluator {
            nodes: &prepared.plan.nodes,
            fetched: &kept,
            leaves,
            query: &prepared.text,
            options: &prepared.options,
            ctx,
            account: &account,
            annotations,
        };
        let evaluated = evaluator.value(prepared.plan.root, prepared.plan.steps)?;
        let mut annotations = evaluator.annotations;
        // Those of leaves that no node asked for.
        for unused in evaluator.leaves.into_iter().flatten() {
            annotations.merge(unused.annotations);
        }
        drop(kept);
        let value = finish(evaluated, &prepared, &account, ctx)?;
        stats.samples_total += account.total() as u64;
        stats.samples_peak = stats.samples_peak.max(account.peak() as u64);
        stats.bytes_peak = account.memory.peak();
        Ok(QueryOutput {
            value,
            completeness,
            annotations,
            stats,
            query: Arc::clone(&prepared.text),
        })
    }
}

/// The result as the client gets it: names dropped where they no longer hold, series in order.
fn finish(
    evaluated: Evaluated,
    prepared: &Prepared,
    account: &Account,
    ctx: &dyn QueryContext,
) -> Result<Value, QueryError> {
    let mut work = Work::new(ctx, &account.memory);
    let steps = prepared.plan.steps;
    let at = steps.start();
    match evaluated {
        Evaluated::Scalar(s) if prepared.instant => Ok(Value::Scalar(at, s.at(0))),
        Evaluated::Scalar(s) => Ok(Value::Matrix(vec![scalar_series(s, steps, &mut work)?])),
        Evaluated::String(s) => Ok(Value::String(at, s)),
        Evaluated::Matrix(series) => finish_ranges(series, &mut work).map(Value::Matrix),
        Evaluated::Vector(rows) => {
            let named = rows.into_iter().map(|row| named(row, &mut work));
            let named = named.collect::<Result<_, _>>()?;
            let mut rows = merge_equal_labels(named, &mut work)?;
            if prepared.instant && prepared.kind == ValueType::Vector {
                let samples = rows.into_iter().filter_map(|row| {
                    let sample = work.spend(8).map(|()| vector_sample(row));
                    sample.transpose()
                });
                return Ok(Value::Vector(at, samples.collect::<Result<_, _>>()?));
            }
            work.sort(&mut rows, |a, b| a.labels.cmp(&b.labels))?;
            let series = rows.into_iter().map(|row| {
                work.spend(8)?;
                Ok(matrix_series(row, steps))
            });
            Ok(Value::Matrix(series.collect::<Result<_, QueryError>>()?))
        }
    }
}

fn named(mut row: Row, work: &mut Work<'_>) -> Result<Row, QueryError> {
    work.spend(8)?;
    if row.drop_name {
        work.hold(of_labels(&row.labels))?;
        row.labels = row.labels.without(is_metadata_label);
    }
    Ok(row)
}

fn vector_sample(row: Row) -> Option<VectorSample> {
    let value = match row.point(0) {
        row::Point::Absent => return None,
        row::Point::Float(v) => SampleValue::Float(v),
        row::Point::Histogram(h) => SampleValue::Histogram(h),
    };
    Some(VectorSample {
        labels: row.labels,
        value,
    })
}

fn scalar_series(s: Scalars, steps: Steps, work: &mut Work<'_>) -> Result<MatrixSeries, QueryError> {
    let values = s.into_steps(steps.count(), work)?;
    Ok(MatrixSeries {
        labels: Labels::empty(),
        points: Points::Steps {
            steps,
            values,
            histograms: Vec::new(),
        },
    })
}

fn matrix_series(row: Row, steps: Steps) -> MatrixSeries {
    let points = Points::Steps {
        steps,
        values: row.values,
        histograms: row.histograms,
    };
    MatrixSeries {
        labels: row.labels,
        points,
    }
}

/// Unites series that are the same once their names are gone, and sorts them.
fn finish_ranges(series: Vec<RangeSeries>, work: &mut Work<'_>) -> Result<Vec<MatrixSeries>, QueryError> {
    let own = 2 * size_of::<RangeSeries>() + LABELS_ENTRY_BYTES;
    work.hold(series.len().saturating_mul(own))?;
    let mut by_labels: HashMap<Labels, usize> = HashMap::with_capacity(series.len());
    let mut groups: Vec<Vec<RangeSeries>> = Vec::with_capacity(series.len());
    for mut s in series {
        work.spend(16)?;
        if s.drop_name {
            work.hold(of_labels(&s.labels))?;
            s.labels = s.labels.without(is_metadata_label);
        }
        match by_labels.get(&s.labels).and_then(|&i| groups.get_mut(i)) {
            Some(group) => group.push(s),
            None => {
                by_labels.insert(s.labels.clone(), groups.len());
                groups.push(vec![s]);
            }
        }
    }
    let united = groups.into_iter().map(|group| united(group, work));
    let mut merged = united.collect::<Result<Vec<_>, QueryError>>()?;
    work.sort(&mut merged, |a, b| a.labels.cmp(&b.labels))?;
    Ok(merged
        .into_iter()
        .map(|s| MatrixSeries {
            labels: s.labels,
            points: Points::Samples {
                timestamps: s.t,
                values: s.v,
                histogram_timestamps: s.ht,
                histograms: s.h,
            },
        })
        .collect())
}

/// One series of several with the same labels.
fn united(mut group: Vec<RangeSeries>, work: &mut Work<'_>) -> Result<RangeSeries, QueryError> {
    if group.len() == 1
        && let Some(only) = group.pop()
    {
        return Ok(only);
    }
    let mut all = RangeSeries::empty();
    let (mut floats, mut histograms) = (Vec::new(), Vec::new());
    for s in group {
        all.labels = s.labels;
        floats.push((s.t, s.v));
        histograms.push((s.ht, s.h));
    }
    (all.t, all.v) = in_time_order(floats, work)?;
    (all.ht, all.h) = in_time_order(histograms, work)?;
    Ok(all)
}

/// Unites columns of samples in time order; fails if two share a time.
fn in_time_order<T>(
    columns: Vec<(Vec<i64>, Vec<T>)>,
    work: &mut Work<'_>,
) -> Result<(Vec<i64>, Vec<T>), QueryError> {
    let count = columns.iter().map(|(t, _)| t.len()).sum::<usize>();
    // As pairs and as columns, beside what they are made of.
    work.hold(count.saturating_mul(4 * size_of::<(i64, T)>()))?;
    let mut all: Vec<(i64, T)> = Vec::with_capacity(count);
    for (t, v) in columns {
        work.spend(t.len())?;
        all.extend(t.into_iter().zip(v));
    }
    work.sort(&mut all, |a, b| a.0.cmp(&b.0))?;
    if all.windows(2).any(|p| matches!(p, [a, b] if a.0 == b.0)) {
        return Err(same_labelset());
    }
    Ok(all.into_iter().unzip())
}
