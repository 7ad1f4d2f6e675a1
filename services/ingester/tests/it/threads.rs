//! The real disk, real threads: writers, readers and flushes at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use koios_model::{Matchers, TimeRange};
use koios_wire::{FlushRequest, IngesterService, ReadRequest};
use parking_lot::Mutex;

use crate::harness::{MINUTE, PARTITION, Samples, T0, World, collect, tenant};

const WRITERS: i64 = 4;
const BATCHES: i64 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn i5_every_read_has_what_was_acknowledged_before_it_while_all_goes_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Some(dir.path().to_owned());
    let mut w = World::start_on(machine, 1, |s| {
        s.wal_segment_bytes = 64 << 10;
        s.head_keep = Duration::from_secs(10 * 24 * 3600);
    })
    .await;
    let mut batches: Vec<Vec<_>> = (0..WRITERS).map(|_| Vec::new()).collect();
    for writer in 0..WRITERS {
        for i in 0..BATCHES {
            let name = format!("s{writer}");
            // From several windows, so that flushes cut several.
            let t = T0 + (i * 7 % BATCHES) * 5 * MINUTE;
            let sample = [(name.as_str(), t, i as f64)];
            let batch = w.batch(&sample);
            batches[writer as usize].push((batch, (name.clone(), t), (i as f64).to_bits()));
        }
    }
    let (m, epoch) = (w.node(0).clone(), w.epoch());
    let acked: Mutex<Samples> = Mutex::default();
    let done = AtomicBool::new(false);
    let writers = batches.into_iter().map(|batches| {
        let (m, acked) = (&m, &acked);
        async move {
            for (batch, at, bits) in batches {
                m.push(Arc::clone(&batch)).await.unwrap();
                acked.lock().insert(at, bits);
            }
        }
    });
    let writing = async {
        futures::future::join_all(writers).await;
        done.store(true, Ordering::Relaxed);
    };
    let reading = async {
        while !done.load(Ordering::Relaxed) {
            let before = acked.lock().clone();
            let request = ReadRequest {
                tenant: tenant(),
                partition: PARTITION,
                epoch,
                matchers: Matchers::default(),
                range: TimeRange::ALL,
                labels_only: false,
                encoded: true,
                limit: 0,
                deletions_version: 0,
                expiry: Default::default(),
            };
            let (found, _) = collect(m.read(request).await.unwrap()).await.unwrap();
            for (at, bits) in &before {
                assert_eq!(found.get(at), Some(bits), "{at:?}");
            }
        }
    };
    let flushing = async {
        while !done.load(Ordering::Relaxed) {
            let request = FlushRequest {
                tenant: None,
                wait: true,
            };
            m.flush(request).await.unwrap();
            // A flush of nothing awaits nothing.
            w.sleep(Duration::from_millis(5)).await;
        }
    };
    futures::join!(writing, reading, flushing);
    w.flush(0).await.unwrap();
    w.acked = acked.into_inner();
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
    w.node(0).stop().await;
    w.kill(0).await;
    assert!(w.boot(0).await);
    w.check(&w.query(0).await);
}
