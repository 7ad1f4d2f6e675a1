//! Tells the control leader which replicas were seen, and learns what the other distributors saw.

use std::sync::Arc;
use std::time::Duration;

use koios_control::PAIRS_PER_REPORT_MAX;
use koios_runtime::ClockHandle;

use super::{Referee, Tracker};
use crate::metrics::DistributorMetrics;

/// How often the leader hears of all pairs: several times within the shortest failover timeout.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Rest after a report for news, so that many new pairs make few reports.
const NEWS_REST: Duration = Duration::from_millis(100);

/// Reports as long as the process runs; nothing happens before a pair sends.
pub(crate) async fn report_for_ever(
    tracker: Arc<Tracker>,
    referee: Arc<dyn Referee>,
    clock: ClockHandle,
    metrics: DistributorMetrics,
) {
    loop {
        let pairs = tracker.sweep(clock.elapsed());
        metrics.ha_pairs.set(i64::try_from(pairs).unwrap_or(i64::MAX));
        if pairs == 0 {
            tracker.news().await;
        }
        if let Err(error) = report_once(&tracker, referee.as_ref(), &clock).await {
            metrics.ha_report_failures.inc();
            tracing::debug!(%error, "HA pairs not reported");
        }
        clock.sleep(NEWS_REST).await;
        // Whether news came or time passed, all is told.
        let _ = clock.timeout(REPORT_EVERY, tracker.news()).await;
    }
}

async fn report_once(
    tracker: &Tracker,
    referee: &dyn Referee,
    clock: &ClockHandle,
) -> Result<(), koios_wire::ServiceError> {
    let reports = tracker.report(clock.elapsed());
    for chunk in reports.chunks(PAIRS_PER_REPORT_MAX) {
        // The leader's ages count from when it answers, which is later.
        let asked_at = clock.elapsed();
        let rulings = referee.report(chunk.to_vec()).await?;
        for (report, ruling) in chunk.iter().zip(&rulings) {
            if let Some(refused) = &ruling.refused {
                let (tenant, cluster) = (&report.tenant, &report.cluster);
                tracing::debug!(%tenant, cluster, refused, "no replica of the HA pair is elected");
            }
            tracker.learn(report, ruling, asked_at);
        }
    }
    Ok(())
}
