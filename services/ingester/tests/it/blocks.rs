//! From heads to blocks without a gap.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_model::{BatchColumns, Labels, SeriesHash, TenantId, TenantSeed, TimeRange};
use koios_wire::{Batch, BatchHeader, IngesterService, ServiceErrorCode};

use crate::harness::{HOUR, MINUTE, Samples, T0, World, merge, tenant, without_starts};

/// Samples of `hours` hours, one a minute.
async fn fill(w: &mut World, from: i64, hours: i64) {
    for i in 0..hours * 60 {
        let t = from + i * MINUTE;
        assert!(w.write(&[("a", t, t as f64), ("b", t, 0.1 * i as f64)]).await);
    }
}

async fn heads_and_blocks(w: &World, i: usize) -> Samples {
    let (mut all, _) = w.read(i).await.unwrap();
    merge(&mut all, w.blocks(0, TimeRange::ALL).await);
    all
}

#[tokio::test(start_paused = true)]
async fn i10_heads_and_blocks_hold_everything_at_every_moment() {
    let mut w = World::start(1).await;
    for round in 0..8 {
        fill(&mut w, T0 + round * HOUR, 1).await;
        w.sleep(Duration::from_secs(60)).await;
        w.check(&heads_and_blocks(&w, 0).await);
        w.check(&w.query(0).await);
    }
    let (head, end) = w.read(0).await.unwrap();
    assert!(head.len() < w.acked.len(), "old windows were forgotten");
    assert!(end.forgotten_below_ms > T0 && end.manifest_floor > 0);
    // The last three hours stay.
    let recent = w.acked.keys().filter(|(_, t)| *t > T0 + 5 * HOUR);
    assert!(recent.into_iter().all(|at| head.contains_key(at)));
}

#[tokio::test(start_paused = true)]
async fn i2_a_flush_lists_everything_and_reads_stay_exact_over_restarts() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 5).await;
    let flushed = w.flush(0).await.unwrap();
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
    assert!(flushed.blocks > 0);
    // Nothing is uploaded twice, now or after a restart.
    assert_eq!(w.flush(0).await.unwrap().blocks, 0);
    w.crash(0).await;
    w.boot(0).await;
    assert_eq!(w.flush(0).await.unwrap().blocks, 0);
    w.check(&w.query(0).await);
    // Late samples form a further block of the same window.
    assert!(w.write(&[("late", T0 + 5, 1.0)]).await);
    let again = w.flush(0).await.unwrap();
    assert_eq!((again.blocks, again.samples), (1, 1));
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn i10_exemplars_that_come_after_the_cut_of_their_window_reach_a_block() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 3).await;
    assert!(w.write(&[("hist", T0 + HOUR, 1.0)]).await);
    w.flush(0).await.unwrap();
    let before = w.manifests.probe(&tenant()).await.unwrap();
    // As those do that a series got just before the end of a window.
    w.push_exemplar(0, "a", T0 + HOUR + 7).await;
    assert!(
        !w.exemplars_of_blocks()
            .await
            .contains(&("a".to_owned(), T0 + HOUR + 7))
    );
    // They wait for others, over a restart, too.
    w.crash(0).await;
    w.boot(0).await;
    w.sleep(Duration::from_secs(3600)).await;
    let in_blocks = w.exemplars_of_blocks().await;
    assert!(
        in_blocks.contains(&("a".to_owned(), T0 + HOUR + 7)),
        "{in_blocks:?}"
    );
    assert!(in_blocks.contains(&("hist".to_owned(), T0 + HOUR)));
    let manifest = w.manifests.probe(&tenant()).await.unwrap();
    let mut added = manifest.blocks.iter().filter(|b| before.block(b.block).is_none());
    let block = added.next().expect("a block of its own");
    assert!(
        block.range.contains(T0 + HOUR + 7),
        "it is looked at for that time"
    );
    assert_eq!(added.count(), 0);
    assert_eq!((block.samples, block.series), (0, 0), "it repeats no samples");
    w.check(&w.query(0).await);
    // Nothing is left to be done, and the same once more is nothing new.
    w.push_exemplar(0, "a", T0 + HOUR + 7).await;
    assert_eq!(w.flush(0).await.unwrap().blocks, 0);
}

#[tokio::test(start_paused = true)]
async fn i1_exemplars_of_a_window_of_which_no_sample_is_held_reach_a_block() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 6).await;
    w.flush(0).await.unwrap();
    let (_, end) = w.read(0).await.unwrap();
    assert!(end.forgotten_below_ms > T0 + HOUR, "samples are forgotten of it");
    let at = T0 + HOUR + 7;
    w.push_exemplar(0, "a", at).await;
    // As of a batch that is in no snapshot and in the log alone, they are there after a crash.
    w.crash(0).await;
    w.boot(0).await;
    w.flush(0).await.unwrap();
    let in_blocks = w.exemplars_of_blocks().await;
    assert!(in_blocks.contains(&("a".to_owned(), at)), "{in_blocks:?}");
    let manifest = w.manifests.probe(&tenant()).await.unwrap();
    assert!(
        manifest
            .blocks
            .iter()
            .any(|b| b.samples == 0 && b.range.contains(at))
    );
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn late_exemplars_share_a_block_of_half_an_hour() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 6).await;
    w.flush(0).await.unwrap();
    let before = w.manifests.probe(&tenant()).await.unwrap().blocks.len();
    for i in 0..60 {
        w.push_exemplar(0, "a", T0 + HOUR + i).await;
        w.sleep(Duration::from_secs(60)).await;
    }
    w.sleep(Duration::from_secs(3600)).await;
    assert_eq!(w.exemplars_of_blocks().await.len(), 60);
    let after = w.manifests.probe(&tenant()).await.unwrap().blocks.len();
    assert!(after - before <= 3, "{} blocks for an hour", after - before);
}

#[tokio::test(start_paused = true)]
async fn late_samples_of_a_window_that_was_forgotten_share_a_block_of_half_an_hour() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 6).await;
    w.flush(0).await.unwrap();
    let (_, end) = w.read(0).await.unwrap();
    assert!(end.forgotten_below_ms > T0 + HOUR, "samples are forgotten of it");
    let before = w.manifests.probe(&tenant()).await.unwrap().blocks.len();
    // Between them nothing is held of the window, so that nobody remembers its last cut.
    w.sleep(Duration::from_secs(97)).await;
    for i in 0..60 {
        assert!(w.write(&[("late", T0 + HOUR + i, 1.0)]).await);
        w.sleep(Duration::from_secs(60)).await;
    }
    w.sleep(Duration::from_secs(3600)).await;
    let after = w.manifests.probe(&tenant()).await.unwrap().blocks.len();
    assert!(after - before <= 3, "{} blocks for an hour", after - before);
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn i9_a_bucket_outage_of_a_day_loses_nothing_and_drains() {
    let mut w = World::start(1).await;
    fill(&mut w, T0, 3).await;
    w.store.down.store(true, Ordering::Relaxed);
    for round in 0..24 {
        fill(&mut w, T0 + (3 + round) * HOUR, 1).await;
        w.sleep(Duration::from_secs(3600)).await;
    }
    assert_eq!(w.flush(0).await.unwrap_err().code, ServiceErrorCode::Unavailable);
    let (head, end) = w.read(0).await.unwrap();
    assert!(end.forgotten_below_ms <= T0 + 4 * HOUR);
    assert!(head.keys().filter(|(_, t)| *t >= T0 + 4 * HOUR).count() >= 2 * 23 * 60);
    // A crash in the middle of it changes nothing.
    w.crash(0).await;
    w.boot(0).await;
    w.store.down.store(false, Ordering::Relaxed);
    w.check(&w.query(0).await);
    w.sleep(Duration::from_secs(600)).await;
    let (head, _) = w.read(0).await.unwrap();
    let left = without_starts(&head);
    assert!(left < 2 * 6 * 60, "the backlog drained: {left}");
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn i9_segments_go_only_after_the_proof_of_their_upload() {
    let mut w = World::start_with(1, |s| {
        s.wal_keep = Duration::ZERO;
        s.wal_segment_bytes = 16 << 10;
    })
    .await;
    w.store.down.store(true, Ordering::Relaxed);
    fill(&mut w, T0, 9).await;
    w.sleep(Duration::from_secs(3600)).await;
    let files = w.wal_files(0);
    assert!(files.len() > 3 && files[0] == "0000000001.wal", "{files:?}");
    w.store.down.store(false, Ordering::Relaxed);
    w.until("the log was truncated", |w| w.wal_files(0)[0] != "0000000001.wal")
        .await;
    w.sleep(Duration::from_secs(600)).await;
    assert!(w.wal_files(0).len() < files.len());
    w.crash(0).await;
    assert!(w.boot(0).await);
    let (head, end) = w.read(0).await.unwrap();
    assert!(head.len() < w.acked.len());
    assert!(end.forgotten_below_ms > T0);
    w.check(&w.query(0).await);
    assert!(w.counts(0));
    // What was listed is not uploaded again.
    let held = w.holdings(0).await.0;
    assert_eq!(held.len(), without_starts(&w.acked) as u64 / 2);
}

#[tokio::test(start_paused = true)]
async fn one_member_uploads_and_the_others_find_its_blocks() {
    let mut w = World::start_with(3, |s| s.cut_stagger = Duration::from_secs(60)).await;
    fill(&mut w, T0, 6).await;
    w.sleep(Duration::from_secs(1800)).await;
    let manifest = w.manifests.probe(&tenant()).await.unwrap();
    let mut windows: Vec<i64> = manifest.blocks.iter().map(|b| b.window.min).collect();
    windows.sort_unstable();
    let blocks = windows.len();
    windows.dedup();
    assert_eq!(blocks, windows.len(), "one block per window");
    assert!(blocks >= 2);
    for i in 0..3 {
        w.check(&w.query(i).await);
        let (_, end) = w.read(i).await.unwrap();
        assert!(
            end.forgotten_below_ms >= T0 + 2 * HOUR,
            "member {i} forgot what blocks hold"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_tenants_last_window_is_cut_by_age() {
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.sleep(Duration::from_secs(29 * 60)).await;
    assert!(w.blocks(0, TimeRange::ALL).await.is_empty());
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
    w.sleep(Duration::from_secs(6 * 3600)).await;
    assert!(w.read(0).await.unwrap().0.is_empty());
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn flushes_over_http() {
    use axum::body::Body;
    use tower::ServiceExt;
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    let router = koios_ingester::router(w.node(0).clone());
    let post = |uri: &str| http::Request::post(uri).body(Body::empty()).unwrap();
    let answer = router
        .clone()
        .oneshot(post("/ingester/flush?wait=true"))
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
    let bad = router
        .clone()
        .oneshot(post("/ingester/flush?tenant=..%2F"))
        .await
        .unwrap();
    assert_eq!(bad.status(), 400);
    let status = http::Request::get("/ingester/status")
        .body(Body::empty())
        .unwrap();
    assert_eq!(router.oneshot(status).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn i13_a_flush_that_takes_longer_than_a_request_says_that_it_goes_on() {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    let settings = koios_server::settings::HttpSettings {
        request_timeout: Duration::ZERO,
        ..koios_server::Settings::default().http
    };
    let router = koios_server::with_edge(
        koios_ingester::router(w.node(0).clone()),
        Arc::new(koios_runtime::TokioClock::starting_at(0)),
        koios_runtime::RngHandle::from_seed(1),
        &settings,
        &koios_server::Metrics::new(),
    );
    let request = http::Request::post("/ingester/flush?wait=true")
        .body(Body::empty())
        .unwrap();
    let answer = router.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 503);
    let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(
        body.contains("longer than 0ns: the flush goes on") && body.contains("tenant="),
        "{body}"
    );
    w.sleep(Duration::from_secs(60)).await;
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i2_a_read_across_a_forget_names_what_it_may_lack() {
    use futures::StreamExt;
    let mut w = World::start(1).await;
    // More series than one run of a read.
    for i in 0..1500 {
        let name = format!("s{i:04}");
        assert!(w.write(&[(name.as_str(), T0, 1.0)]).await);
    }
    let request = koios_wire::ReadRequest {
        tenant: tenant(),
        partition: crate::harness::PARTITION,
        epoch: w.epoch(),
        matchers: koios_model::Matchers::default(),
        range: TimeRange::ALL,
        labels_only: false,
        encoded: true,
        limit: 0,
        deletions_version: 0,
        expiry: Default::default(),
    };
    let mut stream = w.node(0).read(request).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    w.flush(0).await.unwrap();
    w.sleep(Duration::from_secs(6 * 3600)).await;
    let rest = futures::stream::iter([Ok(first)]).chain(stream).boxed();
    let (mut found, end) = crate::harness::collect(rest).await.unwrap();
    assert!(found.len() < 1500 && end.forgotten_below_ms > T0);
    merge(&mut found, w.blocks(end.manifest_floor, TimeRange::ALL).await);
    w.check(&found);
}

#[tokio::test(start_paused = true)]
async fn i10_series_of_which_all_is_too_old_are_left_out_with_their_labels() {
    use futures::StreamExt;
    use koios_model::{Expiry, MatchOp, Matcher, Matchers, SeriesClasses};
    use koios_wire::{IngesterService, LabelsRequest, ReadItem, ReadRequest};
    let mut w = World::start(1).await;
    assert!(w.write(&[("old", T0, 1.0), ("other", T0, 1.0)]).await);
    assert!(w.write(&[("new", T0 + HOUR, 1.0)]).await);
    let rule = Matcher::new(MatchOp::Regex, "__name__", "old|new").unwrap();
    let classes = SeriesClasses::new([Matchers(vec![rule])]);
    for (kept_from, want) in [
        (None, ["new", "old", "other"].as_slice()),
        (Some(T0), ["new", "old", "other"].as_slice()),
        (Some(T0 + 1), ["new", "other"].as_slice()),
        (Some(T0 + HOUR + 1), ["other"].as_slice()),
    ] {
        let expiry = Expiry::new(classes.clone(), [kept_from, None]);
        let request = LabelsRequest {
            tenant: tenant(),
            partition: crate::harness::PARTITION,
            epoch: w.epoch(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            name: "__name__".to_owned(),
            limit: 0,
            deletions_version: 0,
            expiry: expiry.clone(),
        };
        let values = w.node(0).label_values(request).await.unwrap().names;
        assert_eq!(values, want, "from {kept_from:?}");
        let request = ReadRequest {
            tenant: tenant(),
            partition: crate::harness::PARTITION,
            epoch: w.epoch(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: true,
            encoded: false,
            limit: 0,
            deletions_version: 0,
            expiry,
        };
        let items: Vec<_> = w.node(0).read(request).await.unwrap().collect().await;
        let series = items.into_iter().flat_map(|item| match item.unwrap() {
            ReadItem::Series(series) => series,
            ReadItem::End(_) => Vec::new(),
        });
        let names: Vec<String> = series.map(|s| s.labels.metric_name().to_owned()).collect();
        assert_eq!(names, want, "from {kept_from:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_loads_no_more_than_heads_keep_and_peers_can_still_fetch_the_rest() {
    let mut w = World::start_with(3, |s| {
        s.wal_segment_bytes = 16 << 10;
        s.cut_stagger = Duration::ZERO;
    })
    .await;
    for round in 0..12 {
        fill(&mut w, T0 + round * HOUR, 1).await;
        w.sleep(Duration::from_secs(60)).await;
    }
    let before = w.read(0).await.unwrap().0.len();
    for _ in 0..2 {
        w.crash(0).await;
        assert!(w.boot(0).await);
        let (head, end) = w.read(0).await.unwrap();
        assert!(head.len() <= before + 60, "{} after, {before} before", head.len());
        let recent = w.acked.keys().filter(|(_, t)| *t > T0 + 9 * HOUR);
        assert!(recent.into_iter().all(|at| head.contains_key(at)));
        assert!(end.forgotten_below_ms > T0 && end.forgotten_below_ms <= T0 + 9 * HOUR);
        w.check(&w.query(0).await);
        let (held, logged) = w.holdings(0).await;
        assert_eq!((held.len(), logged.len()), (12 * 60, 12 * 60));
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_member_keeps_no_more_log_than_a_restart_needs() {
    let mut w = World::start_with(1, |s| s.wal_segment_bytes = 16 << 10).await;
    for round in 0..12 {
        fill(&mut w, T0 + round * HOUR, 1).await;
        w.sleep(Duration::from_secs(60)).await;
    }
    let (held, logged) = w.holdings(0).await;
    assert_eq!(held.len(), 12 * 60);
    assert!(logged.len() < 7 * 60, "{} batches logged", logged.len());
    w.crash(0).await;
    assert!(w.boot(0).await);
    let (head, _) = w.read(0).await.unwrap();
    let recent = w.acked.keys().filter(|(_, t)| *t > T0 + 9 * HOUR);
    assert!(recent.into_iter().all(|at| head.contains_key(at)));
    w.check(&w.query(0).await);
}

/// A sample of another tenant, acknowledged by one member.
async fn push_of(w: &mut World, tenant: &TenantId, t: i64) {
    let mut columns = BatchColumns::default();
    let labels = Labels::from_pairs([("__name__", "a")]);
    let hash = SeriesHash::new(TenantSeed::new(b"", tenant), labels.as_ref());
    columns.push_series(hash, labels.as_ref());
    columns.push_sample(t, 1.0);
    let header = BatchHeader {
        tenant: tenant.clone(),
        ..w.batch_with(BatchColumns::default()).header().clone()
    };
    let batch = Arc::new(Batch::new(header, columns));
    w.node(0).push(batch).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn i6_a_tenant_whose_blocks_are_stored_otherwise_keeps_no_other_from_being_cut() {
    let mut w = World::start(1).await;
    let altered: Vec<TenantId> = (1..4)
        .map(|n| TenantId::new(&format!("a-{n}")).unwrap())
        .collect();
    for tenant in &altered {
        push_of(&mut w, tenant, T0).await;
    }
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.store.alters.store(true, Ordering::Relaxed);
    // Cut by age, and once more later, after pauses twice as long each time.
    w.sleep(Duration::from_secs(31 * 60)).await;
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
    let bucket = w.manifests.bucket().clone();
    for tries in 1..4 {
        assert!(!w.node(0).status().bucket_down, "it answers");
        for tenant in &altered {
            let manifest = w.manifests.probe(tenant).await.unwrap();
            let uploaded = bucket.uploaded_blocks(tenant).await.unwrap();
            assert_eq!((uploaded.len(), manifest.blocks.len()), (tries, 0), "{tenant}");
            assert!(
                uploaded.iter().all(|(block, _)| manifest.is_dead(*block)),
                "{tenant}"
            );
            assert!(
                manifest.dead.iter().all(|dead| dead.parts.len() > 2),
                "their bytes go"
            );
        }
        if tries == 3 {
            w.store.alters.store(false, Ordering::Relaxed);
        }
        w.sleep(Duration::from_secs((600 << (tries - 1)) + 30)).await;
    }
    for tenant in &altered {
        assert_eq!(
            w.manifests.probe(tenant).await.unwrap().blocks.len(),
            1,
            "{tenant}"
        );
    }
}
