//! What line protocol decodes to.

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::remote_write::RawMetadata;

const LIMITS: DecodeLimits = DecodeLimits {
    series: 1_000,
    samples: 1_000,
    labels_per_series: 5,
};
const NOW: i64 = 1_000_000;

/// Takes series as text.
#[derive(Debug, Default, PartialEq)]
struct Seen(Vec<String>);

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let labels = series.labels.iter().skip(1);
        let labels: Vec<_> = labels
            .map(|(n, v)| format!("{}={:?}", text(n), text(v)))
            .collect();
        let name = text(series.labels[0].1);
        let count = series.label_count;
        let count = if count == series.labels.len() {
            String::new()
        } else {
            format!(" of {count}")
        };
        for s in series.samples {
            self.0
                .push(format!("{name}{{{}}}{count} {} @{}", labels.join(","), s.v, s.t));
        }
    }

    fn metadata(&mut self, _: RawMetadata<'a>) {}
}

fn read_with(text: &[u8], precision: Precision) -> Result<(Vec<String>, Report), InfluxError> {
    let strings = Strings::new(10_000);
    let context = Context {
        strings: &strings,
        precision,
        now_ms: NOW,
        limits: LIMITS,
    };
    let mut seen = Seen::default();
    let report = decode(text, context, &mut seen)?;
    Ok((seen.0, report))
}

fn read(text: &str) -> Result<(Vec<String>, Report), InfluxError> {
    read_with(text.as_bytes(), Precision::Milliseconds)
}

#[rstest]
#[case("cpu,host=a usage=0.5 2000", &["cpu_usage{host=\"a\"} 0.5 @2000"])]
#[case("cpu usage=1", &["cpu_usage{} 1 @1000000"])]
#[case("cpu usage=1 ", &["cpu_usage{} 1 @1000000"])]
#[case("cpu value=1\r\n\r\n# a comment\n  mem value=2i  7  \r", &["cpu_value{} 1 @1000000", "mem_value{} 2 @7"])]
#[case("m a=1i,b=-2i,c=18446744073709551615u,d=1e3,e=t,f=False,g=TRUE 5",
    &["m_a{} 1 @5", "m_b{} -2 @5", "m_c{} 18446744073709552000 @5", "m_d{} 1000 @5", "m_e{} 1 @5", "m_f{} 0 @5", "m_g{} 1 @5"])]
#[case("m a=\"text, with = \\\" all\nof it\",b=\"42.5\",c=1 5", &["m_b{} 42.5 @5", "m_c{} 1 @5"])]
#[case("my\\ m\\,x,tag\\ key=va\\ lue\\,\\=\\\\\\x f\\=1=2 5", &["my_m_x_f_1{tag_key=\"va lue,=\\\\\\\\x\"} 2 @5"])]
#[case("disk.io,a.b=1,9c=2,d=,=e read-bytes=1 5", &["disk_io_read_bytes{a_b=\"1\",_9c=\"2\"} 1 @5"])]
#[case("9m 9=1 5", &["_9m_9{} 1 @5"])]
#[case("m,a=x=y f=1 5", &["m_f{a=\"x=y\"} 1 @5"])]
#[case("m,a=1,b=2,c=3,d=4,e=5,f=6 v=1 5", &["m_v{a=\"1\",b=\"2\",c=\"3\",d=\"4\",e=\"5\"} of 7 1 @5"])]
#[case("m,a=b f=\"only text\" 5", &[])]
#[case("\u{fc}n\u{ef} f=1 5", &["_n__f{} 1 @5"])]
#[case("", &[])]
fn lines_become_series(#[case] text: &str, #[case] wanted: &[&str]) {
    let (series, report) = read(text).unwrap();
    assert_eq!(series, wanted);
    assert_eq!(report, Report::default());
}

#[rstest]
#[case("", 1_700_000_000_123_456_789, 1_700_000_000_123)]
#[case("ns", -1, -1)]
#[case("us", 1_700_000_000_123_456, 1_700_000_000_123)]
#[case("ms", 17, 17)]
#[case("s", 17, 17_000)]
#[case("m", 2, 120_000)]
#[case("h", 2, 7_200_000)]
fn times_are_in_the_unit_that_was_said(#[case] precision: &str, #[case] sent: i64, #[case] wanted: i64) {
    let precision = Precision::from_parameter(precision).unwrap();
    let (got, _) = read_with(format!("m f=1 {sent}").as_bytes(), precision).unwrap();
    assert_eq!(got, [format!("m_f{{}} 1 @{wanted}")]);
    assert_eq!(Precision::from_parameter("fortnights"), None);
}

#[rstest]
#[case("m", 1, "expected a space and fields, got the end of the line")]
#[case(
    "ok f=1\n,host=a load=1 5",
    2,
    "expected a measurement, got \",host=a load=1 5\""
)]
#[case("ok f=1\nm,a f=1", 2, "expected \"=\" after a tag's key, got \" f=1\"")]
#[case(
    "ok f=1\n\n# x\nm f",
    4,
    "expected \"=\" after a field's key, got the end of the line"
)]
#[case("m =1", 1, "expected a field's key, got \"=1\"")]
#[case(
    "m f=\nok f=1",
    1,
    "expected a number, true, false or a string, got the end of the line"
)]
#[case("m f=1x", 1, "expected a number, true, false or a string, got \"1x\"")]
#[case("m f=1.5i", 1, "got \"1.5i\"")]
#[case("m f=-1u", 1, "got \"-1u\"")]
#[case("m f=1,", 1, "expected a field's key, got the end of the line")]
#[case(
    "ok f=\"a\nb\"\nm f=\"open\n\n",
    3,
    "expected a string that ends with a quote"
)]
#[case("m f=1 now", 1, "expected a time or the end of the line, got \"now\"")]
#[case("m f=1 5 6", 1, "expected the end of the line, got \"6\"")]
#[case("m f=\"a\"b 5", 1, "expected a time or the end of the line, got \"b\"")]
fn what_is_wrong_is_named_with_its_line(#[case] text: &str, #[case] line: usize, #[case] reason: &str) {
    // What is good around it is read.
    let text = format!("{text}\nnext f=7 9\n");
    let (series, report) = read(&text).unwrap();
    assert_eq!(series.last().map(String::as_str), Some("next_f{} 7 @9"));
    assert!(
        series
            .iter()
            .all(|s| s.starts_with("ok_") || s.starts_with("next_")),
        "{series:?}"
    );
    assert_eq!(
        series.iter().any(|s| s.starts_with("ok_")),
        text.contains("ok f=1")
    );
    assert_eq!(report.lines, 1);
    let error = report.first.unwrap().to_string();
    assert!(
        error.starts_with(&format!("invalid line protocol at line {line}: ")),
        "{error}"
    );
    assert!(error.contains(reason), "{error}");
}

// Whatever text says is no sample.
#[test]
fn strings_of_bad_lines_are_left_out_with_them() {
    let text = "logs level=info,msg=\"first\nfake,host=a v=1\nend\" 1700000000\nok f=1 5\nm a=x,b=\"\\\"\nfake f=1\" 5\nlast f=2 5";
    let (series, report) = read(text).unwrap();
    assert_eq!(series, ["ok_f{} 1 @5", "last_f{} 2 @5"]);
    assert_eq!((report.lines, report.first.map(|f| f.line)), (2, Some(1)));
    // A quote in a tag opens nothing, nor does one that never ends.
    let (series, report) = read("m,a=\"b =1\nok f=1 5\nm a=x,b=\"open\nlast f=2 5").unwrap();
    assert_eq!(series, ["ok_f{} 1 @5", "last_f{} 2 @5"]);
    assert_eq!(report.lines, 2);
}

#[test]
fn the_first_of_many_bad_lines_is_named() {
    let (series, report) = read("a f=1 5\nb\nc f=2 5\nd f=x\ne f=\"open\nf f=3 5").unwrap();
    assert_eq!(series, ["a_f{} 1 @5", "c_f{} 2 @5", "f_f{} 3 @5"]);
    assert_eq!((report.lines, report.first.map(|f| f.line)), (3, Some(2)));
}

// Of a size that takes minutes when each bad line makes all that follow be read again.
#[rstest]
#[case::in_step("a =\"x\"=\"\n")]
#[case::in_turns("a =\"x\"\"\na =\"\n")]
#[case::escaped("a =\\\"=\"x\\\"=\"=\"\n")]
#[case::long_lines("a x,=\"\"y=\"=\"=\"  \n\nb\n")]
fn i12_the_work_for_bad_lines_grows_with_the_text(#[case] lines: &str) {
    let mut text = lines.repeat((2 << 20) / lines.len());
    text += "\nlast g=1 5";
    let (_, report) = read(&text).unwrap();
    assert!(report.lines > 0, "{report:?}");
}

#[test]
fn i12_a_measurement_is_not_read_for_each_field() {
    let strings = Strings::new(32 << 20);
    let context = Context {
        strings: &strings,
        precision: Precision::Milliseconds,
        now_ms: NOW,
        limits: DecodeLimits {
            samples: 100_000,
            ..LIMITS
        },
    };
    #[derive(Default)]
    struct Counted(usize);
    impl<'a> Sink<'a> for Counted {
        fn series(&mut self, _: RawSeries<'a, '_>) {
            self.0 += 1;
        }
        fn metadata(&mut self, _: RawMetadata<'a>) {}
    }
    let text = format!("{} {}f=1", "m".repeat(4 << 20), "f=1,".repeat(50_000));
    let mut counted = Counted::default();
    decode(text.as_bytes(), context, &mut counted).unwrap();
    assert_eq!(counted.0, 50_001);
}

#[test]
fn i12_nothing_is_kept_of_lines_without_samples() {
    let strings = Strings::new(10_000);
    let context = Context {
        strings: &strings,
        precision: Precision::Milliseconds,
        now_ms: NOW,
        limits: LIMITS,
    };
    let text: String = (0..1_000).map(|i| format!("m{i} f=\"x\",g=\"y\"\n")).collect();
    let (mut decoder, mut seen) = (Decoder::new(context), Seen::default());
    let mut cursor = Cursor(text.as_bytes());
    while !cursor.0.is_empty() {
        assert!(decoder.line(&mut cursor, &mut seen).is_ok());
    }
    assert_eq!((seen, decoder.measurements.len()), (Seen::default(), 0));
}

#[test]
fn i12_texts_beyond_their_limits_are_refused() {
    let fields: Vec<String> = (0..1_001).map(|i| format!("f{i}=1")).collect();
    let error = read(&format!("m {}", fields.join(","))).unwrap_err();
    assert_eq!(error, InfluxError::TooManySamples { limit: 1_000 });
    let lines: String = (0..500).map(|i| format!("measurement{i} f=1\n")).collect();
    assert_eq!(read(&lines), Err(InfluxError::Strings { limit: 10_000 }));
}

proptest! {
    #[test]
    fn i12_arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[ma,= \\\\\"\n\r0-9it#]{0,60}"
    ) {
        let _ = read_with(&bytes, Precision::Nanoseconds);
        let _ = read_with(text.as_bytes(), Precision::Hours);
    }

    #[test]
    fn what_is_escaped_is_read_back(value in "[a-z ,=]{1,20}", key in "[a-z]{1,5}") {
        let escape = |text: &str| text.replace(' ', "\\ ").replace(',', "\\,").replace('=', "\\=");
        let (got, _) = read(&format!("m,{key}={} f=1 5", escape(&value))).unwrap();
        prop_assert_eq!(got, [format!("m_f{{{key}={value:?}}} 1 @5")]);
    }
}
