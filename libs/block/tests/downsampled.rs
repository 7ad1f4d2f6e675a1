//! Claims about downsampled blocks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockWriter, Error, Layout, MemoryBlock,
    RESOLUTION_1H_MS, RESOLUTION_5M_MS, SAMPLES_1H_PART, SAMPLES_5M_PART, SAMPLES_PART, verify,
};
use koios_model::summary::{Downsampled, downsample};
use koios_model::{
    CUSTOM_BOUNDS_SCHEMA, Histogram, Labels, Matchers, Sample, Summary, TenantId, TimeRange, spans_of,
    stale_nan,
};
use proptest::prelude::*;

const DAY: i64 = 24 * 3_600_000;

fn options(resolution_ms: i64) -> BlockOptions {
    BlockOptions {
        resolution_ms,
        layout: Layout {
            page_rows: 32,
            group_rows: 100,
            zstd_level: 1,
            shared_times: true,
        },
        ..BlockOptions::new(
            BlockId::new(1, 2),
            TenantId::anonymous(),
            TimeRange::new(0, DAY - 1),
        )
    }
}

fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{i:04}"))])
}

fn written(series: &[Downsampled], resolution_ms: i64) -> Option<BlockParts> {
    let mut summaries = series.iter().flat_map(|kept| &kept.summaries);
    let mut writer = BlockWriter::new(BlockOptions {
        histogram_sums: summaries.any(|s| s.histogram_sum.is_some()),
        ..options(resolution_ms)
    })
    .unwrap();
    for (i, kept) in series.iter().enumerate() {
        writer.push_downsampled(&labels(i), None, kept).unwrap();
    }
    writer.finish().unwrap()
}

fn open(parts: &BlockParts) -> BlockReader {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20));
    BlockReader::open(
        Arc::new(MemoryBlock::new(parts)),
        Arc::new(parts.meta.clone()),
        cache,
    )
    .unwrap()
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => (0i32..500).prop_map(|v| f64::from(v) / 10.0),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => Just(stale_nan()),
    ]
}

/// Any sum of histograms, or that there is none, or that nobody added them up.
fn any_sum() -> impl Strategy<Value = Option<Arc<Histogram>>> {
    let exponential = prop::collection::btree_map(-40i32..40, 0.5f64..99.0, 0..12).prop_map(|buckets| {
        let (positive_spans, positive_buckets) = spans_of(buckets.clone());
        let (negative_spans, negative_buckets) = spans_of(buckets.into_iter().skip(2));
        Histogram {
            schema: 3,
            sum: -1.5,
            count: 7.25,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            negative_spans,
            negative_buckets,
            ..Histogram::default()
        }
    });
    let custom = Histogram {
        schema: CUSTOM_BOUNDS_SCHEMA,
        custom_bounds: vec![1.0, 2.5],
        ..Histogram::default()
    };
    let some = prop_oneof![6 => exponential, 1 => Just(custom), 1 => Just(Histogram::stale())];
    prop_oneof![4 => some.prop_map(|h| Some(Arc::new(h))), 1 => Just(None)]
}

fn any_series() -> impl Strategy<Value = Downsampled> {
    let floats = prop::collection::btree_map(0..DAY / 10_000, any_value(), 0..150);
    let histograms = prop::collection::btree_map(0..DAY / 10_000, 0u32..30, 0..6);
    let sums = prop_oneof![Just(Vec::new()), prop::collection::vec(any_sum(), 6)];
    (floats, histograms, sums).prop_map(|(floats, histograms, mut sums)| {
        let floats = floats.iter().filter(|(t, _)| !histograms.contains_key(t));
        let floats: Vec<Sample> = floats.map(|(&t, &v)| Sample { t: t * 10_000, v }).collect();
        let histogram = |count: u32| Histogram {
            count: f64::from(count),
            zero_count: f64::from(count),
            ..Histogram::default()
        };
        let at = |(t, count): (&i64, &u32)| (t * 10_000, Arc::new(histogram(*count)));
        let mut kept = downsample(
            &floats,
            &histograms.iter().map(at).collect::<Vec<_>>(),
            RESOLUTION_5M_MS,
        );
        for summary in kept.summaries.iter_mut().filter(|s| s.histograms > 0) {
            summary.histogram_sum = sums.pop().flatten();
        }
        kept
    })
}

async fn read(block: &BlockReader, range: TimeRange) -> BTreeMap<Labels, Downsampled> {
    let series = block.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
    let read = block.read_chunks(&series, range).await.unwrap();
    let decode = |chunks: Vec<koios_chunk::Chunk>| {
        let mut kept = Downsampled::default();
        for chunk in chunks {
            chunk.decode_summaries(range, &mut kept.summaries).unwrap();
            chunk.decode_histograms(range, &mut kept.histograms).unwrap();
        }
        kept
    };
    let all = series.into_iter().zip(read);
    all.map(|(s, chunks)| (s.labels, decode(chunks))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn i10_what_is_kept_comes_back_bit_for_bit(
        series in prop::collection::vec(any_series(), 1..12), min in 0..DAY, len in 0..DAY,
    ) {
        let Some(parts) = written(&series, RESOLUTION_5M_MS) else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let block = open(&parts);
            verify(&block).await.unwrap();
            // The second time from the cache, with the sums of histograms and without.
            let some = TimeRange::new(min, min + len);
            for (range, sums) in [(TimeRange::ALL, true), (some, false), (some, true), (TimeRange::ALL, false)] {
                let found = read(&block.clone().with_histogram_sums(sums), range).await;
                for (i, kept) in series.iter().enumerate().filter(|(_, k)| !k.summaries.is_empty()) {
                    let found = &found[&labels(i)];
                    let mut wanted: Vec<Summary> =
                        kept.summaries.iter().filter(|s| s.range().overlaps(&range)).cloned().collect();
                    if !sums {
                        wanted.iter_mut().for_each(|s| s.histogram_sum = None);
                    }
                    assert_eq!(found.summaries, wanted);
                    let wanted = kept.histograms.iter().filter(|(t, _)| range.contains(*t));
                    assert!(found.histograms.iter().map(|(t, h)| (t, h.count)).eq(wanted.map(|(t, h)| (t, h.count))));
                }
            }
        });
    }
}

#[tokio::test]
async fn i11_a_flipped_bit_is_found_before_anything_is_used() {
    let samples: Vec<Sample> = (0..2000)
        .map(|i| Sample {
            t: i * 15_000,
            v: i as f64,
        })
        .collect();
    let kept = downsample(&samples, &[], RESOLUTION_5M_MS);
    let parts = written(&[kept.clone(), kept], RESOLUTION_5M_MS).unwrap();
    let at = parts
        .parts
        .iter()
        .position(|(name, _)| name == SAMPLES_5M_PART)
        .unwrap();
    let bytes = parts.parts[at].1.to_vec();
    for place in (0..bytes.len()).step_by(97) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 4;
        let mut parts = parts.clone();
        parts.parts[at].1 = damaged.into();
        let found = verify(&open(&parts)).await.unwrap_err();
        assert!(
            matches!(&found, Error::Corrupt { part, .. } if part == SAMPLES_5M_PART),
            "{found}"
        );
    }
}

#[tokio::test]
async fn a_block_is_downsampled_or_it_is_not() {
    let kept = downsample(&[Sample { t: 5, v: 1.0 }], &[], RESOLUTION_1H_MS);
    let parts = written(std::slice::from_ref(&kept), RESOLUTION_1H_MS).unwrap();
    assert_eq!(
        (parts.meta.format, parts.meta.resolution_ms),
        (4, RESOLUTION_1H_MS)
    );
    assert!(parts.meta.part(SAMPLES_1H_PART).is_some() && parts.meta.part(SAMPLES_PART).is_none());
    let mut downsampled = BlockWriter::new(options(RESOLUTION_1H_MS)).unwrap();
    assert!(downsampled.push_series(&labels(1), None, &[1], &[1.0]).is_err());
    let mut raw = BlockWriter::new(options(0)).unwrap();
    assert!(raw.push_downsampled(&labels(1), None, &kept).is_err());
    assert!(BlockWriter::new(options(60_000)).is_err());
    // Nor has it sums for which it has no column.
    let histograms = [(5, Arc::new(Histogram::default()))];
    let mut kept = downsample(&[], &histograms, RESOLUTION_1H_MS);
    kept.summaries[0].histogram_sum = Some(Arc::new(Histogram::default()));
    assert!(downsampled.push_downsampled(&labels(1), None, &kept).is_err());
}

#[test]
fn i12_the_writer_refuses_histograms_and_sums_that_no_reader_takes() {
    let buckets = |indices: &[i32]| {
        let (positive_spans, positive_buckets) = spans_of(indices.iter().map(|i| (*i, 1.0)));
        Arc::new(Histogram {
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        })
    };
    let too_many: Vec<i32> = (0..=1 << 16).collect();
    for (indices, is_kept) in [(&[i32::MIN, 0][..], true), (&[5, 4], false), (&too_many, false)] {
        for is_sum in [false, true] {
            let h = buckets(indices);
            let small = buckets(&[1]);
            let mut kept = downsample(
                &[],
                &[(5, Arc::clone(if is_sum { &small } else { &h }))],
                RESOLUTION_1H_MS,
            );
            kept.summaries[0].histogram_sum = Some(if is_sum { h } else { small });
            let mut writer = BlockWriter::new(BlockOptions {
                histogram_sums: true,
                ..options(RESOLUTION_1H_MS)
            })
            .unwrap();
            let pushed = writer.push_downsampled(&labels(1), None, &kept);
            let n = indices.len();
            assert_eq!(pushed.is_ok(), is_kept, "{n} buckets, sum {is_sum}");
            assert!(
                !matches!(pushed, Err(ref e) if !matches!(e, Error::Input { .. })),
                "{n} buckets"
            );
        }
    }
}
