//! Queries against small series, each with the answer that follows from Prometheus' definitions.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_promql::{Completeness, Engine, EngineOptions, Interrupt, QueryContext, QueryError};
use rstest::rstest;
use support::{Memory, lines};

const HTTP: &str = r#"
    http_total{job="api", instance="0"} 0 10 20 30 40 50 60
    http_total{job="api", instance="1"} 0 20 40 60 80 100 120
    http_total{job="db", instance="0"} 5 5 5 5 5 5 5
    limit{job="api"} 100 100 100 100 100 100 100
    limit{job="web"} 7 7 7 7 7 7 7
    gappy{x="a"} 1 _ 3 stale _ 6 _
    counter_total{} 0 4 8 2 6 10 14
    seconds_bucket{le="0.1"} 0 1 2 3 4 5 6
    seconds_bucket{le="1"} 0 3 6 9 12 15 18
    seconds_bucket{le="+Inf"} 0 4 8 12 16 20 24
"#;

#[rstest]
#[case::selects(r#"http_total{job="db"}"#, &[r#"{__name__="http_total", instance="0", job="db"} 5"#])]
#[case::range_is_open_on_the_left(r#"count_over_time(http_total{job="db"}[20s])"#, &[r#"{instance="0", job="db"} 2"#])]
#[case::stale_ends_a_series("gappy", &[r#"{__name__="gappy", x="a"} 6"#])]
#[case::offset("gappy offset 20s", &[])]
#[case::negative_offset("gappy @ 10 offset -40s", &[r#"{__name__="gappy", x="a"} 6"#])]
#[case::at("gappy @ 25", &[r#"{__name__="gappy", x="a"} 3"#])]
#[case::at_end("gappy @ end()", &[r#"{__name__="gappy", x="a"} 6"#])]
#[case::sum_by("sum by (job) (http_total)", &[r#"{job="api"} 180"#, r#"{job="db"} 5"#])]
#[case::sum_without("sum without (instance) (http_total)", &[r#"{job="api"} 180"#, r#"{job="db"} 5"#])]
#[case::avg("avg(http_total)", &["{} 61.666666666666664"])]
#[case::topk("topk(2, http_total)", &[
    r#"{__name__="http_total", instance="1", job="api"} 120"#,
    r#"{__name__="http_total", instance="0", job="api"} 60"#,
])]
#[case::count_values(r#"count_values("v", limit)"#, &[r#"{v="100"} 1"#, r#"{v="7"} 1"#])]
#[case::quantile("quantile(0.5, http_total)", &["{} 60"])]
#[case::stddev("stddev(limit)", &["{} 46.5"])]
#[case::one_to_one("limit - on (job) sum by (job) (http_total)", &[r#"{job="api"} -80"#])]
#[case::many_to_one(r#"http_total / on (job) group_left () limit"#, &[
    r#"{instance="0", job="api"} 0.6"#,
    r#"{instance="1", job="api"} 1.2"#,
])]
#[case::filter("limit > 50", &[r#"{__name__="limit", job="api"} 100"#])]
#[case::compare_bool("limit > bool 50", &[r#"{job="api"} 1"#, r#"{job="web"} 0"#])]
#[case::and("limit and on (job) http_total", &[r#"{__name__="limit", job="api"} 100"#])]
#[case::unless("limit unless on (job) http_total", &[r#"{__name__="limit", job="web"} 7"#])]
#[case::or("limit or on (job) http_total", &[
    r#"{__name__="limit", job="api"} 100"#,
    r#"{__name__="limit", job="web"} 7"#,
    r#"{__name__="http_total", instance="0", job="db"} 5"#,
])]
#[case::fill(r#"limit + on (job) fill_right(1) sum by (job) (http_total)"#, &[r#"{job="api"} 280"#, r#"{job="web"} 8"#])]
#[case::rate("rate(counter_total[40s])", &["{} 0.35"])]
#[case::increase("increase(counter_total[40s])", &["{} 14"])]
#[case::resets("resets(counter_total[1m])", &["{} 1"])]
#[case::changes("changes(limit[1m])", &[r#"{job="api"} 0"#, r#"{job="web"} 0"#])]
#[case::irate("irate(counter_total[1m])", &["{} 0.4"])]
#[case::delta("delta(gappy[1m])", &[r#"{x="a"} 6"#])]
#[case::deriv("deriv(counter_total[30s])", &["{} 0.4"])]
#[case::predict("predict_linear(counter_total[30s], 10)", &["{} 18"])]
#[case::max_over_time("max_over_time(counter_total[1m])", &["{} 14"])]
#[case::quantile_over_time("quantile_over_time(0.5, counter_total[30s])", &["{} 10"])]
#[case::subquery("max_over_time(rate(counter_total[20s])[40s:10s])", &["{} 0.4"])]
#[case::histogram_quantile("histogram_quantile(0.5, seconds_bucket)", &["{} 0.55"])]
#[case::histogram_fraction("histogram_fraction(0, 0.1, seconds_bucket)", &["{} 0.25"])]
#[case::label_replace(r#"label_replace(limit, "team", "$1-x", "job", "(a.*)")"#, &[
    r#"{__name__="limit", job="api", team="api-x"} 100"#,
    r#"{__name__="limit", job="web"} 7"#,
])]
#[case::label_join(r#"label_join(limit, "j", "/", "job", "__name__")"#, &[
    r#"{__name__="limit", j="api/limit", job="api"} 100"#,
    r#"{__name__="limit", j="web/limit", job="web"} 7"#,
])]
#[case::absent(r#"absent(nothing{job="x", env=~"a.*"})"#, &[r#"{job="x"} 1"#])]
#[case::absent_over_time(r#"absent_over_time(nothing{job="x"}[5m])"#, &[r#"{job="x"} 1"#])]
#[case::scalar("scalar(sum(limit)) * 2", &["214"])]
#[case::vector("vector(time())", &["{} 60"])]
#[case::clamp("clamp(limit, 10, 50)", &[r#"{job="api"} 50"#, r#"{job="web"} 10"#])]
#[case::sort_desc("sort(limit)", &[r#"{__name__="limit", job="web"} 7"#, r#"{__name__="limit", job="api"} 100"#])]
#[case::dates("year(vector(951782400))", &["{} 2000"])]
#[case::timestamp("timestamp(gappy)", &[r#"{x="a"} 50"#])]
#[case::smoothing("double_exponential_smoothing(counter_total[30s], 0.5, 0.5)", &["{} 14"])]
fn answers(#[case] query: &str, #[case] expected: &[&str]) {
    let output = Memory::load(HTTP).instant(query, 60).unwrap();
    assert_eq!(lines(&output), expected);
}

#[rstest]
#[case(
    "limit + on (job) http_total",
    "found duplicate series for the match group {job=\"api\"} on the right hand-side \
    of the operation: [{__name__=\"http_total\", instance=\"0\", job=\"api\"}, {__name__=\"http_total\", \
    instance=\"1\", job=\"api\"}];many-to-many matching not allowed: matching labels must be unique on one side"
)]
#[case(
    "http_total + on (job) limit",
    "multiple matches for labels: many-to-one matching must be explicit \
    (group_left/group_right)"
)]
#[case(
    "rate({job=\"api\"}[1m]) or rate({job=\"web\"}[1m]) or label_replace(rate(limit[1m]), \"job\", \"web\", \"\", \"\")",
    "vector cannot contain metrics with the same labelset"
)]
#[case("topk(scalar(nothing), limit)", "Parameter value is NaN")]
#[case(
    "sum_over_time(limit[1m] anchored)",
    "anchored modifier can only be used with: changes, delta, increase, rate, \
    resets - not with sum_over_time"
)]
#[case(
    "double_exponential_smoothing(limit[1m], 2, 0.5)",
    "invalid smoothing factor. Expected: 0 < sf < 1, got: \
    2.000000"
)]
fn errors_are_those_of_prometheus(#[case] query: &str, #[case] expected: &str) {
    let error = Memory::load(HTTP).instant(query, 60).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.kind().error_type()),
        (expected, "execution")
    );
}

#[test]
fn annotations_point_into_the_query() {
    let output = Memory::load(HTTP)
        .instant("quantile(7, limit)\n  + rate(gappy[1m])", 60)
        .unwrap();
    let texts = output.annotation_texts();
    assert_eq!(
        texts.warnings,
        ["PromQL warning: quantile value should be between 0 and 1, got 7 (1:10)"]
    );
    assert_eq!(
        texts.infos,
        [
            "PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"gappy\" (2:10)"
        ]
    );
}

#[test]
fn equal_selectors_are_read_once() {
    let memory = Memory::load(HTTP);
    memory
        .range(
            "rate(http_total[1m]) / rate(http_total[2m]) + http_total",
            0,
            60,
            10,
        )
        .unwrap();
    let asked = memory.asked.lock();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].range.min, asked[0].range.max), (-299_999, 60_000));
}

#[test]
fn selectors_far_apart_are_read_apart() {
    let memory = Memory::load(HTTP);
    memory.instant("sum(limit) - sum(limit offset 1w)", 60).unwrap();
    let asked = memory.asked.lock();
    assert_eq!(asked.len(), 2);
    assert!(
        asked
            .iter()
            .all(|r| r.hints.function == Some("sum") && r.hints.by)
    );
}

#[test]
fn sums_of_histograms_are_asked_for_where_any_function_adds_them_up() {
    for (query, wanted) in [
        ("http_total + rate(http_total[1m])", false),
        ("sum_over_time(http_total[1m])", true),
        ("avg_over_time(http_total[1m]) / rate(http_total[1m])", true),
        ("http_total + on() sum(sum_over_time(http_total[1m]))", true),
        ("sum(http_total)", false),
    ] {
        let memory = Memory::load(HTTP);
        let _ = memory.instant(query, 60);
        let asked = memory.asked.lock();
        assert_eq!(asked.len(), 1, "{query}");
        assert_eq!(asked[0].hints.histogram_sums, wanted, "{query}");
    }
}

#[test]
fn i4_a_partial_answer_carries_a_warning_and_says_so() {
    let memory = Memory {
        completeness: Completeness::Partial {
            missing: vec!["zone b".into()],
        },
        ..Memory::load(HTTP)
    };
    let output = memory.instant("limit", 60).unwrap();
    assert!(!output.completeness.is_complete());
    assert_eq!(
        output.annotation_texts().warnings,
        ["result is incomplete, missing: zone b"]
    );
}

#[test]
fn too_many_samples_fail_in_prometheus_words() {
    let engine = Engine::new(EngineOptions {
        max_samples: 3,
        ..EngineOptions::default()
    });
    let memory = Memory::load(HTTP);
    for query in [
        "http_total[1m]",
        "sum_over_time(counter_total[1m])",
        "vector(1)[1m:1s]",
        "http_total + http_total",
    ] {
        let error = memory
            .instant_with(&engine, query, 60, &koios_promql::Uninterrupted)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "query processing would load too many samples into memory in query execution",
            "{query}"
        );
    }
    assert!(
        memory
            .instant_with(&engine, "sum(limit)", 60, &koios_promql::Uninterrupted)
            .is_ok()
    );
}

#[test]
fn samples_count_once_on_their_way() {
    let memory = Memory::load(HTTP);
    for (max_samples, query) in [
        // What a leaf gave, and the node that asks for it.
        (3, "http_total"),
        (3, "http_total"),
        (3, "-http_total"),
        // With the number.
        (6, "http_total + 0 or limit"),
        // The one row, while it is made and when it is there.
        (6, "count_over_time(counter_total[1m])"),
    ] {
        let engine = Engine::new(EngineOptions {
            max_samples,
            ..EngineOptions::default()
        });
        let output = memory.instant_with(&engine, query, 60, &koios_promql::Uninterrupted);
        assert!(output.is_ok(), "{query}: {output:?}");
        let peak = output.map(|output| output.stats.samples_peak);
        assert_eq!(peak.unwrap(), max_samples as u64, "{query}");
    }
}

#[test]
fn of_equal_annotations_the_position_of_the_last_evaluation_is_told() {
    let minutes = 3_000;
    let mut memory = Memory::default();
    let samples = (0..minutes).map(|i| koios_model::Sample {
        t: i * 60_000,
        v: i as f64,
    });
    memory.series.insert(support::labels("a"), samples.collect());
    let start = 25 * 3_600;
    for (query, position) in [
        // Parts that read by themselves and parts that share what is read.
        ("rate(a[2m]) + rate(a[3m]) + rate(a[2m] offset 1d)", "(1:34)"),
        ("rate(a[2m] offset 1d) + rate(a[3m]) + rate(a[2m])", "(1:44)"),
        ("rate(a[2m] offset 1d)", "(1:6)"),
    ] {
        let output = memory.range(query, start, start + 300, 60).unwrap();
        let texts = output.annotation_texts();
        assert!(
            matches!(&texts.infos[..], [only] if only.ends_with(position)),
            "{query}: {texts:?}"
        );
    }
}

#[test]
fn fetching_more_than_allowed_names_the_limit() {
    let engine = Engine::new(EngineOptions {
        max_series_fetched: 2,
        ..EngineOptions::default()
    });
    let error = Memory::load(HTTP)
        .instant_with(&engine, "http_total", 60, &koios_promql::Uninterrupted)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("query fetched too many series (limit 2)"),
        "{error}"
    );
}

/// Interrupts after a number of questions.
#[derive(Clone)]
struct After(Arc<AtomicUsize>, Interrupt);

impl QueryContext for After {
    fn interrupted(&self) -> Option<Interrupt> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        (left == 0).then_some(self.1)
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(self.clone())
    }
}

#[test]
fn a_query_can_be_stopped_at_any_question() {
    let memory = Memory::load(HTTP);
    let mut stopped = 0;
    for n in 0.. {
        let ctx = After(Arc::new(AtomicUsize::new(n)), Interrupt::Canceled);
        let query = "sum by (job) (rate(http_total[30s]) * on (job) group_left () limit)";
        match memory.instant_with(&Engine::default(), query, 60, &ctx) {
            Ok(_) => break,
            Err(e) => assert!(matches!(e, QueryError::Canceled(_)), "{e}"),
        }
        stopped += 1;
    }
    assert!(stopped > 10, "asked only {stopped} times");
}

#[test]
fn a_deadline_is_a_timeout() {
    let ctx = After(Arc::new(AtomicUsize::new(0)), Interrupt::Timeout);
    let error = Memory::load(HTTP)
        .instant_with(&Engine::default(), "1", 60, &ctx)
        .unwrap_err();
    assert_eq!(
        (error.kind().error_type(), error.to_string().as_str()),
        ("timeout", "query timed out in expression evaluation")
    );
}

#[test]
fn range_results_are_in_label_order_with_their_own_steps() {
    let output = Memory::load(HTTP)
        .range("sort_desc(limit) + 0", 10, 30, 10)
        .unwrap();
    assert_eq!(
        lines(&output),
        [
            r#"{job="api"} 100@10 100@20 100@30"#,
            r#"{job="web"} 7@10 7@20 7@30"#
        ]
    );
    assert!(output.annotation_texts().warnings[0].contains("sort is ineffective for range queries"));
}

#[test]
fn subqueries_are_aligned_to_multiples_of_their_step() {
    let output = Memory::load(HTTP)
        .instant("limit{job=\"web\"}[25s:10s]", 47)
        .unwrap();
    assert_eq!(lines(&output), [r#"{__name__="limit", job="web"} 7@30 7@40"#]);
}

#[rstest]
// Each level doubles the label.
#[case::replace(
    "label_replace(QUERY, \"job\", \"$1$1\", \"job\", \"(.*)\")",
    "label_replace(): a label value of "
)]
#[case::join(
    "label_join(QUERY, \"job\", \"\", \"job\", \"job\")",
    "query memory limit of 67108864 bytes exceeded"
)]
fn i12_labels_cannot_be_blown_up(#[case] wrap: &str, #[case] expected: &str) {
    let query = (0..40).fold("limit".to_owned(), |query, _| wrap.replace("QUERY", &query));
    let small = Engine::new(EngineOptions {
        max_memory_bytes: 64 << 20,
        ..EngineOptions::default()
    });
    let error = Memory::load(HTTP)
        .instant_with(&small, &query, 60, &koios_promql::Uninterrupted)
        .unwrap_err();
    assert!(error.to_string().starts_with(expected), "{error}");
}
