//! The newest version of the manifest is damaged, and an operator makes it anew.

use koios_bucket::Manifest;

use crate::world::{Actor, World};

/// Tries of an operator whom the bucket fails.
const TRIES: usize = 60;

impl World {
    pub(crate) async fn rebuild(&self) -> Result<(), String> {
        let versions = self.bucket.names().await;
        let is_version = |n: &&String| n.contains("/manifest/") && n.ends_with(".json");
        let Some(newest) = versions.iter().rfind(is_version) else {
            return Ok(());
        };
        let handle = self.handle(Actor::Operator);
        let manifests = self.client(&handle);
        if manifests.probe(&self.tenant).await.is_ok() {
            self.bucket
                .damage(newest, bytes::Bytes::from_static(b"damaged"))
                .await;
        }
        let bucket = manifests.bucket();
        let plan = bucket.plan_rebuild(&self.tenant).await;
        let plan = plan.map_err(|e| e.to_string())?;
        if plan.is_needless() {
            return Ok(());
        }
        let rebuilt = bucket.rebuild_manifest(&plan, "operator").await;
        rebuilt.map(|_| ()).map_err(|e| e.to_string())
    }

    /// The same as documented: all processes are ended before, and started after. Nothing happens where the newest version alone says
    /// something of deletions or retention, which nobody can know then.
    pub(crate) async fn rebuild_alone(&self) -> Result<(), String> {
        let Ok(newest) = self.manifests.probe(&self.tenant).await else {
            return Ok(());
        };
        let before = newest.version.saturating_sub(1);
        let before = self.manifests.bucket().manifest(&self.tenant, before).await;
        let says_the_same =
            |m: &Manifest| m.tombstones == newest.tombstones && m.retention == newest.retention;
        if !matches!(&before, Ok(Some(m)) if says_the_same(m)) {
            return Ok(());
        }
        self.note(format!("version {} of the manifest is damaged", newest.version));
        for actor in self.actors() {
            self.end(actor).await;
        }
        for _ in 0..TRIES {
            self.start(Actor::Operator).await;
            match self.rebuild().await {
                Ok(()) => {
                    self.note("the manifest is rebuilt");
                    for actor in self.actors() {
                        self.start(actor).await;
                    }
                    self.start_reader();
                    return Ok(());
                }
                Err(failure) => {
                    self.note(format!("rebuild: {failure}"));
                    self.sleep(5).await;
                }
            }
        }
        Err("the manifest is never rebuilt".to_owned())
    }
}
