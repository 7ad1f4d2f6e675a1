//! Metadata of metrics stays while somebody sends it, or a head has their series.

use std::sync::Arc;
use std::time::Duration;

use koios_model::TimeRange;
use koios_wire::IngesterService;

use crate::harness::{T0, World};

const HOURS: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn i10_metadata_of_a_deleted_metric_does_not_come_back_with_a_batch_that_is_late() {
    let mut w = World::start(3).await;
    let batch = w.metadata_batch(&["a", "b"]);
    for i in 0..2 {
        w.node(i).push(Arc::clone(&batch)).await.unwrap();
    }
    assert_eq!(w.described(0).await, ["a", "b"]);
    let version = w.delete(1, "a", TimeRange::ALL).await;
    assert_eq!(w.described(0).await, ["b"]);
    // The third member learns of the deletion before it gets what that covers.
    w.deletions(2, version).await.unwrap();
    w.node(2).push(batch).await.unwrap();
    assert_eq!(w.described(2).await, ["b"]);
    // So does one that starts again.
    w.crash(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    assert_eq!(w.described(0).await, ["b"]);
    // Sent again, it is there again.
    let again = w.metadata_batch(&["a"]);
    w.node(2).push(again).await.unwrap();
    assert_eq!(w.described(2).await, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn metadata_that_nobody_sends_goes_a_day_later() {
    let mut w = World::start(1).await;
    let batch = w.metadata_batch(&["a", "b"]);
    w.node(0).push(batch).await.unwrap();
    assert!(w.write(&[("a", T0, 1.0), ("b", T0, 1.0)]).await);
    // Blocks have the samples, and the head has forgotten them.
    w.sleep(20 * HOURS).await;
    assert!(w.read(0).await.unwrap().0.is_empty());
    assert_eq!(w.described(0).await, ["a", "b"]);
    let again = w.metadata_batch(&["b"]);
    w.node(0).push(again).await.unwrap();
    w.sleep(6 * HOURS).await;
    assert_eq!(w.described(0).await, ["b"]);
}
