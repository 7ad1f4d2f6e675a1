//! Native histograms, downsampled: what is kept says of them what they did, their sums included, as long as it is kept (I10).

use koios_block::{HISTOGRAMS_PART, RESOLUTION_1H_MS, RESOLUTION_5M_MS, SeriesColumns};
use koios_bucket::TombstoneState;
use koios_model::summary::{Downsampled, downsample};
use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, Matcher, Matchers, ResetHint, Sample, Summary, spans_of};
use koios_promql::add_histograms;
use koios_wire::StoreItem;

use super::downsampled::{DAYS, of, world};
use super::*;

/// The samples of a series, of both kinds.
#[derive(Clone, Debug, Default)]
struct Sent {
    floats: BTreeMap<i64, f64>,
    histograms: BTreeMap<i64, Arc<Histogram>>,
}

type All = BTreeMap<Labels, Sent>;
type Kept = BTreeMap<Labels, (Vec<Summary>, Vec<(i64, Arc<Histogram>)>)>;

/// Of the metric `m<n>`: counters that change their resolution, gauges whose bounds change, and now exponential, now custom buckets.
fn histogram(n: u64, random: u64) -> Arc<Histogram> {
    let count = (random % 90 + 1) as f64;
    let (positive_spans, positive_buckets) = spans_of([(0, count), (2, 1.0)]);
    let custom = n == 1 || n == 3 && random.is_multiple_of(2);
    let bounds: &[f64] = if random.is_multiple_of(3) {
        &[1.0, 2.0, 4.0]
    } else {
        &[1.0, 3.0, 4.0]
    };
    Arc::new(Histogram {
        reset_hint: if n == 1 {
            ResetHint::Gauge
        } else {
            ResetHint::Unknown
        },
        schema: if custom {
            CUSTOM_BOUNDS_SCHEMA
        } else {
            (random % 3) as i32
        },
        custom_bounds: if custom { bounds.to_vec() } else { Vec::new() },
        count: count + 1.0,
        sum: 0.3 * count,
        positive_spans,
        positive_buckets,
        ..Histogram::default()
    })
}

/// Lists two blocks for each window of a day. The metric `m2` has floats, too.
async fn day(world: &World) -> All {
    let mut all = All::new();
    for window in 0..12 {
        for block in 0..2 {
            let mut writer = world.writer(window * 2..window * 2 + 2, 0);
            for n in 0..4 {
                let labels = Labels::from_pairs([("__name__", format!("m{n}"))]);
                let mut sent = Sent::default();
                for k in 0..world.rng.below(30) {
                    let t = window * 2 * HOUR + k as i64 * (HOUR / 15) + block * 1000;
                    let random = world.rng.below(1000);
                    if n == 2 && random < 300 {
                        sent.floats.insert(t, random as f64);
                    } else {
                        sent.histograms.insert(t, histogram(n, random));
                    }
                }
                let (timestamps, values): (Vec<_>, Vec<_>) = sent.floats.iter().unzip();
                let histograms: Vec<_> = sent.histograms.clone().into_iter().collect();
                let columns = SeriesColumns {
                    timestamps: &timestamps,
                    values: &values,
                    histograms: &histograms,
                    starts: &[],
                };
                writer.push_columns(&labels, None, columns).unwrap();
                let of_series = all.entry(labels).or_default();
                of_series.floats.extend(sent.floats);
                of_series.histograms.extend(sent.histograms);
            }
            world.list(writer).await;
        }
    }
    all
}

/// What is to be kept of all samples: summaries that overlap what is deleted of `m1` are not.
fn expected(all: &All, resolution_ms: i64, deleted: Option<TimeRange>) -> Kept {
    let of = |(labels, sent): (&Labels, &Sent)| {
        let floats: Vec<Sample> = sent.floats.iter().map(|(&t, &v)| Sample { t, v }).collect();
        let histograms: Vec<_> = sent.histograms.clone().into_iter().collect();
        let Downsampled {
            mut summaries,
            histograms: mut kept,
        } = downsample(&floats, &histograms, resolution_ms);
        add_histograms(&mut summaries, &histograms);
        if let Some(deleted) = deleted.filter(|_| labels.get("__name__") == Some("m1")) {
            let (gone, left) = summaries.into_iter().partition(|s| s.range().overlaps(&deleted));
            let gone: Vec<Summary> = gone;
            summaries = left;
            kept.retain(|(t, _)| gone.iter().all(|s| !s.range().contains(*t)));
        }
        (labels.clone(), (summaries, kept))
    };
    all.iter().map(of).collect()
}

/// What the blocks of a resolution say, as a store reads them.
async fn found(world: &World, resolution_ms: i64, histogram_sums: bool) -> Kept {
    let manifest = world.manifest().await;
    let blocks = of(&manifest, resolution_ms);
    assert!(!blocks.is_empty());
    let settings = StoreSettings::default();
    let store = BlockStore::new(world.manifests(), settings, Cpu::inline(), &Metrics::new());
    let request = StoreSelectRequest {
        tenant: world.tenant.clone(),
        manifest_version: manifest.version,
        blocks: blocks.iter().map(|b| b.block.to_string()).collect(),
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        labels_only: false,
        limit: 0,
        histogram_sums,
    };
    let mut stream = store.select(request).await.unwrap();
    let mut found = Kept::new();
    while let StoreItem::Series(batch) = stream.next().await.unwrap().unwrap() {
        for series in batch {
            let (summaries, histograms) = found.entry(series.labels).or_default();
            for run in series.runs {
                run.decode_summaries(TimeRange::ALL, summaries).unwrap();
                run.decode_histograms(TimeRange::ALL, histograms).unwrap();
            }
        }
    }
    found
}

async fn check(world: &World, all: &All, deleted: Option<TimeRange>, what: &str) {
    for resolution_ms in [RESOLUTION_5M_MS, RESOLUTION_1H_MS] {
        let mut expected = expected(all, resolution_ms, deleted);
        assert_eq!(found(world, resolution_ms, true).await, expected, "{what}");
        // Who does not ask for sums gets none.
        for (summaries, _) in expected.values_mut() {
            summaries.iter_mut().for_each(|s| s.histogram_sum = None);
        }
        assert_eq!(found(world, resolution_ms, false).await, expected, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn i10_sums_of_native_histograms_are_kept_beside_them_and_outlive_them() {
    for seed in 0..4 {
        let mut world = world(seed);
        world.members_have_forgotten = true;
        let all = day(&world).await;
        let mut compactor = world.compactor();
        compact(&mut compactor).await;
        check(&world, &all, None, "young").await;
        // All of one kind, of both, and such as cannot be added.
        let sums = expected(&all, RESOLUTION_1H_MS, None);
        let of_both = sums.values().flat_map(|(summaries, _)| summaries);
        let sums: Vec<_> = of_both.filter_map(|s| s.histogram_sum.as_ref()).collect();
        assert!(sums.iter().any(|h| h.is_stale()) && sums.iter().any(|h| h.schema == CUSTOM_BOUNDS_SCHEMA));
        world.sleep(50 * DAYS).await;
        compact(&mut compactor).await;
        let manifest = world.manifest().await;
        assert_eq!(of(&manifest, 0).len(), 0);
        let with = |b: &ManifestBlock| b.parts.iter().any(|part| part.name == HISTOGRAMS_PART);
        assert!(manifest.blocks.iter().all(with));
        check(&world, &all, None, "old").await;
        let matchers = Matchers(vec![Matcher::equal("__name__", "m1")]);
        // It begins in the middle of a bucket of either resolution.
        let deleted = TimeRange::new(2 * HOUR + HOUR / 15, 9 * HOUR);
        let tombstone = Tombstone {
            state: TombstoneState::Final,
            ..Tombstone::new(Nonce(1), &matchers, deleted)
        };
        let writer = Writer::partition("operator", PartitionId(0), 1);
        let add = |m: &mut Manifest| {
            m.add_tombstone(tombstone.clone());
            Ok(())
        };
        let manifests = world.manifests();
        manifests.commit(&world.tenant, &writer, add).await.unwrap();
        check(&world, &all, Some(deleted), "masked").await;
        compact(&mut compactor).await;
        check(&world, &all, Some(deleted), "removed").await;
        assert_eq!(compactor.metrics.failures.get(), 0);
    }
}

/// A histogram of an observation in each of some buckets.
fn buckets(schema: i32, indices: impl IntoIterator<Item = i32>) -> Arc<Histogram> {
    let (positive_spans, positive_buckets) = spans_of(indices.into_iter().map(|index| (index, 1.0)));
    Arc::new(Histogram {
        schema,
        count: positive_buckets.len() as f64,
        positive_spans,
        positive_buckets,
        ..Histogram::default()
    })
}

#[tokio::test(start_paused = true)]
async fn i11_histograms_whose_sum_could_not_be_read_keep_no_day_from_being_summarised() {
    let world = world(21);
    let lowest = vec![
        (60_000, buckets(1, [i32::MIN, 0])),
        (120_000, buckets(0, [0])),
        (180_000, buckets(-4, [i32::MIN, i32::MAX])),
    ];
    // What a sender may send: of each there are fewer buckets than it may have.
    let wide: Vec<_> = (0..17)
        .map(|i| (i64::from(i + 1) * 200_000, buckets(0, i * 4096..(i + 1) * 4096)))
        .collect();
    let mut writer = world.writer(0..2, 0);
    let mut all = All::new();
    for (name, histograms) in [("lowest", lowest), ("wide", wide)] {
        let labels = Labels::from_pairs([("__name__", name)]);
        let columns = SeriesColumns {
            histograms: &histograms,
            ..SeriesColumns::default()
        };
        writer.push_columns(&labels, None, columns).unwrap();
        let histograms = histograms.into_iter().collect();
        let sent = Sent {
            histograms,
            ..Sent::default()
        };
        all.insert(labels, sent);
    }
    world.list(writer).await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    assert_eq!(compactor.metrics.failures.get(), 0);
    check(&world, &all, None, "young").await;
    let summed = |kept: &Kept, name: &str| -> Vec<bool> {
        let (_, (summaries, _)) = kept
            .iter()
            .find(|(l, _)| l.get("__name__") == Some(name))
            .unwrap();
        summaries.iter().map(|s| s.histogram_sum.is_some()).collect()
    };
    let (hours, minutes) = (
        found(&world, RESOLUTION_1H_MS, true).await,
        found(&world, RESOLUTION_5M_MS, true).await,
    );
    assert_eq!(
        (summed(&hours, "lowest"), summed(&hours, "wide")),
        (vec![true], vec![false])
    );
    assert!(summed(&minutes, "wide").iter().all(|is| *is));
    // And the samples go when they are old.
    world.sleep(50 * DAYS).await;
    compact(&mut compactor).await;
    assert_eq!(of(&world.manifest().await, 0).len(), 0);
    check(&world, &all, None, "old").await;
    assert_eq!(compactor.metrics.failures.get(), 0);
}
