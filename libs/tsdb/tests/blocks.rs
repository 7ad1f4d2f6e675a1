//! Blocks of every encoding are read as they were written, and damaged ones are refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::{
    CUSTOM_BOUNDS_SCHEMA, Histogram, Labels, ResetHint, STALE_NAN_BITS, Sample, Span, TimeRange,
};
use koios_testkit::tsdb::{ChunkKind, TsdbChunk, TsdbContent, TsdbSample, Value};
use koios_tsdb::{Error, MemoryFiles, ReadStats, TsdbBlock, TsdbSeries};
use proptest::prelude::*;

async fn read(
    files: BTreeMap<String, Vec<u8>>,
    range: TimeRange,
    external: &BTreeMap<String, String>,
) -> Result<(Vec<TsdbSeries>, ReadStats), Error> {
    let block = TsdbBlock::open(Arc::new(MemoryFiles::new(files))).await?;
    block.scan_chunks(|_| Ok(())).await?;
    let mut reader = block.series(range, external);
    let mut all = Vec::new();
    while let Some(series) = reader.next().await? {
        all.push(series);
    }
    assert!(reader.progress() >= 1.0);
    Ok((all, reader.stats()))
}

fn read_blocking(
    files: BTreeMap<String, Vec<u8>>,
    range: TimeRange,
) -> Result<(Vec<TsdbSeries>, ReadStats), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { read(files, range, &BTreeMap::new()).await })
}

fn read_now(content: &TsdbContent, range: TimeRange) -> (Vec<TsdbSeries>, ReadStats) {
    read_blocking(content.files(), range).unwrap()
}

/// What is to be read of a block: by series, by time.
fn expected(content: &TsdbContent, range: TimeRange) -> BTreeMap<Labels, BTreeMap<i64, (Value, i64)>> {
    let mut all = BTreeMap::new();
    for (number, (labels, chunks)) in content.series.iter().enumerate() {
        let gone = |t: i64| {
            content
                .tombstones
                .iter()
                .any(|d| d.0 == number && d.1 <= t && t <= d.2)
        };
        let mut samples = BTreeMap::new();
        for chunk in chunks {
            let keeps_starts = !matches!(
                chunk.kind,
                ChunkKind::Xor | ChunkKind::Histogram(false) | ChunkKind::FloatHistogram(false)
            );
            for s in chunk.samples.iter().filter(|s| range.contains(s.t) && !gone(s.t)) {
                let mut value = s.value.clone();
                if let Value::Histogram(h) = &mut value {
                    h.make_canonical();
                }
                samples.insert(s.t, (value, if keeps_starts { s.start } else { 0 }));
            }
        }
        if !samples.is_empty() {
            all.insert(labels.clone(), samples);
        }
    }
    all
}

fn got(series: Vec<TsdbSeries>) -> BTreeMap<Labels, BTreeMap<i64, (Value, i64)>> {
    assert!(series.is_sorted_by(|a, b| a.labels < b.labels));
    let mut all = BTreeMap::new();
    for s in series {
        let floats = s.samples.iter().map(|f| (f.t, Value::Float(f.v)));
        let histograms = s
            .histograms
            .iter()
            .map(|(t, h)| (*t, Value::Histogram(Histogram::clone(h))));
        let start = |t: i64| {
            s.starts
                .iter()
                .find(|(at, _)| *at == t)
                .map_or(0, |(_, start)| *start)
        };
        all.insert(
            s.labels.clone(),
            floats
                .chain(histograms)
                .map(|(t, v)| (t, (v, start(t))))
                .collect(),
        );
    }
    all
}

/// Equal to the bit.
fn assert_same(
    got: &BTreeMap<Labels, BTreeMap<i64, (Value, i64)>>,
    expected: &BTreeMap<Labels, BTreeMap<i64, (Value, i64)>>,
) {
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (labels, samples) in expected {
        let found = &got[labels];
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            samples.keys().collect::<Vec<_>>(),
            "{labels}"
        );
        for (t, (value, start)) in samples {
            let (other, other_start) = &found[t];
            let same = match (value, other) {
                (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
                (Value::Histogram(a), Value::Histogram(b)) => a.bits_cmp(b).is_eq(),
                _ => false,
            };
            assert!(
                same && start == other_start,
                "{labels} @{t}: {value:?} {start}, read as {other:?} {other_start}"
            );
        }
    }
}

fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (0i32..1000).prop_map(f64::from),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => Just(f64::from_bits(STALE_NAN_BITS)),
        1 => Just(-0.0),
    ]
}

/// Differences between times, mostly regular.
fn any_steps(max: usize) -> impl Strategy<Value = Vec<i64>> {
    let step =
        prop_oneof![6 => Just(15_000i64), 2 => 14_000i64..16_000, 1 => 1i64..100_000, 1 => 1i64..40_000_000];
    proptest::collection::vec(step, 1..max)
}

fn any_starts(n: usize) -> impl Strategy<Value = Vec<i64>> {
    prop_oneof![
        Just(vec![0; n]),
        Just(vec![1_000; n]),
        proptest::collection::vec(prop_oneof![Just(0i64), 1i64..50_000], n..=n),
    ]
}

fn float_chunk() -> impl Strategy<Value = TsdbChunk> {
    (
        prop_oneof![Just(ChunkKind::Xor), Just(ChunkKind::Xor2)],
        any_steps(200),
    )
        .prop_flat_map(|(kind, steps)| {
            let n = steps.len();
            (
                Just(kind),
                Just(steps),
                proptest::collection::vec(any_float(), n..=n),
                any_starts(n),
            )
        })
        .prop_map(|(kind, steps, values, starts)| {
            chunk(kind, &steps, values.into_iter().map(Value::Float), &starts)
        })
}

fn chunk(kind: ChunkKind, steps: &[i64], values: impl Iterator<Item = Value>, starts: &[i64]) -> TsdbChunk {
    let mut t = 0;
    let samples = steps
        .iter()
        .zip(values)
        .zip(starts)
        .map(|((step, value), start)| {
            t += step;
            TsdbSample {
                t,
                start: *start,
                value,
            }
        });
    TsdbChunk {
        kind,
        samples: samples.collect(),
    }
}

fn histogram_chunk() -> impl Strategy<Value = TsdbChunk> {
    let layout = (
        prop_oneof![Just(CUSTOM_BOUNDS_SCHEMA), -4i32..=8],
        proptest::collection::vec((0i32..5, 0u32..4), 0..4),
        proptest::collection::vec((0i32..5, 0u32..4), 0..3),
        prop_oneof![Just(0.0), Just(2f64.powi(-128)), Just(0.3)],
        any::<bool>(),
    );
    (layout, any_steps(40), any::<(bool, bool)>())
        .prop_flat_map(|(layout, steps, kind)| {
            let n = steps.len();
            let buckets = proptest::collection::vec(0u32..1000, 32..=32);
            (
                Just(layout),
                Just(kind),
                Just(steps),
                proptest::collection::vec((buckets, any_float()), n..=n),
                any_starts(n),
                0..n + 1,
            )
        })
        .prop_map(
            |(layout, (whole, with_starts), steps, values, starts, stale_from)| {
                let (schema, positive, negative, zero_threshold, gauge) = layout;
                let custom = schema == CUSTOM_BOUNDS_SCHEMA;
                let spans = |s: &[(i32, u32)]| -> Vec<Span> {
                    s.iter()
                        .map(|&(offset, length)| Span { offset, length })
                        .collect()
                };
                let positive_spans = spans(&positive);
                let negative_spans = if custom { Vec::new() } else { spans(&negative) };
                let count = |s: &[Span]| s.iter().map(|s| s.length as usize).sum::<usize>();
                let (p, n) = (count(&positive_spans), count(&negative_spans));
                let histogram = |(i, (buckets, sum)): (usize, (Vec<u32>, f64))| {
                    if i >= stale_from && i > 0 {
                        return Value::Histogram(Histogram::stale());
                    }
                    let sum = if sum.to_bits() == STALE_NAN_BITS { 1.5 } else { sum };
                    let scale = if whole { 1.0 } else { 0.3 };
                    let counts: Vec<f64> = buckets.iter().map(|b| f64::from(*b) * scale).collect();
                    Value::Histogram(Histogram {
                        reset_hint: if gauge {
                            ResetHint::Gauge
                        } else {
                            ResetHint::Unknown
                        },
                        schema,
                        zero_threshold,
                        zero_count: counts[30],
                        count: counts[31] + 17.0,
                        sum,
                        positive_spans: positive_spans.clone(),
                        negative_spans: negative_spans.clone(),
                        positive_buckets: counts[..p].to_vec(),
                        negative_buckets: counts[p..p + n].to_vec(),
                        custom_bounds: match custom {
                            true => (0..40).map(|i| f64::from(i) * 0.75 + 0.1).collect(),
                            false => Vec::new(),
                        },
                    })
                };
                let kind = match whole {
                    true => ChunkKind::Histogram(with_starts),
                    false => ChunkKind::FloatHistogram(with_starts),
                };
                chunk(
                    kind,
                    &steps,
                    values.into_iter().enumerate().map(histogram),
                    &starts,
                )
            },
        )
}

/// Series whose chunks follow each other.
fn any_content() -> impl Strategy<Value = TsdbContent> {
    let labels = proptest::collection::btree_map("[a-e]", "[x-z]{1,2}", 1..5).prop_map(Labels::from_pairs);
    let chunks = proptest::collection::vec(prop_oneof![2 => float_chunk(), 1 => histogram_chunk()], 1..4);
    (
        proptest::collection::btree_map(labels, chunks, 1..12),
        proptest::collection::vec((0usize..12, 0i64..2_000_000, 0i64..1_000_000), 0..4),
        1u8..=2,
        1usize..9,
    )
        .prop_map(|(mut series, tombstones, version, chunks_per_file)| {
            for chunks in series.values_mut() {
                let mut after = 0;
                for chunk in chunks {
                    for s in &mut chunk.samples {
                        s.t += after;
                        s.start += if s.start == 0 { 0 } else { after };
                    }
                    after = chunk.samples.last().map_or(0, |s| s.t);
                }
            }
            let number = series.len();
            TsdbContent {
                version,
                tombstones: tombstones
                    .into_iter()
                    .map(|(s, at, len)| (s % number, at, at + len))
                    .collect(),
                chunks_per_file,
                series,
                ..TsdbContent::default()
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn i2_what_was_written_is_read_to_the_bit(content in any_content()) {
        let (series, stats) = read_now(&content, TimeRange::ALL);
        prop_assert_eq!(stats.series as usize, content.series.len());
        let written: usize = content.series.values().flatten().map(|c| c.samples.len()).sum();
        prop_assert_eq!(stats.samples as usize, written);
        assert_same(&got(series), &expected(&content, TimeRange::ALL));
    }

    #[test]
    fn windows_share_all_samples_among_them(content in any_content(), cut in 0i64..3_000_000) {
        let mut read_in_all = 0;
        for range in [TimeRange::new(i64::MIN, cut), TimeRange::new(cut + 1, i64::MAX)] {
            let (series, stats) = read_now(&content, range);
            read_in_all += stats.samples as usize;
            assert_same(&got(series), &expected(&content, range));
        }
        prop_assert_eq!(read_in_all, content.series.values().flatten().map(|c| c.samples.len()).sum::<usize>());
    }

    #[test]
    fn i11_i12_no_changed_byte_goes_unnoticed(
        content in any_content(), at in any::<prop::sample::Index>(), bits in 1u8..=255, cut in any::<bool>(),
    ) {
        let good = expected(&content, TimeRange::ALL);
        for name in content.files().into_keys().filter(|n| n != "meta.json") {
            let mut files = content.files();
            let file = files.get_mut(&name).unwrap();
            let at = at.index(file.len());
            if cut {
                file.truncate(at);
            } else {
                file[at] ^= bits;
            }
            let done = read_blocking(files, TimeRange::ALL);
            // Postings are not read, and some bytes mean nothing; but what is read is right.
            if let Ok((series, _)) = done {
                assert_same(&got(series), &good);
            }
        }
    }

    #[test]
    fn i12_any_bytes_with_a_right_checksum_are_read_or_refused(
        content in any_content(), bytes in proptest::collection::vec(any::<u8>(), 1..300), encoding in 0u8..9,
    ) {
        let mut files = content.files();
        let file = files.get_mut("chunks/000001").unwrap();
        file.truncate(8);
        let checked = [&[encoding][..], &bytes].concat();
        let mut length = bytes.len();
        while length >= 0x80 {
            file.push(length as u8 | 0x80);
            length >>= 7;
        }
        file.push(length as u8);
        file.extend(&checked);
        file.extend(crc32c::crc32c(&checked).to_be_bytes());
        let done = read_blocking(files, TimeRange::ALL);
        prop_assert!(done.is_err());
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_pairs(pairs.iter().copied())
}

#[tokio::test]
async fn external_labels_are_added_and_series_stay_in_order() {
    let samples = [(1, 1.0), (2, 2.0)];
    let content = TsdbContent::default()
        .with_floats(labels(&[("__name__", "up"), ("job", "a")]), &samples, 1)
        .with_floats(
            labels(&[("__name__", "up"), ("job", "a"), ("path", "/")]),
            &samples,
            2,
        )
        .with_floats(labels(&[("__name__", "up"), ("job", "b")]), &samples, 2);
    let external =
        BTreeMap::from([("cluster", "x"), ("replica", "0")].map(|(n, v)| (n.to_owned(), v.to_owned())));
    let (series, _) = read(content.files(), TimeRange::ALL, &external).await.unwrap();
    let got: Vec<String> = series.iter().map(|s| s.labels.to_string()).collect();
    assert_eq!(
        got,
        [
            r#"{__name__="up", cluster="x", job="a", path="/", replica="0"}"#,
            r#"{__name__="up", cluster="x", job="a", replica="0"}"#,
            r#"{__name__="up", cluster="x", job="b", replica="0"}"#
        ]
    );
    let clash = BTreeMap::from([("path".to_owned(), "x".to_owned())]);
    let error = read(content.files(), TimeRange::ALL, &clash)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has a label of its own that the block's external labels"),
        "{error}"
    );
}

#[tokio::test]
async fn i2_where_chunks_overlap_one_rule_chooses() {
    let sample = |t, v| TsdbSample {
        t,
        start: 0,
        value: Value::Float(v),
    };
    let chunk = |samples: &[(i64, f64)]| TsdbChunk {
        kind: ChunkKind::Xor,
        samples: samples.iter().map(|&(t, v)| sample(t, v)).collect(),
    };
    let mut content = TsdbContent::default();
    let chunks = vec![
        chunk(&[(10, 1.0), (30, 3.0)]),
        chunk(&[(5, 9.0), (10, 2.0), (20, 2.0)]),
    ];
    content.series.insert(labels(&[("a", "b")]), chunks);
    let (series, stats) = read(content.files(), TimeRange::ALL, &BTreeMap::new())
        .await
        .unwrap();
    let expected = [(5, 9.0), (10, 2.0), (20, 2.0), (30, 3.0)].map(|(t, v)| Sample { t, v });
    assert_eq!(series[0].samples, expected);
    assert_eq!((stats.samples, stats.doubled), (5, 1));
}

/// One histogram after the other takes a few bits, and each would have a copy of what the chunk says once.
#[tokio::test]
async fn i12_a_small_chunk_cannot_make_many_large_histograms() {
    let bounds: Vec<f64> = (0..8192).map(f64::from).collect();
    let sample = |t: i64| TsdbSample {
        t,
        start: 0,
        value: Value::Histogram(Histogram {
            schema: CUSTOM_BOUNDS_SCHEMA,
            custom_bounds: bounds.clone(),
            ..Histogram::default()
        }),
    };
    let mut content = TsdbContent::default();
    let chunk = TsdbChunk {
        kind: ChunkKind::Histogram(false),
        samples: (0..3000).map(sample).collect(),
    };
    content.series.insert(labels(&[("a", "b")]), vec![chunk]);
    let files = content.files();
    assert!(files["chunks/000001"].len() < 64 << 10);
    let error = read(files, TimeRange::ALL, &BTreeMap::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the histograms of its series take more than"),
        "{error}"
    );
}

#[tokio::test]
async fn i11_a_series_that_was_zeroed_or_lost_is_missed() {
    let mut content = TsdbContent::default();
    for n in 0..6 {
        content = content.with_floats(labels(&[("n", &n.to_string())]), &[(1, 1.0)], 1);
    }
    let error = |files| async move {
        read(files, TimeRange::ALL, &BTreeMap::new())
            .await
            .unwrap_err()
            .to_string()
    };
    // The last series begins at the last multiple of 16 before the postings; its length becomes zero.
    let mut files = content.files();
    let index = files.get_mut("index").unwrap();
    let toc = index.len() - 52;
    let postings = u64::from_be_bytes(index[toc + 32..toc + 40].try_into().unwrap()) as usize;
    let last = (postings - 20) / 16 * 16;
    index[last] = 0;
    let text = error(files).await;
    assert!(text.contains("something follows a series of no length"), "{text}");
    let mut files = content.files();
    let meta = String::from_utf8(files["meta.json"].clone()).unwrap();
    files.insert(
        "meta.json".to_owned(),
        meta.replace("\"numSeries\":6", "\"numSeries\":7").into_bytes(),
    );
    let text = error(files).await;
    assert!(text.contains("it has 6 series, meta.json says Some(7)"), "{text}");
    let mut files = content.files();
    files.remove("chunks/000001");
    assert_eq!(error(files).await, "chunks/000001 is missing");
}
