//! What bad input gets, from the real process: codes decide whether senders retry, so each is exact.

mod support;

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use koios_model::{Labels, Sample};
use koios_testkit::http::Answer;
use koios_testkit::query::encode;
use koios_testkit::remote_write::{body, request};
use support::{Koios, all_in_one, client, now_ms, program};

/// A request and what it must get.
struct Case {
    row: &'static str,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    status: u16,
    contains: &'static str,
}

fn get(row: &'static str, path: impl Into<String>, status: u16, contains: &'static str) -> Case {
    Case {
        row,
        method: "GET",
        path: path.into(),
        headers: vec![],
        body: Bytes::new(),
        status,
        contains,
    }
}

fn form(row: &'static str, path: &str, body: impl Into<String>, status: u16, contains: &'static str) -> Case {
    let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
    Case {
        row,
        method: "POST",
        path: path.to_owned(),
        headers,
        body: Bytes::from(body.into()),
        status,
        contains,
    }
}

fn push(row: &'static str, body: impl Into<Bytes>, status: u16, contains: &'static str) -> Case {
    let headers = vec![
        ("content-type", "application/x-protobuf".to_owned()),
        ("content-encoding", "snappy".to_owned()),
        ("x-prometheus-remote-write-version", "0.1.0".to_owned()),
    ];
    Case {
        row,
        method: "POST",
        path: "/api/v1/push".to_owned(),
        headers,
        body: body.into(),
        status,
        contains,
    }
}

impl Case {
    /// Replaces or adds a header; an empty value removes it.
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        let value = value.into();
        if !value.is_empty() {
            self.headers.push((name, value));
        }
        self
    }

    fn tenant(mut self, tenant: &str) -> Self {
        self.headers.push(("x-scope-orgid", tenant.to_owned()));
        self
    }
}

fn one(pairs: &[(&str, &str)], t: i64, v: f64) -> Bytes {
    // Built by hand: the packed form would sort, drop and deduplicate.
    let labels = pairs
        .iter()
        .map(|(n, v)| koios_wire::pb::prometheus::Label {
            name: (*n).to_owned(),
            value: (*v).to_owned(),
        })
        .collect();
    let samples = vec![koios_wire::pb::prometheus::Sample {
        value: v,
        timestamp: t,
    }];
    let series = koios_wire::pb::prometheus::TimeSeries { labels, samples };
    body(&koios_wire::pb::prometheus::WriteRequest {
        timeseries: vec![series],
        metadata: vec![],
    })
}

/// A native histogram without observations.
fn histogram(name: &str, t: i64) -> Bytes {
    let varint = |mut n: u64| {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let field = |tag: u8, bytes: &[u8]| [&[tag][..], &varint(bytes.len() as u64), bytes].concat();
    let label = [field(0x0a, b"__name__"), field(0x12, name.as_bytes())].concat();
    let histogram = [&[0x08, 0x00, 0x78][..], &varint(t.cast_unsigned())].concat();
    let series = [field(0x0a, &label), field(0x22, &histogram)].concat();
    snappy(&field(0x0a, &series))
}

fn snappy(raw: &[u8]) -> Bytes {
    let compressed = snap::raw::Encoder::new().compress_vec(raw);
    compressed.unwrap_or_else(|e| panic!("snappy: {e}")).into()
}

fn writes() -> Vec<Case> {
    let now = now_ms();
    let good = || one(&[("__name__", "m"), ("a", "1")], now, 1.0);
    let named = |more: &[(&str, &str)]| {
        let mut pairs = vec![("__name__", "m")];
        pairs.extend_from_slice(more);
        one(&pairs, now, 1.0)
    };
    let many: Vec<(String, String)> = (0..10_000)
        .map(|i| (format!("l{i:05}"), "v".to_owned()))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    // A varint length of 2.5 GiB in front of nothing.
    let declared = [0x80u8, 0x80, 0x80, 0x80, 0x0a, 0x00];
    // Groups of an unknown field, opened a million times.
    let nested = snappy(&vec![0x4bu8; 1_000_000]);
    vec![
        push("1", good(), 415, "unsupported content type").with("content-type", "text/plain"),
        push("1 none", good(), 415, "unsupported content type").with("content-type", ""),
        push(
            "2",
            good(),
            415,
            "unsupported content encoding \"br\", use snappy or zstd",
        )
        .with("content-encoding", "br"),
        push("3", good(), 415, "unknown remote-write message").with(
            "content-type",
            "application/x-protobuf;proto=io.prometheus.write.v9.Request",
        ),
        push("4", Bytes::new(), 400, "snappy: corrupt input (empty body)"),
        push(
            "5",
            Bytes::from_static(b"\x10\xff\xfe\x01garbage"),
            400,
            "snappy: corrupt input",
        ),
        push(
            "6",
            Bytes::copy_from_slice(&declared),
            413,
            "exceeds limit 33554432",
        ),
        push("8", vec![0u8; 33 << 20], 413, "request body larger than"),
        push(
            "9",
            snappy(&[0x0a, 0x50, 0x01]),
            400,
            "invalid protobuf: unexpected end at byte",
        ),
        push("10", nested, 400, "invalid protobuf: nesting too deep"),
        push("12", one(&[("a", "1")], now, 1.0), 400, "missing metric name"),
        push(
            "13",
            named(&[("a", "1"), ("a", "2")]),
            400,
            "duplicate label name: \"a\"",
        ),
        push("14", one(&[("z", "1"), ("__name__", "m")], now, 1.0), 204, ""),
        push("15", named(&[("", "x")]), 400, "empty label name"),
        push("15 value", named(&[("a", "")]), 204, ""),
        push(
            "16",
            named(&many),
            400,
            "series has too many labels (actual: 10001, limit: 60)",
        ),
        push(
            "17",
            named(&[(&"n".repeat(1 << 20), "v")]),
            400,
            "label name too long (actual: 1048576, limit: 1024)",
        ),
        push("19", named(&[("a", "\0\r\n\x1b[31m<script>")]), 204, ""),
        push(
            "20",
            named(&[("__tenant__", "x")]),
            400,
            "label name \"__tenant__\" is reserved",
        ),
        push(
            "21",
            one(&[("__name__", "m")], now + 86_400_000, 1.0),
            400,
            "timestamp too far in the future (limit: 10m)",
        ),
        push(
            "22",
            one(&[("__name__", "m")], now / 1000, 1.0),
            400,
            "did you send seconds?",
        ),
        push(
            "22 min",
            one(&[("__name__", "m")], i64::MIN, 1.0),
            400,
            "timestamp too old",
        ),
        push(
            "23",
            one(&[("__name__", "m")], now - 7 * 3_600_000, 1.0),
            400,
            "too old sample (window: 6h)",
        ),
        push("24 first", one(&[("__name__", "conflict")], now, 1.0), 204, ""),
        push(
            "24",
            one(&[("__name__", "conflict")], now, 2.0),
            400,
            "duplicate sample for timestamp",
        ),
        push("25", one(&[("__name__", "conflict")], now, 2.0), 204, ""),
        push(
            "24 histogram after a float",
            histogram("conflict", now),
            400,
            "series {__name__=\"conflict\"} has value 2 at",
        ),
        push("24 histogram", histogram("mixed", now), 204, ""),
        push("25 histogram", histogram("mixed", now), 204, ""),
        push(
            "24 float after a histogram",
            one(&[("__name__", "mixed")], now, 2.0),
            400,
            "has a native histogram at",
        ),
        push("25 float", one(&[("__name__", "mixed")], now, 2.0), 204, ""),
        push("44", good(), 400, "tenant ID").tenant("../../etc"),
        push("44 long", good(), 400, "tenant ID").tenant(&"x".repeat(151)),
        push("44 reserved", good(), 400, "tenant ID").tenant("__markers__"),
    ]
}

fn queries() -> Vec<Case> {
    let q = |row, query: &str, status, contains| {
        get(
            row,
            format!("/api/v1/query?query={}", encode(query)),
            status,
            contains,
        )
    };
    let range = |row, rest: &str, status, contains| {
        get(
            row,
            format!("/api/v1/query_range?query=up&{rest}"),
            status,
            contains,
        )
    };
    vec![
        Case {
            method: "PUT",
            ..q("48", "up", 405, "")
        },
        get("49 missing", "/api/v1/query", 400, "no expression found in input"),
        q("49 empty", "", 400, "no expression found in input"),
        q("49 comment", "# nothing", 400, "no expression found in input"),
        q("50", "sum(", 400, "parse error"),
        q(
            "50 type",
            "rate(x)",
            400,
            "expected type range vector in call to function \"rate\", got instant vector",
        ),
        q("50 brace", "foo{", 400, "parse error"),
        q("50 matcher", "{}", 400, "at least one non-empty matcher"),
        form(
            "51 parens",
            "/api/v1/query",
            format!("query={}", "(".repeat(100_000)),
            400,
            "query too complex",
        ),
        form(
            "51 minus",
            "/api/v1/query",
            format!("query={}1", "-".repeat(100_000)),
            400,
            "query too complex",
        ),
        form(
            "51 sum",
            "/api/v1/query",
            format!("query={}1", "1%2B".repeat(200_000)),
            400,
            "query too complex",
        ),
        form(
            "52",
            "/api/v1/query",
            format!("query={}", "a".repeat(2 << 20)),
            413,
            "query longer than",
        ),
        q("52 uri", &"a".repeat(62 << 10), 414, "URI too long"),
        q("53", "foo{a=~\"(\"}", 400, "regex parse error"),
        q(
            "53 size",
            "foo{a=~\"(x{1000}){1000}{1000}\"}",
            400,
            "regex exceeds size limit",
        ),
        q("54", "m{a=~\"(a+)+$\"}", 200, "success"),
        get(
            "55 time",
            "/api/v1/query?query=up&time=abc",
            400,
            "cannot parse \"abc\" to a valid timestamp",
        ),
        range(
            "55 step",
            "start=0&end=10&step=0",
            400,
            "zero or negative query resolution step",
        ),
        range(
            "55 negative",
            "start=0&end=10&step=-1",
            400,
            "zero or negative query resolution step",
        ),
        range("55 huge", "start=0&end=10&step=1e300", 400, "It overflows int64"),
        range(
            "55 order",
            "start=10&end=0&step=1",
            400,
            "end timestamp must not be before start time",
        ),
        range(
            "56",
            "start=0&end=11001&step=1",
            400,
            "exceeded maximum resolution of 11,000 points per timeseries",
        ),
        get(
            "57",
            "/api/v1/query?query=up&limit=-1",
            400,
            "limit must be non-negative",
        ),
        get("63", "/api/v1/series", 400, "no match[] parameter provided"),
        get(
            "63 empty",
            format!("/api/v1/series?match[]={}", encode("{}")),
            400,
            "non-empty matcher",
        ),
        get("64", "/api/v1/label/%00/values", 400, "invalid label name"),
        get(
            "64 dots",
            "/api/v1/label/%2e%2e/values",
            400,
            "invalid label name",
        ),
        form(
            "65",
            "/api/v1/query",
            "a=1&".repeat(1_000_000),
            400,
            "too many form fields",
        ),
        get(
            "65 twice",
            "/api/v1/query?query=up&query=down",
            400,
            "parameter \"query\" given twice",
        ),
        q("44", "up", 400, "tenant ID").tenant("a/b"),
    ]
}

/// The error in words: of the query API's JSON, or the plain text.
fn message(answer: &Answer) -> String {
    let json = answer.json().ok();
    json.and_then(|j| j["error"].as_str().map(str::to_owned))
        .unwrap_or_else(|| answer.text())
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

#[tokio::test]
async fn i12_i13_every_bad_input_gets_its_code_and_words() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = client();
    let mut wrong = Vec::new();
    let before = resident_bytes(koios.process.id())?;
    for case in writes().into_iter().chain(queries()) {
        let headers: Vec<(&str, &str)> = case.headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let answer = client
            .send(case.method, &koios.http, &case.path, &headers, case.body.clone())
            .await;
        match answer {
            Ok(a) if a.status == case.status && message(&a).contains(case.contains) => {}
            Ok(a) => wrong.push(format!(
                "row {}: {} {:?}, expected {} with {:?}",
                case.row,
                a.status,
                a.text().chars().take(200).collect::<String>(),
                case.status,
                case.contains
            )),
            // A body refused by its length may be answered before it is read to its end.
            Err(_) if case.status == 413 => {}
            Err(e) => wrong.push(format!(
                "row {}: {}",
                case.row,
                format!("{e:#}").chars().take(300).collect::<String>()
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(koios.process.exit_code().is_none(), "the process lives");
    let grown = resident_bytes(koios.process.id())?.saturating_sub(before);
    assert!(grown < 256 << 20, "memory grew by {grown} bytes over all cases");
    assert!(koios.process.terminate(Duration::from_secs(120))?);
    Ok(())
}

fn run(args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = std::process::Command::new(program()).args(args).output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[tokio::test]
async fn i13_a_wrong_configuration_ends_the_start_with_code_2() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.yaml");
    for (text, words) in [
        (
            "http:\n  listen: 127.0.0.1:0\nretenion: 1d\n",
            "config.yaml:3: unknown key \"retenion\" (did you mean \"retention\"?)",
        ),
        ("blocks:\n  range: 2 parsecs\n", "blocks.range"),
        ("s3:\n  access-key-id: x\n", "s3.secret-access-key is missing"),
    ] {
        std::fs::write(&file, text)?;
        let (code, stderr) = run(&["--config", &file.display().to_string()])?;
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let addr = taken.local_addr()?.to_string();
    let data = dir.path().join("d").display().to_string();
    for (flag, words) in [
        ("--log.level=verbose", "\"verbose\" is no level"),
        ("--zone=", "zone is \"\""),
        ("--control.voters=a:127.0.0.1:9777", "expected [name=]host:port"),
    ] {
        let listen = ["--http.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0"];
        let (code, stderr) = run(&[&listen[..], &["--data-dir", &data, flag]].concat())?;
        assert_eq!(code, Some(2), "{flag}: {stderr}");
        assert!(stderr.contains(words), "{flag}: {stderr}");
    }
    // It would take over the cluster whose bucket it is given; a distributor is given none.
    let bucket = format!("--bucket=file://{}", dir.path().join("bucket").display());
    for (target, bucket) in [
        ("distributor", None),
        ("ingester", Some(&bucket)),
        ("querier", Some(&bucket)),
        ("store", Some(&bucket)),
        ("control", Some(&bucket)),
    ] {
        let listen = ["--http.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0"];
        let mut args = [&[target], &listen[..], &["--data-dir", &data]].concat();
        args.extend(bucket.map(String::as_str));
        let (code, stderr) = run(&args)?;
        assert_eq!(code, Some(2), "{target}: {stderr}");
        let told = format!("control.voters is empty, and `koios {target}` is only a part of a cluster");
        assert!(stderr.contains(&told), "{target}: {stderr}");
        assert!(!dir.path().join("bucket").exists(), "{target}");
    }
    let (code, stderr) = run(&[
        "--http.listen",
        &addr,
        "--grpc.listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ])?;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains(&addr), "{stderr}");
    Ok(())
}

#[tokio::test]
async fn a_data_directory_of_another_node_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut first: Koios = all_in_one(dir.path(), &["--node.name=ingester-b-1"]).await?;
    let data = first.data_dir.display().to_string();
    let other = [
        "--node.name=other",
        "--http.listen=127.0.0.1:0",
        "--grpc.listen=127.0.0.1:0",
        "--data-dir",
        &data,
    ];
    // While it runs the directory is locked; afterwards it is still another's.
    let (code, stderr) = run(&other)?;
    assert_eq!(code, Some(2), "{stderr}");
    assert_eq!(stderr.matches("in use by another process").count(), 1, "{stderr}");
    assert_eq!(stderr.matches("operation would block").count(), 1, "{stderr}");
    first.process.kill();
    let (code, stderr) = run(&other)?;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("belongs to node ingester-b-1"), "{stderr}");
    Ok(())
}

#[tokio::test]
async fn scripts_of_other_origins_may_read_and_not_write() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--http.cors-origin=https://a[.]example",
    ];
    let koios = all_in_one(dir.path(), &flags).await?;
    let client = client();
    for (method, path, status, allowed) in [
        ("OPTIONS", "/api/v1/query", 204, true),
        ("OPTIONS", "/prometheus/api/v1/label/a/values", 204, true),
        ("GET", "/api/v1/query?query=up", 200, true),
        ("GET", "/prometheus/api/v1/query?query=sum(", 400, true),
        ("DELETE", "/api/v1/series", 405, true),
        ("OPTIONS", "/api/v1/push", 405, false),
        ("OPTIONS", "/api/v1/admin/tsdb/delete_series", 405, false),
        ("GET", "/api/v1/admin/tsdb/tombstones", 200, false),
        ("GET", "/api/v1/nothing", 404, false),
        ("GET", "/metrics", 200, false),
    ] {
        let origin = [("origin", "https://a.example")];
        let answer = client
            .send(method, &koios.http, path, &origin, Bytes::new())
            .await?;
        let told = answer.header("access-control-allow-origin");
        assert_eq!(
            (answer.status, told),
            (status, allowed.then_some("https://a.example")),
            "{method} {path}"
        );
        assert!(answer.status == 204 || !answer.body.is_empty(), "{method} {path}");
    }
    Ok(())
}

#[tokio::test]
async fn i2_values_come_back_bit_exact() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &[]).await?;
    let client = client();
    let now = now_ms();
    // A protobuf message leaves -0.0 away as if it were the default; it is tested below the wire.
    let values = [
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1e-300,
        f64::MIN_POSITIVE / 4.0,
        f64::MAX,
        0.1 + 0.2,
    ];
    for (i, v) in values.iter().enumerate() {
        let labels = Labels::from_pairs([("__name__", "odd"), ("i", &i.to_string())]);
        let series = [(labels, vec![Sample { t: now, v: *v }])];
        let answer = client
            .send(
                "POST",
                &koios.http,
                "/api/v1/write",
                &[
                    ("content-type", "application/x-protobuf"),
                    ("content-encoding", "snappy"),
                ],
                body(&request(&series)),
            )
            .await?;
        assert!(answer.status < 300, "{}", answer.text());
    }
    let got = koios_testkit::query::instant(&client, &koios.http, "anonymous", "odd[1m]", now + 1).await?;
    for (i, v) in values.iter().enumerate() {
        let labels = Labels::from_pairs([("__name__", "odd"), ("i", &i.to_string())]);
        assert_eq!(got[&labels], [Sample { t: now, v: *v }], "{v}");
    }
    Ok(())
}
