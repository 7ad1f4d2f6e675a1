//! Claims about downsampling: what is kept says of the samples what they did, and nothing goes before it is there (I10).

use koios_block::{RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_bucket::TombstoneState;
use koios_model::summary::downsample;
use koios_model::{Matcher, Matchers, Sample, Summary};
use koios_wire::StoreItem;

use super::*;

pub(super) const DAYS: u64 = 24 * 3600;

pub(super) fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.settings.downsampling = CompactionSettings::default().downsampling;
    world.settings.retention = Duration::from_secs(40 * DAYS);
    world.settings.undelete_window = Duration::ZERO;
    world
}

/// The live blocks of a resolution.
pub(super) fn of(manifest: &Arc<Manifest>, resolution_ms: i64) -> Vec<&ManifestBlock> {
    let alike = |b: &&ManifestBlock| b.resolution_ms == resolution_ms;
    manifest.blocks.iter().filter(alike).collect()
}

/// What the blocks of a resolution say.
pub(super) async fn summaries(world: &World, resolution_ms: i64) -> BTreeMap<Labels, Vec<Summary>> {
    let manifest = world.manifest().await;
    let blocks = of(&manifest, resolution_ms);
    assert!(!blocks.is_empty());
    summaries_in(world, blocks.iter().map(|b| b.block.to_string()).collect()).await
}

/// What some blocks of summaries say.
pub(super) async fn summaries_in(world: &World, blocks: Vec<String>) -> BTreeMap<Labels, Vec<Summary>> {
    let manifests = world.manifests();
    let manifest = manifests.probe(&world.tenant).await.unwrap();
    let settings = StoreSettings::default();
    let store = BlockStore::new(manifests, settings, Cpu::inline(), &Metrics::new());
    let request = StoreSelectRequest {
        tenant: world.tenant.clone(),
        manifest_version: manifest.version,
        blocks,
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        labels_only: false,
        limit: 0,
        histogram_sums: true,
    };
    let mut stream = store.select(request).await.unwrap();
    let mut found = BTreeMap::<Labels, Vec<Summary>>::new();
    while let StoreItem::Series(batch) = stream.next().await.unwrap().unwrap() {
        for series in batch {
            let all = found.entry(series.labels).or_default();
            for run in series.runs {
                run.decode_summaries(TimeRange::ALL, all).unwrap();
            }
        }
    }
    found
}

fn expected(world: &World, resolution_ms: i64) -> BTreeMap<Labels, Vec<Summary>> {
    let of = |samples: &BTreeMap<i64, f64>| {
        let samples: Vec<Sample> = samples.iter().map(|(&t, &v)| Sample { t, v }).collect();
        downsample(&samples, &[], resolution_ms).summaries
    };
    let all = world.expected.iter().filter(|(_, samples)| !samples.is_empty());
    all.map(|(labels, samples)| (labels.clone(), of(samples)))
        .collect()
}

pub(super) async fn check_summaries(world: &World, what: &str) {
    for resolution_ms in [RESOLUTION_5M_MS, RESOLUTION_1H_MS] {
        assert_eq!(
            summaries(world, resolution_ms).await,
            expected(world, resolution_ms),
            "{what}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_day_is_summarised_beside_its_samples_and_outlives_them() {
    for seed in 0..10 {
        let mut world = world(seed);
        world.day().await;
        let mut compactor = world.compactor();
        compact(&mut compactor).await;
        let manifest = world.manifest().await;
        assert_eq!(manifest.blocks.len(), 3, "seed {seed}");
        check_summaries(&world, "young").await;
        world.check("young").await;
        // Samples that come late are summarised with the others.
        let late = world.some_data(4..6);
        world.cut(4..6, &late).await;
        compact(&mut compactor).await;
        if of(&world.manifest().await, 0).len() == 1 {
            check_summaries(&world, "late").await;
        }
        world.sleep(11 * DAYS).await;
        compact(&mut compactor).await;
        let manifest = world.manifest().await;
        assert_eq!(of(&manifest, 0).len(), 0, "seed {seed}");
        assert!(manifest.blocks.len() == 2 && manifest.blocks.iter().all(|b| b.sources.is_empty()));
        check_summaries(&world, "old").await;
        assert_eq!(compactor.metrics.failures.get(), 0);
        world.sleep(330 * DAYS).await;
        compact(&mut compactor).await;
        assert_eq!(of(&world.manifest().await, RESOLUTION_5M_MS).len(), 0);
        assert_eq!(
            summaries(&world, RESOLUTION_1H_MS).await,
            expected(&world, RESOLUTION_1H_MS)
        );
        world.sleep(5 * 365 * DAYS).await;
        compact(&mut compactor).await;
        assert!(world.manifest().await.blocks.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn i10_samples_wait_until_they_are_summarised() {
    let mut world = world(3);
    world.day().await;
    world.sleep(11 * DAYS).await;
    // At the first visit all of it is too old already.
    let mut compactor = world.compactor();
    while of(&world.manifest().await, RESOLUTION_1H_MS).is_empty() {
        assert!(!of(&world.manifest().await, 0).is_empty());
        compactor.visit_all().await;
    }
    compact(&mut compactor).await;
    assert!(of(&world.manifest().await, 0).is_empty());
    check_summaries(&world, "old").await;
}

#[tokio::test(start_paused = true)]
async fn i10_a_crash_anywhere_loses_nothing_and_counts_nothing_twice() {
    for last in (0..60).step_by(3) {
        for effect in [false, true] {
            let mut world = world(last);
            world.day().await;
            let crashing = Crashing::over(&world.objects, last, effect);
            let mut doomed = world.compactor_on(world.manifests_on(Arc::<Crashing>::clone(&crashing) as _));
            for _ in 0..8 {
                doomed.visit_all().await;
            }
            compact(&mut world.compactor()).await;
            world.check("after the crash").await;
            check_summaries(&world, "after the crash").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_deleted_is_gone_from_summaries_too() {
    let mut world = world(8);
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let matchers = Matchers(vec![Matcher::equal("__name__", "m1")]);
    let tombstone = Tombstone {
        state: TombstoneState::Final,
        ..Tombstone::new(Nonce(1), &matchers, TimeRange::new(2 * HOUR, 9 * HOUR))
    };
    let writer = Writer::partition("operator", PartitionId(0), 1);
    let add = |m: &mut Manifest| {
        m.add_tombstone(tombstone.clone());
        Ok(())
    };
    world
        .manifests()
        .commit(&world.tenant, &writer, add)
        .await
        .unwrap();
    compact(&mut compactor).await;
    for (labels, samples) in &mut world.expected {
        samples.retain(|t, _| labels.get("__name__") != Some("m1") || !tombstone.range.contains(*t));
    }
    check_summaries(&world, "deleted").await;
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_deleted_goes_from_summaries_whose_samples_are_gone() {
    let mut world = world(9);
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.sleep(50 * DAYS).await;
    compact(&mut compactor).await;
    assert_eq!(of(&world.manifest().await, 0).len(), 0);
    let matchers = Matchers(vec![Matcher::equal("__name__", "m1")]);
    let deleted = TimeRange::new(2 * HOUR, 9 * HOUR);
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
    let left = |resolution_ms| {
        let mut all = expected(&world, resolution_ms);
        for (labels, summaries) in &mut all {
            let is_of = labels.get("__name__") == Some("m1");
            summaries.retain(|s| !is_of || !s.range().overlaps(&deleted));
        }
        all.retain(|_, summaries| !summaries.is_empty());
        all
    };
    // Masked at once, and then gone.
    for resolution_ms in [RESOLUTION_5M_MS, RESOLUTION_1H_MS] {
        assert_eq!(
            summaries(&world, resolution_ms).await,
            left(resolution_ms),
            "masked"
        );
    }
    compact(&mut compactor).await;
    let manifest = world.manifest().await;
    assert!(
        manifest
            .blocks
            .iter()
            .all(|b| manifest.masking(b).next().is_none())
    );
    for resolution_ms in [RESOLUTION_5M_MS, RESOLUTION_1H_MS] {
        assert_eq!(
            summaries(&world, resolution_ms).await,
            left(resolution_ms),
            "removed"
        );
    }
    assert_eq!(compactor.metrics.failures.get(), 0);
}
