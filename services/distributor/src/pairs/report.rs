//! Tells the control leader which replicas were seen, and learns what the other distributors saw.

use std::sync::Arc;
use std::time::Duration;

use koios_control::{PAIRS_PER_REPORT_MAX, PairReport};
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
    let seen_at = clock.elapsed();
    let reports = tracker.report(seen_at);
    // Always ends with one that is not full, maybe with an empty one: only then has this process told all.
    for at in 0..=reports.len() / PAIRS_PER_REPORT_MAX {
        let chunk = reports.iter().skip(at * PAIRS_PER_REPORT_MAX);
        let chunk: Vec<&PairReport> = chunk.take(PAIRS_PER_REPORT_MAX).collect();
        // The leader's ages count from when it answers, which is later.
        let asked_at = clock.elapsed();
        let older = asked_at.saturating_sub(seen_at);
        let aged = chunk.iter().map(|report| aged(report, older)).collect();
        let rulings = referee.report(aged).await?;
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

/// The report as it is told a while after it was made.
fn aged(report: &PairReport, older: Duration) -> PairReport {
    let mut report = report.clone();
    let older_ms = u64::try_from(older.as_millis()).unwrap_or(u64::MAX);
    for sighting in &mut report.replicas {
        sighting.age_ms = sighting.age_ms.saturating_add(older_ms);
    }
    report
}
