//! Instant and range queries.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderMap, Request};
use koios_model::TenantId;
use koios_promql::{
    CancelContext, DurationContext, Engine, EngineOptions, Interrupt, Prepared, Query, QueryContext,
    QueryError, QueryOutput,
};
use koios_runtime::Cpu;
use koios_server::ErrorType;
use koios_tenancy::Limits;

use super::QuerierApi;
use super::admission::{Place, Turns};
use super::cost;
use super::envelope::{Held, Sending};
use super::error::ApiError;
use super::metrics::Stage;
use super::params::Params;
use super::result::{Timings, answer};
use crate::cluster::{Budget, ClusterQueryable, SourceResolution};

/// Queries up to this long and without patterns are parsed at once: that takes less time than changing threads may.
const SHORT_QUERY_BYTES: usize = 4 << 10;

/// When to evaluate.
#[derive(Clone, Copy, Debug)]
enum When {
    At(i64),
    Range { start: i64, end: i64, step: i64 },
}

/// A query as asked.
#[derive(Clone, Debug)]
struct Asked {
    tenant: TenantId,
    limits: Arc<Limits>,
    text: String,
    when: When,
    timeout: Duration,
    lookback_ms: i64,
    limit: usize,
    stats: bool,
    resolution: SourceResolution,
}

/// A finished query; its place is kept until the result is sent.
struct Done {
    output: QueryOutput,
    timings: Timings,
    place: Place,
}

/// What surrounds an evaluation: who may stop it, and the cores it may use.
#[derive(Clone)]
struct Evaluation {
    cancel: CancelContext,
    cores: Cpu,
    /// Where evaluation runs.
    threads: Cpu,
    /// What the tenant's queries wait for before they use a thread.
    turns: Turns,
}

impl QueryContext for Evaluation {
    fn interrupted(&self) -> Option<Interrupt> {
        self.cancel.interrupted()
    }

    fn width(&self) -> usize {
        self.cores.parallelism()
    }

    fn each(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        self.cores.each(parts, part);
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(self.clone())
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'_, ()> {
        async move {
            let Ok(turn) = self.turns.take().await else {
                return;
            };
            // The turn ends with the work, which goes on for a while when nobody waits for it any more.
            let work = move || {
                work();
                drop(turn);
            };
            if let Err(e) = self.threads.run(work).await {
                tracing::error!(error = %e, "a query panicked");
            }
        }
        .boxed()
    }
}

/// Cancels the evaluation when the client is gone, which drops the request's future.
pub(super) struct CancelOnDrop(pub(super) CancelContext);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// `/api/v1/query`.
pub(super) async fn instant(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let at = params.time_or("time", api.clock.now_ms())?;
    api.query(&headers, &params, When::At(at)).await
}

/// `/api/v1/query_range`.
pub(super) async fn range(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let (start, end) = (params.time("start")?, params.time("end")?);
    if end < start {
        return Err(ApiError::invalid(
            "end",
            "end timestamp must not be before start time",
        ));
    }
    let step = params.millis("step")?;
    let step = step.ok_or_else(|| ApiError::invalid("step", r#"cannot parse "" to a valid duration"#))?;
    if step <= 0 {
        let text = "zero or negative query resolution step widths are not accepted. Try a positive integer";
        return Err(ApiError::invalid("step", text));
    }
    api.query(&headers, &params, When::Range { start, end, step })
        .await
}

impl QuerierApi {
    async fn query(
        self: &Arc<Self>,
        headers: &HeaderMap,
        params: &Params,
        when: When,
    ) -> Result<Response, ApiError> {
        let asked = self.asked(headers, params, when)?;
        let (limit, stats) = (asked.limit, asked.stats);
        let timer = self.metrics.query(&self.clock);
        let result = self.run(asked).await;
        timer.ended(result.as_ref().err().map(|e| e.kind));
        let Done {
            output,
            timings,
            place,
        } = result?;
        let sending = Sending {
            clients: &self.clients,
            held: Held::new(place, None),
        };
        Ok(answer(output, limit, stats.then_some(timings), sending))
    }

    fn asked(&self, headers: &HeaderMap, params: &Params, when: When) -> Result<Asked, ApiError> {
        let tenant = super::tenant_of(headers)?;
        let limits = self.overrides.of(&tenant);
        if let When::Range { start, end, step } = when {
            let points = (i128::from(end) - i128::from(start)) / i128::from(step);
            if points > i128::from(limits.max_query_points) {
                return Err(ApiError::bad_data(format!(
                    "exceeded maximum resolution of {} points per timeseries. Try decreasing the query \
                     resolution (?step=XX)",
                    with_commas(limits.max_query_points)
                )));
            }
        }
        let text = params.one("query")?.unwrap_or("").to_owned();
        super::check_length(&text, &limits)?;
        let timeout = positive(params, "timeout")?.map_or(limits.query_timeout, |ms| {
            limits.query_timeout.min(Duration::from_millis(ms.unsigned_abs()))
        });
        let lookback_ms = positive(params, "lookback_delta")?;
        let default_lookback = i64::try_from(limits.lookback_delta.as_millis()).unwrap_or(i64::MAX);
        Ok(Asked {
            tenant,
            text,
            when,
            timeout,
            lookback_ms: lookback_ms.unwrap_or(default_lookback),
            limit: params.count("limit")?,
            stats: params.one("stats")?.is_some(),
            resolution: resolution(params)?,
            limits,
        })
    }

    /// Runs a query within its deadline.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = %asked.tenant, query = super::shortened(&asked.text)))]
    async fn run(self: &Arc<Self>, asked: Asked) -> Result<Done, ApiError> {
        let timeout = asked.timeout;
        let deadline = self.clock.elapsed().saturating_add(timeout);
        let clock = Arc::clone(&self.clock);
        let ctx = CancelContext::new(move || clock.elapsed() >= deadline);
        let _cancel = CancelOnDrop(ctx.clone());
        match self.clock.timeout(timeout, self.stages(asked, ctx)).await {
            Ok(result) => result,
            Err(_) => Err(QueryError::Timeout("expression evaluation").into()),
        }
    }

    /// Parse and plan, wait for a place, fetch, evaluate.
    async fn stages(self: &Arc<Self>, asked: Asked, ctx: CancelContext) -> Result<Done, ApiError> {
        let Asked {
            tenant,
            limits,
            resolution,
            ..
        } = asked.clone();
        let mut timings = Timings::default();
        let mut stage = self.metrics.stage(Stage::Prepare, &self.clock);
        let quick = asked.text.len() <= SHORT_QUERY_BYTES && !asked.text.contains('~');
        let prepared = if quick {
            prepare(&asked, &ctx)?
        } else {
            let ctx = ctx.clone();
            self.cpu
                .run(move || prepare(&asked, &ctx))
                .await
                .map_err(|e| panicked(&e))??
        };
        timings.prepare = stage.end();

        stage = self.metrics.stage(Stage::Queue, &self.clock);
        let place = self.admit(&tenant, limits.max_concurrent_queries).await?;
        timings.queue = stage.end();

        stage = self.metrics.stage(Stage::Fetch, &self.clock);
        let budget = Budget::new(
            as_size(limits.max_query_memory_bytes),
            as_size(limits.max_query_series),
        );
        let storage = ClusterQueryable::new(Arc::clone(&self.cluster), tenant, budget)
            .for_one_query()
            .with_resolution(resolution);
        let evaluation = Evaluation {
            cancel: ctx,
            cores: self.cores.clone(),
            threads: self.cpu.clone(),
            turns: place.turns(),
        };
        let fetched = prepared.fetch(&storage, &evaluation).await?;
        timings.fetch = stage.end();

        let turn = evaluation.turns.take().await?;
        stage = self.metrics.stage(Stage::Evaluate, &self.clock);
        let evaluate = move || {
            let _turn = turn;
            fetched.evaluate(&evaluation)
        };
        let output = self.cpu.run(evaluate).await.map_err(|e| panicked(&e))??;
        timings.evaluate = stage.end();
        self.metrics.samples.inc_by(output.stats.samples_total);
        Ok(Done {
            output,
            timings,
            place,
        })
    }
}

fn prepare(asked: &Asked, ctx: &CancelContext) -> Result<Prepared, ApiError> {
    let invalid = |e| match e {
        QueryError::BadData(text) => ApiError::invalid("query", text),
        e => e.into(),
    };
    let language = super::language_of(&asked.limits);
    let query = Query::parse_within(&asked.text, &language, ctx).map_err(invalid)?;
    let engine = Engine::new(EngineOptions {
        lookback_delta_ms: asked.lookback_ms,
        max_samples: as_size(asked.limits.max_query_samples),
        max_memory_bytes: as_size(asked.limits.max_query_memory_bytes),
        summaries_asked_for: asked.resolution.asks_for_summaries(),
        ..EngineOptions::default()
    });
    let (step_ms, range_ms) = match asked.when {
        When::At(_) => (0, 0),
        When::Range { start, end, step } => (step, end.saturating_sub(start)),
    };
    let context = DurationContext { step_ms, range_ms };
    let checked = cost::check(query.ast(), context, asked.limits.max_query_samples);
    let prepared = checked.and_then(|()| match asked.when {
        When::At(at) => engine.prepare_instant(&query, at),
        When::Range { start, end, step } => engine.prepare_range(&query, start, end, step),
    });
    prepared.map_err(invalid)
}

/// The parameter of Thanos' name that says how coarse the data may be that a query is answered from.
fn resolution(params: &Params) -> Result<SourceResolution, ApiError> {
    const NAME: &str = "max_source_resolution";
    if matches!(params.one(NAME)?, None | Some("auto")) {
        return Ok(SourceResolution::Auto);
    }
    match params.millis(NAME)? {
        Some(ms) if ms < 0 => Err(ApiError::invalid(NAME, format!("{NAME} must be non-negative"))),
        ms => Ok(ms.map_or(SourceResolution::Auto, SourceResolution::UpTo)),
    }
}

/// A duration parameter that must not be negative; zero counts as absent.
fn positive(params: &Params, name: &str) -> Result<Option<i64>, ApiError> {
    match params.millis(name)? {
        Some(ms) if ms < 0 => Err(ApiError::invalid(name, format!("{name} must be non-negative"))),
        ms => Ok(ms.filter(|ms| *ms > 0)),
    }
}

fn as_size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

pub(super) fn panicked(e: &koios_runtime::CpuPanicked) -> ApiError {
    tracing::error!(error = %e, "a query panicked");
    ApiError::new(ErrorType::Internal, "the query failed by a bug, see the log")
}

fn with_commas(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::admission::Admission;
    use super::*;

    #[tokio::test]
    async fn i6_parts_computed_while_fetching_wait_for_a_turn() {
        let admission = Admission::new(4, 2);
        let place = admission.enter(&TenantId::anonymous(), 4).await.unwrap();
        let evaluation = Evaluation {
            cancel: CancelContext::new(|| false),
            cores: Cpu::inline(),
            threads: Cpu::inline(),
            turns: place.turns(),
        };
        let done = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&done);
        let turn = evaluation.turns.take().await.unwrap();
        let mut part = evaluation.offload(Box::new(move || tell.store(true, Ordering::Relaxed)));
        assert!((&mut part).now_or_never().is_none() && !done.load(Ordering::Relaxed));
        drop(turn);
        part.await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn i6_work_that_nobody_waits_for_keeps_its_turn_until_it_ends() {
        let admission = Admission::new(4, 2);
        let place = admission.enter(&TenantId::anonymous(), 4).await.unwrap();
        let evaluation = Evaluation {
            cancel: CancelContext::new(|| false),
            cores: Cpu::inline(),
            threads: Cpu::threaded(1).unwrap(),
            turns: place.turns(),
        };
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (began, begun) = tokio::sync::oneshot::channel();
        let work = move || {
            let _ = began.send(());
            let _ = held.recv();
        };
        let mut part = evaluation.offload(Box::new(work));
        assert!((&mut part).now_or_never().is_none());
        begun.await.unwrap();
        drop(part);
        assert!(
            evaluation.turns.take().now_or_never().is_none(),
            "given back early"
        );
        drop(release);
        drop(evaluation.turns.take().await.unwrap());
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(with_commas(11_000), "11,000");
        assert_eq!(with_commas(999), "999");
        assert_eq!(with_commas(1_000_000), "1,000,000");
    }
}
