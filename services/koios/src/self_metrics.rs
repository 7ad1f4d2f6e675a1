//! All-in-one writes its own metrics into itself, so that the first query already answers.

use std::time::Duration;

use koios_distributor::Distributor;
use koios_model::{Labels, Sample, TenantId};
use koios_runtime::ClockHandle;
use koios_server::Metrics;

/// How often the first write is tried until the process can take it.
const FIRST_TRY_EVERY: Duration = Duration::from_millis(100);

/// Writes every `interval`, for as long as it is polled.
pub(crate) async fn run(
    distributor: Distributor,
    metrics: Metrics,
    clock: ClockHandle,
    tenant: TenantId,
    instance: String,
    interval: Duration,
) {
    let mut started = false;
    loop {
        let now_ms = clock.now_ms();
        let own = |labels: &Labels, v| (named(labels, &instance), vec![Sample { t: now_ms, v }]);
        let mut series: Vec<(Labels, Vec<Sample>)> = metrics
            .gather()
            .iter()
            .map(|(labels, v)| own(labels, *v))
            .collect();
        series.push(own(&Labels::from_pairs([("__name__", "up")]), 1.0));
        match distributor.push(&tenant, &series).await {
            Ok(_) => started = true,
            Err(error) if started => tracing::warn!(%error, "own metrics were not written"),
            Err(error) => tracing::debug!(%error, "own metrics wait for the process to come up"),
        }
        clock
            .sleep(if started { interval } else { FIRST_TRY_EVERY })
            .await;
    }
}

/// The labels that a scrape would have added.
fn named(labels: &Labels, instance: &str) -> Labels {
    labels
        .to_builder()
        .set("job", "koios")
        .set("instance", instance)
        .build()
}
