//! Small requests that name large things often: what they cost is bounded by the limits. Each has a size that takes
//! minutes, or more memory than there is, when it is not.

use koios_distributor::Settings;
use koios_tenancy::Limits;
use rstest::rstest;

use crate::messages::*;
use crate::rig::{NOW, Rig, state};

const MIB: usize = 1 << 20;
const TOO_OLD: i64 = NOW - 24 * 3_600_000;

#[tokio::test(start_paused = true)]
async fn i12_labels_beyond_their_limits_are_not_read() {
    let rig = Rig::single();
    let names: Vec<String> = (0..50).map(|i| format!("l{i}")).collect();
    let huge = "x".repeat(8 * MIB);
    let mut symbols = vec!["", "__name__", "up", &huge];
    symbols.extend(names.iter().map(String::as_str));
    let refs: Vec<u64> = (0..50).flat_map(|i| [4 + i, 3]).collect();
    let bad = series_v2(&[&[1, 2], &refs[..]].concat(), &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 2_000])).await;
    answer.assert(
        400,
        "label value too long (actual: 8388608, limit: 65536, label \"l0\")",
    );
    answer.assert(400, "rejected: 2000 samples of 2000 series");
    // As a name, and where no label is too long by itself.
    let bad = series_v2(&[1, 2, 3, 2], &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 20_000])).await;
    answer.assert(400, "label name too long (actual: 8388608, limit: 1024)");
    let long = "x".repeat(64 << 10);
    symbols[3] = &long;
    let bad = series_v2(&[&[1, 2], &refs[..]].concat(), &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 20_000])).await;
    answer.assert(400, "label set too large (actual: 3276");
    assert_eq!(rig.stored(), []);
}

#[tokio::test(start_paused = true)]
async fn i12_exemplars_beyond_their_limits_are_not_read() {
    let rig = Rig::single();
    let huge = "x".repeat(8 * MIB);
    let exemplar = Message::default()
        .packed(1, &[3, 4])
        .double(2, 0.5)
        .number(3, NOW as u64);
    let with = (0..20_000).fold(series_v2(&[1, 2], &[(NOW, 1.0)]), |m, _| m.message(4, &exemplar));
    let answer = rig
        .push_v2(&request_v2(&["", "__name__", "up", "trace_id", &huge], &[with]))
        .await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "0");
    assert!(answer.header("warning").contains("dropped: 20000"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn i12_labels_of_what_is_refused_count_too() {
    let rig = Rig::single();
    let tag = "x".repeat(60_000);
    let fields: Vec<String> = (0..16_000).map(|i| format!("f{i}=1")).collect();
    let line = format!("m,a={tag},b={tag},c={tag} {} {TOO_OLD}000000\n", fields.join(","));
    let answer = rig.request("POST", "/write", &[], line.into_bytes()).await;
    answer.assert(413, "limits.max-request-bytes");
    // And so do those of series that have no name.
    let bad = series_v2(&[1, 2, 3, 2, 4, 2], &[(NOW, 1.0)]);
    let answer = rig
        .push_v2(&request_v2(&["", "a", &tag, "b", "c"], &vec![bad; 16_000]))
        .await;
    answer.assert(413, "limits.max-request-bytes");
    assert_eq!(rig.stored(), []);
}

#[tokio::test(start_paused = true)]
async fn i12_a_tag_is_not_read_for_each_field() {
    let rig = Rig::single();
    let fields: Vec<String> = (0..16_000).map(|i| format!("f{i}=1")).collect();
    let line = format!("m,a={} {}\n", "x".repeat(8 * MIB), fields.join(","));
    let answer = rig.request("POST", "/write", &[], line.into_bytes()).await;
    answer.assert(400, "label value too long (actual: 8388608, limit: 65536");
}

/// Native histograms of 4,096 buckets, one byte each until they are decoded.
fn many_buckets(n: usize) -> impl Iterator<Item = Message> {
    let deltas: Vec<u64> = std::iter::once(2).chain(vec![0; 4_095]).collect();
    let common = Message::default()
        .number(1, 4_096)
        .double(3, 1.0)
        .span(11, 0, 4_096)
        .packed(12, &deltas);
    (0..n).map(move |i| common.clone().number(15, (NOW + i as i64) as u64))
}

// The last of the request is no message at all: nobody looks at it.
#[rstest]
#[case::of_one_series(true)]
#[case::of_many_series(false)]
#[tokio::test(start_paused = true)]
async fn i12_memory_for_histograms_is_asked_for_as_it_is_needed(#[case] is_one: bool) {
    let settings = Settings {
        bytes_in_flight_max: 64 * MIB as u64,
        ..Settings::default()
    };
    let rig = Rig::with_settings(state(1, 1, 1, 1), Limits::default(), settings);
    let of = |n: usize| match is_one {
        true => vec![many_buckets(n).fold(series(&[(b"__name__", b"h")], &[]), |m, h| m.message(4, &h))],
        false => many_buckets(n)
            .map(|h| series(&[(b"__name__", b"h")], &[]).message(4, &h))
            .collect(),
    };
    let mut body = request(&of(2_000));
    body.extend_from_slice(&[0xff; 20]);
    rig.push(&body).await.assert(413, "bytes while it is decoded");
    assert!(rig.stored().is_empty());
    // All was given back, and what fits is taken.
    for _ in 0..3 {
        rig.push(&request(&of(400))).await.assert(204, "");
    }
    assert!(
        rig.metrics
            .encode()
            .contains("koios_distributor_request_bytes_in_flight 0")
    );
}
