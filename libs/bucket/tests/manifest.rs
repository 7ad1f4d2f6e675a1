//! Commits: one winner per version, nothing lost, fenced by epoch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::{Fault, Faulty, block, bucket, bucket_over, id, small_entry, tenant, writer};
use futures::future::join_all;
use koios_bucket::{
    Bucket, Error, Manifest, ManifestBlock, Nonce, TenantManifests, Tombstone, TombstoneState, Writer,
};
use koios_model::{BatchSet, PartitionId, StreamId, TenantId, TimeRange};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

async fn add(bucket: &Bucket, n: u64) -> Result<u64, Error> {
    let entry = small_entry(n);
    let committed = bucket
        .commit(&tenant(), &writer(1), |m| m.add_block(entry.clone()))
        .await?;
    Ok(committed.version)
}

async fn listed(bucket: &Bucket) -> BTreeSet<koios_block::BlockId> {
    bucket
        .latest(&tenant())
        .await
        .unwrap()
        .blocks
        .iter()
        .map(|b| b.block)
        .collect()
}

/// Every version up to the newest exists, follows from the one before, and no two commits share one.
async fn check_history(bucket: &Bucket, commits: u64) {
    let newest = bucket.latest(&tenant()).await.unwrap();
    assert_eq!(newest.version, commits);
    let mut nonces = BTreeSet::new();
    for version in 1..=commits {
        let m = bucket.manifest(&tenant(), version).await.unwrap().unwrap();
        assert!(nonces.insert(m.nonce), "version {version} repeats a commit");
        assert_eq!(m.blocks.len() as u64, version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i10_racing_writers_each_win_one_version_and_no_change_is_lost() {
    let store = Arc::new(InMemory::new());
    let tasks = (0..16).map(|n| {
        let bucket = bucket_over(store.clone(), n);
        async move { add(&bucket, n).await.unwrap() }
    });
    let versions: BTreeSet<u64> = join_all(tasks).await.into_iter().collect();
    assert_eq!(versions, (1..=16).collect());
    let bucket = bucket_over(store, 99);
    check_history(&bucket, 16).await;
    assert_eq!(listed(&bucket).await, (0..16).map(id).collect());
}

#[tokio::test]
async fn i10_a_commit_whose_answer_was_lost_happened_once() {
    for fault in [Fault::LostAnswer(2), Fault::LostAnswer(3), Fault::LostRequest(2)] {
        let store = Arc::new(InMemory::new());
        let tasks = (0..8).map(|n| {
            let bucket = bucket_over(Faulty::over(&store, fault), n);
            async move { add(&bucket, n).await.unwrap() }
        });
        let versions: BTreeSet<u64> = join_all(tasks).await.into_iter().collect();
        assert_eq!(versions.len(), 8, "{fault:?}");
        check_history(&bucket_over(store, 99), 8).await;
    }
}

#[tokio::test]
async fn a_bucket_that_stops_answering_leaves_the_outcome_unknown_and_the_manifest_readable() {
    let store = Arc::new(InMemory::new());
    let good = bucket_over(store.clone(), 1);
    add(&good, 1).await.unwrap();
    let base = good.latest(&tenant()).await.unwrap();
    let bad = bucket_over(Faulty::over(&store, Fault::Down), 2).with_retry(koios_bucket::RetryPolicy {
        deadline: Duration::from_millis(2),
        ..Default::default()
    });
    let e = bad
        .commit_from(base, &writer(1), |m| m.add_block(small_entry(2)))
        .await
        .unwrap_err();
    assert!(
        matches!(e, Error::Unknown { version: 2, .. }) && e.is_transient(),
        "{e}"
    );
    let e = bad.latest(&tenant()).await.unwrap_err();
    assert!(
        matches!(e, Error::Unavailable { .. }) && e.to_string().contains("injected"),
        "{e}"
    );
    assert_eq!(add(&good, 3).await.unwrap(), 2);
}

#[tokio::test]
async fn i14_a_higher_epoch_stops_the_holder_of_a_lower_one() {
    let bucket = bucket();
    add(&bucket, 1).await.unwrap();
    let stale = bucket.latest(&tenant()).await.unwrap();
    let claimed = bucket.claim(&tenant(), &writer(2)).await.unwrap();
    assert_eq!((claimed.version, claimed.blocks.len()), (2, 1));
    // Claiming again commits nothing.
    assert_eq!(bucket.claim(&tenant(), &writer(2)).await.unwrap().version, 2);
    // Also when the old owner starts from what it knew.
    let e = bucket
        .commit_from(stale, &writer(1), |m| m.add_block(small_entry(2)))
        .await
        .unwrap_err();
    assert!(
        matches!(
            e,
            Error::Fenced {
                epoch: 1,
                found: 2,
                ..
            }
        ),
        "{e}"
    );
    assert!(!e.is_transient());
    let e = bucket.claim(&tenant(), &writer(1)).await.unwrap_err();
    assert!(e.to_string().contains("partition/0 of tenant team-a"), "{e}");
    // Another resource is another matter.
    let compactor = Writer::compaction("c", 1);
    bucket
        .commit(&tenant(), &compactor, |m| m.add_block(small_entry(3)))
        .await
        .unwrap();
}

#[tokio::test]
async fn i10_a_dead_name_is_never_listed_again() {
    let bucket = bucket();
    add(&bucket, 1).await.unwrap();
    let removed = bucket
        .commit(&tenant(), &writer(1), |m| {
            assert!(m.remove_block(id(1)));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((removed.dead[0].version, removed.dead[0].parts.len()), (2, 4));
    let e = add(&bucket, 1).await.unwrap_err();
    assert!(matches!(e, Error::DeadBlock { .. }), "{e}");
    // Not even by a change that goes around `add_block`, or forgets that the name is dead.
    let entry = small_entry(1);
    let e = bucket
        .commit(&tenant(), &writer(1), |m| {
            m.dead.clear();
            m.blocks.push(entry.clone());
            Ok(())
        })
        .await
        .unwrap_err();
    assert!(matches!(e, Error::DeadBlock { .. }), "{e}");
}

#[tokio::test]
async fn a_block_cannot_vanish_without_being_declared_dead() {
    let bucket = bucket();
    add(&bucket, 1).await.unwrap();
    let change = |m: &mut Manifest| {
        m.blocks.clear();
        Ok(())
    };
    let e = bucket.commit(&tenant(), &writer(1), change).await.unwrap_err();
    assert!(matches!(e, Error::Refused { .. }), "{e}");
    assert_eq!(listed(&bucket).await.len(), 1);
}

#[tokio::test]
async fn a_tombstone_is_stamped_with_the_version_that_first_lists_it() {
    let bucket = bucket();
    add(&bucket, 1).await.unwrap();
    let tombstone = Tombstone {
        version: 99,
        ..Tombstone::new(Nonce(7), &Default::default(), TimeRange::ALL)
    };
    for _ in 0..2 {
        let t = tombstone.clone();
        bucket
            .commit(&tenant(), &writer(1), |m| {
                m.add_tombstone(t.clone());
                Ok(())
            })
            .await
            .unwrap();
    }
    let m = bucket.latest(&tenant()).await.unwrap();
    assert_eq!(m.tombstones.iter().map(|t| t.version).collect::<Vec<_>>(), [2]);
    // It masks what is not clean of it.
    assert_eq!(m.masking(&m.blocks[0]).count(), 1);
    let clean = ManifestBlock {
        clean_up_to: 2,
        ..m.blocks[0].clone()
    };
    assert_eq!(m.masking(&clean).count(), 0);
}

#[tokio::test]
async fn the_newest_version_is_found_without_the_hint_and_with_a_wrong_one() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    assert_eq!(bucket.latest(&tenant()).await.unwrap().version, 0);
    for n in 0..21 {
        add(&bucket, n).await.unwrap();
    }
    let hint = Path::from("prefix/team-a/manifest/latest");
    for wrong in ["1", "7", "22", "4000", "", "garbage", "18446744073709551615"] {
        store.put(&hint, wrong.to_owned().into()).await.unwrap();
        assert_eq!(
            bucket.latest(&tenant()).await.unwrap().version,
            21,
            "hint {wrong:?}"
        );
    }
    store.delete(&hint).await.unwrap();
    assert_eq!(bucket.latest(&tenant()).await.unwrap().version, 21);
}

#[tokio::test]
async fn dropped_history_still_leads_to_the_newest_version_and_blocks_a_sleeping_writer() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    for n in 0..12 {
        add(&bucket, n).await.unwrap();
    }
    let old = bucket.manifest(&tenant(), 3).await.unwrap().unwrap();
    assert_eq!(bucket.drop_history(&tenant(), 10).await.unwrap(), 9);
    assert_eq!(bucket.drop_history(&tenant(), 12).await.unwrap(), 2);
    assert!(matches!(
        bucket.drop_history(&tenant(), 13).await,
        Err(Error::Refused { .. })
    ));
    assert!(bucket.manifest(&tenant(), 4).await.unwrap().is_none());
    assert_eq!(bucket.latest_from(&old).await.unwrap().version, 12);
    store
        .delete(&Path::from("prefix/team-a/manifest/latest"))
        .await
        .unwrap();
    assert_eq!(bucket.latest(&tenant()).await.unwrap().version, 12);
    let committed = bucket
        .commit_from(old, &writer(1), |m| m.add_block(small_entry(50)))
        .await
        .unwrap();
    assert_eq!((committed.version, committed.blocks.len()), (13, 13));
}

#[tokio::test]
async fn i11_a_damaged_manifest_is_an_error_not_an_empty_tenant() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    add(&bucket, 1).await.unwrap();
    let path = Path::from(format!("prefix/team-a/manifest/{:020}.json", 1));
    let good = store.get(&path).await.unwrap().bytes().await.unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.to_vec();
        bad[at] ^= 4;
        store.put(&path, bad.into()).await.unwrap();
        let e = bucket.latest(&tenant()).await.unwrap_err();
        assert!(
            matches!(e, Error::Corrupt { .. }) && e.to_string().contains("manifest/"),
            "byte {at}: {e}"
        );
    }
    store.put(&path, good.into()).await.unwrap();
    // Another tenant's manifest in this place is as wrong (I6).
    let other = TenantId::new("team-b").unwrap();
    let from = Path::from(format!("prefix/team-b/manifest/{:020}.json", 1));
    store.copy(&path, &from).await.unwrap();
    assert!(matches!(bucket.latest(&other).await, Err(Error::Corrupt { .. })));
}

#[tokio::test]
async fn i16_a_manifest_of_a_later_version_is_no_damage_and_nothing_replaces_it() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    add(&bucket, 1).await.unwrap();
    let path = Path::from(format!("prefix/team-a/manifest/{:020}.json", 1));
    // Of what is in it only the format is for sure.
    let json = r#"{"format":99,"blocks":"elsewhere"}"#;
    let crc = crc32c::crc32c(json.as_bytes());
    let later = format!(r#"{{"crc32c":"{crc:08x}","manifest":{json}}}"#);
    store.put(&path, later.into()).await.unwrap();
    let is_newer = |e: Error| {
        assert!(matches!(e, Error::Newer { found: 99, .. }), "{e}");
        assert!(e.to_string().ends_with(": upgrade this process"), "{e}");
    };
    is_newer(bucket.latest(&tenant()).await.unwrap_err());
    is_newer(add(&bucket, 2).await.unwrap_err());
    is_newer(bucket.plan_rebuild(&tenant()).await.map(drop).unwrap_err());
}

#[tokio::test]
async fn the_cache_asks_the_bucket_only_when_it_must() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    let cache = TenantManifests::new(bucket.clone(), Duration::from_secs(3600));
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 0);
    add(&bucket, 1).await.unwrap();
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 1);
    add(&bucket, 2).await.unwrap();
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 1);
    assert_eq!(cache.at_least(&tenant(), 2).await.unwrap().version, 2);
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 2);
    let e = cache.at_least(&tenant(), 3).await.unwrap_err();
    assert!(
        matches!(
            e,
            Error::Behind {
                found: 2,
                wanted: 3,
                ..
            }
        ),
        "{e}"
    );
    let committed = cache
        .commit(&tenant(), &writer(1), |m| m.add_block(small_entry(3)))
        .await
        .unwrap();
    assert_eq!(cache.known(&tenant()).unwrap().version, committed.version);
}

#[tokio::test]
async fn i12_tenants_that_are_only_named_cost_the_cache_nothing() {
    let cache = TenantManifests::new(bucket(), Duration::from_secs(3600));
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 0);
    assert_eq!(cache.at_least(&tenant(), 0).await.unwrap().version, 0);
    assert!(cache.known(&tenant()).is_none());
}

#[tokio::test]
async fn i9_the_last_manifest_known_serves_while_the_bucket_is_away() {
    let store = Arc::new(InMemory::new());
    add(&bucket_over(store.clone(), 1), 1).await.unwrap();
    let switch = Faulty::over(&store, Fault::None);
    let bucket = bucket_over(switch.clone(), 2).with_retry(koios_bucket::RetryPolicy {
        deadline: Duration::from_millis(1),
        ..Default::default()
    });
    let cache = TenantManifests::new(bucket, Duration::ZERO);
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 1);
    switch.go_down();
    assert_eq!(cache.latest(&tenant()).await.unwrap().version, 1);
    // But not for whom it is too old, and never an empty tenant where nothing is known (I4).
    let e = cache.at_least(&tenant(), 2).await.unwrap_err();
    assert!(matches!(e, Error::Unavailable { .. }), "{e}");
    let other = TenantId::new("other").unwrap();
    assert!(matches!(
        cache.latest(&other).await,
        Err(Error::Unavailable { .. })
    ));
}

#[test]
fn i2_a_merged_block_says_what_it_covers_only_if_all_its_sources_do() {
    let partition = PartitionId(3);
    let covering = |n: u64, sequence: u64| {
        let mut set = BatchSet::default();
        set.insert(StreamId(7), sequence);
        ManifestBlock::new(&block(n, 1).meta, BTreeMap::from([(partition, set)]))
    };
    let (a, b) = (covering(1, 10), covering(2, 11));
    let meta = block(3, 2).meta;

    let all_tell = ManifestBlock::merged(&meta, [&a, &b]);
    let told = all_tell.covers.get(&partition).unwrap();
    assert!(told.contains(StreamId(7), 10) && told.contains(StreamId(7), 11));

    // A reader would take the batches of `a` for all there is, and leave the block out that alone has those of another.
    let one_is_silent = ManifestBlock::merged(&meta, [&a, &small_entry(4)]);
    assert_eq!(one_is_silent.covers, BTreeMap::new());
    // What heads may forget still stands in it.
    let kept = one_is_silent
        .windows
        .iter()
        .find_map(|w| w.covers.get(&partition));
    assert!(kept.unwrap().contains(StreamId(7), 10));
}

#[test]
fn i10_what_a_block_covers_is_narrowed_for_good_only_by_deletions_that_are_final() {
    let partition = PartitionId(3);
    let window = TimeRange::new(0, 7_199_999);
    let batches = |sequences: std::ops::Range<u64>| {
        let mut set = BatchSet::default();
        sequences.for_each(|s| {
            set.insert(StreamId(7), s);
        });
        set
    };
    let tombstone = |version: u64, covered: u64, state: TombstoneState| Tombstone {
        version,
        state,
        covers: BTreeMap::from([(partition, batches(0..covered))]),
        ..Tombstone::new(Nonce(u128::from(version)), &Default::default(), TimeRange::ALL)
    };
    let mut m = Manifest::empty(tenant());
    m.version = 20;
    let covers = BTreeMap::from([(partition, batches(0..6))]);
    m.blocks = vec![ManifestBlock::new(&block(1, 1).meta, covers)];
    m.tombstones = vec![
        tombstone(10, 4, TombstoneState::Final),
        tombstone(11, 2, TombstoneState::Masked),
    ];
    assert_eq!(m.covered(partition, window), batches(0..2));
    m.note_clean(id(1), 10);
    assert_eq!(m.masking(&m.blocks[0]).count(), 1);
    assert_eq!(
        m.covered(partition, window),
        batches(0..2),
        "the later one masks it"
    );
    m.set_tombstone_state(Nonce(11), TombstoneState::Undone);
    assert_eq!(m.covered(partition, window), batches(0..4), "it was taken back");
}
