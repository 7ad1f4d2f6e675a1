//! Influx' line protocol by HTTP.

use std::io::Write as _;

use rstest::rstest;

use crate::rig::{Answer, NOW, Rig};

fn stored(rig: &Rig) -> Vec<String> {
    let all = rig.stored();
    all.into_iter()
        .map(|(labels, t, v)| format!("{labels} {v} {t}"))
        .collect()
}

#[rstest]
#[case("/write?precision=ms")]
#[case("/api/v2/write?org=o&bucket=b&precision=ms")]
#[case("/api/v1/push/influx/write?precision=ms")]
#[case("/prometheus/api/v1/push/influx/write?precision=ms")]
#[tokio::test(start_paused = true)]
async fn lines_are_written_at_their_times_or_now(#[case] path: &str) {
    let rig = Rig::single();
    let text = format!(
        "cpu,host=a usage=0.5,mode=\"x\" {}\ncpu,host=b usage=1i\n",
        NOW - 5
    );
    let answer = rig
        .request("POST", path, &[("content-type", "text/plain")], text)
        .await;
    answer.assert(204, "");
    assert_eq!(
        stored(&rig),
        [
            format!("{{__name__=\"cpu_usage\", host=\"a\"}} 0.5 {}", NOW - 5),
            format!("{{__name__=\"cpu_usage\", host=\"b\"}} 1 {NOW}"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_database_becomes_a_label_where_it_is_no_tag() {
    let rig = Rig::single();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"m a=1\nm,db=own a=2").unwrap();
    let headers = [("content-encoding", "gzip"), ("x-scope-orgid", "team")];
    let body = gzip.finish().unwrap();
    rig.request("POST", "/write?db=tele%20graf", &headers, body)
        .await
        .assert(204, "");
    assert_eq!(
        stored(&rig),
        [
            format!("{{__name__=\"m_a\", db=\"own\"}} 2 {NOW}"),
            format!("{{__name__=\"m_a\", db=\"tele graf\"}} 1 {NOW}"),
        ]
    );
    assert!(
        rig.members[0]
            .head
            .lock()
            .keys()
            .all(|(tenant, ..)| tenant == "team")
    );
}

#[tokio::test(start_paused = true)]
async fn clients_may_ask_whether_there_is_anyone() {
    let rig = Rig::single();
    for method in ["GET", "HEAD"] {
        let answer = rig.request(method, "/ping", &[], "").await;
        answer.assert(204, "");
        assert_eq!(answer.header("x-influxdb-version"), "koios");
    }
}

#[track_caller]
fn assert_error(answer: &Answer, code: u16, message: &str) {
    assert_eq!(answer.status, code, "{answer:?}");
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let said = said["error"].as_str().unwrap();
    assert!(said.contains(message), "{said}");
}

#[rstest]
#[case("/write?precision=d", &[], "m a=1", 400, "invalid precision \"d\": expected one of ns, us, ms, s, m, h")]
#[case("/write", &[("content-encoding", "br")], "m a=1", 415, "unsupported content encoding \"br\"")]
#[case("/write", &[("x-scope-orgid", "a/b")], "m a=1", 400, "tenant ID")]
#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_whole(
    #[case] path: &str,
    #[case] headers: &[(&str, &str)],
    #[case] body: &'static str,
    #[case] code: u16,
    #[case] message: &str,
) {
    let rig = Rig::single();
    let answer = rig.request("POST", path, headers, body).await;
    assert_error(&answer, code, message);
    assert!(stored(&rig).is_empty());
}

#[rstest]
#[case("/write", NOW / 1000, "read with precision=ns it is 1")]
#[case("/write", NOW / 1000, "as it was sent it fits precision=s")]
#[case("/write", NOW, "as it was sent it fits precision=ms")]
#[case("/write?precision=ms", NOW / 1000, "as it was sent it fits precision=s")]
#[case("/write?precision=s", NOW, "as it was sent it fits precision=ms")]
#[case("/write?precision=s", 1, "give the unit of times")]
#[tokio::test(start_paused = true)]
async fn a_time_in_another_unit_is_told_with_the_parameter_that_mends_it(
    #[case] path: &str,
    #[case] t: i64,
    #[case] message: &str,
) {
    let rig = Rig::single();
    let answer = rig.request("POST", path, &[], format!("m a=1 {t}\n")).await;
    assert_error(&answer, 400, "too old or too far in the future");
    assert_error(&answer, 400, message);
}

#[tokio::test(start_paused = true)]
async fn samples_that_are_not_good_are_left_out() {
    let rig = Rig::single();
    let answer = rig
        .request("POST", "/write?precision=s", &[], "m a=1 1\nm a=2\n")
        .await;
    assert_error(&answer, 400, "too old");
    assert_eq!(stored(&rig), [format!("{{__name__=\"m_a\"}} 2 {NOW}")]);
}

#[tokio::test(start_paused = true)]
async fn lines_that_cannot_be_read_are_named_and_the_others_written() {
    let rig = Rig::single();
    let body = "ok a=1\nm a\nold a=1 5000000\nlast a=2\nm,\n";
    let answer = rig.request("POST", "/write", &[], body).await;
    assert_error(
        &answer,
        400,
        "partial write: invalid line protocol at line 2: expected \"=\" after a field's key",
    );
    assert_error(
        &answer,
        400,
        "(rejected: 2 lines, and 1 samples of 1 series in others, written: 2 samples)",
    );
    let wanted = ["ok_a", "last_a"].map(|m| format!("{{__name__=\"{m}\"}}"));
    let stored = stored(&rig);
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(
        wanted.iter().all(|w| stored.iter().any(|s| s.starts_with(w))),
        "{stored:?}"
    );
    let answer = rig.request("POST", "/write", &[], "m a\n").await;
    assert_error(&answer, 400, "invalid line protocol at line 1");
    assert!(!answer.body.contains("partial write"), "{answer:?}");
}

/// Telegraf takes an error of another form for a proxy's, and sends the same for ever.
#[rstest]
#[case("/write", "error", None)]
#[case("/api/v2/write", "message", Some("invalid"))]
#[tokio::test(start_paused = true)]
async fn errors_have_the_form_of_the_version(
    #[case] path: &str,
    #[case] key: &str,
    #[case] code: Option<&str>,
) {
    let rig = Rig::single();
    let answer = rig.request("POST", path, &[], "m a\n").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("content-type"), "application/json");
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert!(said[key].as_str().unwrap().starts_with("invalid line"), "{said}");
    assert_eq!(said.get("code").and_then(serde_json::Value::as_str), code);
}

/// Version 1 has no 429, and clients drop any 4xx that is JSON.
#[rstest]
#[case("/write", "text/plain; charset=utf-8")]
#[case("/api/v2/write", "application/json")]
#[tokio::test(start_paused = true)]
async fn what_came_too_fast_comes_again(#[case] path: &str, #[case] content_type: &str) {
    let limits = koios_tenancy::Limits {
        ingestion_rate: 1,
        ingestion_burst: 1,
        ..koios_tenancy::Limits::default()
    };
    let rig = Rig::new(crate::rig::state(1, 1, 1, 1), limits);
    rig.request("POST", path, &[], "m a=1\n").await.assert(204, "");
    let answer = rig.request("POST", path, &[], "m a=1\n").await;
    answer.assert(429, "ingestion rate limit");
    assert_eq!(answer.header("content-type"), content_type);
    assert_eq!(answer.header("retry-after"), "1");
}
