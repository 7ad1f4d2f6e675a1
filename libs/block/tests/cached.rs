//! Answers do not depend on what is cached, and what is cached is bounded.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Counting, Model, incompressible, open_over, open_with, tiny, write};
use koios_block::{BlockCache, BlockReader, Layout};
use koios_chunk::Chunk;
use koios_model::{Labels, MatchOp, Matcher, Matchers, TimeRange};
use koios_runtime::Cpu;
use proptest::prelude::*;

fn run<T>(f: impl Future<Output = T>) -> T {
    futures::executor::block_on(f)
}

const NAMES: [&str; 5] = ["__name__", "a", "b", "zone", "missing"];

fn labels() -> impl Strategy<Value = Labels> {
    let value = prop_oneof![
        Just("x"),
        Just("xy"),
        Just("y"),
        Just("zé"),
        "[a-c]{1,2}".prop_map(|_| "w")
    ];
    proptest::collection::vec((0usize..4, value), 1..4)
        .prop_map(|pairs| Labels::from_pairs(pairs.into_iter().map(|(n, v)| (NAMES[n], v))))
}

fn model() -> impl Strategy<Value = Model> {
    let samples = proptest::collection::btree_map(-1000i64..1000, -10.0..10.0, 1..20);
    proptest::collection::btree_map(labels(), samples, 1..40)
}

fn matchers() -> impl Strategy<Value = Matchers> {
    let literal = prop_oneof![Just(""), Just("x"), Just("y"), Just("zé"), Just("none")];
    let pattern = prop_oneof![
        Just("x|y"),
        Just("x.*"),
        Just(".+"),
        Just(".*"),
        Just("|x"),
        Just("[xz].?")
    ];
    let by_literal = (0usize..5, any::<bool>(), literal).prop_map(|(n, equal, v)| {
        let op = if equal { MatchOp::Equal } else { MatchOp::NotEqual };
        Matcher::new(op, NAMES[n], v).unwrap()
    });
    let by_regex = (0usize..5, any::<bool>(), pattern).prop_map(|(n, holds, v)| {
        let op = if holds { MatchOp::Regex } else { MatchOp::NotRegex };
        Matcher::new(op, NAMES[n], v).unwrap()
    });
    proptest::collection::vec(prop_oneof![by_literal, by_regex], 0..4).prop_map(Matchers)
}

/// What a block tells of some series.
#[derive(Debug, PartialEq)]
struct Answers {
    samples: BTreeMap<Labels, Vec<(i64, f64)>>,
    names: Vec<String>,
    values: Vec<Vec<String>>,
}

async fn ask(block: &BlockReader, matchers: &Matchers, range: TimeRange) -> koios_block::Result<Answers> {
    let owned = |list: koios_block::StringList| list.iter().map(str::to_owned).collect();
    let series = block.select(matchers, range).await?;
    let samples = block.read_samples(&series, range).await?;
    let rows = samples
        .into_iter()
        .map(|s| s.timestamps.into_iter().zip(s.values).collect());
    let mut values = Vec::new();
    for name in NAMES {
        values.push(owned(block.label_values(name, matchers, range).await?));
    }
    Ok(Answers {
        samples: series.into_iter().map(|s| s.labels).zip(rows).collect(),
        names: owned(block.label_names(matchers, range).await?),
        values,
    })
}

fn expected(model: &Model, matchers: &Matchers, range: TimeRange) -> Answers {
    let around = |samples: &BTreeMap<i64, f64>| {
        let ends = samples.keys().next().zip(samples.keys().next_back());
        ends.is_some_and(|(&first, &last)| range.overlaps(&TimeRange::new(first, last)))
    };
    let chosen = model
        .iter()
        .filter(|(l, s)| matchers.matches(l.as_ref()) && around(s));
    let inside = |samples: &BTreeMap<i64, f64>| {
        samples
            .range(range.min..=range.max)
            .map(|(&t, &v)| (t, v))
            .collect()
    };
    let samples: BTreeMap<Labels, Vec<(i64, f64)>> = chosen.map(|(l, s)| (l.clone(), inside(s))).collect();
    let sorted = |all: BTreeSet<&str>| all.into_iter().map(str::to_owned).collect();
    let names = samples.keys().flat_map(Labels::iter).map(|(n, _)| n).collect();
    let values = NAMES.map(|name| sorted(samples.keys().filter_map(|l| l.get(name)).collect()));
    Answers {
        names: sorted(names),
        values: values.to_vec(),
        samples,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn answers_are_those_of_the_model_whatever_is_cached(
        model in model(),
        queries in proptest::collection::vec((matchers(), -1200i64..1200, 0i64..1500, any::<bool>()), 1..6),
    ) {
        let parts = write(1, tiny(), &model);
        let roomy = BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20);
        let tight = BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(600, 600);
        let blocks = [roomy, tight, BlockCache::new(0, 0)].map(|cache| open_with(cache, &parts));
        for (matchers, from, width, all) in &queries {
            let range = if *all { TimeRange::ALL } else { TimeRange::new(*from, from + width) };
            let want = expected(&model, matchers, range);
            for block in &blocks {
                for _ in 0..2 {
                    let got = run(ask(block, matchers, range)).unwrap();
                    prop_assert_eq!(&got, &want, "{:?} in {:?}", matchers, range);
                }
            }
        }
    }
}

/// `count` series with a value of `value_bytes` of their own.
fn series(count: i64, value_bytes: usize) -> Model {
    let one = |i: i64| {
        let own = format!("{i:0value_bytes$}");
        let pairs = [("__name__", "m"), ("i", own.as_str())];
        (
            Labels::from_pairs(pairs),
            BTreeMap::from([(i, i as f64), (i + 1, 0.5)]),
        )
    };
    (0..count).map(one).collect()
}

#[test]
fn a_second_query_reads_nothing_even_when_the_bytes_are_gone() {
    let parts = write(1, Layout::default(), &series(5000, 5));
    let source = Counting::new(&parts);
    let cache = BlockCache::new(0, 1 << 20).with_series_and_samples(8 << 20, 1 << 20);
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::new(cache)).unwrap();
    let matchers = Matchers(vec![Matcher::equal("i", "03333")]);
    let first = run(ask(&block, &matchers, TimeRange::new(3000, 4000))).unwrap();
    assert!(source.take().1 > 0);
    assert_eq!(
        run(ask(&block, &matchers, TimeRange::new(3000, 4000))).unwrap(),
        first
    );
    assert_eq!(source.take(), (0, 0));
}

#[test]
fn i12_what_is_kept_stays_within_its_budgets() {
    let budget = 300_000;
    let cache = Arc::new(BlockCache::new(0, 0).with_series_and_samples(budget, budget));
    for n in 0..4 {
        let parts = write(n, Layout::default(), &series(5000, 20));
        let source = Counting::new(&parts);
        let meta = Arc::new(parts.meta);
        let block = BlockReader::open(source, meta, Arc::clone(&cache)).unwrap();
        let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
        assert_eq!(all.len(), 5000);
        run(block.read_samples(&all, TimeRange::ALL)).unwrap();
        run(ask(
            &block,
            &Matchers(vec![Matcher::equal("__name__", "m")]),
            TimeRange::new(5, 9),
        ))
        .unwrap();
        let bytes = cache.bytes();
        assert!(
            bytes.tables <= budget && bytes.samples <= budget,
            "{bytes:?} of {budget}"
        );
    }
    let bytes = cache.bytes();
    assert!(bytes.tables > 0 && bytes.samples > budget / 2, "{bytes:?}");
    assert_eq!((bytes.cells, bytes.indexes), (0, 0));
}

#[test]
fn i12_label_sets_too_large_to_be_held_together_are_read_all_the_same() {
    // Two kilobytes each: a chunk of them would be four megabytes.
    let model = series(2500, 2000);
    let parts = write(1, Layout::default(), &model);
    let block = open_over(Counting::new(&parts), &parts);
    let mut cursor = block.series_cursor(Matchers::default(), TimeRange::ALL);
    let mut got = Vec::new();
    while let Some(batch) = run(cursor.next(usize::MAX)).unwrap() {
        // The last chunk is small enough.
        assert!(batch.len() <= 32 || got.len() >= 2048);
        got.extend(batch.into_iter().map(|s| s.labels));
    }
    assert!(got.iter().eq(model.keys()));
    let of_one = Matchers(vec![Matcher::equal("i", format!("{:02000}", 1234))]);
    let found = run(block.select(&of_one, TimeRange::ALL)).unwrap();
    assert_eq!(found.len(), 1);
    let names = run(block.label_names(&Matchers::default(), TimeRange::ALL)).unwrap();
    assert!(names.iter().eq(["__name__", "i"]));
}

#[test]
fn a_chunk_of_series_known_to_be_too_large_is_not_read_around_again_and_again() {
    let parts = write(1, Layout::default(), &series(2500, 2000));
    let source = Counting::new(&parts);
    // That the first chunk is too large fits in, the second chunk does not.
    let cache = Arc::new(BlockCache::new(0, 1 << 20).with_series_and_samples(100_000, 0));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::clone(&cache)).unwrap();
    let read_bytes = || {
        let mut cursor = block.series_cursor(Matchers::default(), TimeRange::ALL);
        let mut count = 0;
        while let Some(batch) = run(cursor.next(usize::MAX)).unwrap() {
            count += batch.len();
            // So that it evicts now.
            assert!(cache.bytes().tables <= 100_000);
        }
        assert_eq!(count, 2500);
        source.take().1
    };
    let first = read_bytes();
    let second = read_bytes();
    assert!(second <= first, "{first} bytes, then {second}");
}

/// `count` series of `length` samples whose values do not compress.
fn noise(count: i64, length: i64) -> Model {
    let one = |series: i64| {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", format!("{series:05}").as_str())]);
        let samples = (0..length).map(|i| (i * 15_000, incompressible(series * length + i)));
        (labels, samples.collect())
    };
    (0..count).map(one).collect()
}

#[test]
fn bytes_of_samples_that_are_kept_as_chunks_are_not_kept_as_well() {
    let parts = write(1, Layout::default(), &noise(60, 4000));
    let source = Counting::new(&parts);
    let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 8 << 20));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::clone(&cache)).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let read = || {
        let chunks = run(block.read_chunks(&all, TimeRange::ALL)).unwrap();
        let chunks = chunks.iter().flatten().map(|chunk| chunk.bytes().to_vec());
        chunks.collect::<Vec<_>>()
    };
    let first = read();
    let (bytes, fetched) = (cache.bytes(), source.take().1);
    assert!(fetched > 60 * 4000 * 7, "{fetched}");
    assert!(bytes.cells < fetched / 4, "{bytes:?} of {fetched}");
    assert_eq!(read(), first);
    assert_eq!(source.take(), (0, 0));
}

/// Of many blocks few series are read at a time, a part of a page of each.
#[test]
fn bytes_of_samples_that_are_kept_as_chunks_go_however_few_series_are_read_at_a_time() {
    let parts = write(1, Layout::default(), &noise(60, 4000));
    let source = Counting::new(&parts);
    let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 8 << 20));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::clone(&cache)).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    for one in &all {
        let chunks = run(block.read_chunks(std::slice::from_ref(one), TimeRange::ALL)).unwrap();
        assert!(!chunks.is_empty());
    }
    let (bytes, fetched) = (cache.bytes(), source.take().1);
    assert!(fetched > 60 * 4000 * 7, "{fetched}");
    assert!(bytes.cells < fetched / 4, "{bytes:?} of {fetched}");
}

/// A cache that is full may not take what is read; then the bytes are kept, lest every query fetch them.
#[test]
fn bytes_are_kept_where_the_cache_of_samples_is_full() {
    let parts = write(1, Layout::default(), &noise(60, 4000));
    let source = Counting::new(&parts);
    let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 1 << 20));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::clone(&cache)).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let fetched = (0..8).map(|_| {
        run(block.read_chunks(&all, TimeRange::ALL)).unwrap();
        assert!(cache.bytes().samples <= 1 << 20);
        source.take().1
    });
    let fetched: Vec<u64> = fetched.collect();
    assert_eq!(fetched.last(), Some(&0), "{fetched:?}");
}

#[test]
fn what_was_read_while_a_read_waited_is_not_read_again() {
    let parts = write(1, Layout::default(), &noise(60, 4000));
    let source = Counting::new(&parts);
    let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 8 << 20));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, cache).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let waits = block.look_up_chunks(&all, TimeRange::ALL);
    let first = run(block.read_chunks(&all, TimeRange::ALL)).unwrap();
    source.take();
    let second = run(waits.finish()).unwrap();
    assert_eq!(source.take(), (0, 0));
    let bytes = |all: &[Vec<Chunk>]| -> Vec<_> { all.iter().flatten().map(|c| c.bytes().to_vec()).collect() };
    assert_eq!(bytes(&first), bytes(&second));
}

#[test]
fn what_is_cached_here_and_there_does_not_make_many_small_requests_of_the_rest() {
    // Each series is a page, of half a cell.
    let layout = Layout {
        page_rows: 4096,
        ..Layout::default()
    };
    let parts = write(1, layout, &noise(60, 4096));
    let source = Counting::new(&parts);
    let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 0));
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, cache).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    for place in (5..60).step_by(10) {
        run(block.read_chunks(&all[place..=place], TimeRange::ALL)).unwrap();
    }
    source.take();
    run(block.read_chunks(&all, TimeRange::ALL)).unwrap();
    let (requests, bytes) = source.take();
    assert!(requests <= 2, "{requests} requests, {bytes} bytes");
}

/// What is looked at together may be large: each row group has a value of a kilobyte for each of its series.
#[test]
fn i12_row_groups_are_looked_at_together_up_to_so_many_bytes() {
    const GROUP_ROWS: i64 = 32 << 10;
    let one = |i: i64| {
        // No codec makes it much smaller.
        let value: String = (0..12)
            .map(|n| {
                format!(
                    "{:016x}",
                    (i * 12 + n).cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15)
                )
            })
            .collect();
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}{value}"))]);
        (labels, BTreeMap::from([(0, 1.0)]))
    };
    let parts = write(1, Layout::default(), &(0..3 * GROUP_ROWS).map(one).collect());
    let first_batch = |bytes_max: u64| {
        let source = Counting::new(&parts);
        let block = open_over(Arc::<Counting>::clone(&source), &parts);
        let matcher = Matcher::new(MatchOp::Regex, "i", ".*7.*").unwrap();
        let cursor = block.series_cursor(Matchers(vec![matcher]), TimeRange::ALL);
        let mut cursor = cursor.with_groups_ahead(16, bytes_max);
        run(cursor.next(1)).unwrap().unwrap();
        source.take().1
    };
    let (all, two) = (first_batch(u64::MAX), first_batch(25 << 20));
    assert!(two < all / 6 * 5, "{two} of {all}");
    // One is always looked at.
    let one = first_batch(0);
    assert!(one < two / 4 * 3, "{one} of {two}");
}

#[test]
fn bytes_that_other_series_share_are_kept() {
    let parts = write(1, Layout::default(), &noise(6000, 40));
    let source = Counting::new(&parts);
    let cache = BlockCache::new(64 << 20, 1 << 20).with_series_and_samples(8 << 20, 8 << 20);
    let meta = Arc::new(parts.meta);
    let block = BlockReader::open(Arc::<Counting>::clone(&source), meta, Arc::new(cache)).unwrap();
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let each_second = |from: usize| all.iter().skip(from).step_by(2).cloned().collect::<Vec<_>>();
    run(block.read_chunks(&each_second(0), TimeRange::ALL)).unwrap();
    assert!(source.take().1 > 6000 * 40 * 7);
    run(block.read_chunks(&each_second(1), TimeRange::ALL)).unwrap();
    assert_eq!(source.take(), (0, 0));
}

/// Rows are decoded some ten thousand at a time, and series end where they like.
#[test]
fn series_across_what_is_decoded_at_a_time_are_whole() {
    let model = noise(23, 7_001);
    let parts = write(1, Layout::default(), &model);
    let block = open_with(BlockCache::new(64 << 20, 1 << 20), &parts);
    let all = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    for range in [TimeRange::ALL, TimeRange::new(15_000 * 3_000, 15_000 * 6_500)] {
        let inside = |samples: &BTreeMap<i64, f64>| {
            let inside = samples.range(range.min..=range.max);
            inside.map(|(&t, &v)| (t, v.to_bits())).collect::<Vec<_>>()
        };
        let want: Vec<_> = model.values().map(inside).collect();
        let read = run(block.read_samples(&all, range)).unwrap();
        let rows = |t: &[i64], v: &[f64]| t.iter().copied().zip(v.iter().map(|v| v.to_bits())).collect();
        let got: Vec<Vec<_>> = read.iter().map(|s| rows(&s.timestamps, &s.values)).collect();
        assert!(got == want);
        let chunks = run(block.read_chunks(&all, range)).unwrap();
        let decoded = chunks.iter().map(|chunks| {
            let (mut timestamps, mut values) = (Vec::new(), Vec::new());
            for chunk in chunks {
                chunk.decode_range(range, &mut timestamps, &mut values).unwrap();
            }
            rows(&timestamps, &values)
        });
        assert!(decoded.collect::<Vec<_>>() == want);
    }
}

/// Lengths around those of a chunk and of a series that is read whole.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        1usize..100,
        1_020usize..1_030,
        2_040usize..2_060,
        8_185usize..8_200,
        9_000usize..10_000
    ]
}

/// Samples at about every `step`, of values that are decimals but for each `floats`th.
fn samples((length, step, floats, seed): (usize, i64, usize, i64)) -> BTreeMap<i64, f64> {
    let sample = |i: usize| {
        let noise = (i as i64 * 7_919 + seed) % 13;
        let value = if i.is_multiple_of(floats) { 1.0 / 3.0 } else { 0.5 };
        (i as i64 * step + noise % step, value + noise as f64)
    };
    (0..length).map(sample).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_range_of_a_series_is_the_same_read_and_cached(
        shapes in proptest::collection::vec((length(), 1i64..20, 1usize..3_000, 0i64..1000), 1..4),
        group_rows in 200usize..4_000,
        page_rows in 50usize..1_000,
        ranges in proptest::collection::vec((-0.1..1.0f64, 0.0..1.0f64, 0i32..4), 1..8),
    ) {
        let named = |(i, shape)| (Labels::from_pairs([("i", format!("{i}"))]), samples(shape));
        let model: Model = shapes.iter().copied().enumerate().map(named).collect();
        let layout = Layout { page_rows, group_rows, ..Layout::default() };
        let parts = write(1, layout, &model);
        let span = model.values().filter_map(|s| s.keys().next_back()).max().copied().unwrap_or(0) as f64;
        for (from, width, narrower) in ranges {
            let (from, width) = (from * span, width * span / 10f64.powi(narrower));
            let range = TimeRange::new(from as i64, (from + width) as i64);
            let block = open_with(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20), &parts);
            let series = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
            for asked in 0..2 {
                let missing = block.look_up_chunks(&series, range).rows_missing();
                let kept = |s: &&koios_block::BlockSeries| asked == 1 && s.row_count <= 8_192;
                // Its times count, too.
                let rows = |s: &koios_block::BlockSeries| u64::from(s.row_count) + u64::from(s.times_row_count).div_ceil(5);
                let long = series.iter().filter(|s| !kept(s)).map(rows);
                prop_assert!(missing <= long.sum());
                let chunks = run(block.read_chunks(&series, range)).unwrap();
                for chunks in &chunks {
                    prop_assert!(chunks.iter().all(|c| c.time_range().overlaps(&range)));
                    prop_assert!(chunks.is_sorted_by(|a, b| a.time_range().max < b.time_range().min));
                }
                let found = run(block.read_samples(&series, range)).unwrap();
                for (found, all) in found.into_iter().zip(model.values()) {
                    let found: Vec<(i64, f64)> = found.timestamps.into_iter().zip(found.values).collect();
                    let want: Vec<(i64, f64)> = all.range(range.min..=range.max).map(|(&t, &v)| (t, v)).collect();
                    prop_assert_eq!(found, want);
                }
            }
        }
    }
}

#[test]
fn a_few_minutes_of_a_day_are_a_few_bytes() {
    let labels = Labels::from_pairs([("__name__", "m")]);
    let day: BTreeMap<i64, f64> = (0..5_760i64)
        .map(|i| (i * 15_000 + i * 31 % 7, (i * 7 % 100) as f64 / 10.0))
        .collect();
    let block = open_with(
        BlockCache::new(0, 0).with_series_and_samples(1 << 20, 1 << 20),
        &write(1, Layout::default(), &Model::from([(labels, day)])),
    );
    let series = run(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let sent = |minutes: i64| {
        let from = 9 * 3_600_000;
        let chunks = run(block.read_chunks(&series, TimeRange::new(from, from + minutes * 60_000))).unwrap();
        let bytes: usize = chunks[0].iter().map(|c| c.bytes().len()).sum();
        let samples: usize = chunks[0].iter().map(Chunk::count).sum();
        (samples, bytes)
    };
    for _ in 0..2 {
        let (samples, bytes) = sent(5);
        assert!(samples <= 21 && bytes < 100, "{samples} samples in {bytes} bytes");
    }
    // What is mostly in range is sent as it is kept.
    assert_eq!(sent(200).0, 1_024);
}

#[tokio::test]
async fn large_patterns_are_tried_on_the_decoding_threads() {
    let parts = write(1, Layout::default(), &series(10, 5));
    let cpu = Cpu::threaded(1).unwrap();
    let block = open_over(Counting::new(&parts), &parts).with_cpu(cpu.clone());
    let branches: Vec<String> = (0..1000).map(|i| format!("{i:05}[0-9a-f]*")).collect();
    let [small, large] = ["0000[0-9]x?", &branches.join("|")].map(|pattern| {
        let matcher = Matcher::new(MatchOp::Regex, "i", pattern).unwrap();
        Matchers(vec![matcher])
    });
    assert!(!small.0[0].is_large() && large.0[0].is_large());
    // Given that all is cached, and that the only thread is busy.
    for matchers in [&small, &large] {
        assert_eq!(block.select(matchers, TimeRange::ALL).await.unwrap().len(), 10);
    }
    let (release, held) = std::sync::mpsc::channel::<()>();
    let mut busy = Box::pin(cpu.run(move || held.recv()));
    assert!(futures::poll!(&mut busy).is_pending());
    // Then a small pattern is tried at once, a large one when there is a thread.
    let mut at_once = Box::pin(block.select(&small, TimeRange::ALL));
    assert!(futures::poll!(&mut at_once).is_ready());
    let mut waits = Box::pin(block.select(&large, TimeRange::ALL));
    for _ in 0..100 {
        assert!(futures::poll!(&mut waits).is_pending());
        tokio::task::yield_now().await;
    }
    drop(release);
    assert_eq!(waits.await.unwrap().len(), 10);
    assert!(busy.await.unwrap().is_err());
}
