//! Blocks are listed in a manifest that is whole, or not at all.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use koios_bucket::{TenantManifests, Unlisted};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::harness::{HOUR, MINUTE, T0, World, tenant};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn fill(w: &mut World, from: i64) {
    for i in 0..60 {
        assert!(w.write(&[("a", from + i * MINUTE, i as f64)]).await);
    }
}

impl World {
    /// A restore of a part: of versions of the manifest above one nothing is left in the bucket that tells of them. Gives what is gone.
    pub(crate) async fn lose_versions_above(&mut self, version: u64) -> Vec<(Path, Bytes)> {
        let newest = self.manifests.probe(&tenant()).await.unwrap().version;
        let names = (version + 1..=newest).map(|v| format!("{v:020}.json"));
        let mut aside = Vec::new();
        for name in names.chain(["latest".to_owned()]) {
            let path = Path::from(format!("{}/manifest/{name}", tenant()));
            let bytes = self.store.get(&path).await.unwrap().bytes().await.unwrap();
            aside.push((path.clone(), bytes));
            self.store.delete(&path).await.unwrap();
        }
        self.manifests = TenantManifests::new(self.manifests.bucket().clone(), Duration::ZERO);
        assert_eq!(self.manifests.probe(&tenant()).await.unwrap().version, version);
        aside
    }

    /// Brings them back.
    pub(crate) async fn bring_back(&self, aside: Vec<(Path, Bytes)>) {
        for (path, bytes) in aside {
            self.store.put(&path, bytes.into()).await.unwrap();
        }
    }
}

/// What a store finds that looks for uploads which were never listed.
async fn unlisted(w: &World) -> Unlisted {
    let bucket = w.manifests.bucket();
    let uploaded = bucket.uploaded_blocks(&tenant()).await.unwrap();
    let manifest = bucket.latest(&tenant()).await.unwrap();
    bucket
        .unlisted(&manifest, uploaded, w.clock.now_ms())
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn i10_a_first_block_that_its_member_did_not_live_to_list_is_no_sign_of_a_lost_manifest() {
    let mut w = World::start(1).await;
    fill(&mut w, T0).await;
    w.store.lists_nothing.store(true, Ordering::Relaxed);
    w.flush(0).await.unwrap_err();
    w.crash(0).await;
    w.store.lists_nothing.store(false, Ordering::Relaxed);
    w.sleep(2 * DAY).await;
    let found = unlisted(&w).await;
    assert!(!found.orphans.is_empty() && found.unknown.is_empty(), "{found:?}");
    // It comes back, lists what it holds, and the rest is still known for what it is.
    w.boot(0).await;
    w.flush(0).await.unwrap();
    w.check(&w.query(0).await);
    assert_eq!(unlisted(&w).await, found);
}

#[tokio::test(start_paused = true)]
async fn i10_nothing_is_listed_in_a_manifest_that_shows_less_than_this_member_has_listed() {
    let mut w = World::start(1).await;
    for round in 0..3 {
        fill(&mut w, T0 + round * 2 * HOUR).await;
        w.flush(0).await.unwrap();
    }
    let newest = w.manifests.probe(&tenant()).await.unwrap().version;
    fill(&mut w, T0 + 6 * HOUR).await;
    w.crash(0).await;
    let aside = w.lose_versions_above(1).await;
    let uploaded = w.manifests.bucket().uploaded_blocks(&tenant()).await.unwrap();
    w.boot(0).await;
    let refused = w.flush(0).await.unwrap_err().to_string();
    assert!(refused.contains("was announced"), "{refused}");
    assert_eq!(w.manifests.probe(&tenant()).await.unwrap().version, 1);
    let now = w.manifests.bucket().uploaded_blocks(&tenant()).await.unwrap();
    assert_eq!(now, uploaded, "nor is anything uploaded for it");
    // Whoever else would commit to it is told.
    assert_eq!(w.deletions(0, 0).await.unwrap().announced(), newest);
    w.bring_back(aside).await;
    w.flush(0).await.unwrap();
    w.check(&w.query(0).await);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_cannot_be_read_does_not_say_that_the_bucket_is_down() {
    let mut w = World::start(1).await;
    fill(&mut w, T0).await;
    w.flush(0).await.unwrap();
    fill(&mut w, T0 + 2 * HOUR).await;
    let next = w.manifests.probe(&tenant()).await.unwrap().version + 1;
    let path = Path::from(format!("{}/manifest/{next:020}.json", tenant()));
    w.store.put(&path, "damaged".into()).await.unwrap();
    w.flush(0).await.unwrap_err();
    assert!(!w.node(0).status().bucket_down, "it answers");
    w.store.delete(&path).await.unwrap();
    w.store.lists_nothing.store(true, Ordering::Relaxed);
    w.flush(0).await.unwrap_err();
    assert!(w.node(0).status().bucket_down);
    w.store.lists_nothing.store(false, Ordering::Relaxed);
    w.flush(0).await.unwrap();
    assert!(!w.node(0).status().bucket_down);
}
