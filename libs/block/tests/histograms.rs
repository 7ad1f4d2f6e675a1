//! Native histograms of a block, beside floats and alone.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{open, options, tiny};
use koios_block::{
    BlockOptions, BlockParts, BlockReader, BlockWriter, HISTOGRAMS_PART, SeriesColumns, merge, verify,
};
use koios_chunk::Chunk;
use koios_model::merge::{histogram_winner, settle_kinds, winner};
use koios_model::{Histogram, Labels, Matchers, ResetHint, Sample, TimeRange, spans_of, stale_nan};
use proptest::prelude::*;

type At = (i64, Arc<Histogram>);
/// Floats and histograms by series.
type Both = BTreeMap<Labels, (BTreeMap<i64, f64>, BTreeMap<i64, Arc<Histogram>>)>;

fn any_histogram() -> impl Strategy<Value = Histogram> {
    let side = || proptest::collection::btree_map(-9i32..9, 1u32..1000, 0..6);
    let sum = prop_oneof![Just(stale_nan()), -1e6f64..1e6, Just(f64::NAN)];
    (side(), side(), sum, 0usize..3, -4i32..=8, proptest::bool::ANY).prop_map(
        |(positive, negative, sum, hint, schema, custom)| {
            let counts =
                |side: BTreeMap<i32, u32>| spans_of(side.into_iter().map(|(i, n)| (i, f64::from(n))));
            let (positive_spans, positive_buckets) = counts(positive);
            let (negative_spans, negative_buckets) = counts(negative);
            Histogram {
                reset_hint: [ResetHint::Unknown, ResetHint::Reset, ResetHint::Gauge][hint],
                schema,
                zero_threshold: 0.001,
                zero_count: 0.5,
                count: 1234.5,
                sum,
                positive_spans,
                negative_spans,
                positive_buckets,
                negative_buckets,
                custom_bounds: if custom { vec![1.0, 2.5] } else { Vec::new() },
            }
        },
    )
}

fn any_both() -> impl Strategy<Value = Both> {
    let labels = (0u8..6).prop_map(|i| Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]));
    let float = prop_oneof![(-1000i64..1000).prop_map(|v| v as f64), Just(stale_nan())];
    let floats = proptest::collection::btree_map(0i64..300, float, 0..40);
    let histograms = proptest::collection::btree_map(0i64..300, any_histogram().prop_map(Arc::new), 0..40);
    proptest::collection::btree_map(labels, (floats, histograms), 1..6)
}

/// One kind at each time.
fn settled(both: &Both) -> BTreeMap<Labels, (Vec<Sample>, Vec<At>)> {
    let settle =
        |(labels, (floats, histograms)): (&Labels, &(BTreeMap<i64, f64>, BTreeMap<i64, Arc<Histogram>>))| {
            let mut floats: Vec<Sample> = floats.iter().map(|(&t, &v)| Sample { t, v }).collect();
            let mut histograms: Vec<At> = histograms.iter().map(|(t, h)| (*t, Arc::clone(h))).collect();
            settle_kinds(&mut floats, &mut histograms);
            (labels.clone(), (floats, histograms))
        };
    let all = both.iter().map(settle);
    all.filter(|(_, (f, h))| !f.is_empty() || !h.is_empty()).collect()
}

fn write(n: u128, both: &Both) -> Option<BlockParts> {
    let layout = tiny();
    let mut writer = BlockWriter::new(BlockOptions { layout, ..options(n) }).unwrap();
    for (labels, (floats, histograms)) in settled(both) {
        let (t, v): (Vec<i64>, Vec<f64>) = floats.iter().map(|s| (s.t, s.v)).unzip();
        let columns = SeriesColumns {
            timestamps: &t,
            values: &v,
            histograms: &histograms,
            ..SeriesColumns::default()
        };
        writer.push_columns(&labels, None, columns).unwrap();
    }
    writer.finish().unwrap()
}

/// What a block holds: floats by their bits, and histograms.
fn read(block: &BlockReader, range: TimeRange) -> BTreeMap<Labels, (Vec<(i64, u64)>, Vec<At>)> {
    let series = futures::executor::block_on(block.select(&Matchers::default(), range)).unwrap();
    let chunks = futures::executor::block_on(block.read_chunks(&series, range)).unwrap();
    let decode = |chunks: Vec<Chunk>| {
        let (mut times, mut values, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in chunks {
            chunk.decode_range(range, &mut times, &mut values).unwrap();
            chunk.decode_histograms(range, &mut histograms).unwrap();
        }
        let floats: Vec<_> = times
            .into_iter()
            .zip(values.into_iter().map(f64::to_bits))
            .collect();
        (floats, histograms)
    };
    let all = series.into_iter().zip(chunks).map(|(s, c)| (s.labels, decode(c)));
    all.filter(|(_, (f, h))| !f.is_empty() || !h.is_empty()).collect()
}

fn assert_same(got: &BTreeMap<Labels, (Vec<(i64, u64)>, Vec<At>)>, want: &Both, range: TimeRange) {
    let want = settled(want);
    let inside = |(f, h): &(Vec<Sample>, Vec<At>)| {
        let floats: Vec<_> = f
            .iter()
            .filter(|s| range.contains(s.t))
            .map(|s| (s.t, s.v.to_bits()))
            .collect();
        let histograms: Vec<At> = h.iter().filter(|(t, _)| range.contains(*t)).cloned().collect();
        (floats, histograms)
    };
    let want: BTreeMap<_, _> = want.iter().map(|(l, both)| (l.clone(), inside(both))).collect();
    let want: BTreeMap<_, _> = want
        .into_iter()
        .filter(|(_, (f, h))| !f.is_empty() || !h.is_empty())
        .collect();
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (labels, (floats, histograms)) in got {
        let (want_floats, want_histograms) = &want[labels];
        assert_eq!(floats, want_floats, "{labels}");
        assert_eq!(histograms.len(), want_histograms.len(), "{labels}");
        for ((t, h), (want_t, want)) in histograms.iter().zip(want_histograms) {
            assert_eq!(t, want_t);
            assert!(h.bits_cmp(want).is_eq(), "{h:?} {want:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn i2_histograms_are_read_back_bit_for_bit(both in any_both(), min in 0i64..300, len in 0i64..200) {
        if let Some(parts) = write(1, &both) {
            let has = both.values().any(|(_, h)| !h.is_empty());
            let named = parts.parts.iter().any(|(name, _)| name == HISTOGRAMS_PART);
            let kept = settled(&both).values().any(|(_, h)| !h.is_empty());
            prop_assert!(named == kept && (has || !named));
            prop_assert_eq!(parts.meta.format, 5, "older readers must not miss them");
            let block = open(&parts);
            futures::executor::block_on(verify(&block)).unwrap();
            // The second time from the cache.
            for _ in 0..2 {
                assert_same(&read(&block, TimeRange::ALL), &both, TimeRange::ALL);
                let range = TimeRange::new(min, min + len);
                assert_same(&read(&block, range), &both, range);
            }
        }
    }

    #[test]
    fn i10_a_merge_keeps_the_winners_of_both_kinds(inputs in proptest::collection::vec(any_both(), 1..4)) {
        let blocks: Vec<_> = (0u128..).zip(&inputs).filter_map(|(i, both)| Some(open(&write(i, both)?))).collect();
        let mut want = Both::new();
        for (labels, (floats, histograms)) in inputs.iter().flat_map(settled) {
            let all = want.entry(labels).or_default();
            for s in floats {
                all.0.entry(s.t).and_modify(|v| *v = winner(*v, s.v)).or_insert(s.v);
            }
            for (t, h) in histograms {
                all.1.entry(t).and_modify(|v| *v = Arc::new(histogram_winner(v, &h).clone())).or_insert(h);
            }
        }
        let mut out = BlockWriter::new(BlockOptions { layout: tiny(), ..options(99) }).unwrap();
        futures::executor::block_on(merge(blocks.iter().cloned().map(Into::into), &mut out)).unwrap();
        if let Some(parts) = out.finish().unwrap() {
            let block = open(&parts);
            futures::executor::block_on(verify(&block)).unwrap();
            assert_same(&read(&block, TimeRange::ALL), &want, TimeRange::ALL);
        }
    }
}
