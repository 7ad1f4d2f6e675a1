//! Claims about blocks on their way into the bucket: what is not stored as it was sent is never listed, in pieces or whole (I10, I11).

use koios_testkit::sim_bucket::{BucketFaults, BucketHandle, SimBucket};

use super::*;

/// Parts of the blocks here have some of these.
const PIECE_BYTES: usize = 700;

impl World {
    /// The bucket, to which things happen.
    fn stormy(&self) -> SimBucket {
        let objects = Arc::<InMemory>::clone(&self.objects);
        SimBucket::over(objects, Arc::clone(&self.clock), self.rng.fork())
    }

    fn compactor_of(&self, handle: &BucketHandle, piece_bytes: usize) -> Compactor {
        let store = Arc::new(handle.clone());
        let bucket = Bucket::new(store, "", Arc::clone(&self.clock), self.rng.fork());
        let manifests = TenantManifests::new(bucket.with_pieces_of(piece_bytes), Duration::ZERO);
        self.compactor_on(manifests)
    }

    async fn ids(&self) -> BTreeSet<BlockId> {
        self.manifest().await.blocks.iter().map(|b| b.block).collect()
    }
}

fn altering() -> BucketFaults {
    BucketFaults {
        altered: 1000,
        ..BucketFaults::NONE
    }
}

#[tokio::test(start_paused = true)]
async fn i11_a_merged_block_that_is_stored_otherwise_is_not_listed_and_is_written_anew() {
    for (downsampled, piece_bytes) in [(false, usize::MAX), (false, PIECE_BYTES), (true, PIECE_BYTES)] {
        let what = format!("downsampled {downsampled}, pieces of {piece_bytes}");
        let mut world = World::new(41);
        if downsampled {
            let after = Duration::from_secs(3600);
            world.settings.downsampling = vec![Downsampling::by_1h(after, Duration::ZERO)];
        }
        world.day().await;
        if downsampled {
            // Until there is nothing to do but summaries.
            let mut merging = world.settings.clone();
            std::mem::swap(&mut merging, &mut world.settings);
            world.settings.downsampling = Vec::new();
            compact(&mut world.compactor()).await;
            world.settings = merging;
        }
        let (listed, stored) = (world.ids().await, world.blocks_with_bytes().await);
        let handle = world.stormy().handle("store");
        handle.set_faults(altering());
        let mut compactor = world.compactor_of(&handle, piece_bytes);
        compact(&mut compactor).await;
        assert_eq!(world.ids().await, listed, "{what}");
        assert!(world.blocks_with_bytes().await.is_superset(&stored), "{what}");
        assert!(compactor.metrics.failures.get() > 0, "{what}");
        world.check(&what).await;
        // What arrived is dead, and no name is used again.
        let manifest = world.manifest().await;
        let in_vain: Vec<_> = world
            .blocks_with_bytes()
            .await
            .difference(&stored)
            .copied()
            .collect();
        assert!(
            !in_vain.is_empty() && in_vain.iter().all(|b| manifest.is_dead(*b)),
            "{what}"
        );
        // Not at once: it is written anew, however large it is.
        let before = handle.changes().len();
        compact(&mut compactor).await;
        assert_eq!(handle.changes().len(), before, "{what}");
        handle.set_faults(BucketFaults::NONE);
        world.sleep(601).await;
        compact(&mut compactor).await;
        let manifest = world.manifest().await;
        let summaries = manifest.blocks.iter().filter(|b| b.resolution_ms != 0).count();
        assert_eq!(manifest.blocks.len(), 1 + usize::from(downsampled), "{what}");
        assert_eq!(summaries, usize::from(downsampled), "{what}");
        world.check(&what).await;
        world.sleep(3601).await;
        compact(&mut compactor).await;
        assert_eq!(world.blocks_with_bytes().await, world.ids().await, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn i11_an_error_names_the_block_and_the_part_that_are_stored_otherwise() {
    let world = World::new(42);
    let handle = world.stormy().handle("store");
    handle.set_faults(altering());
    let merger = world.compactor_of(&handle, usize::MAX).merger;
    let mut out = world.writer(0..2, 0);
    let labels = Labels::from_pairs([("__name__", "m")]);
    out.push_series(&labels, None, &[1], &[1.0]).unwrap();
    let mut uploaded = Vec::new();
    let error = Box::pin(merger.finish(&world.tenant, out, None, &mut uploaded)).await;
    let error = error.unwrap_err();
    let block = uploaded[0].block.to_string();
    for part in [
        "series.parquet",
        &block,
        "not listed",
        "another name",
        "check the storage",
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert!(
        error.is_stored_otherwise() && error.bad_block().is_none(),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn i10_whatever_happens_to_a_piece_loses_and_doubles_nothing() {
    for seed in 0..6 {
        let mut world = World::new(50 + seed);
        world.day().await;
        let handle = world.stormy().handle("store");
        handle.set_faults(BucketFaults {
            busy: 40,
            lost_answers: 40,
            slow: 40,
            altered: 2,
            ..BucketFaults::NONE
        });
        let mut compactor = world.compactor_of(&handle, PIECE_BYTES);
        for _ in 0..10 {
            compactor.visit_all().await;
            world.check(&format!("seed {seed}")).await;
            world.sleep(60).await;
        }
        handle.set_faults(BucketFaults::NONE);
        world.sleep(601).await;
        compact(&mut compactor).await;
        assert_eq!(world.manifest().await.blocks.len(), 1, "seed {seed}");
        world.check(&format!("seed {seed}, healed")).await;
    }
}

/// A store dies at every operation of a merge whose parts go in pieces, before and after its effect; another one does it all again.
#[tokio::test(start_paused = true)]
async fn i10_a_death_between_pieces_loses_and_doubles_nothing() {
    let world_of = async || {
        let mut world = World::new(43);
        for window in 0..3 {
            let data = world.some_data(window * 2..window * 2 + 2);
            world.cut(window * 2..window * 2 + 2, &data).await;
        }
        world
    };
    let world = world_of().await;
    let calm = world.stormy().handle("calm");
    compact(&mut world.compactor_of(&calm, PIECE_BYTES)).await;
    let pieces = calm
        .journal()
        .iter()
        .filter(|line| line.contains("put piece"))
        .count();
    assert!(pieces > 6, "{:?}", calm.journal());
    for at in calm.changes() {
        for after_effect in [false, true] {
            let what = format!("death at operation {at}, after its effect {after_effect}");
            let world = world_of().await;
            let doomed = world.stormy().handle("doomed");
            doomed.die_at(at, after_effect);
            let mut compactor = world.compactor_of(&doomed, PIECE_BYTES);
            tokio::select! {
                biased;
                () = doomed.died() => {}
                () = compact(&mut compactor) => panic!("{what}: it lives"),
            }
            world.check(&what).await;
            let mut later = world.compactor();
            compact(&mut later).await;
            world.check(&what).await;
            // What was uploaded in vain goes when it is old.
            world.sleep(25 * 3600).await;
            let mut later = world.compactor();
            compact(&mut later).await;
            world.sleep(2 * 3600).await;
            compact(&mut later).await;
            assert_eq!(world.blocks_with_bytes().await, world.ids().await, "{what}");
            world.check(&what).await;
        }
    }
}
