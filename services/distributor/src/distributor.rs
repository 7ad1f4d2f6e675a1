//! The service: what happens to a request, stage by stage.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures::future::join_all;
use koios_control::{ClusterState, StateHandle};
use koios_model::{Labels, Sample, StreamId, TenantId, TenantSeed};
use koios_runtime::{ClockHandle, Runtime, TaskGroup};
use koios_server::Metrics;
use koios_tenancy::{Limits, Overrides};
use koios_wire::compression::Compression;
use koios_wire::otlp::{self, Deltas};
use parking_lot::Mutex;

use crate::admission::{BytesInFlight, HeldBytes};
use crate::intake::{Intake, Rules};
use crate::known_series::{KnownSeries, TenantKnown};
use crate::left_out::{LeftOut, SentMessage};
use crate::limiter::{Asker, Limiter, distributors_of};
use crate::message::{Format, Message};
use crate::metric_limit::MetricsOf;
use crate::metrics::DistributorMetrics;
use crate::outcome::{Failure, Outcome};
use crate::pairs::{Gate, Referee, Tracker, report_for_ever};
use crate::rate_limit::{Asked, Rates};
use crate::replicate::{Content, Replicator};
use crate::routes::Routes;
use crate::series_limit::SeriesLimits;
use crate::streams::Streams;
use crate::taken::Taken;
use crate::{Error, Members};

/// How a distributor behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of requests held at once, compressed and decompressed together.
    pub bytes_in_flight_max: u64,
    /// How long a request's replication may take, resends included.
    pub push_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bytes_in_flight_max: 256 << 20,
            push_deadline: Duration::from_secs(10),
        }
    }
}

/// What a distributor is made of.
#[derive(Debug)]
pub struct Deps {
    /// Clock, randomness and CPU.
    pub runtime: Runtime,
    /// The cluster's state.
    pub state: StateHandle,
    /// How to reach ingesters.
    pub members: Arc<dyn Members>,
    /// Limits of all tenants.
    pub limits: Overrides,
    /// Where to register metrics.
    pub metrics: Metrics,
    /// Sends to slower members run here; ends with the process.
    pub tasks: TaskGroup,
    /// Who elects replicas of HA pairs.
    pub referee: Arc<dyn Referee>,
    /// Behaviour.
    pub settings: Settings,
}

/// The ingestion service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Distributor {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    runtime: Runtime,
    pub(crate) limits: Overrides,
    pub(crate) metrics: DistributorMetrics,
    bytes: BytesInFlight,
    rates: Arc<Rates>,
    series_limits: SeriesLimits,
    asker: Arc<Asker>,
    known: KnownSeries,
    deltas: Deltas,
    pairs: Arc<Tracker>,
    routes: Arc<Routes>,
    replicator: Replicator,
    failure_log: Mutex<FailureLog>,
}

/// When a failure was last logged and how many came since.
#[derive(Debug, Default)]
struct FailureLog {
    last: Option<Duration>,
    unlogged: u64,
}

/// Shortest time between two logged failures.
const FAILURE_LOG_REST: Duration = Duration::from_secs(1);

impl Distributor {
    /// A distributor with a stream of its own.
    pub fn new(deps: Deps) -> Self {
        let metrics = DistributorMetrics::new(&deps.metrics);
        let routes = Arc::new(Routes::new(deps.state));
        let asker = Asker {
            members: Arc::clone(&deps.members),
            clock: Arc::clone(&deps.runtime.clock),
            metrics: metrics.clone(),
            // What members say leaves time to write.
            deadline: deps.settings.push_deadline / 2,
        };
        let replicator = Replicator {
            routes: Arc::clone(&routes),
            members: deps.members,
            streams: Streams::new(StreamId(deps.runtime.rng.u128())),
            clock: Arc::clone(&deps.runtime.clock),
            cpu: deps.runtime.cpu.clone(),
            rng: deps.runtime.rng.clone(),
            tasks: deps.tasks,
            metrics: metrics.clone(),
            rates: Arc::default(),
            stragglers: Replicator::straggler_permits(),
            deadline: deps.settings.push_deadline,
        };
        let pairs = Arc::<Tracker>::default();
        let reporting = report_for_ever(
            Arc::clone(&pairs),
            deps.referee,
            Arc::clone(&deps.runtime.clock),
            metrics.clone(),
        );
        replicator.tasks.spawn_cancelled("ha reports", reporting);
        let shared = Shared {
            pairs,
            bytes: BytesInFlight::new(deps.settings.bytes_in_flight_max),
            rates: Arc::clone(&replicator.rates),
            series_limits: SeriesLimits::default(),
            asker: Arc::new(asker),
            known: KnownSeries::default(),
            deltas: Deltas::default(),
            runtime: deps.runtime,
            limits: deps.limits,
            metrics,
            routes,
            replicator,
            failure_log: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// `POST /api/v1/push`, `/api/v1/write`, `/api/v1/import/prometheus`, Pushgateway's paths, OTLP's and Influx', also below
    /// `/prometheus`.
    pub fn router(&self) -> Router {
        crate::http_api::router(self.clone())
    }

    /// OTLP's `MetricsService`, for a gRPC listener.
    pub fn grpc_router(&self) -> Router {
        crate::otlp::grpc_router(self.clone())
    }

    /// Writes series from within the process, such as its own metrics. Limits on rate, bytes and series do not apply.
    ///
    /// # Errors
    /// [`Error::NoPartitions`], [`Error::NotEnoughReplicas`].
    pub async fn push(&self, tenant: &TenantId, series: &[(Labels, Vec<Sample>)]) -> Result<Outcome, Error> {
        let rules = self.shared.rules(tenant)?;
        let known = self.shared.known.of(tenant, &rules.limits);
        let taken = {
            let known = known.read();
            let mut intake = Intake::new(&rules, &known);
            for (labels, samples) in series {
                intake.trusted(labels.as_ref(), samples);
            }
            intake.finish()
        };
        let written = self
            .shared
            .replicate((tenant, &known, None), rules.admission_ms, taken, None)
            .await;
        written.map_err(|failure| failure.error)
    }

    /// Writes a compressed message, whose bytes `held` accounts for.
    pub(crate) async fn push_message(
        &self,
        tenant: &TenantId,
        format: Format,
        compression: Compression,
        body: Bytes,
        held: HeldBytes,
    ) -> Result<Outcome, Failure> {
        let shared = &self.shared;
        let rules = shared.rules(tenant)?;
        let (admission_ms, state) = (rules.admission_ms, Arc::clone(&rules.table.state));
        let started = shared.runtime.clock.elapsed();
        let now = started;
        let undecided_for = match (rules.limits.max_series, rules.limits.max_series_per_metric) {
            (0, limit) => ("limits.max-series-per-metric", limit),
            (limit, _) => ("limits.max-series", limit),
        };
        let known = shared.known.of(tenant, &rules.limits);
        let limiter = shared.limiter(tenant, &rules, now);
        let message = Message {
            known: Arc::clone(&known),
            deltas: matches!(format, Format::Otlp(_)).then(|| shared.deltas.of(tenant, now)),
            format,
            compression,
            pairs: rules.limits.ha_dedup.then(|| shared.gate(tenant, &rules, now)),
            body,
            held,
        };
        // Held to the end: what it accounts for covers the columns.
        let (mut taken, sent, _held) = shared
            .runtime
            .cpu
            .run(move || message.take_in(&rules))
            .await
            .map_err(|panic| Error::Internal(panic.to_string()))??;
        shared.stage("decode", started);
        if let Some(limiter) = &limiter {
            let had_any = !taken.parts.is_empty();
            taken = shared.admit_series(limiter, taken).await?;
            if had_any && taken.parts.is_empty() && taken.undecided == 0 {
                // Nobody may rely on what was rejected.
                let brought = std::mem::take(&mut taken.pairs.brought);
                shared.pairs.lose(tenant, &brought, &state, now);
            }
        }
        let limits = shared.limits.of(tenant);
        let now = shared.runtime.clock.elapsed();
        let pairs = std::mem::take(&mut taken.pairs);
        let mut undecided = taken.undecided;
        let lose = |error: &Error| {
            if error.status().is_client_error() {
                shared.pairs.lose(tenant, &pairs.brought, &state, now);
            }
        };
        let admitted = shared
            .admit_rate((tenant, &limits), &mut taken, &state, now)
            .await;
        let mut deltas = admitted.inspect_err(lose)?;
        let written = shared
            .replicate(
                (tenant, &known, limiter),
                admission_ms,
                taken,
                Some(Arc::new(sent)),
            )
            .await;
        let mut outcome = written.inspect_err(|failure| lose(&failure.error))?;
        if let Some(deltas) = &mut deltas {
            deltas.take_back(|point| outcome.points.lost.contains(&point));
        }
        undecided += outcome.undecided;
        if undecided > 0 {
            return Err(Failure {
                error: Error::SeriesUndecided {
                    series: undecided,
                    setting: undecided_for.0,
                    limit: undecided_for.1,
                },
                written: outcome.written,
            });
        }
        // Only now may others rely on what a replica brought, and only if it is certain whom they know to be elected.
        if !pairs.brought.is_empty() {
            let state = Arc::clone(&shared.routes.current().state);
            let now = shared.runtime.clock.elapsed();
            if outcome.state_version <= state.version {
                shared.pairs.note((tenant, &limits), &pairs.brought, &state, now);
            }
        }
        shared.metrics.pairs(tenant, &pairs);
        outcome.deduplicated = pairs.deduplicated;
        Ok(outcome)
    }
}

impl Shared {
    pub(crate) fn open_bytes(&self, tenant: &TenantId) -> HeldBytes {
        self.metrics
            .bytes_in_flight
            .set(i64::try_from(self.bytes.total()).unwrap_or(i64::MAX));
        self.bytes.open(tenant)
    }

    /// Whether the process has memory for another request.
    pub(crate) fn check_memory(&self) -> Result<(), Error> {
        Ok(self.runtime.memory.check(self.runtime.clock.elapsed())?)
    }

    pub(crate) fn clock(&self) -> &ClockHandle {
        &self.runtime.clock
    }

    /// Logs a failure, but no more than one of ours per second: during an outage every request fails.
    pub(crate) fn log_failure(&self, error: &Error) {
        if !error.status().is_server_error() {
            tracing::debug!(?error, "write request refused");
            return;
        }
        let now = self.runtime.clock.elapsed();
        let mut log = self.failure_log.lock();
        if log
            .last
            .is_some_and(|last| now.saturating_sub(last) < FAILURE_LOG_REST)
        {
            log.unlogged += 1;
            return;
        }
        let unlogged = std::mem::take(&mut log.unlogged);
        log.last = Some(now);
        drop(log);
        tracing::warn!(%error, unlogged, "write request not acknowledged");
    }

    pub(crate) fn stage(&self, stage: &'static str, started: Duration) {
        let took = self.runtime.clock.elapsed().saturating_sub(started);
        self.metrics.observe(stage, took);
    }

    /// The rules for a request that is admitted now.
    fn rules(&self, tenant: &TenantId) -> Result<Rules, Error> {
        let table = self.routes.current();
        if table.state.partitions.is_empty() {
            return Err(Error::NoPartitions);
        }
        Ok(Rules {
            limits: self.limits.of(tenant),
            seed: TenantSeed::new(&table.state.secret.0, tenant),
            table,
            admission_ms: self.runtime.clock.now_ms(),
        })
    }

    fn gate(&self, tenant: &TenantId, rules: &Rules, now: Duration) -> Gate {
        Gate::new(
            &self.pairs,
            (tenant, &rules.limits),
            &rules.table.state,
            rules.accepted_ms(),
            (now, rules.admission_ms),
        )
    }

    fn limiter(&self, tenant: &TenantId, rules: &Rules, now: Duration) -> Option<Limiter> {
        Some(Limiter {
            room: {
                let limits = (rules.limits.max_series, rules.limits.max_series_per_metric);
                self.series_limits.of(tenant, limits, now)?
            },
            per_metric: rules.limits.max_series_per_metric,
            asker: Arc::clone(&self.asker),
            tenant: tenant.clone(),
            state: Arc::clone(&rules.table.state),
        })
    }

    async fn on_cpu<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let done = self.runtime.cpu.run(work).await;
        done.map_err(|panic| Error::Internal(panic.to_string()))
    }

    /// Takes new series out for which there is no room.
    async fn admit_series(&self, limiter: &Limiter, mut taken: Taken) -> Result<Taken, Error> {
        let mut unknown = taken.unknown();
        if unknown.is_empty() {
            return Ok(taken);
        }
        let started = self.runtime.clock.elapsed();
        let per_metric = Some(limiter.per_metric).filter(|limit| *limit > 0);
        let metrics = match per_metric {
            None => None,
            Some(limit) => {
                let find = move || {
                    let metrics = MetricsOf::unknown(&taken, &unknown, limit);
                    (taken, unknown, metrics)
                };
                let metrics;
                (taken, unknown, metrics) = self.on_cpu(find).await?;
                Some(metrics)
            }
        };
        let decision = limiter.admit(unknown, metrics.as_ref()).await;
        let limit = limiter.room.limit();
        let is_whole = decision.is_yes();
        let settle = move || {
            taken.settle(decision, limit);
            taken
        };
        let taken = match is_whole {
            true => settle(),
            false => self.on_cpu(settle).await?,
        };
        self.stage("admit_series", started);
        Ok(taken)
    }

    /// Admits what is left of a request by the tenant's rate. Gives what its deltas changed, which may be stored from then on;
    /// it comes again as it is when that fails.
    async fn admit_rate(
        &self,
        (tenant, limits): (&TenantId, &Limits),
        taken: &mut Taken,
        state: &ClusterState,
        now: Duration,
    ) -> Result<Option<otlp::Changes>, Error> {
        let asked = Asked {
            samples: taken.samples() + taken.exemplars(),
            distributors: distributors_of(state),
            now,
        };
        let admitted = self.rates.admit(tenant, limits, asked);
        let mut deltas = taken.deltas.take();
        if let Err(error) = admitted {
            // Taking back what a large request changed takes its time.
            self.on_cpu(move || drop(deltas)).await?;
            return Err(error);
        }
        deltas.iter_mut().for_each(otlp::Changes::sent);
        Ok(deltas)
    }

    /// Sends every partition's part and waits for all majorities. `message` is where labels were left.
    async fn replicate(
        &self,
        (tenant, known, limiter): (&TenantId, &Arc<TenantKnown>, Option<Limiter>),
        admission_ms: i64,
        taken: Taken,
        message: Option<Arc<SentMessage>>,
    ) -> Result<Outcome, Failure> {
        let started = self.runtime.clock.elapsed();
        let message = message.as_ref();
        let limiter = limiter.as_ref();
        // Given back when members count what was let in.
        let _metric_room = taken.metric_room;
        let parts = taken.parts.into_iter().map(|(partition, part)| async move {
            let (mut new, mut reserved) = (part.new, part.reserved);
            let left_out = message.map(|message| LeftOut::new(message, part.left_out));
            let content = Content {
                columns: part.columns,
                encoded: part.content,
                left_out: Arc::new(left_out.unwrap_or_default()),
                points: part.points,
                limiter: limiter.cloned(),
            };
            let sent = self
                .replicator
                .replicate(tenant, partition, admission_ms, content);
            if let Some(reserved) = &mut reserved {
                reserved.sent();
            }
            let sent = sent.await;
            // What failed for good was refused by those it was sent to.
            let is_certain = sent.as_ref().map_or_else(is_final, |_| true);
            if let Some(reserved) = reserved.filter(|_| is_certain) {
                reserved.settled();
            }
            let acknowledged = sent?;
            let gone = acknowledged.taken_out.refused.clone();
            if !new.is_empty() || !gone.is_empty() {
                let known = Arc::clone(known);
                let learn = move || {
                    new.retain(|series| !gone.contains(&series.hash));
                    known.learn(&new);
                    known.forget(&gone);
                };
                // A panic there costs what was to be learnt.
                let _ = self.runtime.cpu.run(learn).await;
            }
            Ok(acknowledged)
        });
        let parts = join_all(parts).await;
        self.stage("replicate", started);
        let mut outcome = Outcome {
            exemplars_dropped: taken.exemplars_dropped,
            points: taken.points,
            rejected: taken.report,
            ..Outcome::default()
        };
        let mut failure: Option<Error> = None;
        outcome.points.note_lost(parts.iter().flatten());
        for part in parts {
            match part {
                Ok(acknowledged) => outcome.add(acknowledged, &self.metrics),
                // What is to be sent again goes first: else what other partitions would take then is lost.
                Err(error) => match &failure {
                    Some(first) if !is_final(first) || is_final(&error) => {}
                    _ => failure = Some(error),
                },
            }
        }
        let samples = outcome.written.samples + outcome.written.histograms;
        self.metrics.samples_written.inc_by(samples);
        self.metrics.exemplars_dropped.inc_by(outcome.exemplars_dropped);
        self.metrics.rejected(&outcome.rejected);
        match failure {
            None => Ok(outcome),
            Some(error) => Err(Failure {
                error,
                written: outcome.written,
            }),
        }
    }
}

/// Whether the same request fails again.
fn is_final(error: &Error) -> bool {
    error.status().is_client_error()
}
