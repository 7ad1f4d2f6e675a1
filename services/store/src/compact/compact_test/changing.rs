//! Claims about a retention that changes while something goes on: answers are as of the version that was pinned, and what was
//! written as another retention had it is not listed (I10).

use koios_block::RESOLUTION_1H_MS;

use super::downsampled::check_summaries;
use super::retaining::{DAY, DAYS, only};
use super::*;
use crate::compact::downsample_plan::expired;
use crate::compact::retention::Horizon;

impl World {
    /// Notes what the tenant was given, as a visit does.
    async fn note(&self, compactor: &mut Compactor, writer: &Writer) -> RetentionPolicy {
        let told = configured(&self.tenant, &self.settings, &self.overrides);
        let (manifest, now_ms) = (self.manifest().await, self.clock.now_ms());
        let noted = compactor.note_retention(&manifest, &told, now_ms, writer);
        noted.await.unwrap();
        told
    }

    /// What a read gives that pins the newest version, of a store that knows no other.
    async fn remember(&self, answers: &mut BTreeMap<u64, Data>) {
        let version = self.manifest().await.version;
        answers.insert(version, self.read_as_of(&self.manifests(), version).await);
    }

    /// What a read of the blocks of the first day gives that pinned a version.
    async fn read_as_of(&self, manifests: &TenantManifests, version: u64) -> Data {
        let pinned = manifests.bucket().manifest(&self.tenant, version).await;
        let cpu = Cpu::inline();
        let store = BlockStore::new(manifests.clone(), StoreSettings::default(), cpu, &Metrics::new());
        let day = TimeRange::new(0, DAY - 1);
        let request = StoreSelectRequest {
            tenant: self.tenant.clone(),
            manifest_version: version,
            blocks: pinned
                .unwrap()
                .unwrap()
                .overlapping(day)
                .map(|b| b.block.to_string())
                .collect(),
            matchers: Matchers::default(),
            range: day,
            labels_only: false,
            limit: 0,
            histogram_sums: false,
        };
        read(&store, request).await.unwrap()
    }
}

/// What was left out may not go any more: it is written again.
#[track_caller]
fn assert_changed(error: Option<CompactError>) {
    let error = error.unwrap();
    let is_changed = matches!(error, CompactError::RetentionChanged);
    assert!(is_changed && error.is_transient(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn i10_what_was_written_under_a_retention_that_changed_is_not_listed() {
    let mut world = World::new(800);
    world.settings.undelete_window = Duration::ZERO;
    world.day().await;
    let mut compactor = world.compactor();
    let writer = Writer::compaction("store-1", 1);
    world.retain(None, &[only("m1", 10)]);
    let told = world.note(&mut compactor, &writer).await;
    // A merge begins, and leaves out what the rule says.
    let begun = world.manifest().await;
    let settings = compactor.settings_of(&begun, &told);
    let jobs = due_merges(&begun, world.clock.now_ms(), &settings, &BTreeSet::new());
    let aged = Aged::of(&begun, &jobs[0].inputs, &settings).unwrap();
    assert!(aged.expiry.latest().is_some());
    // While it runs the rule is taken back.
    let live = world.live().await;
    world.retain(None, &[only("m1", 31)]);
    world.note(&mut compactor, &writer).await;
    let merged = compactor.merger.run(&begun, &jobs[0], &aged, &writer).await;
    assert_changed(merged.err());
    assert_eq!(world.live().await, live);
    world.check("nothing is gone").await;
    // What leaves nothing out is listed whatever changed, and so is what goes by a horizon that moved on.
    let nothing = Aged::nothing(&begun, &jobs[0].inputs);
    compactor
        .merger
        .run(&begun, &jobs[0], &nothing, &writer)
        .await
        .unwrap();
    world.check("merged").await;
    world.retain(None, &[only("m1", 10)]);
    let told = world.note(&mut compactor, &writer).await;
    let begun = world.manifest().await;
    let settings = compactor.settings_of(&begun, &told);
    let jobs = due_merges(&begun, world.clock.now_ms(), &settings, &BTreeSet::new());
    let aged = Aged::of(&begun, &jobs[0].inputs, &settings).unwrap();
    world.sleep(2 * 3600).await;
    world.note(&mut compactor, &writer).await;
    assert!(world.horizon().await > begun.retention.as_ref().unwrap().horizon_ms);
    compactor
        .merger
        .run(&begun, &jobs[0], &aged, &writer)
        .await
        .unwrap();
    world.keep(|name, _| name != "m1");
    world.check("hidden or gone").await;
}

#[tokio::test(start_paused = true)]
async fn i10_an_answer_is_as_of_the_version_that_was_pinned() {
    let mut world = World::new(801);
    world.day().await;
    let mut compactor = world.compactor();
    let writer = Writer::compaction("store-1", 1);
    let mut answers = BTreeMap::new();
    // Retentions that mask without rules, and for ever; then rules, and none again.
    for (samples_days, rules) in [
        (Some(29), vec![]),
        (Some(0), vec![]),
        (Some(40), vec![]),
        (Some(0), vec![only("m1", 29)]),
        (Some(30), vec![only("m1", 0)]),
        (Some(0), vec![]),
    ] {
        world.retain(samples_days, &rules);
        for _ in 0..2 {
            world.note(&mut compactor, &writer).await;
            world.remember(&mut answers).await;
            // Something else is listed, too: what is masked stays the same.
            let other = Labels::from_pairs([("__name__", "other")]);
            world
                .cut(48..50, &Data::from([(other, [(48 * HOUR, 1.0)].into())]))
                .await;
            world.remember(&mut answers).await;
            world.sleep(3 * 3600).await;
        }
        // A store that knows the last version answers as one did that knew no later one.
        let manifests = world.manifests();
        let last = manifests.probe(&world.tenant).await.unwrap();
        for (version, answer) in &answers {
            let read = world.read_as_of(&manifests, *version).await;
            assert_eq!(read, *answer, "version {version} of {}", last.version);
        }
        assert!(last.masks_since().is_some_and(|since| since < last.version));
    }
    let different: BTreeSet<usize> = answers.values().map(BTreeMap::len).collect();
    assert!(different.len() > 2 && different.contains(&0), "{different:?}");
}

/// A day whose blocks are merged, and a store that is to summarise them.
async fn merged_day(seed: u64) -> (World, Compactor, Writer) {
    let mut world = World::new(seed);
    world.settings.retention = Duration::from_secs(40 * DAYS);
    world.settings.undelete_window = Duration::ZERO;
    world.day().await;
    compact(&mut world.compactor()).await;
    world.settings.downsampling = CompactionSettings::default().downsampling;
    let compactor = world.compactor();
    // In the epoch of the duty.
    (world, compactor, Writer::compaction("store-1", 7))
}

#[tokio::test(start_paused = true)]
async fn i10_summaries_made_under_a_retention_that_changed_are_not_listed() {
    let (world, mut compactor, writer) = merged_day(802).await;
    let none = BTreeSet::new();
    world.retain(None, &[only("m1", 10)]);
    let told = world.note(&mut compactor, &writer).await;
    let begun = world.manifest().await;
    let settings = compactor.settings_of(&begun, &told);
    let jobs = due_downsamplings(&begun, world.clock.now_ms(), &settings, &none, &none);
    let aged = Aged::of(&begun, &jobs[0].inputs, &settings).unwrap();
    assert!(aged.expiry.latest().is_some());
    world.retain(None, &[only("m1", 31)]);
    world.note(&mut compactor, &writer).await;
    let live = world.live().await;
    let done = compactor
        .merger
        .downsample(&begun, &jobs[0], &aged, &writer)
        .await;
    assert_changed(done.err());
    assert_eq!(world.live().await, live);
    compact(&mut compactor).await;
    check_summaries(&world, "those of all series").await;
}

#[tokio::test(start_paused = true)]
async fn i10_blocks_written_again_under_a_retention_that_changed_are_not_listed() {
    let (world, mut compactor, writer) = merged_day(803).await;
    let none = BTreeSet::new();
    compact(&mut compactor).await;
    world.retain(None, &[only("m1", 10)]);
    let told = world.note(&mut compactor, &writer).await;
    let begun = world.manifest().await;
    let settings = compactor.settings_of(&begun, &told);
    let jobs = due_expiries(&begun, world.clock.now_ms(), &settings, &none, &none);
    let resolutions: BTreeSet<i64> = jobs.iter().map(|job| job.block.resolution_ms).collect();
    let has_both = resolutions.contains(&0) && resolutions.contains(&RESOLUTION_1H_MS);
    assert!(has_both, "{resolutions:?}");
    world.retain(None, &[only("m1", 31)]);
    world.note(&mut compactor, &writer).await;
    let live = world.live().await;
    for job in &jobs {
        assert_changed(compactor.merger.expire(&begun, job, &writer).await.err());
    }
    assert_eq!(world.live().await, live);
    world.check("nothing is gone").await;
    check_summaries(&world, "nothing is gone").await;
}

#[tokio::test(start_paused = true)]
async fn i10_a_window_divided_under_a_retention_that_changed_stays_as_it_was() {
    let (world, mut compactor, writer) = merged_day(804).await;
    compact(&mut compactor).await;
    world.retain(None, &[only("m1", 90)]);
    world.note(&mut compactor, &writer).await;
    world.sleep(11 * DAYS).await;
    let told = world.note(&mut compactor, &writer).await;
    let (begun, now_ms) = (world.manifest().await, world.clock.now_ms());
    let settings = compactor.settings_of(&begun, &told);
    let splits = expired(&begun, now_ms, &settings, &BTreeSet::new()).splits;
    let horizon = Horizon::of(&begun, now_ms, &settings);
    world.retain(Some(50), &[only("m1", 90)]);
    world.note(&mut compactor, &writer).await;
    let live = world.live().await;
    let done = compactor
        .merger
        .split(&begun, &splits[0], &horizon, &writer)
        .await;
    assert_changed(done.err());
    assert_eq!(world.live().await, live);
    world.check("nothing is gone").await;
    check_summaries(&world, "nothing is gone").await;
}
