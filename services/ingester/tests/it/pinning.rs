//! No tenant keeps the log that all share.

use std::sync::Arc;
use std::time::Duration;

use koios_ingester::Settings;
use koios_model::TenantId;
use koios_wire::{Batch, BatchHeader, IngesterService};

use crate::harness::{HOUR, T0, World};

const A_MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn small_segments(s: &mut Settings) {
    s.wal_segment_bytes = 8 << 10;
    s.wal_keep = Duration::ZERO;
}

/// Another tenant, which sends all the time.
pub(crate) async fn push_much(w: &mut World) {
    let now = w.clock.now_ms();
    let batch = w.batch(&[("a", now, 1.0), ("b", now, 2.0), ("c", now, 3.0)]);
    let header = BatchHeader {
        tenant: TenantId::new("much").unwrap(),
        ..batch.header().clone()
    };
    let batch = Arc::new(Batch::new(header, batch.columns().clone()));
    for i in 0..w.nodes.len() {
        w.node(i).push(Arc::clone(&batch)).await.unwrap();
    }
}

fn first_segment(w: &World) -> String {
    w.wal_files(0)[0].clone()
}

#[tokio::test(start_paused = true)]
async fn a_tenant_of_which_only_metadata_comes_does_not_keep_the_log() {
    for members in [1, 2] {
        let mut w = World::start_with(members, small_segments).await;
        assert!(w.write(&[("a", T0, 1.0)]).await);
        for _ in 0..6 * 60 {
            push_much(&mut w).await;
            let batch = w.metadata_batch(&["a", "b"]);
            for i in 0..members {
                w.node(i).push(Arc::clone(&batch)).await.unwrap();
            }
            w.sleep(A_MINUTE).await;
        }
        assert_ne!(first_segment(&w), "0000000001.wal", "{members} members");
        w.check(&w.query(0).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_sends_nothing_more_does_not_keep_the_log() {
    let mut w = World::start_with(1, small_segments).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    for _ in 0..6 * 60 {
        push_much(&mut w).await;
        w.sleep(A_MINUTE).await;
    }
    assert_ne!(first_segment(&w), "0000000001.wal");
    w.check(&w.query(0).await);
    // Neither over a start, for which the log says where what heads keep begins.
    w.crash(0).await;
    w.boot(0).await;
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_gets_something_for_ever_does_not_keep_the_log() {
    let mut w = World::start_with(1, small_segments).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    for i in 0..5 * 60 {
        push_much(&mut w).await;
        // As of a sender whose clock stands.
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
        w.sleep(A_MINUTE).await;
    }
    let found = w.blocks(0, koios_model::TimeRange::ALL).await;
    let oldest = found.keys().filter(|(series, _)| series == "a").count();
    assert!(oldest > 0, "its first samples are in a block");
    for i in 0..3 * 60 {
        push_much(&mut w).await;
        assert!(w.write(&[("a", T0 + HOUR + i, 1.0)]).await);
        w.sleep(A_MINUTE).await;
    }
    assert_ne!(first_segment(&w), "0000000001.wal");
    w.check(&w.query(0).await);
}
