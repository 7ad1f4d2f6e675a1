//! HA pairs: of several replicas that send the same series one is kept.

use std::sync::Arc;
use std::time::Duration;

use koios_control::{Assignment, ClusterState, Ruling, Sighting, Span, election_task};
use koios_distributor::Settings;
use koios_model::TenantId;
use koios_tenancy::Limits;
use tokio::sync::Notify;

use crate::bounded_work::many_buckets;
use crate::messages::{Message, request, request_v2, series, series_v2};
use crate::rig::{Answer, NOW, Next, Rig, state};

/// Longer than an election needs to settle.
const SETTLED: Duration = Duration::from_secs(21);

fn limits() -> Limits {
    Limits {
        ha_dedup: true,
        ..Limits::default()
    }
}

fn with_elected(replica: &str, epoch: u64) -> ClusterState {
    let assignment = Assignment {
        holder: replica.to_owned(),
        epoch,
    };
    ClusterState {
        assignments: [(election_task(&TenantId::anonymous(), "eu"), assignment)].into(),
        ..state(epoch, 1, 1, 1)
    }
}

fn of_replica(metric: &str, replica: &str, samples: &[(i64, f64)]) -> Message {
    let labels: [(&[u8], &[u8]); 3] = [
        (b"__name__", metric.as_bytes()),
        (b"__replica__", replica.as_bytes()),
        (b"cluster", b"eu"),
    ];
    series(&labels, samples)
}

struct Pair(Rig);

impl Pair {
    /// Prometheus A is elected, has settled, and was seen.
    async fn settled() -> Self {
        Self::settled_with(Settings::default()).await
    }

    async fn settled_with(settings: Settings) -> Self {
        let pair = Self(Rig::with_settings(with_elected("a", 1), limits(), settings));
        pair.push("a", 0).await.assert(204, "");
        pair.0.clock.sleep(SETTLED).await;
        pair.push("a", pair.now()).await.assert(204, "");
        pair
    }

    /// Seconds since the start.
    fn now(&self) -> i64 {
        (self.0.clock.now_ms() - NOW) / 1000
    }

    /// A replica sends its sample of the second `at`; its value tells who sent it.
    async fn push(&self, replica: &str, at: i64) -> Answer {
        let value = if replica == "a" { 1.0 } else { 2.0 };
        // Two Prometheis do not scrape at the same instant.
        let t = NOW + at * 1000 + if replica == "a" { 0 } else { 100 };
        self.0
            .push(&request(&[of_replica("up", replica, &[(t, value)])]))
            .await
    }

    /// The seconds of which the replica's samples were stored.
    fn stored_of(&self, replica: &str) -> Vec<i64> {
        let value = if replica == "a" { 1.0 } else { 2.0 };
        let stored = self.0.stored();
        for (labels, _, _) in &stored {
            assert!(!labels.contains("__replica__"), "{labels}");
            assert!(labels.contains("cluster=\"eu\""), "{labels}");
        }
        let of_it = stored.iter().filter(|(_, _, v)| *v == value);
        of_it.map(|(_, t, _)| (t - NOW) / 1000).collect()
    }

    fn metric(&self, line: &str) -> bool {
        self.0.metrics.encode().lines().any(|l| l == line)
    }
}

#[tokio::test(start_paused = true)]
async fn samples_of_the_replica_that_is_not_elected_are_dropped_and_answered_with_success() {
    let pair = Pair::settled().await;
    for _ in 0..10 {
        pair.0.clock.sleep(Duration::from_secs(5)).await;
        pair.push("a", pair.now()).await.assert(204, "");
        let answer = pair.push("b", pair.now()).await;
        answer.assert(202, "");
        // Else Prometheus takes it for a failure.
        assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "1");
    }
    assert!(pair.stored_of("b").is_empty());
    assert_eq!(pair.stored_of("a").len(), 12);
    assert!(pair.metric("koios_distributor_ha_samples_deduplicated_total{tenant=\"anonymous\"} 10"));
    assert!(pair.metric("koios_distributor_ha_pairs 1"));
}

#[tokio::test(start_paused = true)]
async fn exemplars_of_the_replica_that_is_not_elected_are_dropped_without_samples_too() {
    let pair = Pair::settled().await;
    let exemplar = |replica: &str, t: i64| {
        let label = Message::default().bytes(1, "trace_id").bytes(2, replica);
        let exemplar = Message::default()
            .message(1, &label)
            .double(2, 1.0)
            .number(3, (NOW + t * 1000) as u64);
        request(&[of_replica("up", replica, &[]).message(3, &exemplar)])
    };
    let now = pair.now();
    let exemplars = || {
        let batches = pair.0.members[0].batches.lock();
        let of = |batch: &Arc<koios_wire::Batch>| batch.columns().exemplars.len();
        batches.iter().map(of).sum::<usize>()
    };
    let answer = pair.0.push(&exemplar("b", now)).await;
    answer.assert(202, "");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "1");
    assert_eq!(exemplars(), 0);
    pair.0.push(&exemplar("a", now)).await.assert(204, "");
    assert_eq!(exemplars(), 1);
}

#[tokio::test(start_paused = true)]
async fn i8_without_a_leader_the_last_election_holds_while_the_elected_one_is_seen_here() {
    let pair = Pair::settled().await;
    // The rig's leader never answers.
    assert!(
        pair.0
            .metrics
            .encode()
            .contains("koios_distributor_ha_report_failures_total")
    );
    pair.push("b", pair.now()).await.assert(202, "");
    // The elected one goes away: until the timeout passes it may be back at any moment.
    pair.0.clock.sleep(Duration::from_secs(29)).await;
    pair.push("b", pair.now()).await.assert(202, "");
    pair.0.clock.sleep(Duration::from_secs(2)).await;
    let before = pair.now();
    for _ in 0..20 {
        pair.push("b", pair.now()).await.assert(204, "");
        pair.0.clock.sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(pair.stored_of("b").len(), 20);
    assert_eq!(pair.stored_of("b")[0], before);
    // It comes back and is the one that is kept, as it is still elected.
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
}

#[tokio::test(start_paused = true)]
async fn i8_with_neither_leader_nor_election_both_are_kept_without_the_replica_label() {
    let pair = Pair(Rig::new(state(1, 1, 1, 1), limits()));
    for at in 0..100 {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        pair.push("a", at).await.assert(204, "");
        pair.push("b", at).await.assert(204, "");
    }
    assert_eq!((pair.stored_of("a").len(), pair.stored_of("b").len()), (100, 100));
    assert!(pair.metric("koios_distributor_ha_samples_undecided_total{reason=\"no_election\"} 200"));
}

#[tokio::test(start_paused = true)]
async fn after_a_takeover_the_gap_is_filled_by_the_old_replicas_queue() {
    let pair = Pair::settled().await;
    let last = pair.now();
    // A is cut off; B is dropped until the timeout, then taken, then elected.
    for _ in 0..40 {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        pair.push("b", pair.now()).await;
    }
    assert!(pair.0.state.offer(with_elected("b", 2)));
    let taken_over = pair.now();
    for _ in 0..25 {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        pair.push("b", pair.now()).await.assert(204, "");
    }
    // A comes back and sends what it has queued, in order, then live samples.
    for at in last + 1..=pair.now() {
        pair.push("a", at).await;
    }
    let (of_a, of_b) = (pair.stored_of("a"), pair.stored_of("b"));
    for at in last..pair.now() {
        assert!(of_a.contains(&at) || of_b.contains(&at), "second {at} is lost");
    }
    let answer = pair.push("a", pair.now()).await;
    answer.assert(202, "");
    assert!(of_b.iter().filter(|at| **at > taken_over).count() >= 10);
    assert!(of_a.iter().all(|at| *at <= taken_over + 21), "{of_a:?}");
}

#[tokio::test(start_paused = true)]
async fn an_elected_replica_that_lags_does_not_hold_back_live_samples() {
    let pair = Pair::settled().await;
    let stalled_at = pair.now();
    // A sends all the time, but samples of when it stalled.
    for i in 0..60 {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        pair.push("a", stalled_at + i / 10).await.assert(204, "");
        pair.push("b", pair.now()).await;
    }
    let of_b = pair.stored_of("b");
    assert!(of_b.contains(&(pair.now())), "{of_b:?}");
    assert!(of_b.iter().all(|at| *at > stalled_at + 30), "{of_b:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_may_mix_pairs_and_other_series() {
    let pair = Pair::settled().await;
    let t = pair.0.clock.now_ms();
    let mixed = request(&[
        of_replica("m1", "b", &[(t, 2.0)]),
        of_replica("m2", "a", &[(t, 1.0)]),
        series(&[(b"__name__", b"m3"), (b"__replica__", b"b")], &[(t, 3.0)]),
        series(
            &[(b"__name__", b"m4"), (b"cluster", b"eu"), (b"__replica__", b"")],
            &[(t, 4.0)],
        ),
        series(
            &[(b"__name__", b"m5"), (b"__replica__", b"b"), (b"cluster", b"us")],
            &[(t, 5.0)],
        ),
        of_replica("m6", "b", &[(t, 6.0), (t - 3_600_000, 6.5)]),
    ]);
    let answer = pair.0.push(&mixed).await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "7");
    let stored: Vec<String> = pair.0.stored().into_iter().map(|(labels, _, _)| labels).collect();
    let kept = |wanted: &str| stored.iter().filter(|labels| *labels == wanted).count();
    assert_eq!(kept("{__name__=\"m2\", cluster=\"eu\"}"), 1, "{stored:?}");
    assert_eq!(kept("{__name__=\"m3\", __replica__=\"b\"}"), 1, "{stored:?}");
    assert_eq!(kept("{__name__=\"m4\", cluster=\"eu\"}"), 1, "{stored:?}");
    assert_eq!(kept("{__name__=\"m5\", cluster=\"us\"}"), 1, "{stored:?}");
    // An hour ago nobody was elected here: that sample is kept.
    assert_eq!(kept("{__name__=\"m6\", cluster=\"eu\"}"), 1, "{stored:?}");
    assert_eq!(kept("{__name__=\"m1\", cluster=\"eu\"}"), 0, "{stored:?}");
}

#[tokio::test(start_paused = true)]
async fn version_2_is_deduplicated_and_all_of_it_is_confirmed() {
    let pair = Pair::settled().await;
    let t = pair.0.clock.now_ms();
    let symbols = ["", "__name__", "up", "__replica__", "b", "cluster", "eu", "a"];
    let of_b = series_v2(&[1, 2, 3, 4, 5, 6], &[(t, 2.0), (t + 1, 2.0)]);
    let of_a = series_v2(&[1, 2, 3, 7, 5, 6], &[(t, 1.0)]);
    let answer = pair
        .0
        .push_v2(&request_v2(&symbols, std::slice::from_ref(&of_b)))
        .await;
    answer.assert(202, "");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "2");
    let answer = pair.0.push_v2(&request_v2(&symbols, &[of_b, of_a])).await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "3");
}

#[tokio::test(start_paused = true)]
async fn other_formats_are_deduplicated_with_the_answers_that_their_clients_know() {
    let pair = Pair::settled().await;
    let before = pair.0.stored().len();
    for (path, code, body) in [
        (
            "/api/v1/import/prometheus",
            204,
            "up{cluster=\"eu\",__replica__=\"b\"} 2\n",
        ),
        ("/metrics/job/x/cluster/eu", 200, "up{__replica__=\"b\"} 2\n"),
        ("/write", 204, "up,cluster=eu,__replica__=b value=2\n"),
    ] {
        pair.0.request("POST", path, &[], body).await.assert(code, "");
    }
    let after = pair.0.stored();
    // The path's own series has no replica.
    assert_eq!(after.len(), before + 1, "{after:?}");
    assert!(
        after
            .iter()
            .any(|(labels, _, _)| labels.contains("push_time_seconds"))
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_limit_nothing_is_touched() {
    let pair = Pair(Rig::new(with_elected("a", 1), Limits::default()));
    pair.push("b", 0).await.assert(204, "");
    assert!(pair.0.stored()[0].0.contains("__replica__=\"b\""));
}

#[tokio::test(start_paused = true)]
async fn the_leader_hears_what_was_seen_and_tells_what_others_saw() {
    let rig = Rig::new(with_elected("a", 1), limits());
    let span = Span {
        from_ms: NOW - 60_000,
        newest_ms: NOW + 8_000,
    };
    let sighting = Sighting {
        replica: "a".to_owned(),
        newest_ms: span.newest_ms,
        age_ms: 500,
        span: Some(span),
        lost_ms: None,
    };
    *rig.referee.ruling.lock() = Some(Ruling {
        elected: Some("a".to_owned()),
        epoch: 1,
        sighting: Some(sighting),
        refused: None,
    });
    let pair = Pair(rig);
    // Only B sends to this distributor.
    pair.push("b", 0).await.assert(204, "");
    pair.0.clock.sleep(SETTLED).await;
    let heard = pair.0.referee.heard.lock().clone();
    assert_eq!(
        (heard[0].cluster.as_str(), heard[0].replicas[0].replica.as_str()),
        ("eu", "b")
    );
    assert_eq!((heard[0].failover_ms, heard[0].pairs_max), (30_000, 100));
    pair.push("b", pair.now()).await.assert(202, "");
    // The leader goes away: what it said is good for as long as the timeout.
    *pair.0.referee.ruling.lock() = None;
    pair.0.clock.sleep(Duration::from_secs(31)).await;
    pair.push("b", pair.now()).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn i12_further_pairs_than_allowed_keep_all_replicas() {
    let limits = Limits {
        ha_max_clusters: 1,
        ..limits()
    };
    let pair = Pair(Rig::new(with_elected("a", 1), limits));
    pair.push("a", 0).await.assert(204, "");
    let t = NOW + 100;
    let other = series(
        &[(b"__name__", b"up"), (b"__replica__", b"b"), (b"cluster", b"us")],
        &[(t, 5.0)],
    );
    pair.0.push(&request(&[other])).await.assert(204, "");
    assert!(pair.metric("koios_distributor_ha_samples_undecided_total{reason=\"too_many_pairs\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_acknowledged_is_not_relied_on() {
    let pair = Pair(Rig::new(with_elected("a", 1), limits()));
    pair.push("b", 0).await.assert(204, "");
    pair.0.clock.sleep(SETTLED).await;
    *pair.0.members[0].always.lock() = Some(Next::Refuse(koios_wire::ServiceErrorCode::Unavailable, 0));
    pair.push("a", pair.now()).await.assert(503, "");
    *pair.0.members[0].always.lock() = None;
    pair.push("b", pair.now()).await.assert(204, "");
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
}

#[tokio::test(start_paused = true)]
async fn rejected_samples_of_the_elected_replica_do_not_hold_back_the_others() {
    let pair = Pair::settled().await;
    let since = pair.now();
    for _ in 0..50 {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        let t = pair.0.clock.now_ms();
        // Series of A have a label too many, each sample a name that is not allowed.
        let labels: [(&[u8], &[u8]); 4] = [
            (b"__name__", b"up"),
            (b"__replica__", b"a"),
            (b"cluster", b"eu"),
            (b"__tenant__", b"x"),
        ];
        let bad = request(&[series(&labels, &[(t, 1.0)])]);
        assert_eq!(pair.0.push(&bad).await.status, 400);
        pair.push("b", pair.now()).await;
    }
    assert!(pair.stored_of("b").contains(&pair.now()));
    assert_eq!(pair.stored_of("a").last(), Some(&since));
}

#[tokio::test(start_paused = true)]
async fn a_series_that_is_not_taken_whole_counts_for_nothing() {
    let pair = Pair::settled().await;
    pair.0.clock.sleep(Duration::from_secs(31)).await;
    let t = pair.0.clock.now_ms();
    let partly = request(&[of_replica("up", "a", &[(t, 1.0), (t + 365 * 86_400_000, 1.0)])]);
    assert_eq!(pair.0.push(&partly).await.status, 400);
    pair.push("b", pair.now()).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_rejected_as_a_whole_makes_no_pair() {
    let pair = Pair(Rig::new(state(1, 1, 1, 1), limits()));
    let labels: [(&[u8], &[u8]); 2] = [(b"__replica__", b"a"), (b"cluster", b"eu")];
    let nameless = request(&[series(&labels, &[(NOW, 1.0)])]);
    assert_eq!(pair.0.push(&nameless).await.status, 400);
    // A pair would have been reported by now.
    pair.0.clock.sleep(Duration::from_secs(10)).await;
    assert!(pair.0.referee.heard.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_the_elected_replica_lost_for_good_is_taken_from_the_other() {
    let limits = Limits {
        ingestion_rate: 10,
        ingestion_burst: 10,
        ..limits()
    };
    let pair = Pair(Rig::new(with_elected("a", 1), limits));
    pair.push("a", 0).await.assert(204, "");
    pair.0.clock.sleep(SETTLED).await;
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
    // More than the rate allows: Prometheus drops it.
    let t = pair.0.clock.now_ms();
    let samples: Vec<(i64, f64)> = (0..20).map(|i| (t - i, 1.0)).collect();
    let refused = pair.0.push(&request(&[of_replica("up", "a", &samples)])).await;
    assert_eq!(refused.status, 429);
    pair.push("b", pair.now()).await.assert(204, "");
    pair.0.clock.sleep(Duration::from_secs(2)).await;
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
}

#[tokio::test(start_paused = true)]
async fn a_broken_request_of_the_elected_replica_is_lost_for_good() {
    let pair = Pair::settled().await;
    pair.push("b", pair.now()).await.assert(202, "");
    let mut broken = request(&[of_replica("up", "a", &[(pair.0.clock.now_ms(), 1.0)])]);
    broken.extend_from_slice(&[0x0a, 0xff]);
    assert_eq!(pair.0.push(&broken).await.status, 400);
    pair.push("b", pair.now()).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn what_there_is_no_room_for_now_is_not_lost() {
    let pair = Pair::settled_with(Settings {
        bytes_in_flight_max: 64 << 20,
        ..Settings::default()
    })
    .await;
    pair.push("b", pair.now()).await.assert(202, "");
    let large = |metric: &str| many_buckets(400).fold(of_replica(metric, "a", &[]), |m, h| m.message(4, &h));
    let small = of_replica("up", "a", &[(pair.0.clock.now_ms(), 1.0)]);
    // The half of the room that a tenant may have is taken, more or less, while a member keeps another request waiting.
    let go_on = Arc::new(Notify::new());
    let waits = Next::Wait(Arc::clone(&go_on));
    pair.0.members[0].next.lock().push_back(waits);
    let (one, two) = (request(&[large("one")]), request(&[small, large("two")]));
    let (first, ()) = tokio::join!(pair.0.push(&one), async {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        pair.0.push(&two).await.assert(503, "for one tenant half of");
        // A sends it again: until it has, B's copies are no others than before.
        pair.push("b", pair.now()).await.assert(202, "");
        go_on.notify_one();
    });
    first.assert(204, "");
    pair.0.push(&two).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
    assert!(pair.stored_of("b").is_empty());
}

// It shows only when all is decoded: columns take more than what they were decoded from.
#[tokio::test(start_paused = true)]
async fn what_takes_too_much_at_the_end_is_lost_for_good() {
    let pair = Pair::settled_with(Settings {
        bytes_in_flight_max: 1 << 20,
        ..Settings::default()
    })
    .await;
    pair.push("b", pair.now()).await.assert(202, "");
    let t = pair.0.clock.now_ms();
    let sample = Message::default().number(2, t as u64);
    let large = (0..33_000).fold(of_replica("up", "a", &[]), |m, _| m.message(2, &sample));
    let answer = pair.0.push(&request(&[large])).await;
    answer.assert(413, "bytes while it is decoded");
    pair.push("b", pair.now()).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn what_ingesters_of_a_newer_state_took_is_not_relied_on() {
    let pair = Pair::settled().await;
    pair.0.clock.sleep(Duration::from_secs(31)).await;
    *pair.0.members[0].state_version.lock() = 2;
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(204, "");
    *pair.0.members[0].state_version.lock() = 1;
    pair.push("a", pair.now()).await.assert(204, "");
    pair.push("b", pair.now()).await.assert(202, "");
}

#[tokio::test(start_paused = true)]
async fn otlp_that_is_deduplicated_as_a_whole_is_a_full_success() {
    let pair = Pair::settled().await;
    let before = pair.0.stored().len();
    let attribute =
        |key: &str, value: &str| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
    let body = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"up","gauge":{{"dataPoints":[
            {{"timeUnixNano":"{}000000","asDouble":2,"attributes":[{},{}]}}]}}}}]}}]}}]}}"#,
        pair.0.clock.now_ms(),
        attribute("cluster", "eu"),
        attribute("__replica__", "b"),
    );
    let headers = [("content-type", "application/json")];
    let answer = pair.0.request("POST", "/otlp/v1/metrics", &headers, body).await;
    answer.assert(200, "{}");
    assert_eq!(pair.0.stored().len(), before, "{:?}", pair.0.stored());
}

/// What is dropped of deltas counts in the total, which goes on from there when their replica is elected.
#[tokio::test(start_paused = true)]
async fn deltas_of_the_replica_that_is_not_elected_stay_in_its_total() {
    let pair = Pair::settled().await;
    let attribute =
        |key: &str, value: &str| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
    let delta = |value: u32| {
        let now = pair.0.clock.now_ms();
        format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"jobs","sum":{{"aggregationTemporality":1,
                "isMonotonic":true,"dataPoints":[{{"startTimeUnixNano":"{}000000","timeUnixNano":"{now}000000",
                "asInt":"{value}","attributes":[{},{}]}}]}}}}]}}]}}]}}"#,
            now - 1_000,
            attribute("cluster", "eu"),
            attribute("__replica__", "b"),
        )
    };
    let headers = [("content-type", "application/json")];
    for value in [1, 2, 4] {
        pair.0.clock.sleep(Duration::from_secs(1)).await;
        if value == 4 {
            assert!(pair.0.state.offer(with_elected("b", 2)));
        }
        let answer = pair
            .0
            .request("POST", "/otlp/v1/metrics", &headers, delta(value))
            .await;
        answer.assert(200, "{}");
    }
    let stored = pair.0.stored();
    let totals: Vec<f64> = stored
        .iter()
        .filter(|(labels, _, _)| labels.contains("jobs"))
        .map(|(_, _, v)| *v)
        .collect();
    assert_eq!(totals, [7.0]);
}
