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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use koios_control::{ClusterState, Ruling};
    use koios_model::TenantId;
    use koios_runtime::TokioClock;
    use koios_tenancy::Limits;
    use koios_wire::ServiceError;
    use parking_lot::Mutex;

    use super::super::tracker::Brought;
    use super::*;

    /// A leader that takes a second for each report.
    #[derive(Debug)]
    struct Slow {
        clock: ClockHandle,
        /// How many pairs, and the age of the first.
        heard: Mutex<Vec<(usize, Option<u64>)>>,
    }

    #[async_trait]
    impl Referee for Slow {
        async fn report(&self, pairs: Vec<PairReport>) -> Result<Vec<Ruling>, ServiceError> {
            let age = pairs.first().map(|pair| pair.replicas[0].age_ms);
            self.heard.lock().push((pairs.len(), age));
            self.clock.sleep(Duration::from_secs(1)).await;
            Ok(pairs.iter().map(|_| Ruling::default()).collect())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ages_are_those_of_when_a_part_is_told_and_the_last_part_is_not_full() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let tracker = Tracker::default();
        let limits = Limits {
            ha_max_clusters: 10_000,
            ..Limits::default()
        };
        let brought = (0..2 * PAIRS_PER_REPORT_MAX).map(|i| Brought {
            cluster: format!("c{i}"),
            replica: "a".to_owned(),
            newest_ms: 0,
        });
        let brought: Vec<Brought> = brought.collect();
        let state = ClusterState::default();
        tracker.note(
            (&TenantId::anonymous(), &limits),
            &brought,
            &state,
            clock.elapsed(),
        );
        let slow = Slow {
            clock: Arc::clone(&clock),
            heard: Mutex::default(),
        };
        report_once(&tracker, &slow, &clock).await.unwrap();
        let full = PAIRS_PER_REPORT_MAX;
        let heard = slow.heard.lock().clone();
        assert_eq!(heard, [(full, Some(0)), (full, Some(1000)), (0, None)]);
    }
}
