//! Times that several series have are stored once, and each series gets its own back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{Counting, InRounds, Model, bits, open, open_over, open_with, options, read_all, tiny, write};
use futures::TryStreamExt;
use futures::executor::block_on;
use koios_block::{
    BlockCache, BlockOptions, BlockParts, BlockReader, BlockSeries, BlockWriter, CELL_BYTES, Layout,
    SAMPLES_PART, SeriesSamples, TIMES_PART, merge, verify,
};
use koios_model::{Labels, Matcher, Matchers, TimeRange};
use proptest::prelude::*;

fn labels(metric: usize, target: usize) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("m{metric:03}")),
        ("instance", format!("host-{target:03}")),
    ])
}

/// A number that looks random.
fn random(a: usize, b: usize) -> u64 {
    let mut x = (a as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// When a target is scraped.
fn scrapes(target: usize, count: usize) -> Vec<i64> {
    let jitter = |i| (random(target, i) % 7) as i64;
    (0..count)
        .map(|i| (target * 137 + i * 15_000) as i64 + jitter(i))
        .collect()
}

fn fleet(targets: usize, metrics: usize, count: usize) -> Model {
    let mut model = Model::new();
    for target in 0..targets {
        let times = scrapes(target, count);
        for metric in 0..metrics {
            let value = |t: &i64| (*t, (metric as i64 * 1000 + t % 97) as f64 / 10.0);
            model.insert(labels(metric, target), times.iter().map(value).collect());
        }
    }
    model
}

fn rows(parts: &BlockParts, part: &str) -> u64 {
    parts.meta.part(part).unwrap().rows
}

fn unshared(layout: Layout) -> Layout {
    Layout {
        shared_times: false,
        ..layout
    }
}

#[test]
fn what_a_target_exposes_has_its_times_once() {
    let model = fleet(7, 40, 300);
    let parts = write(1, tiny(), &model);
    assert_eq!(
        (
            parts.meta.format,
            rows(&parts, TIMES_PART),
            rows(&parts, SAMPLES_PART)
        ),
        (5, 7 * 300, 7 * 40 * 300)
    );
    assert_eq!(bits(&block_on(read_all(&open(&parts))).unwrap()), bits(&model));
    let again = write(1, tiny(), &model);
    assert!(again.parts == parts.parts, "the same bytes for the same series");
    let own = write(1, unshared(tiny()), &model);
    assert_eq!((own.meta.format, own.meta.part(TIMES_PART)), (1, None));
    assert_eq!(bits(&block_on(read_all(&open(&own))).unwrap()), bits(&model));
}

#[test]
fn series_that_came_later_went_earlier_or_have_gaps_share_times_too() {
    let mut model = Model::new();
    for target in 0..3 {
        let times = scrapes(target, 1000);
        for metric in 0..60 {
            let (from, to) = match metric % 6 {
                0 => (0, 1000),
                n => (n * 100, 1000 - (metric % 5) * 50),
            };
            let kept = |i: &usize| metric % 4 != 3 || !random(metric, *i).is_multiple_of(20);
            let samples = (from..to).filter(kept).map(|i| (times[i], i as f64));
            model.insert(labels(metric, target), samples.collect());
        }
    }
    let parts = write(1, tiny(), &model);
    assert_eq!(rows(&parts, TIMES_PART), 3 * 1000);
    let block = open(&parts);
    assert_eq!(bits(&block_on(read_all(&block)).unwrap()), bits(&model));
    block_on(verify(&block)).unwrap();
}

/// How a series of a property takes samples from the times of a target.
#[derive(Clone, Debug)]
struct Taken {
    target: usize,
    from: f64,
    to: f64,
    /// One of so many is left out; none if 0.
    without: usize,
    /// At other times than the target's.
    own: bool,
}

fn taken() -> impl Strategy<Value = Taken> {
    let ends = (0.0..0.5f64, 0.5..1.0f64, any::<bool>());
    (0usize..3, ends, 0usize..6, 0usize..8).prop_map(|(target, (from, to, whole), without, own)| Taken {
        target,
        from: if whole { 0.0 } else { from },
        to: if whole { 1.0 } else { to },
        without,
        own: own == 0,
    })
}

fn model_of(series: &[Taken], length: usize) -> Model {
    let mut model = Model::new();
    for (number, taken) in series.iter().enumerate() {
        let times = scrapes(taken.target, length);
        let (from, to) = (taken.from * length as f64, taken.to * length as f64);
        let kept =
            |i: &usize| taken.without == 0 || !random(number, *i).is_multiple_of(taken.without as u64 + 1);
        let shift = if taken.own { number as i64 + 10 } else { 0 };
        let samples: BTreeMap<i64, f64> = (from as usize..to as usize)
            .filter(kept)
            .map(|i| (times[i] + shift, (i * number) as f64 / 8.0))
            .collect();
        model.insert(labels(number, taken.target), samples);
    }
    model.retain(|_, samples| !samples.is_empty());
    model
}

fn inside(model: &Model, range: TimeRange) -> Vec<Vec<(i64, u64)>> {
    let around = |samples: &&BTreeMap<i64, f64>| {
        let ends = samples.keys().next().zip(samples.keys().next_back());
        ends.is_some_and(|(&first, &last)| range.overlaps(&TimeRange::new(first, last)))
    };
    let of = |samples: &BTreeMap<i64, f64>| {
        let inside = samples.range(range.min..=range.max);
        inside.map(|(&t, &v)| (t, v.to_bits())).collect()
    };
    model.values().filter(around).map(of).collect()
}

/// The samples of series in a range, page by page, and as chunks.
fn both_ways(block: &BlockReader, series: &[BlockSeries], range: TimeRange) -> [Vec<Vec<(i64, u64)>>; 2] {
    let streamed = block.stream_samples(series.to_vec(), range);
    let streamed: Vec<_> = block_on(streamed.try_collect()).unwrap();
    let chunked = block_on(block.read_samples(series, range)).unwrap();
    [streamed, chunked].map(|all| {
        let rows = all.into_iter().map(|s| {
            let values = s.values.into_iter().map(f64::to_bits);
            s.timestamps.into_iter().zip(values).collect()
        });
        rows.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn i2_series_of_few_targets_are_read_back(
        series in proptest::collection::vec(taken(), 1..14),
        length in 1usize..700,
        page_rows in 4usize..200,
        group_rows in 40usize..900,
        ranges in proptest::collection::vec((-0.1..1.0f64, 0.0..0.6f64), 1..6),
        shared_times in prop::bool::weighted(0.8),
    ) {
        let model = model_of(&series, length);
        if model.is_empty() {
            return Ok(());
        }
        let layout = Layout { page_rows, group_rows, shared_times, ..Layout::default() };
        let parts = write(1, layout, &model);
        let samples: usize = model.values().map(BTreeMap::len).sum();
        if shared_times {
            prop_assert!(rows(&parts, TIMES_PART) <= samples as u64);
        }
        let block = open(&parts);
        block_on(verify(&block)).unwrap();
        let back = block_on(read_all(&block)).unwrap();
        prop_assert_eq!(bits(&back), bits(&model));
        let span = (length * 15_000) as f64;
        for (from, width) in ranges {
            let range = TimeRange::new((from * span) as i64, ((from + width) * span) as i64);
            let want = inside(&model, range);
            let found = block_on(block.select(&Matchers::default(), range)).unwrap();
            let [streamed, chunked] = both_ways(&block, &found, range);
            prop_assert_eq!(&streamed, &want);
            prop_assert_eq!(&chunked, &want);
        }
    }

    #[test]
    fn i10_blocks_of_both_forms_are_merged(
        inputs in proptest::collection::vec((proptest::collection::vec(taken(), 1..8), any::<bool>()), 1..4),
        shared_times in any::<bool>(),
    ) {
        let mut want = Model::new();
        let mut blocks = Vec::new();
        for (n, (series, shared_times)) in inputs.iter().enumerate() {
            let model = model_of(series, 200);
            // The same value wherever a time comes again.
            let model: Model = model
                .into_iter()
                .map(|(labels, samples)| (labels, samples.into_keys().map(|t| (t, t as f64)).collect()))
                .collect();
            for (labels, samples) in &model {
                want.entry(labels.clone()).or_default().extend(samples);
            }
            if !model.is_empty() {
                let layout = Layout { shared_times: *shared_times, ..tiny() };
                blocks.push(open(&write(n as u128, layout, &model)));
            }
        }
        let layout = Layout { shared_times, ..tiny() };
        let mut out = BlockWriter::new(BlockOptions { layout, ..options(99) }).unwrap();
        block_on(merge(blocks.into_iter().map(Into::into), &mut out)).unwrap();
        if let Some(parts) = out.finish().unwrap() {
            let block = open(&parts);
            block_on(verify(&block)).unwrap();
            let back = block_on(read_all(&block)).unwrap();
            prop_assert_eq!(bits(&back), bits(&want));
        }
    }
}

/// Values that no codec makes smaller.
fn noise(metric: usize, times: &[i64]) -> BTreeMap<i64, f64> {
    let value = |(i, &t): (usize, &i64)| (t, f64::from_bits(random(metric + 1, i) >> 2));
    times.iter().enumerate().map(value).collect()
}

/// Another series' times stand before and after on the same pages.
#[test]
fn a_short_range_of_a_long_series_is_read_by_few_bytes() {
    let (short, long) = (scrapes(0, 3_000), scrapes(1, 200_000));
    let gaps = |&i: &usize| i % 5000 != 17;
    let some: Vec<i64> = (0..long.len()).filter(gaps).map(|i| long[i]).collect();
    let model = Model::from([
        (labels(0, 0), noise(0, &short)),
        (labels(1, 1), noise(1, &long)),
        (labels(2, 1), noise(2, &some)),
        (labels(3, 2), noise(3, &scrapes(2, 3_000))),
    ]);
    let parts = write(1, Layout::default(), &model);
    assert_eq!(rows(&parts, TIMES_PART), 206_000);
    let sizes: u64 = parts.meta.parts.iter().map(|part| part.bytes).sum();
    for metric in [1, 2] {
        for from in [0, 40_000, 120_000, 199_700] {
            let source = Counting::new(&parts);
            let block = open_over(source.clone(), &parts);
            let range = TimeRange::new(long[from] - 5, long[from + 200]);
            let matchers = Matchers(vec![Matcher::equal("__name__", format!("m{metric:03}"))]);
            let series = block_on(block.select(&matchers, range)).unwrap();
            let want = inside(
                &Model::from([(labels(metric, 1), model[&labels(metric, 1)].clone())]),
                range,
            );
            let [streamed, chunked] = both_ways(&block, &series, range);
            assert!(streamed == want && chunked == want);
            let (_, bytes) = source.take();
            assert!(bytes < sizes / 4, "{bytes} of {sizes} for m{metric} from {from}");
        }
    }
}

/// Times that no codec makes smaller: some 28 bits each.
fn noisy(target: usize, count: usize) -> Vec<i64> {
    const STEP_MS: i64 = 1 << 28;
    let inside = |i| random(target + 1, i).cast_signed().rem_euclid(STEP_MS);
    (0..count).map(|i| i as i64 * STEP_MS + inside(i)).collect()
}

/// Reads the series of a metric, of which nothing but the series is cached: the footers, then the page indexes of samples and of
/// times, if they did not come with these, and then the pages of both.
fn assert_read_in_few_rounds(parts: &BlockParts, model: &Model, metric: usize, range: TimeRange) {
    let name = format!("m{metric:03}");
    let of_metric = model
        .iter()
        .filter(|(labels, _)| labels.get("__name__") == Some(name.as_str()));
    let want = inside(&of_metric.map(|(l, s)| (l.clone(), s.clone())).collect(), range);
    for streamed in [false, true] {
        let source = InRounds::new(parts);
        let block = open_over(source.clone(), parts);
        let matchers = Matchers(vec![Matcher::equal("__name__", name.clone())]);
        let series = source.run(block.select(&matchers, range)).0.unwrap();
        let read = async {
            match streamed {
                true => block.stream_samples(series.clone(), range).try_collect().await,
                false => block.read_samples(&series, range).await,
            }
        };
        let (read, rounds) = source.run(read);
        let bits = |s: SeriesSamples| -> Vec<(i64, u64)> {
            let values = s.values.into_iter().map(f64::to_bits);
            s.timestamps.into_iter().zip(values).collect()
        };
        let read: Vec<_> = read.unwrap().into_iter().map(bits).collect();
        assert!(read == want);
        assert!(rounds <= 3, "{rounds} rounds for {name}, streamed {streamed}");
    }
}

#[test]
fn times_take_no_round_trip_more_wherever_they_are() {
    let mut model = Model::new();
    for target in 0..40 {
        let times = noisy(target, 5000);
        model.insert(labels(0, target), noise(0, &times));
        if target % 4 == 0 {
            model.insert(labels(1, target), noise(1, &times[4500..]));
        }
    }
    let long = noisy(50, 20_000);
    model.insert(labels(2, 50), noise(2, &long));
    let layout = Layout {
        page_rows: 64,
        group_rows: 8192,
        ..Layout::default()
    };
    let parts = write(1, layout, &model);
    let layouts = block_on(open(&parts).part_layouts()).unwrap();
    let times = layouts.iter().find(|part| part.name == TIMES_PART).unwrap();
    assert_eq!((times.row_groups.len(), rows(&parts, TIMES_PART)), (27, 220_000));
    assert!(times.bytes > 12 * CELL_BYTES, "{}", times.bytes);
    // Ten series in one row group or two, whose times are in ten.
    assert_read_in_few_rounds(&parts, &model, 1, TimeRange::ALL);
    let late = TimeRange::new(noisy(0, 5000)[4750], long[19_999]);
    assert_read_in_few_rounds(&parts, &model, 1, late);
    // One over three row groups or four.
    assert_read_in_few_rounds(&parts, &model, 2, TimeRange::ALL);
    assert_read_in_few_rounds(&parts, &model, 2, TimeRange::new(long[100], long[18_000]));
}

/// Caches may let go of anything at any time.
#[test]
fn a_footer_that_is_gone_before_samples_are_read_is_read_again() {
    let model = fleet(7, 40, 300);
    let parts = write(1, tiny(), &model);
    let range = TimeRange::new(scrapes(0, 300)[100], scrapes(0, 300)[200]);
    let want = inside(&model, range);
    // Room for nothing, for bytes alone, for one or two footers, and for these and their bytes.
    for (cells, indexes) in [(0, 0), (8 << 20, 0), (0, 20_000), (0, 60_000), (70_000, 20_000)] {
        let block = open_with(BlockCache::new(cells, indexes), &parts).with_samples_to_follow();
        let series = block_on(block.select(&Matchers::default(), range)).unwrap();
        let read = block.look_up_chunks(&series, range);
        // Another read in between takes the room.
        block_on(block.part_layouts()).unwrap();
        let chunks = block_on(read.finish()).unwrap();
        assert_eq!(chunks.len(), want.len());
        assert!(both_ways(&block, &series, range).iter().all(|read| *read == want));
    }
}

#[test]
fn parts_of_a_long_series_with_gaps_are_read_back() {
    let long = scrapes(0, 60_000);
    // Most gaps are among the oldest, so that ticks are far from what the number of rows tells.
    let kept = |&i: &usize| i == 0 || i > 8_500 || i % 5 < 2;
    let some: Vec<i64> = (0..long.len()).filter(kept).map(|i| long[i]).collect();
    let model = Model::from([(labels(0, 0), noise(0, &long)), (labels(1, 0), noise(1, &some))]);
    let layout = Layout {
        page_rows: 500,
        group_rows: 4000,
        ..Layout::default()
    };
    let parts = write(1, layout, &model);
    assert_eq!(rows(&parts, TIMES_PART), 60_000, "shared");
    let block = open(&parts);
    block_on(verify(&block)).unwrap();
    assert_eq!(bits(&block_on(read_all(&block)).unwrap()), bits(&model));
    for (from, to) in [
        (0, 59_999),
        (10, 20),
        (8_000, 9_000),
        (20_003, 20_003),
        (58_000, 59_999),
    ] {
        let block = open(&parts);
        let range = TimeRange::new(long[from], long[to]);
        let series = block_on(block.select(&Matchers::default(), range)).unwrap();
        let [streamed, chunked] = both_ways(&block, &series, range);
        let want = inside(&model, range);
        assert!(streamed == want && chunked == want, "{from} to {to}");
    }
}
