//! Exposed metrics by HTTP, and Pushgateway's paths.

use std::io::Write as _;

use crate::rig::{NOW, Rig};

fn stored(rig: &Rig) -> Vec<String> {
    let all = rig.stored();
    all.into_iter()
        .map(|(labels, t, v)| format!("{labels} {v} {t}"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn text_is_written_at_its_times_or_now() {
    let rig = Rig::single();
    let text = format!(
        "# TYPE jobs gauge\n# HELP jobs How many.\njobs{{queue=\"a\\\"b\"}} 3\njobs{{queue=\"c\"}} 4 {}\n",
        NOW - 5
    );
    rig.request("POST", "/api/v1/import/prometheus", &[], text)
        .await
        .assert(204, "");
    assert_eq!(
        stored(&rig),
        [
            format!("{{__name__=\"jobs\", queue=\"a\\\"b\"}} 3 {NOW}"),
            format!("{{__name__=\"jobs\", queue=\"c\"}} 4 {}", NOW - 5),
        ]
    );
    let metadata = rig.members[0].metadata();
    assert_eq!(
        (metadata[0].0.as_str(), metadata[0].1.help.as_str()),
        ("jobs", "How many.")
    );
}

#[tokio::test(start_paused = true)]
async fn parameters_add_labels_and_a_time() {
    let rig = Rig::single();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"x{a=\"1\",b=\"2\"} 1").unwrap();
    let path = format!(
        "/prometheus/api/v1/import/prometheus?extra_label=b%3D3&extra_label=c=d+e&timestamp={}",
        NOW - 1
    );
    let headers = [
        ("content-encoding", "gzip"),
        ("content-type", "text/plain; version=0.0.4"),
    ];
    rig.request("POST", &path, &headers, gzip.finish().unwrap())
        .await
        .assert(204, "");
    assert_eq!(
        stored(&rig),
        [format!(
            "{{__name__=\"x\", a=\"1\", b=\"3\", c=\"d e\"}} 1 {}",
            NOW - 1
        )]
    );
}

#[tokio::test(start_paused = true)]
async fn groups_are_pushed_with_their_labels_and_the_time() {
    let rig = Rig::single();
    for method in ["PUT", "POST"] {
        let path = "/metrics/job/batch/instance@base64/YS9i";
        rig.request(method, path, &[], "done{instance=\"x\"} 1\n")
            .await
            .assert(200, "");
    }
    assert_eq!(
        stored(&rig),
        [
            format!("{{__name__=\"done\", instance=\"a/b\", job=\"batch\"}} 1 {NOW}"),
            format!(
                "{{__name__=\"push_time_seconds\", instance=\"a/b\", job=\"batch\"}} {} {NOW}",
                NOW / 1000
            ),
        ]
    );
}

/// What Go's client library says that it pushes.
pub(crate) const FAMILIES: (&str, &str) = (
    "content-type",
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
);

/// A gauge `done` of 1 with `instance="x"`, as metric families come.
const DONE: &[u8] = b"\x24\x0a\x04done\x18\x01\x22\x1a\x0a\x0d\x0a\x08instance\x12\x01x\x12\x09\x09\x00\x00\x00\x00\x00\x00\xf0\x3f";

#[tokio::test(start_paused = true)]
async fn case_and_quotes_of_content_types_do_not_matter() {
    let text = &b"done 1\n"[..];
    for (content_type, body) in [
        ("Text/Plain; Version=0.0.4", text),
        ("Application/OpenMetrics-Text", b"done 1\n# EOF\n"),
        (
            "application/vnd.google.protobuf; proto=\"io.prometheus.client.MetricFamily\"; Encoding=\"delimited\"",
            DONE,
        ),
    ] {
        let rig = Rig::single();
        let headers = [("content-type", content_type)];
        rig.request("POST", "/api/v1/import/prometheus", &headers, body)
            .await
            .assert(204, "");
        assert_eq!(stored(&rig).len(), 1, "{content_type}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slash_after_the_job_is_nothing() {
    let rig = Rig::single();
    rig.request("PUT", "/metrics/job/j4/", &[], "done 1\n")
        .await
        .assert(200, "");
    assert_eq!(
        stored(&rig)[0],
        format!("{{__name__=\"done\", job=\"j4\"}} 1 {NOW}")
    );
}

#[tokio::test(start_paused = true)]
async fn groups_are_pushed_in_protobuf_too() {
    let rig = Rig::single();
    let path = "/metrics/job/batch/instance/a";
    rig.request("PUT", path, &[FAMILIES], DONE).await.assert(200, "");
    rig.request("POST", "/api/v1/import/prometheus", &[FAMILIES], DONE)
        .await
        .assert(204, "");
    assert_eq!(
        stored(&rig),
        [
            format!("{{__name__=\"done\", instance=\"a\", job=\"batch\"}} 1 {NOW}"),
            format!("{{__name__=\"done\", instance=\"x\"}} 1 {NOW}"),
            format!(
                "{{__name__=\"push_time_seconds\", instance=\"a\", job=\"batch\"}} {} {NOW}",
                NOW / 1000
            ),
        ]
    );
    rig.request("PUT", path, &[FAMILIES], "\x23done")
        .await
        .assert(400, "invalid protobuf: unexpected end");
    // As text it would be large, too.
    rig.request("PUT", path, &[FAMILIES], vec![0; 4 << 20])
        .await
        .assert(413, "metric families take more than");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_deleted_ends_its_push_time() {
    let rig = Rig::single();
    let path = "/metrics/job/batch";
    for (path, code) in [(&*format!("{path}/a/b"), 202), (&*format!("{path}/a"), 400)] {
        rig.request("DELETE", path, &[], "").await.assert(code, "");
    }
    let [stored] = &*stored(&rig) else {
        panic!("one sample");
    };
    let series = "{__name__=\"push_time_seconds\", a=\"b\", job=\"batch\"}";
    assert_eq!(*stored, format!("{series} NaN {NOW}"));
}

#[tokio::test(start_paused = true)]
async fn bad_text_is_refused_whole_with_its_line() {
    let rig = Rig::single();
    let path = "/api/v1/import/prometheus";
    for (path, headers, body, code, message) in [
        (
            path,
            &[][..],
            "ok 1\nx{a=b} 1",
            400,
            "invalid exposition text at line 2: expected a quoted value of label \"a\"",
        ),
        (
            path,
            &[("content-type", "application/json")][..],
            "{}",
            415,
            "use text/plain, application/openmetrics-text or application/vnd.google.protobuf; proto=",
        ),
        (
            path,
            &[("content-encoding", "br")][..],
            "x 1",
            415,
            "unsupported content encoding \"br\", use gzip, zstd or snappy",
        ),
        (
            "/api/v1/import/prometheus?timestamp=now",
            &[][..],
            "x 1",
            400,
            "invalid timestamp \"now\": expected milliseconds",
        ),
        (
            "/api/v1/import/prometheus?extra_label=a",
            &[][..],
            "x 1",
            400,
            "invalid extra_label \"a\": expected name=value",
        ),
        (
            "/metrics/job/a/b",
            &[][..],
            "x 1",
            400,
            "invalid path \"b\": expected pairs of /<label>/<value>",
        ),
    ] {
        rig.request("POST", path, headers, body)
            .await
            .assert(code, message);
    }
    assert!(stored(&rig).is_empty());
}

#[tokio::test(start_paused = true)]
async fn series_that_are_not_good_are_left_out_of_text_too() {
    let rig = Rig::single();
    let text = "good 1\nbad{__tenant__=\"x\"} 1\nold 1 1\n";
    let answer = rig.request("POST", "/api/v1/import/prometheus", &[], text).await;
    answer.assert(400, "");
    assert_eq!(stored(&rig), [format!("{{__name__=\"good\"}} 1 {NOW}")]);
}

#[tokio::test(start_paused = true)]
async fn i12_added_labels_are_bounded_and_counted() {
    let rig = Rig::single();
    let path = "/api/v1/import/prometheus";
    let many = vec!["extra_label=a=b"; 65].join("&");
    rig.request("POST", &format!("{path}?{many}"), &[], "x 1")
        .await
        .assert(400, "at most 64 of them");
    let group = "/a/b".repeat(65);
    rig.request("PUT", &format!("/metrics/job/x{group}"), &[], "x 1")
        .await
        .assert(400, "invalid path");

    // What is left out for its number is not made up for by labels that are replaced.
    let limit = koios_tenancy::Limits::default().max_labels_per_series;
    let labels: Vec<String> = (3..limit).map(|i| format!(",l{i}=\"v\"")).collect();
    let text = format!("m{{a=\"1\",a=\"2\"{},z=\"lost\"}} 1", labels.concat());
    rig.request("POST", &format!("{path}?extra_label=a=0"), &[], text)
        .await
        .assert(400, "labels");
    assert!(stored(&rig).is_empty());

    // Columns larger than the request are held, and given back.
    let text: String = (0..3_000).map(|i| format!("m{i} 1\n")).collect();
    let path = format!("{path}?extra_label=a={}", "v".repeat(2_000));
    rig.request("POST", &path, &[], text).await.assert(204, "");
}

// What it takes in memory is told by what is in it: a text with one escape is no larger than any other.
#[tokio::test(start_paused = true)]
async fn i13_a_large_text_with_an_escape_is_taken() {
    let rig = Rig::single();
    let text = format!("# HELP up a\\nb\n# {}\nup 1\n", "x".repeat(30 << 20));
    let answer = rig.request("POST", "/api/v1/import/prometheus", &[], text).await;
    answer.assert(204, "");
    assert_eq!(rig.stored().len(), 1);
}
