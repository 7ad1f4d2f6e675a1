//! What becomes of data points that limits refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_tenancy::Limits;

use crate::messages::Message;
use crate::otlp::{PATH, PROTOBUF, gauge, point, request};
use crate::rig::{Answer, NOW, Rig, state};

fn limited(max_series: u64) -> Limits {
    Limits {
        max_series,
        ..Limits::default()
    }
}

fn span(start: i64, end: i64) -> Message {
    let nanos = |t: i64| (NOW + t) as u64 * 1_000_000;
    Message::default().fixed(2, nanos(start)).fixed(3, nanos(end))
}

/// A delta, from and to so many milliseconds from now.
fn delta(start: i64, end: i64, n: u64) -> Vec<u8> {
    let sum = Message::default().message(1, &span(start, end).fixed(6, n));
    let sum = sum.number(2, 1).number(3, 1);
    request(&[Message::default().bytes(1, "a").message(7, &sum)])
}

/// Histograms with `n` observations in each of twelve buckets.
fn histograms(spans: &[(i64, i64, u64)], temporality: u64) -> Vec<u8> {
    let list = |numbers: &[u64]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_le_bytes()).collect() };
    let bounds: Vec<u64> = (1..12).map(|n| f64::from(n).to_bits()).collect();
    let points = spans.iter().map(|(start, end, n)| {
        let point = span(*start, *end).fixed(4, 12 * n).double(5, 1.0);
        point.bytes(6, list(&[*n; 12])).bytes(7, list(&bounds))
    });
    let data = points.fold(Message::default(), |m, point| m.message(1, &point));
    request(&[Message::default()
        .bytes(1, "h")
        .message(9, &data.number(2, temporality))])
}

async fn send(rig: &Rig, body: Vec<u8>) -> Answer {
    rig.request("POST", PATH, &[PROTOBUF], body).await
}

/// The number of data points that an answer says were rejected.
#[track_caller]
fn assert_rejected(answer: &Answer, points: u8, words: &str) {
    answer.assert(200, words);
    let said = [8, points, 0x12];
    let is_said = answer.body.as_bytes().windows(3).any(|bytes| bytes == said);
    assert!(is_said, "{points} are rejected: {answer:?}");
}

/// What is stored of series whose labels have these words: (time from now, value).
fn stored(rig: &Rig, words: &str) -> Vec<(i64, f64)> {
    let all = rig
        .stored()
        .into_iter()
        .filter(|(labels, ..)| labels.contains(words));
    all.map(|(_, t, v)| (t - NOW, v)).collect()
}

const A: &str = "__name__=\"a_total\"";

#[tokio::test(start_paused = true)]
async fn i2_a_delta_that_the_limit_on_series_refused_is_in_no_total() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(1));
    send(&rig, request(&[gauge("other", &[point(NOW, 1.0)])]))
        .await
        .assert(200, "");
    for (start, n) in [(-9_000, 5), (-8_000, 6), (-7_000, 7)] {
        assert_rejected(
            &send(&rig, delta(start, start + 1000, n)).await,
            1,
            "series limit 1 exceeded",
        );
    }
    rig.limits.replace(limited(2), BTreeMap::new());
    for (start, n) in [(-6_000, 1), (-5_000, 2), (-5_000, 2)] {
        send(&rig, delta(start, start + 1000, n)).await.assert(200, "");
    }
    assert_eq!(stored(&rig, A), [(-5_999, 0.0), (-5_000, 1.0), (-4_000, 3.0)]);
}

#[tokio::test(start_paused = true)]
async fn i2_a_delta_that_came_too_fast_is_counted_when_it_comes_again_and_not_otherwise() {
    let limits = Limits {
        ingestion_rate: 10,
        ingestion_burst: 10,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let fill = || async {
        rig.clock.sleep(Duration::from_secs(10)).await;
        let points: Vec<Message> = (0..10).map(|n| point(NOW - n, 1.0)).collect();
        send(&rig, request(&[gauge("other", &points)]))
            .await
            .assert(200, "");
    };
    rig.clock.sleep(Duration::from_secs(10)).await;
    send(&rig, delta(-9_000, -8_000, 1)).await.assert(200, "");
    fill().await;
    send(&rig, delta(-8_000, -7_000, 2))
        .await
        .assert(429, "ingestion rate");
    send(&rig, delta(-8_000, -7_000, 2))
        .await
        .assert(429, "ingestion rate");
    rig.clock.sleep(Duration::from_secs(10)).await;
    send(&rig, delta(-8_000, -7_000, 2)).await.assert(200, "");
    // The sender gives this one up.
    fill().await;
    send(&rig, delta(-7_000, -6_000, 4))
        .await
        .assert(429, "ingestion rate");
    rig.clock.sleep(Duration::from_secs(10)).await;
    send(&rig, delta(-6_000, -5_000, 8)).await.assert(200, "");
    assert_eq!(
        stored(&rig, A),
        [
            (-8_999, 0.0),
            (-8_000, 1.0),
            (-7_000, 3.0),
            (-5_999, 0.0),
            (-5_000, 8.0)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn i2_a_histogram_of_deltas_that_finds_room_for_a_part_of_its_series_is_refused_whole() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(9));
    let first = histograms(&[(-9_000, -8_000, 1), (-8_000, -7_000, 1)], 1);
    assert_rejected(
        &send(&rig, first).await,
        2,
        "rejected: 42 samples of 42 series, written: 0 samples",
    );
    assert_eq!(stored(&rig, "h_"), []);
    // What it did not get is there for others.
    let others: Vec<Message> = (0..9)
        .map(|n| gauge(&format!("g{n}"), &[point(NOW, 1.0)]))
        .collect();
    send(&rig, request(&others)).await.assert(200, "");
    rig.limits.replace(limited(100), BTreeMap::new());
    for (start, n) in [(-6_000, 2), (-5_000, 3)] {
        send(&rig, histograms(&[(start, start + 1000, n)], 1))
            .await
            .assert(200, "");
    }
    let counts = [(-5_999, 0.0), (-5_000, 24.0), (-4_000, 60.0)];
    assert_eq!(stored(&rig, "h_count"), counts);
    assert_eq!(stored(&rig, "le=\"+Inf\""), counts);
    assert_eq!(
        stored(&rig, "le=\"1\""),
        [(-5_999, 0.0), (-5_000, 2.0), (-4_000, 5.0)]
    );
}

#[tokio::test(start_paused = true)]
async fn data_points_are_counted_not_their_series() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(2));
    send(&rig, request(&[gauge("other", &[point(NOW, 1.0)])]))
        .await
        .assert(200, "");
    let spans = [(0, -3_000, 1), (0, -2_000, 1), (0, -1_000, 1)];
    let answer = send(&rig, histograms(&spans, 2)).await;
    assert_rejected(&answer, 3, "series limit 2 exceeded");
    answer.assert(200, "written: 3 samples");
    let both = [
        gauge("other", &[point(NOW - 1, 1.0)]),
        gauge("new", &[point(NOW, 1.0), point(NOW - 1, 1.0)]),
    ];
    assert_rejected(&send(&rig, request(&both)).await, 2, "written: 1 samples");
}

#[tokio::test(start_paused = true)]
async fn data_points_of_series_that_members_forgot_are_counted_once() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(20));
    send(&rig, histograms(&[(0, -3_000, 1)], 2)).await.assert(200, "");
    rig.members[0].known.lock().clear();
    rig.members[0].head.lock().clear();
    rig.clock.sleep(Duration::from_secs(1)).await;
    let others: Vec<Message> = (0..20)
        .map(|n| gauge(&format!("g{n}"), &[point(NOW, 1.0)]))
        .collect();
    send(&rig, request(&others)).await.assert(200, "");
    let answer = send(&rig, histograms(&[(0, -2_000, 2), (0, -1_000, 3)], 2)).await;
    assert_rejected(&answer, 2, "series limit 20 exceeded");
}

#[tokio::test(start_paused = true)]
async fn i2_a_delta_of_a_series_that_members_forgot_and_have_no_room_for_is_in_no_total() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(20));
    send(&rig, delta(-9_000, -8_000, 1)).await.assert(200, "");
    rig.members[0].known.lock().clear();
    rig.members[0].head.lock().clear();
    rig.clock.sleep(Duration::from_secs(1)).await;
    let others: Vec<Message> = (0..20)
        .map(|n| gauge(&format!("g{n}"), &[point(NOW, 1.0)]))
        .collect();
    send(&rig, request(&others)).await.assert(200, "");
    assert_rejected(
        &send(&rig, delta(-8_000, -7_000, 2)).await,
        1,
        "series limit 20 exceeded",
    );
    rig.limits.replace(limited(30), BTreeMap::new());
    send(&rig, delta(-7_000, -6_000, 4)).await.assert(200, "");
    assert_eq!(stored(&rig, A), [(-6_999, 0.0), (-6_000, 4.0)]);
}
