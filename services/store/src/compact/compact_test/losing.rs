//! Claims about manifests that lost versions: nothing of the tenant is deleted, and nothing is committed that would hide it (I10).

use bytes::Bytes;

use super::*;

const DAY_SECONDS: u64 = 24 * 3600;

impl World {
    /// Removes the versions above one, and the hint. Gives them.
    async fn lose_versions(&self, above: u64) -> Vec<(Path, Bytes)> {
        let mut lost = Vec::new();
        for path in self.objects().await {
            let name = path.filename().unwrap_or_default().to_owned();
            let version = name.strip_suffix(".json").and_then(|v| v.parse::<u64>().ok());
            let is_hint = path.as_ref().ends_with("manifest/latest");
            if path.as_ref().contains("/manifest/") && (is_hint || version.is_some_and(|v| v > above)) {
                let object = self.objects.get(&path).await.unwrap();
                self.objects.delete(&path).await.unwrap();
                lost.push((path, object.bytes().await.unwrap()));
            }
        }
        lost
    }

    /// Lets a store that has just started look after the tenant for some days, with visits a minute apart, too; gives how many of
    /// them did not fail.
    async fn look_after(&self) -> u64 {
        const VISITS: u64 = 15;
        let mut compactor = self.compactor();
        for visit in 1..=VISITS {
            compactor.visit_all().await;
            self.sleep(if visit % 3 == 0 { DAY_SECONDS } else { 60 }).await;
        }
        VISITS.saturating_sub(compactor.metrics.failures.get())
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_lost_manifest_deletes_no_block() {
    for is_compacted in [true, false] {
        let mut world = World::new(31);
        world.day().await;
        if is_compacted {
            compact(&mut world.compactor()).await;
        }
        world.sleep(2 * DAY_SECONDS).await;
        world.lose_versions(0).await;
        let before = world.objects().await;
        assert_eq!(world.look_after().await, 0, "each visit reports it");
        assert_eq!(world.objects().await, before, "compacted: {is_compacted}");
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_block_listed_after_all_was_lost_condemns_none_of_those_before() {
    let mut world = World::new(32);
    world.day().await;
    let before = world.blocks_with_bytes().await;
    world.sleep(2 * DAY_SECONDS).await;
    world.lose_versions(0).await;
    let data = world.some_data(24..26);
    world.cut(24..26, &data).await;
    world.look_after().await;
    assert!(world.blocks_with_bytes().await.is_superset(&before));
    // Where blocks tell that there were versions, nothing is listed.
    let mut world = World::new(32);
    world.day().await;
    compact(&mut world.compactor()).await;
    world.lose_versions(0).await;
    let writer = Writer::partition("ingester", PartitionId(0), 1);
    let committed = world.manifests().commit(&world.tenant, &writer, |_| Ok(())).await;
    assert!(
        matches!(committed, Err(koios_bucket::Error::Lost { .. })),
        "{committed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn i10_a_manifest_that_fell_back_deletes_no_block() {
    let mut world = World::new(33);
    world.day().await;
    let kept = world.manifest().await.version;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.sleep(3601).await;
    compact(&mut compactor).await;
    world.sleep(2 * DAY_SECONDS).await;
    world.lose_versions(kept).await;
    let before = world.objects().await;
    assert_eq!(world.look_after().await, 0, "each visit reports it");
    assert_eq!(world.objects().await, before);
}

#[tokio::test(start_paused = true)]
async fn i10_a_first_import_that_ended_half_way_stops_nothing_and_is_collected() {
    let mut world = World::new(34);
    let tenant = world.tenant.clone();
    let bucket = world.manifests().bucket().clone();
    bucket.begin(&tenant, &Writer::import("ctl")).await.unwrap();
    for _ in 0..3 {
        let mut writer = world.writer(0..2, 0);
        let labels = Labels::from_pairs([("__name__", "m")]);
        writer.push_series(&labels, None, &[1], &[1.0]).unwrap();
        let parts = writer.finish().unwrap().unwrap();
        bucket.upload_block(&tenant, &parts).await.unwrap();
    }
    world.sleep(2 * DAY_SECONDS).await;
    assert_eq!(world.look_after().await, 15, "no visit fails");
    assert!(world.blocks_with_bytes().await.is_empty());
    // Nor does what comes then find anything in its way.
    world.day().await;
    compact(&mut world.compactor()).await;
    assert!(world.manifest().await.blocks.iter().any(|b| b.level > 0));
}

/// What the gauge says.
fn is_lost(compactor: &Compactor, world: &World) -> bool {
    let label = vec![("tenant", world.tenant.to_string())];
    compactor.metrics.lost.get_or_create(&label).get() == 1
}

#[tokio::test(start_paused = true)]
async fn i10_nothing_is_committed_to_a_manifest_older_than_one_that_a_member_knows() {
    // Given that the newest versions and the hint are lost, and no block tells of them.
    let mut world = World::new(35);
    world.day().await;
    let announced = world.manifest().await.version;
    let lost = world.lose_versions(announced - 1).await;
    world.sleep(2 * DAY_SECONDS).await;
    let before = world.objects().await;
    world.announced.lock().version = announced;
    // Then nothing is compacted or deleted, and it is told.
    let mut compactor = world.compactor();
    for failures in 1..=3 {
        compactor.visit_all().await;
        assert_eq!(compactor.metrics.failures.get(), failures);
        assert!(is_lost(&compactor, &world));
        world.sleep(DAY_SECONDS).await;
    }
    assert_eq!(world.objects().await, before);
    // Until they are brought back.
    for (path, bytes) in lost {
        world.objects.put(&path, bytes.into()).await.unwrap();
    }
    compact(&mut compactor).await;
    assert!(!is_lost(&compactor, &world));
    assert!(world.manifest().await.version > announced);
    world.check("brought back").await;
}

#[tokio::test(start_paused = true)]
async fn members_that_do_not_tell_which_version_they_know_are_waited_for_but_not_for_ever() {
    let mut world = World::new(36);
    world.day().await;
    let before = world.manifest().await.version;
    world.announced.lock().by_all = false;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    assert_eq!(world.manifest().await.version, before);
    // All have told.
    let mut other = world.compactor();
    world.announced.lock().by_all = true;
    compact(&mut other).await;
    let compacted = world.manifest().await.version;
    assert!(compacted > before);
    // One never does.
    world.day().await;
    let before = world.manifest().await.version;
    world.announced.lock().by_all = false;
    let mut third = world.compactor();
    third.visit_all().await;
    assert_eq!(world.manifest().await.version, before);
    world.sleep(301).await;
    compact(&mut third).await;
    assert!(world.manifest().await.version > before);
}
