//! What is written is read, exactly and by as few bytes as it takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Counting, Model, bits, incompressible, open, open_over, options, read_all, tiny, write};
use koios_block::{
    BlockParts, BlockReader, BlockSeries, BlockWriter, CELL_BYTES, Error, Layout, SAMPLES_PART, SERIES_PART,
    TIMES_PART, verify,
};
use koios_model::{Labels, MatchOp, Matcher, Matchers, Metadata, TimeRange, stale_nan};
use proptest::prelude::*;

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (-1_000_000i64..1_000_000, 0i32..6).prop_map(|(m, e)| m as f64 / 10f64.powi(e)),
        Just(stale_nan()),
        Just(-0.0),
        Just(f64::INFINITY),
        Just(1e300),
    ]
}

fn labels() -> impl Strategy<Value = Labels> {
    let name = prop_oneof![
        Just("__name__"),
        Just("a"),
        Just("job"),
        Just("dotted.näme"),
        Just("Z")
    ];
    let value = prop_oneof![Just("x"), Just("y"), Just("zé"), Just("with \"quotes\"\n")];
    proptest::collection::vec((name, value), 1..4).prop_map(Labels::from_pairs)
}

fn model() -> impl Strategy<Value = Model> {
    let samples = proptest::collection::btree_map(-1_000_000i64..1_000_000, value(), 1..200);
    proptest::collection::btree_map(labels(), samples, 1..12)
}

fn run<T>(f: impl Future<Output = T>) -> T {
    futures::executor::block_on(f)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn i2_what_was_written_is_read_back_bit_exact(model in model()) {
        let block = open(&write(1, tiny(), &model));
        let back = run(read_all(&block)).unwrap();
        prop_assert_eq!(bits(&back), bits(&model));
        run(verify(&block)).unwrap();
    }

    #[test]
    fn a_range_yields_exactly_the_samples_inside_it(model in model(), a in -1_200_000i64..1_200_000, width in 0i64..400_000) {
        let range = TimeRange::new(a, a + width);
        let block = open(&write(1, tiny(), &model));
        let series = run(block.select(&Matchers::default(), range)).unwrap();
        let samples = run(block.read_samples(&series, range)).unwrap();
        let got: BTreeMap<_, Vec<i64>> = series
            .into_iter()
            .zip(samples)
            .map(|(s, c)| (s.labels, c.timestamps))
            .filter(|(_, t)| !t.is_empty())
            .collect();
        let want: BTreeMap<_, Vec<i64>> = model
            .iter()
            .map(|(l, s)| (l.clone(), s.range(range.min..=range.max).map(|(&t, _)| t).collect::<Vec<_>>()))
            .filter(|(_, t)| !t.is_empty())
            .collect();
        prop_assert_eq!(got, want);
    }
}

/// 300 label names, so that some have no column; each series has `__name__`, `job` and one of the others.
fn wide() -> Model {
    (0..600)
        .map(|i| {
            let odd = format!("label_{:03}", i % 300);
            let job = format!("job-{}", i % 7);
            let labels = Labels::from_pairs([
                ("__name__", format!("metric_{}", i % 50).as_str()),
                ("job", &job),
                (&odd, if i % 2 == 0 { "even" } else { "odd" }),
                ("n", &i.to_string()),
            ]);
            (labels, BTreeMap::from([(i64::from(i), f64::from(i))]))
        })
        .collect()
}

#[test]
fn select_agrees_with_the_matchers_whatever_columns_there_are() {
    let model = wide();
    let block = open(&write(1, Layout::default(), &model));
    let m = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
    let (eq, ne, re, nre) = (
        MatchOp::Equal,
        MatchOp::NotEqual,
        MatchOp::Regex,
        MatchOp::NotRegex,
    );
    let queries = [
        vec![],
        vec![m(eq, "__name__", "metric_7")],
        vec![m(eq, "__name__", "metric_7"), m(ne, "job", "job-3")],
        vec![m(re, "__name__", "metric_1.|metric_2"), m(nre, "job", "job-[12]")],
        vec![m(eq, "label_299", "odd")],
        vec![m(eq, "label_299", "")],
        vec![m(ne, "label_299", "")],
        vec![m(re, "label_000", "ev.*"), m(eq, "missing", "")],
        vec![m(eq, "missing", "x")],
        vec![m(eq, "n", "599")],
        vec![m(eq, "__name__", "zzz")],
    ];
    for matchers in queries.map(Matchers) {
        let got: Vec<Labels> = run(block.select(&matchers, TimeRange::ALL))
            .unwrap()
            .into_iter()
            .map(|s| s.labels)
            .collect();
        let want: Vec<Labels> = model
            .keys()
            .filter(|l| matchers.matches(l.as_ref()))
            .cloned()
            .collect();
        assert_eq!(got, want, "{matchers:?}");
        for name in ["__name__", "job", "label_299", "missing"] {
            let values = run(block.label_values(name, &matchers, TimeRange::ALL)).unwrap();
            let model: BTreeSet<&str> = want.iter().filter_map(|l| l.get(name)).collect();
            assert!(values.iter().eq(model), "{name} with {matchers:?}: {values:?}");
        }
        let names = run(block.label_names(&matchers, TimeRange::ALL)).unwrap();
        let model: BTreeSet<&str> = want.iter().flat_map(Labels::iter).map(|(n, _)| n).collect();
        assert!(names.iter().eq(model), "{matchers:?}: {names:?}");
    }
}

/// All that a cursor gives, in batches of at most `series_max`.
fn walk(block: &BlockReader, matchers: &Matchers, range: TimeRange, series_max: usize) -> Vec<BlockSeries> {
    let mut cursor = block.series_cursor(matchers.clone(), range);
    let mut all = Vec::new();
    while let Some(batch) = run(cursor.next(series_max)).unwrap() {
        assert!((1..=series_max.max(1)).contains(&batch.len()));
        all.extend(batch);
    }
    assert_eq!(run(cursor.next(series_max)).unwrap(), None, "an end is an end");
    all
}

#[test]
fn a_cursor_gives_what_select_gives_however_small_its_batches() {
    let m = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
    let queries = [
        vec![],
        vec![m(MatchOp::Equal, "__name__", "metric_7")],
        vec![m(MatchOp::NotEqual, "job", "job-3")],
        vec![m(MatchOp::Equal, "label_299", "odd")],
        vec![m(MatchOp::Equal, "__name__", "zzz")],
    ];
    let block = open(&write(1, Layout::default(), &wide()));
    for matchers in queries.map(Matchers) {
        for range in [TimeRange::ALL, TimeRange::new(100, 333)] {
            let want = run(block.select(&matchers, range)).unwrap();
            // Steps of one where few rows may match: each reads its page again.
            let least = if want.len() < 20 { 1 } else { 37 };
            for series_max in [least, 64, 599, usize::MAX] {
                let got = walk(&block, &matchers, range, series_max);
                assert!(got == want, "{series_max} of {matchers:?} in {range:?}");
            }
        }
    }
}

#[test]
fn a_cursor_crosses_pages_and_row_groups() {
    // A row group has 32 Ki series, a page 2 Ki.
    let series = |i: i64| {
        let pairs = [("i", format!("{i:05}")), ("odd", (i % 2).to_string())];
        (Labels::from_pairs(pairs), BTreeMap::from([(i, 1.0)]))
    };
    let block = open(&write(1, Layout::default(), &(0..35_000).map(series).collect()));
    let odd = Matchers(vec![Matcher::equal("odd", "1")]);
    for (matchers, range) in [
        (Matchers::default(), TimeRange::ALL),
        (odd.clone(), TimeRange::ALL),
        (odd, TimeRange::new(32_000, 33_500)),
    ] {
        let want = run(block.select(&matchers, range)).unwrap();
        for series_max in [2048, 5000, 40_000] {
            assert!(walk(&block, &matchers, range, series_max) == want, "{series_max}");
        }
    }
}

#[test]
fn select_leaves_out_series_without_samples_around_the_range() {
    let block = open(&write(1, Layout::default(), &wide()));
    let series = run(block.select(&Matchers::default(), TimeRange::new(10, 19))).unwrap();
    assert_eq!(series.len(), 10);
}

#[test]
fn metadata_comes_back_with_its_series() {
    let mut writer = BlockWriter::new(options(1)).unwrap();
    let counter = Metadata {
        kind: "counter".into(),
        help: "Requests.".into(),
        unit: String::new(),
    };
    let labels = |n: &str| Labels::from_pairs([("__name__", n)]);
    writer
        .push_series(&labels("a"), Some(&counter), &[1], &[1.0])
        .unwrap();
    writer.push_series(&labels("b"), None, &[1], &[1.0]).unwrap();
    writer
        .push_series(&labels("c"), Some(&Metadata::default()), &[1], &[1.0])
        .unwrap();
    let block = open(&writer.finish().unwrap().unwrap());
    let found: Vec<_> = run(block.select(&Matchers::default(), TimeRange::ALL))
        .unwrap()
        .into_iter()
        .map(|s| s.metadata.map(|m| Metadata::clone(&m)))
        .collect();
    assert_eq!(found, [Some(counter), None, None]);
}

#[test]
fn a_series_larger_than_a_row_group_is_whole_again_when_read() {
    let samples: BTreeMap<i64, f64> = (0..1000).map(|i| (i, i as f64 / 8.0)).collect();
    let one = |n: &str| Labels::from_pairs([("__name__", n)]);
    let model = Model::from([
        (one("a"), BTreeMap::from([(5, 5.0)])),
        (one("b"), samples.clone()),
        (one("c"), samples),
    ]);
    let block = open(&write(1, tiny(), &model));
    assert_eq!(bits(&run(read_all(&block)).unwrap()), bits(&model));
    run(verify(&block)).unwrap();
}

#[test]
fn the_writer_refuses_what_would_break_the_order() {
    let one = |n: &str| Labels::from_pairs([("__name__", n)]);
    let mut writer = BlockWriter::new(options(1)).unwrap();
    writer.push_series(&one("b"), None, &[1], &[1.0]).unwrap();
    for (labels, times, values, reason) in [
        (one("b"), vec![1], vec![1.0], "label order"),
        (one("a"), vec![1], vec![1.0], "label order"),
        (one("c"), vec![2, 2], vec![1.0, 1.0], "strictly ascend"),
        (one("c"), vec![2], vec![1.0, 1.0], "unequal"),
    ] {
        let e = writer.push_series(&labels, None, &times, &values).unwrap_err();
        assert!(
            matches!(e, Error::Input { .. }) && e.to_string().contains(reason),
            "{e}"
        );
    }
    writer.push_series(&one("empty"), None, &[], &[]).unwrap();
    let parts = writer.finish().unwrap().unwrap();
    assert_eq!((parts.meta.series, parts.meta.samples), (1, 1));
    assert!(BlockWriter::new(options(2)).unwrap().finish().unwrap().is_none());
}

/// A fleet of `targets` with `metrics` each, one sample per 15 s for 2 h.
fn fleet(targets: usize, metrics: usize) -> Model {
    let mut model = Model::new();
    for target in 0..targets {
        for metric in 0..metrics {
            let labels = Labels::from_pairs([
                ("__name__", format!("metric_{metric:04}")),
                ("instance", format!("host-{target:03}:9100")),
            ]);
            let samples = (0..480)
                .map(|i| {
                    (
                        i * 15_000 + (target as i64 * 37) % 15_000,
                        ((i + metric as i64 * 1000) as f64 + target as f64 / 7.0).sin(),
                    )
                })
                .collect();
            model.insert(labels, samples);
        }
    }
    model
}

#[test]
fn a_query_for_one_metric_touches_a_small_part_of_the_block_and_nothing_twice() {
    let parts = write(1, Layout::default(), &fleet(10, 60));
    let size: u64 = parts.meta.parts.iter().map(|p| p.bytes).sum();
    let source = Counting::new(&parts);
    let block = open_over(source.clone(), &parts);
    let matchers = Matchers(vec![Matcher::equal("__name__", "metric_0030")]);
    let series = run(block.select(&matchers, TimeRange::ALL)).unwrap();
    assert_eq!(series.len(), 10);
    assert_eq!(
        run(block.read_samples(&series, TimeRange::ALL)).unwrap()[0]
            .values
            .len(),
        480
    );
    let (requests, bytes) = source.take();
    assert!(
        requests <= 16 && bytes < size / 2,
        "{requests} requests, {bytes} of {size} bytes"
    );
    run(block.read_samples(&series, TimeRange::ALL)).unwrap();
    assert_eq!(source.take(), (0, 0));
}

#[test]
fn pages_outside_of_the_range_are_not_read() {
    let samples: BTreeMap<i64, f64> = (0..400_000).map(|i| (i * 1000, (i as f64).sin())).collect();
    let model = Model::from([(Labels::from_pairs([("__name__", "long")]), samples)]);
    let parts = write(1, Layout::default(), &model);
    let source = Counting::new(&parts);
    let block = open_over(source.clone(), &parts);
    let range = TimeRange::new(200_000_000, 200_010_000);
    let series = run(block.select(&Matchers::default(), range)).unwrap();
    assert_eq!(
        run(block.read_samples(&series, range)).unwrap()[0]
            .timestamps
            .len(),
        11
    );
    let (_, bytes) = source.take();
    let size = parts.meta.part(SAMPLES_PART).unwrap().bytes;
    assert!(bytes < size / 4, "{bytes} of {size}");
}

#[tokio::test]
async fn i11_a_flipped_bit_is_an_error_that_names_block_and_part() {
    let parts = write(1, Layout::default(), &fleet(3, 20));
    for (part, _) in parts.parts.clone() {
        let len = parts.meta.part(&part).unwrap().bytes as usize;
        for at in (0..len).step_by(len / 40 + 1) {
            let mut bad = parts.clone();
            for (name, bytes) in &mut bad.parts {
                if *name == part {
                    let mut copy = bytes.to_vec();
                    copy[at] ^= 1 << (at % 8);
                    *bytes = copy.into();
                }
            }
            let text = match read_all(&open(&bad)).await {
                Err(e) if e.is_corrupt() => e.to_string(),
                other => panic!("byte {at} of {part}: {other:?}"),
            };
            assert!(
                text.contains(&part) && text.contains(&common::id(1).to_string()),
                "{text}"
            );
        }
    }
    assert_eq!([SERIES_PART, SAMPLES_PART, TIMES_PART].len(), parts.parts.len());
}

/// Of parts of many cells, large ones and small ones.
#[tokio::test]
async fn i11_a_flipped_bit_in_any_cell_is_found() {
    let one = |i: i64| {
        let noise = format!(
            "{:032x}",
            (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        );
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:05}{noise}"))]);
        (
            labels,
            (0..20)
                .map(|t| (t * 15_000 + i, incompressible(i * 20 + t)))
                .collect(),
        )
    };
    let model: Model = (0..4_000).map(one).collect();
    let parts = write(1, Layout::default(), &model);
    let mut geometry = BTreeMap::new();
    for (part, bytes) in &parts.parts {
        let meta = parts.meta.part(part).unwrap();
        let Some(small) = &meta.small_cells else {
            assert!(meta.bytes <= CELL_BYTES, "{meta:?}");
            continue;
        };
        assert_eq!(small.from == 0, part == SERIES_PART, "{part}: {small:?}");
        geometry.insert(part.as_str(), bytes.len() as u64 - small.from);
        let (mut found, mut unread) = (0, 0);
        // Where a small cell begins, where the next ends, and within the one after it.
        let step = small.bytes as usize;
        let place = |cell: usize| cell * step + [0, step - 1, step / 2 + 7][cell % 3];
        for at in (0..bytes.len() / step).map(place) {
            let mut copy = bytes.to_vec();
            copy[at] ^= 1 << (at / step % 8);
            let mut bad = parts.clone();
            let (_, damaged) = bad.parts.iter_mut().find(|(name, _)| name == part).unwrap();
            *damaged = copy.into();
            match read_all(&open(&bad)).await {
                Err(e) if e.is_corrupt() && e.to_string().contains("failed its checksum") => found += 1,
                // In a column that nobody asked for.
                Ok(all) if part == SERIES_PART && all == model => unread += 1,
                other => panic!("byte {at} of {part}: {:?}", other.map(|all| all.len())),
            }
        }
        assert!(unread < found, "{part}: {found} were found, {unread} not read");
    }
    assert!(geometry[SERIES_PART] > 2 * CELL_BYTES, "{geometry:?}");
    let samples = parts.meta.part(SAMPLES_PART).unwrap();
    assert!(
        samples.bytes > 4 * CELL_BYTES && geometry[SAMPLES_PART] <= 2 * CELL_BYTES,
        "{geometry:?}"
    );
}

#[test]
fn a_block_reads_the_same_with_small_cells_and_without() {
    let one = |i: i64| {
        let labels = Labels::from_pairs([("__name__", format!("m{}", i / 50)), ("i", format!("{i:05}"))]);
        (
            labels,
            (0..3).map(|t| (t * 15_000, incompressible(i * 3 + t))).collect(),
        )
    };
    let with = write(1, Layout::default(), &(0..20_000).map(one).collect());
    let small = with.meta.parts.iter().filter(|part| part.small_cells.is_some());
    assert!(small.count() >= 2, "{:?}", with.meta.parts);
    let mut without = with.clone();
    without
        .meta
        .parts
        .iter_mut()
        .for_each(|part| part.small_cells = None);
    // As versions read it that know nothing of them.
    let json = String::from_utf8(without.meta.to_json().to_vec()).unwrap();
    assert!(!json.contains("small_cells"), "{json}");
    let read = |parts: &BlockParts| {
        let source = Counting::new(parts);
        let block = open_over(Arc::<Counting>::clone(&source), parts);
        let metric = Matchers(vec![Matcher::equal("__name__", "m123")]);
        let found = run(block.select(&metric, TimeRange::ALL)).unwrap();
        let samples = run(block.read_samples(&found, TimeRange::ALL)).unwrap();
        let all = run(read_all(&block)).unwrap();
        run(verify(&block)).unwrap();
        (found, samples, all)
    };
    let (of_with, of_without) = (read(&with), read(&without));
    assert_eq!(of_with.0.len(), 50);
    assert!(of_with == of_without);
}
