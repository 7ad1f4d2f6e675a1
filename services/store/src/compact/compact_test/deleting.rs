//! Claims about deletions in compaction.

use koios_bucket::TombstoneState;
use koios_model::Matcher;

use super::*;

const MATCHER: (&str, &str) = ("__name__", "secret_total");

impl World {
    async fn change(&self, change: impl Fn(&mut Manifest) + Send + Sync) -> Arc<Manifest> {
        let writer = Writer::partition("operator", PartitionId(0), 1);
        let changed = |m: &mut Manifest| {
            change(m);
            Ok(())
        };
        self.manifests()
            .commit(&self.tenant, &writer, changed)
            .await
            .unwrap()
    }

    /// Deletes a metric now.
    async fn delete(&self, id: u128, range: TimeRange) {
        let matchers = Matchers(vec![Matcher::equal(MATCHER.0, MATCHER.1)]);
        let tombstone = Tombstone {
            at_ms: self.clock.now_ms(),
            ..Tombstone::new(Nonce(id), &matchers, range)
        };
        self.change(|m| m.add_tombstone(tombstone.clone())).await;
    }

    /// Whether any object of the bucket has some bytes as they are, or as Parquet keeps them uncompressed.
    async fn has_bytes(&self, wanted: &str) -> bool {
        for path in self.objects().await {
            let bytes = self.objects.get(&path).await.unwrap().bytes().await.unwrap();
            let is_block = path.as_ref().contains("/blocks/");
            if is_block && bytes.windows(wanted.len()).any(|w| w == wanted.as_bytes()) {
                return true;
            }
        }
        false
    }

    fn without_the_deleted(&self) -> Data {
        let kept = self
            .expected
            .iter()
            .filter(|(labels, _)| labels.get(MATCHER.0) != Some(MATCHER.1));
        kept.map(|(l, s)| (l.clone(), s.clone())).collect()
    }
}

fn secret_and_other(hours: std::ops::Range<i64>) -> Data {
    let mut data = Data::new();
    for name in [MATCHER.1, "up"] {
        let samples = data.entry(Labels::from_pairs([("__name__", name)])).or_default();
        samples.extend((0..20).map(|i| (hours.start * HOUR + i * 60_000, i as f64)));
    }
    data
}

#[tokio::test(start_paused = true)]
async fn i10_a_block_is_cleaned_when_it_is_too_late_to_take_the_deletion_back() {
    let mut world = World::new(1);
    world.members_have_forgotten = true;
    // Of one block nothing is to be merged.
    let block = world.cut(0..2, &secret_and_other(0..2)).await;
    compact(&mut world.compactor()).await;
    assert!(world.manifest().await.block(block).is_some());
    world.delete(1, TimeRange::ALL).await;
    world.expected = world.without_the_deleted();
    world.check("masked at once").await;

    let mut compactor = world.compactor();
    world.sleep(3500).await;
    compact(&mut compactor).await;
    let manifest = world.manifest().await;
    assert!(
        manifest.block(block).is_some(),
        "nothing is removed that can be brought back"
    );
    assert!(world.has_bytes(MATCHER.1).await);

    world.sleep(200).await;
    compact(&mut compactor).await;
    world.check("removed").await;
    let manifest = world.manifest().await;
    assert!(manifest.is_dead(block));
    // Another visit finds that nothing is left to delete.
    world.sleep(400).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.tombstones.is_empty());
    world.sleep(3700).await;
    compact(&mut compactor).await;
    assert!(!world.has_bytes(MATCHER.1).await, "the bucket has it still");
    world.check("gone").await;
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_taken_back_is_there_again() {
    let mut world = World::new(2);
    let data = secret_and_other(0..2);
    world.cut(0..2, &data).await;
    world.cut(0..2, &secret_and_other(1..2)).await;
    world.delete(1, TimeRange::ALL).await;
    let mut compactor = world.compactor();
    // Blocks that a deletion masks alike are merged with what it masks.
    compact(&mut compactor).await;
    assert_eq!(world.manifest().await.blocks.len(), 1);
    let all = world.expected.clone();
    world.expected = world.without_the_deleted();
    world.check("masked in what was merged").await;
    world
        .change(|m| {
            m.set_tombstone_state(Nonce(1), TombstoneState::Undone);
        })
        .await;
    world.expected = all;
    world.check("taken back").await;
    world.sleep(8000).await;
    compact(&mut compactor).await;
    world.check("taken back for good").await;
    let manifest = world.manifest().await;
    assert_eq!(manifest.tombstones.len(), 1, "members may not know yet");
}

#[tokio::test(start_paused = true)]
async fn i10_what_was_written_after_a_deletion_is_not_merged_into_its_reach() {
    let mut world = World::new(3);
    world.cut(0..2, &secret_and_other(0..2)).await;
    world.delete(1, TimeRange::ALL).await;
    world.expected = world.without_the_deleted();
    // What a head cuts that has applied it.
    let version = world.manifest().await.deletions_version();
    let late = world.cut_clean(0..2, &secret_and_other(0..2), version).await;
    world.check("rewritten").await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    assert_eq!(
        world.manifest().await.blocks.len(),
        2,
        "they cannot be merged yet"
    );
    world.sleep(3700).await;
    compact(&mut compactor).await;
    let manifest = world.manifest().await;
    assert_eq!(manifest.blocks.len(), 1);
    assert!(manifest.is_dead(late));
    world.check("merged").await;
}

#[tokio::test(start_paused = true)]
async fn i1_a_block_covers_no_batch_whose_samples_are_masked_in_it_by_mistake() {
    let mut world = World::new(4);
    let block = world.cut(0..2, &secret_and_other(0..2)).await;
    let window = TimeRange::new(0, 2 * HOUR - 1);
    let batches = world.manifest().await.covered(PartitionId(0), window);
    assert!(!batches.is_empty());
    // The deletion was made before the block's batch came: the head that cut it keeps what the mask hides.
    world.delete(1, TimeRange::ALL).await;
    let manifest = world.manifest().await;
    assert!(manifest.covered(PartitionId(0), window).is_empty());
    let masked = manifest.as_masked(manifest.block(block).unwrap());
    assert_eq!(
        masked.covers[&PartitionId(0)],
        batches,
        "readers learn what it may have"
    );
    // The same batch before it.
    let manifest = world
        .change(|m| {
            for t in &mut m.tombstones {
                t.covers = BTreeMap::from([(PartitionId(0), batches.clone())]);
            }
        })
        .await;
    assert_eq!(manifest.covered(PartitionId(0), window), batches);
    world.sleep(3700).await;
    compact(&mut world.compactor()).await;
    let manifest = world.manifest().await;
    assert!(manifest.is_dead(block));
}

#[tokio::test(start_paused = true)]
async fn i10_blocks_without_anything_of_a_deletion_are_not_written_again() {
    let mut world = World::new(5);
    world.members_have_forgotten = true;
    world.settings.downsampling = CompactionSettings::default().downsampling;
    let other = |day: i64| {
        let labels = Labels::from_pairs([("__name__", "up"), ("secret", "no")]);
        Data::from([(labels, BTreeMap::from([(day * 24 * HOUR + 60_000, day as f64)]))])
    };
    for day in 0..3 {
        world.cut(day * 24..day * 24 + 2, &other(day)).await;
    }
    let secret = world.cut(72..74, &secret_and_other(72..74)).await;
    world.sleep(100 * 3600).await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let listed = |m: &Manifest| m.blocks.iter().map(|b| b.block).collect::<BTreeSet<BlockId>>();
    let before = world.manifest().await;
    assert!(
        before.blocks.iter().any(|b| b.resolution_ms != 0),
        "summaries too"
    );
    let mut others = listed(&before);
    others.retain(|b| before.block(*b).is_some_and(|b| b.range.max < 72 * HOUR));

    world.delete(1, TimeRange::ALL).await;
    world.expected = world.without_the_deleted();
    world.sleep(3700).await;
    compact(&mut compactor).await;
    world.check("removed").await;
    let after = world.manifest().await;
    assert!(listed(&after).is_superset(&others));
    assert!(!listed(&after).contains(&secret));
    assert!(after.blocks.iter().all(|b| after.masking(b).next().is_none()));
    world.sleep(400).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.tombstones.is_empty());
    world.check("forgotten").await;
}

#[tokio::test(start_paused = true)]
async fn i10_a_block_is_clean_only_of_deletions_that_are_final() {
    let mut world = World::new(6);
    let other = Labels::from_pairs([("__name__", "up")]);
    let block = world
        .cut(0..2, &Data::from([(other, BTreeMap::from([(60_000, 1.0)]))]))
        .await;
    world.delete(1, TimeRange::ALL).await;
    world.sleep(3000).await;
    world.delete(2, TimeRange::ALL).await;
    world.sleep(700).await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let manifest = world.manifest().await;
    let masking: Vec<Nonce> = manifest
        .masking(manifest.block(block).unwrap())
        .map(|t| t.id)
        .collect();
    assert_eq!(masking, [Nonce(2)]);
}
