//! Series that are known: their labels are neither decoded nor sent, until a member asks for them.

use koios_tenancy::Limits;
use koios_wire::{Batch, ServiceErrorCode};
use proptest::prelude::*;

use crate::messages::{Message, request, series};
use crate::otlp;
use crate::rig::{NOW, Next, Rig, state};
use crate::series_limit::asks;

type Label = (&'static [u8], &'static [u8]);

/// Not sorted, with an empty value.
const AWKWARD: [Label; 4] = [(b"z", b"1"), (b"__name__", b"awkward"), (b"b", b""), (b"a", b"2")];

fn at(seconds: i64) -> i64 {
    NOW + seconds * 1000
}

/// Two series with a sample each at a time.
fn two(t: i64) -> Vec<u8> {
    let long: &[u8] = &[b'l'; 300];
    request(&[
        series(&[(b"__name__", b"up"), (b"job", long)], &[(t, 1.0)]),
        series(&AWKWARD, &[(t, 2.0)]),
    ])
}

/// For each series of the newest batch at member 0, whether it came with labels over the network.
fn labelled(rig: &Rig) -> Vec<bool> {
    let batches = rig.members[0].batches.lock();
    let newest = Batch::decode(batches.last().unwrap().encoded().clone()).unwrap();
    newest.columns().series().map(|s| s.labels.is_some()).collect()
}

#[tokio::test(start_paused = true)]
async fn labels_of_known_series_stay_in_the_message() {
    let rig = Rig::three_zones();
    rig.push(&two(at(0))).await.assert(204, "");
    assert_eq!(labelled(&rig), [true, true]);
    rig.push(&two(at(1))).await.assert(204, "");
    assert_eq!(labelled(&rig), [false, false]);
    // Beside a new one.
    let new = series(&[(b"__name__", b"new")], &[(at(2), 3.0)]);
    let message = [request(&[new]), two(at(2))].concat();
    rig.push(&message).await.assert(204, "");
    assert_eq!(labelled(&rig), [true, false, false]);
    let stored = rig.stored();
    let awkward: Vec<i64> = stored
        .iter()
        .filter(|s| s.0.contains("awkward"))
        .map(|s| s.1)
        .collect();
    assert_eq!(awkward, [at(0), at(1), at(2)], "{stored:?}");
}

#[tokio::test(start_paused = true)]
async fn series_whose_labels_come_in_another_order_stay_known() {
    let line = |t: i64| format!("m,z=1 a=2 {t}000000");
    let otlp = |t: i64| otlp::request(&[otlp::gauge("queue.size", &[otlp::point(t, 3.0)])]);
    let text = |t: i64| format!("sizes_bucket{{z=\"1\",le=\"2\"}} 5 {t}\n");
    type Body<'a> = &'a dyn Fn(i64) -> Vec<u8>;
    let formats: [(&str, &str, Body<'_>); 4] = [
        (otlp::PATH, otlp::PROTOBUF.1, &otlp),
        ("/write?db=d", "text/plain", &|t| line(t).into_bytes()),
        ("/api/v1/import/prometheus", "text/plain", &|t| {
            text(t).into_bytes()
        }),
        ("/metrics/job/x", "text/plain", &|_| {
            b"pushed{z=\"1\"} 5\n".to_vec()
        }),
    ];
    for (path, kind, body) in formats {
        for (max_series, max_series_per_metric) in [(0, 0), (20, 0), (0, 20)] {
            let limits = Limits {
                max_series,
                max_series_per_metric,
                ..Limits::default()
            };
            let rig = Rig::new(state(1, 1, 3, 1), limits);
            let case = format!("{path}, limits {max_series} and {max_series_per_metric}");
            let mut asked = 0;
            for seconds in 0..10 {
                let (headers, body) = ([("content-type", kind)], body(at(seconds)));
                let answer = rig.request("POST", path, &headers, body).await;
                assert!(answer.status.is_success(), "{case}: {answer:?}");
                let labels = labelled(&rig);
                assert!(labels.iter().all(|l| *l == (seconds == 0)), "{case}: {labels:?}");
                match seconds {
                    0 => asked = asks(&rig),
                    _ => assert_eq!(asks(&rig), asked, "{case}"),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_forgot_a_series_gets_its_labels_out_of_the_message() {
    for zipped in [false, true] {
        let rig = Rig::three_zones();
        let push = async |message: &[u8]| match zipped {
            false => rig.push(message).await,
            true => {
                let headers = [
                    ("content-type", "application/x-protobuf"),
                    ("content-encoding", "zstd"),
                ];
                rig.send(&headers, zstd::bulk::compress(message, 1).unwrap())
                    .await
            }
        };
        push(&two(at(0))).await.assert(204, "");
        rig.members.iter().for_each(|m| m.known.lock().clear());
        let new = series(&[(b"__name__", b"new")], &[(at(1), 3.0)]);
        push(&[two(at(1)), request(&[new])].concat())
            .await
            .assert(204, "");
        assert_eq!(labelled(&rig), [true, true, true]);
        let stored = rig.stored();
        let names: std::collections::BTreeSet<&str> = stored.iter().map(|s| s.0.as_str()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(
            names.contains(r#"{__name__="awkward", a="2", z="1"}"#),
            "{names:?}"
        );
        assert_eq!(stored.len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn labels_behind_other_fields_count_too() {
    let rig = Rig::single();
    let apart = |t: i64| {
        let label = |name: &str, value: &str| Message::default().bytes(1, name).bytes(2, value);
        Message::default()
            .message(1, &label("__name__", "up"))
            .message(2, &Message::default().double(1, 1.0).number(2, t as u64))
            .message(1, &label("job", "x"))
    };
    let plain = series(&[(b"__name__", b"up")], &[(at(0), 2.0)]);
    rig.push(&request(&[plain])).await.assert(204, "");
    // It begins like the one that is known.
    for seconds in [1, 2] {
        rig.push(&request(&[apart(at(seconds))])).await.assert(204, "");
    }
    let stored: Vec<(String, i64)> = rig.stored().into_iter().map(|s| (s.0, s.1)).collect();
    let (up, with_job) = (r#"{__name__="up"}"#, r#"{__name__="up", job="x"}"#);
    let wanted = [(up, at(0)), (with_job, at(1)), (with_job, at(2))];
    assert_eq!(stored.len(), 3);
    assert!(
        wanted
            .iter()
            .all(|(l, t)| stored.contains(&((*l).to_owned(), *t))),
        "{stored:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_of_a_known_series_is_told_with_its_labels() {
    let rig = Rig::single();
    rig.push(&two(at(0))).await.assert(204, "");
    let old = request(&[series(&AWKWARD, &[(at(-40 * 86_400), 1.0), (at(1), 5.0)])]);
    let answer = rig.push(&old).await;
    answer.assert(400, "awkward");
    assert_eq!(rig.stored().iter().filter(|s| s.1 == at(1)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn i13_a_member_that_never_knows_a_series_fails_the_write() {
    let rig = Rig::single();
    rig.push(&two(at(0))).await.assert(204, "");
    *rig.members[0].always.lock() = Some(Next::Refuse(ServiceErrorCode::UnknownSeries, 0));
    rig.push(&two(at(1))).await.assert(503, "not enough replicas");
}

#[tokio::test(start_paused = true)]
async fn labels_that_were_left_out_come_back_in_a_later_round() {
    let rig = Rig::three_zones();
    rig.push(&two(at(0))).await.assert(204, "");
    for member in &rig.members {
        member.known.lock().clear();
        member
            .next
            .lock()
            .push_back(Next::Refuse(ServiceErrorCode::Stale, 1));
    }
    rig.push(&two(at(1))).await.assert(204, "");
    assert_eq!(labelled(&rig), [true, true]);
    assert_eq!(rig.stored().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_series_with_exemplars_alone_comes_with_its_labels_every_time() {
    let rig = Rig::single();
    rig.push(&two(at(0))).await.assert(204, "");
    let label = Message::default().bytes(1, "trace_id").bytes(2, "7");
    let exemplar = |t: i64| {
        Message::default()
            .message(1, &label)
            .double(2, 1.0)
            .number(3, t as u64)
    };
    for name in [&b"up"[..], b"other"] {
        for seconds in 1..4 {
            let alone = series(&[(b"__name__", name), (b"job", &[b'l'; 300])], &[]);
            let alone = alone.message(3, &exemplar(at(seconds)));
            rig.push(&request(&[alone])).await.assert(204, "");
            assert_eq!(labelled(&rig), [true]);
            assert!(
                rig.metrics
                    .encode()
                    .contains("koios_distributor_sent_with_labels_total 0")
            );
        }
    }
}

/// Labels as a sender may write them, and times of which some are refused.
fn any_series() -> impl Strategy<Value = Message> {
    let label = ("(__name__|a|b|c|)", "(|x|y|\\PC{0,3})");
    let labels = proptest::collection::vec(label, 0..4);
    let seconds = prop_oneof![4 => 0..50i64, 1 => Just(-40 * 86_400), 1 => Just(86_400)];
    let times = proptest::collection::vec(seconds, 0..3);
    (labels, times, any::<bool>()).prop_map(|(labels, times, named)| {
        let name: Option<(&[u8], &[u8])> = named.then_some((b"__name__", b"m"));
        let labels = labels.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let labels: Vec<(&[u8], &[u8])> = name.into_iter().chain(labels).collect();
        let samples: Vec<(i64, f64)> = times.iter().map(|s| (at(*s), *s as f64)).collect();
        series(&labels, &samples)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is stored and answered does not depend on what was known before.
    #[test]
    fn i3_known_series_are_taken_like_new_ones(requests in proptest::collection::vec(
        proptest::collection::vec(any_series(), 1..6), 1..5)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let partitions = || Rig::new(state(1, 1, 3, 4), Limits::default());
            let learning = partitions();
            let mut stored = std::collections::BTreeMap::new();
            for message in requests.iter().chain(&requests) {
                let message = request(message);
                let fresh = partitions();
                let (a, b) = (learning.push(&message).await, fresh.push(&message).await);
                prop_assert_eq!((a.status, a.body), (b.status, b.body));
                stored.extend(fresh.stored().into_iter().map(|(labels, t, v)| ((labels, t), v)));
            }
            let got: Vec<_> = learning.stored().into_iter().map(|(labels, t, v)| ((labels, t), v)).collect();
            prop_assert_eq!(got, stored.into_iter().collect::<Vec<_>>());
            Ok(())
        })?;
    }
}
