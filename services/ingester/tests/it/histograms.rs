//! Native histograms come back as they were sent, whatever they come back from; metadata as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_model::{
    BatchColumns, CUSTOM_BOUNDS_SCHEMA, Histogram, Labels, Metadata, ResetHint, SeriesHash, Span, TenantSeed,
};
use koios_runtime::Disk;
use koios_wire::IngesterService;

use crate::harness::{HOUR, MINUTE, T0, World, tenant};
use crate::snapshot::snapshots;

/// More than a chunk takes, all of one window.
const COUNT: i64 = 300;
const STEP: i64 = 20_000;
const FIRST: i64 = T0 + MINUTE;

type Histograms = BTreeMap<Labels, Vec<(i64, Arc<Histogram>)>>;

fn spans(spans: &[(i32, u32)]) -> Vec<Span> {
    let span = |&(offset, length): &(i32, u32)| Span { offset, length };
    spans.iter().map(span).collect()
}

/// A histogram of each kind, the nth.
fn kinds(n: i64) -> Vec<(&'static str, Histogram)> {
    let x = n as f64;
    let counter = Histogram {
        schema: 3,
        zero_threshold: 1e-128,
        zero_count: 2.0 + x,
        count: 14.0 + 4.0 * x,
        sum: -7.25 + x / 3.0,
        positive_spans: spans(&[(-5, 2), (30, 1)]),
        positive_buckets: vec![1.0 + x, 3.0, 4.0 + x],
        negative_spans: spans(&[(2, 1), (1, 1)]),
        negative_buckets: vec![3.0, 1.0 + x],
        ..Histogram::default()
    };
    let gauge = Histogram {
        reset_hint: ResetHint::Gauge,
        schema: -4,
        zero_threshold: 0.001,
        zero_count: 0.5,
        count: 3.25,
        sum: [f64::NAN, f64::NEG_INFINITY, -0.0, 0.1 * x][n as usize % 4],
        positive_spans: spans(&[(n as i32 % 7, 2)]),
        positive_buckets: vec![2.5, 0.25],
        ..Histogram::default()
    };
    let custom = Histogram {
        schema: CUSTOM_BOUNDS_SCHEMA,
        count: 9.0 + x,
        sum: 0.1 + x,
        positive_spans: spans(&[(0, 1), (1, 2)]),
        positive_buckets: vec![4.0, 2.0 + x, 3.0],
        // They change in the middle.
        custom_bounds: vec![-1.0 / 3.0, 0.1, if n < COUNT / 2 { 2.5 } else { 5e-324 + 7.0 }],
        ..Histogram::default()
    };
    let custom_gauge = Histogram {
        reset_hint: ResetHint::Gauge,
        custom_bounds: vec![0.005, 0.01, 0.025 + x],
        ..custom.clone()
    };
    let begun = Histogram {
        reset_hint: if n % 7 == 0 {
            ResetHint::Reset
        } else {
            ResetHint::Unknown
        },
        ..counter.clone()
    };
    let ending = match n {
        0..250 => counter.clone(),
        _ => Histogram::stale(),
    };
    vec![
        ("begun", begun),
        ("counter", counter),
        ("gauge", gauge),
        ("custom", custom),
        ("custom_gauge", custom_gauge),
        ("ending", ending),
    ]
}

fn described() -> Vec<(String, Metadata)> {
    let metadata = |kind: &str, unit: &str| Metadata {
        kind: kind.to_owned(),
        help: format!("A {kind}, \"quoted\"."),
        unit: unit.to_owned(),
    };
    vec![
        ("counter".to_owned(), metadata("histogram", "seconds")),
        ("gauge".to_owned(), metadata("gaugehistogram", "")),
    ]
}

/// Histograms of each kind in order, and then, in a batch of their own, as many late ones between them.
fn all() -> (Histograms, Vec<BatchColumns>) {
    let (mut all, seed) = (Histograms::new(), TenantSeed::new(b"", &tenant()));
    let mut batches = Vec::new();
    for late in [0, STEP / 2] {
        let mut by_series: BTreeMap<Labels, Vec<(i64, Histogram)>> = BTreeMap::new();
        for n in 0..COUNT {
            for (name, histogram) in kinds(n) {
                let mut canonical = histogram.clone();
                canonical.make_canonical();
                assert!(
                    canonical.bits_cmp(&histogram).is_eq(),
                    "as senders' are kept: {histogram:?}"
                );
                let labels = Labels::from_pairs([("__name__", name), ("le", "no")]);
                by_series
                    .entry(labels)
                    .or_default()
                    .push((FIRST + n * STEP - late, histogram));
            }
        }
        let mut columns = BatchColumns {
            metadata: described(),
            ..BatchColumns::default()
        };
        for (labels, histograms) in by_series {
            columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
            for (t, histogram) in histograms {
                columns.push_histogram(t, histogram.clone());
                all.entry(labels.clone())
                    .or_default()
                    .push((t, Arc::new(histogram)));
            }
        }
        batches.push(columns);
    }
    all.values_mut()
        .for_each(|of_series| of_series.sort_by_key(|(t, _)| *t));
    (all, batches)
}

impl World {
    /// Pushes them to some members, in the first two batches of their logs.
    async fn push_all(&mut self, to: &[usize]) -> Histograms {
        let (all, batches) = all();
        for columns in batches {
            let batch = self.batch_with(columns);
            for &i in to {
                self.node(i).push(Arc::clone(&batch)).await.unwrap();
            }
        }
        all
    }

    async fn assert_has(&self, i: usize, all: &Histograms) {
        let found = self.histograms(i).await;
        assert!(found.keys().eq(all.keys()), "{:?}", found.keys());
        for (labels, sent) in all {
            let of_series = &found[labels];
            assert_eq!(of_series.len(), sent.len(), "{labels}");
            for ((t, got), (at, sent)) in of_series.iter().zip(sent) {
                assert_eq!(t, at, "{labels}");
                assert!(
                    got.bits_cmp(sent).is_eq(),
                    "{labels} @{t}: {got:?} instead of {sent:?}"
                );
            }
        }
        assert_eq!(self.metadata(i).await, described());
    }
}

#[tokio::test(start_paused = true)]
async fn i1_i2_histograms_and_metadata_come_back_bit_for_bit_from_the_log() {
    let mut w = World::start(1).await;
    let all = w.push_all(&[0]).await;
    w.assert_has(0, &all).await;
    for _ in 0..2 {
        w.kill(0).await;
        assert!(w.boot(0).await);
        w.assert_has(0, &all).await;
        w.crash(0).await;
        assert!(w.boot(0).await);
        w.assert_has(0, &all).await;
    }
}

#[tokio::test(start_paused = true)]
async fn i1_i2_histograms_and_metadata_come_back_bit_for_bit_from_a_snapshot() {
    let mut w = World::start(1).await;
    let all = w.push_all(&[0]).await;
    let end = FIRST + COUNT * STEP;
    for i in 0..1500 {
        assert!(w.write(&[("a", end + i, i as f64), ("b", end + i, 2.0)]).await);
    }
    w.until("a snapshot was written", |w| !snapshots(w, 0).is_empty())
        .await;
    w.kill(0).await;
    // Nothing else has them.
    w.damage_batch(0, 0);
    w.damage_batch(0, 1);
    assert!(w.boot(0).await);
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    w.assert_has(0, &all).await;
}

#[tokio::test(start_paused = true)]
async fn i2_i7_histograms_and_metadata_come_bit_for_bit_from_a_peer() {
    let mut w = World::start(3).await;
    w.kill(2).await;
    let all = w.push_all(&[0, 1]).await;
    w.boot(2).await;
    w.until("repaired", |w| w.counts(2)).await;
    w.sleep(Duration::from_secs(120)).await;
    w.kill(0).await;
    w.kill(1).await;
    w.assert_has(2, &all).await;
    // And from its own log.
    w.crash(2).await;
    assert!(w.boot(2).await);
    w.assert_has(2, &all).await;
}

#[tokio::test(start_paused = true)]
async fn metadata_outlives_the_segments_that_brought_it() {
    let mut w = World::start(1).await;
    let batch = w.batch_with(BatchColumns {
        metadata: described(),
        ..BatchColumns::default()
    });
    w.node(0).push(batch).await.unwrap();
    for hour in 0..8 {
        for i in 0..300 {
            let t = T0 + hour * HOUR + i * 1000;
            assert!(w.write(&[("a", t, 1.0), ("b", t, t as f64 * 0.1)]).await);
        }
        w.sleep(Duration::from_secs(3600)).await;
    }
    w.until("the log was truncated", |w| {
        !w.wal_files(0).contains(&"0000000001.wal".to_owned())
    })
    .await;
    w.kill(0).await;
    // Not from a snapshot, either.
    for snapshot in snapshots(&w, 0) {
        w.nodes[0].disk.remove_file(&snapshot).unwrap();
    }
    assert!(w.boot(0).await);
    w.until("counts", |w| w.counts(0)).await;
    assert_eq!(w.metadata(0).await, described());
}
