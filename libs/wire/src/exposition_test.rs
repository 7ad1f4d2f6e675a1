//! What exposition text decodes to.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const LIMITS: DecodeLimits = DecodeLimits {
    series: 1_000,
    samples: 1_000,
    labels_per_series: 5,
};
const NOW: i64 = 1_000_000;

/// Takes series as text.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    series: Vec<String>,
    metadata: Vec<String>,
    exemplars: usize,
}

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let labels: Vec<_> = series
            .labels
            .iter()
            .map(|(n, v)| format!("{}={:?}", text(n), text(v)))
            .collect();
        for sample in series.samples {
            self.series
                .push(format!("{} {} {}", labels.join(","), sample.v, sample.t));
        }
        self.exemplars += series.exemplars.len();
    }

    fn metadata(&mut self, m: RawMetadata<'a>) {
        let parts = [m.metric, m.kind.as_bytes(), m.help, m.unit].map(String::from_utf8_lossy);
        self.metadata.push(parts.join("|"));
    }
}

fn read(text: &str, dialect: Dialect) -> Result<Seen, TextError> {
    let mut seen = Seen::default();
    decode_in(dialect, text.as_bytes(), &mut seen)?;
    Ok(seen)
}

fn decode_in(dialect: Dialect, text: &[u8], seen: &mut Seen) -> Result<(), TextError> {
    let context = Context {
        unescaped: &Unescaped::of(text, dialect),
        strings: &Strings::new(10_000),
        dialect,
        now_ms: NOW,
        limits: LIMITS,
    };
    decode(text, context, seen)
}

fn series(text: &str) -> Vec<String> {
    read(text, Dialect::Prometheus).unwrap().series
}

#[rstest]
#[case("up 1", "__name__=\"up\" 1 1000000")]
#[case("up 1 2000", "__name__=\"up\" 1 2000")]
#[case("  up\t-1.5e3   -7  ", "__name__=\"up\" -1500 -7")]
#[case("a:b_c9{} +Inf", "__name__=\"a:b_c9\" inf 1000000")]
#[case("x Inf", "__name__=\"x\" inf 1000000")]
#[case("x -Infinity", "__name__=\"x\" -inf 1000000")]
#[case("x 1e-400", "__name__=\"x\" 0 1000000")]
#[case("x{a=\"1\", b = \"2\",} NaN\r", "__name__=\"x\",a=\"1\",b=\"2\" NaN 1000000")]
#[case("x {a=\"}\"}1", "__name__=\"x\",a=\"}\" 1 1000000")]
#[case(r#"x{a="q\"\\\n\t"} 1"#, r#"__name__="x",a="q\"\\\n\\t" 1 1000000"#)]
#[case(r#"{"my.metric", "a b"="c"} 1"#, r#"__name__="my.metric",a b="c" 1 1000000"#)]
#[case(r#"{a="b", "x"} 1"#, r#"a="b",__name__="x" 1 1000000"#)]
fn lines_are_read(#[case] line: &str, #[case] expected: &str) {
    assert_eq!(series(line), [expected]);
}

#[rstest]
#[case("1x 1", "line 1: expected a metric name, got \"1x 1\"")]
#[case("x", "line 1: expected a value, got the end of the line")]
#[case("x 1e400", "line 1: expected a value that a float can hold, got \"1e400\"")]
#[case("x -1e400", "line 1: expected a value that a float can hold, got \"-1e400\"")]
#[case("x 1 2 3", "line 1: expected the end of the line, got \"3\"")]
#[case("x 1 1.5", "line 1: expected a timestamp, got \"1.5\"")]
#[case(
    "ok 1\n\nx{a=b} 1",
    "line 3: expected a quoted value of label \"a\", got \"b} 1\""
)]
#[case(
    "x{a=\"b} 1",
    "line 1: expected a quoted value of label \"a\", got \"\\\"b} 1\""
)]
#[case(
    "x{a=\"b\" c=\"d\"} 1",
    "line 1: expected \",\" or \"}\", got \"c=\\\"d\\\"} 1\""
)]
#[case("x{a} 1", "line 1: expected \"=\" after label \"a\", got \"} 1\"")]
#[case("x{ 1", "line 1: expected a label name or \"}\", got \"1\"")]
#[case(
    "# TYPE x tally",
    "line 1: \"tally\" is no metric type: use one of untyped, counter"
)]
#[case("x 1 # {a=\"b\"} 1", "line 1: expected a timestamp, got \"#\"")]
fn what_cannot_be_read_is_named(#[case] text: &str, #[case] expected: &str) {
    let error = read(text, Dialect::Prometheus).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn metadata_is_that_of_each_family() {
    let text = "# HELP a What a\\\\b\\n\"is\".\n# TYPE a counter\na 1\n#just words\n# TYPE b untyped\nb 1\n# HELP \"c.d\" x\n";
    let seen = read(text, Dialect::Prometheus).unwrap();
    assert_eq!(
        seen.metadata,
        ["a|counter|What a\\b\n\"is\".|", "b|unknown||", "c.d|unknown|x|"]
    );
    assert_eq!(seen.series.len(), 2);
}

#[test]
fn open_metrics_has_seconds_units_exemplars_and_an_end() {
    let text = "# TYPE a counter\n# UNIT a seconds\na_total{x=\"y\"} 1 1.5 # {id=\"q\\\"\",z=\"1\"} 0.5 1\nb 2\n# EOF\n";
    let seen = read(text, Dialect::OpenMetrics).unwrap();
    assert_eq!(
        seen.series,
        ["__name__=\"a_total\",x=\"y\" 1 1500", "__name__=\"b\" 2 1000000"]
    );
    assert_eq!(
        (seen.exemplars, seen.metadata),
        (1, vec!["a|counter||seconds".to_owned()])
    );
    let seen = read("# HELP a \\\"b\\\"\n# EOF", Dialect::OpenMetrics).unwrap();
    assert_eq!(seen.metadata, ["a|unknown|\"b\"|"]);
    assert_eq!(read("x 12", Dialect::OpenMetrics).unwrap_err(), TextError::Cut);
    let error = read("# EOF\nx 1", Dialect::OpenMetrics).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid exposition text at line 2: there is text after # EOF"
    );
}

#[test]
fn bounds_and_quantiles_are_written_as_a_scrape_writes_them() {
    let text = "# TYPE h histogram\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"1000000\"} 3\nh_bucket{le=\"1.00\"} 3\n\
                h_bucket{quantile=\"1\"} 3\nh_bucket{le=\"x\"} 3\nh_bucket{le=\"+Inf\"} 3\n# TYPE s summary\n\
                s{quantile=\"1\"} 3\ns{le=\"1\"} 3\n# TYPE g gauge\ng{le=\"1\",quantile=\"1\"} 3\n";
    let values: Vec<String> = series(text)
        .iter()
        .map(|s| {
            s.split([',', ' '])
                .skip(1)
                .filter(|p| p.contains('='))
                .collect::<Vec<_>>()
                .join(",")
        })
        .collect();
    let wanted = [
        "le=\"1.0\"",
        "le=\"1e+06\"",
        "le=\"1.0\"",
        "quantile=\"1\"",
        "le=\"x\"",
        "le=\"+Inf\"",
        "quantile=\"1.0\"",
        "le=\"1\"",
        "le=\"1\",quantile=\"1\"",
    ];
    assert_eq!(values, wanted);
}

#[test]
fn i12_labels_are_counted_beyond_what_is_kept_and_samples_are_bounded() {
    let labels: Vec<String> = (0..9).map(|i| format!("l{i}=\"v\"")).collect();
    assert_eq!(
        series(&format!("x{{{}}} 1", labels.join(",")))[0]
            .split(',')
            .count(),
        5
    );
    let error = read(&"x 1\n".repeat(1_001), Dialect::Prometheus).unwrap_err();
    assert_eq!(error, TextError::TooManySamples { limit: 1_000 });
    assert!(
        error.to_string().contains("limits.max-samples-per-request"),
        "{error}"
    );
    let metrics: Vec<String> = (0..1_001).map(|i| format!("# UNIT m{i}\n")).collect();
    let error = read(&metrics.concat(), Dialect::Prometheus).unwrap_err();
    assert_eq!(error, TextError::TooManyMetrics { limit: 1_000 });
    let strings = "x{a=\"\\n\"} 1\n# HELP \"\\n\"\n".repeat(1_000);
    let unescaped = Unescaped::of(strings.as_bytes(), Dialect::Prometheus);
    assert!(unescaped.bytes() <= Unescaped::bytes_max(strings.as_bytes()));
    let one_escape = format!("# HELP a \\n\n{}", "x 1\n".repeat(1_000));
    assert_eq!(Unescaped::bytes_max(one_escape.as_bytes()), one_escape.len() + 4);
    let error = read(
        &format!("x 1 {}", "\u{1F600}".repeat(1 << 20)),
        Dialect::Prometheus,
    )
    .unwrap_err();
    assert!(error.to_string().len() < 300);
}

fn label() -> impl Strategy<Value = (String, String)> {
    ("[a-z_][a-z0-9_]{0,4}", "\\PC{0,6}|[\"\\\\\n]{0,4}")
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        all in proptest::collection::vec(
            (proptest::collection::vec(label(), 0..4), any::<f64>(), prop::option::of(any::<i64>())), 0..6),
    ) {
        let (mut text, mut expected) = (String::new(), Vec::new());
        for (labels, v, t) in &all {
            let pairs: Vec<_> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escaped(v))).collect();
            let time = t.map_or(String::new(), |t| format!(" {t}"));
            text.push_str(&format!("m{{{}}} {v}{time}\n", pairs.join(",")));
            let pairs: Vec<_> = labels.iter().map(|(n, v)| format!(",{n}={v:?}")).collect();
            expected.push(format!("__name__=\"m\"{} {v} {}", pairs.concat(), t.unwrap_or(NOW)));
        }
        prop_assert_eq!(series(&text), expected);
    }

    #[test]
    fn i12_arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for dialect in [Dialect::Prometheus, Dialect::OpenMetrics] {
            let unescaped = Unescaped::of(&bytes, dialect);
            prop_assert!(unescaped.bytes() <= Unescaped::bytes_max(&bytes));
            let _ = decode_in(dialect, &bytes, &mut Seen::default());
        }
    }

    #[test]
    fn i12_hostile_text_is_read_or_refused(text in "[#{}\"\\\\=,a \n1]{0,80}|(# )?(HELP|TYPE|UNIT|EOF)?[\"\\\\a \n]{0,40}") {
        for dialect in [Dialect::Prometheus, Dialect::OpenMetrics] {
            let _ = read(&text, dialect);
        }
    }
}
