//! What the querier tells about itself.

use std::time::Duration;

use koios_runtime::ClockHandle;
use koios_server::metrics::{ByWord, Counter, Family, duration_histogram};
use koios_server::{ErrorType, Metrics};
use prometheus_client::metrics::histogram::Histogram;

/// The stages of a query, by the names of their metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Prepare,
    Queue,
    Fetch,
    Evaluate,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Queue => "queue",
            Self::Fetch => "fetch",
            Self::Evaluate => "evaluate",
        }
    }
}

/// The querier's metrics.
#[derive(Clone, Debug)]
pub(crate) struct QuerierMetrics {
    queries: ByWord<Counter>,
    duration: Histogram,
    stages: ByWord<Histogram>,
    pub(crate) samples: Counter,
}

impl QuerierMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let stages: ByWord<Histogram> = Family::new_with_constructor(duration_histogram as fn() -> Histogram);
        let queries = Family::default();
        Self {
            queries: metrics.register(
                "koios_querier_queries_total",
                "Queries finished, by outcome",
                queries,
            ),
            duration: metrics.durations(
                "koios_querier_query_duration_seconds",
                "Time from a query's arrival to its result",
            ),
            stages: metrics.register(
                "koios_querier_stage_duration_seconds",
                "Time of each stage of queries",
                stages,
            ),
            samples: metrics.counter(
                "koios_querier_samples_processed_total",
                "Samples that queries looked at",
            ),
        }
    }

    /// Counts and times a query from now on.
    pub(crate) fn query(&self, clock: &ClockHandle) -> QueryTimer {
        QueryTimer {
            metrics: self.clone(),
            clock: ClockHandle::clone(clock),
            started: clock.elapsed(),
            outcome: ErrorType::Canceled.as_str(),
        }
    }

    pub(crate) fn stage(&self, stage: Stage, clock: &ClockHandle) -> StageTimer {
        StageTimer {
            histogram: self.stages.get_or_create(&[("stage", stage.as_str())]).clone(),
            clock: ClockHandle::clone(clock),
            started: clock.elapsed(),
        }
    }
}

/// Counts and times one query when it is dropped: as canceled unless its outcome was told.
pub(crate) struct QueryTimer {
    metrics: QuerierMetrics,
    clock: ClockHandle,
    started: Duration,
    outcome: &'static str,
}

impl QueryTimer {
    /// Tells how the query ended.
    pub(crate) fn ended(mut self, failure: Option<ErrorType>) {
        self.outcome = failure.map_or("success", ErrorType::as_str);
    }
}

impl Drop for QueryTimer {
    fn drop(&mut self) {
        let took = self.clock.elapsed().saturating_sub(self.started);
        let outcome = [("outcome", self.outcome)];
        self.metrics.queries.get_or_create(&outcome).inc();
        self.metrics.duration.observe(took.as_secs_f64());
    }
}

/// Times one stage.
pub(crate) struct StageTimer {
    histogram: Histogram,
    clock: ClockHandle,
    started: Duration,
}

impl StageTimer {
    /// Ends the stage and says how long it took.
    pub(crate) fn end(&self) -> Duration {
        let took = self.clock.elapsed().saturating_sub(self.started);
        self.histogram.observe(took.as_secs_f64());
        took
    }
}
