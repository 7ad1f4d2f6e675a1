//! The one order in which a process stops.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use koios_runtime::{CancellationToken, ClockHandle};

use crate::Readiness;

/// The stages of a stop, in their order. Starting goes the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopStage {
    /// Listeners take no further connections or requests.
    StopAccepting,
    /// Requests in flight are answered, queues are written out.
    Drain,
    /// Compaction, repair, self-metrics and the like end.
    StopBackground,
    /// The cluster is told that this process goes.
    Leave,
    /// Connections to and from peers close.
    CloseServers,
}

/// What to do at each stage.
#[derive(Default)]
pub struct StopPlan {
    steps: Vec<(StopStage, &'static str, BoxFuture<'static, ()>)>,
}

impl std::fmt::Debug for StopPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.steps.iter().map(|(s, n, _)| (s, n)))
            .finish()
    }
}

impl StopPlan {
    /// Adds a step; steps of one stage run side by side.
    pub fn step(
        &mut self,
        stage: StopStage,
        name: &'static str,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> &mut Self {
        self.steps.push((stage, name, Box::pin(run)));
        self
    }

    /// Adds a step that cancels a token.
    pub fn cancel(&mut self, stage: StopStage, name: &'static str, token: &CancellationToken) -> &mut Self {
        let token = token.clone();
        self.step(stage, name, async move { token.cancel() })
    }
}

/// Stops the process: not ready, then stop accepting, drain, stop background, leave, close servers.
///
/// First the process says that it is not ready, so that load balancers turn away. Then the stages run one after the
/// other, each for at most `stage_limit`; a step that takes longer is dropped and named in the log, and the stop goes
/// on: what is acknowledged is durable already, so cutting loses nothing (I1).
pub async fn stop_in_order(
    clock: &ClockHandle,
    readiness: &Readiness,
    plan: StopPlan,
    stage_limit: Duration,
) {
    readiness.stop();
    let mut steps = plan.steps;
    steps.sort_by_key(|(stage, ..)| *stage);
    while let Some((stage, ..)) = steps.first() {
        let stage = *stage;
        let later = steps.split_off(steps.partition_point(|(s, ..)| *s <= stage));
        let started = clock.elapsed();
        join_all(steps.into_iter().map(|(_, name, run)| async move {
            if clock.timeout(stage_limit, run).await.is_err() {
                tracing::warn!(?stage, step = name, limit = ?stage_limit, "stop step took too long, going on");
            }
        }))
        .await;
        tracing::info!(?stage, took = ?clock.elapsed().saturating_sub(started), "stopped");
        steps = later;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use koios_runtime::TokioClock;
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stages_run_in_order_and_a_stuck_step_is_left_behind() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let readiness = Readiness::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut plan = StopPlan::default();
        for (stage, name) in [
            (StopStage::CloseServers, "grpc"),
            (StopStage::Drain, "wal"),
            (StopStage::StopAccepting, "http"),
            (StopStage::Leave, "ring"),
        ] {
            let (seen, readiness) = (Arc::clone(&seen), readiness.clone());
            plan.step(stage, name, async move {
                assert!(!readiness.is_ready());
                seen.lock().push(name);
            });
        }
        plan.step(StopStage::Drain, "stuck", std::future::pending());
        stop_in_order(&clock, &readiness, plan, Duration::from_secs(5)).await;
        assert_eq!(*seen.lock(), ["http", "wal", "ring", "grpc"]);
        assert_eq!(clock.elapsed(), Duration::from_secs(5));
    }
}
