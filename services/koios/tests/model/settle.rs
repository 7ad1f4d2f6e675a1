//! The end of every run: everything heals, and then the bucket holds what the model says and nothing else.

use std::collections::BTreeSet;

use koios_block::{BlockId, BlockMeta};
use koios_ingester::Ingester;
use koios_testkit::sim_bucket::BucketFaults;
use koios_wire::{DeletionsRequest, IngesterService};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::steps::Step;
use crate::world::{Actor, HOUR, PARTITION, World};

const DAY: u64 = 24 * 3600;

impl World {
    /// Heals everything and looks at everything.
    pub(crate) async fn settle(&self) -> Result<(), String> {
        self.note("everything heals");
        *self.faults.lock() = BucketFaults::NONE;
        for actor in self.actors() {
            let handle = self.handle(actor);
            handle.release();
            handle.spare();
            if handle.is_dead() {
                self.start(actor).await;
            }
            self.handle(actor).set_faults(BucketFaults::NONE);
        }
        for _ in 0..10 {
            match self.push_unanswered().await {
                Ok(()) => break,
                Err(_) => self.sleep(30).await,
            }
        }
        if self.oracle.lock().has_unacknowledged() {
            return Err("a healed cluster takes no samples".to_owned());
        }
        // Members that were away take over what they missed.
        if self.setup.members > 1 {
            self.sleep(900).await;
        }
        self.wait_counting().await?;
        self.know_deletions().await?;
        self.check_whole("healed").await?;
        for i in 0..self.setup.members {
            self.until_done(&Step::Cut(i)).await?;
        }
        self.check_whole("cut").await?;
        for i in 0..self.setup.members {
            self.start(Actor::Ingester(i)).await;
        }
        self.wait_counting().await?;
        self.check_whole("all have lost power").await?;
        self.compact_all().await?;
        self.check_whole("compacted").await?;
        // Deletions become final, uploads in vain are old, dead bytes have no readers.
        self.sleep(DAY + DAY / 8).await;
        for _ in 0..4 {
            self.sleep(2 * 3600).await;
            self.compact_all().await?;
        }
        self.expect_gone();
        self.check_whole("collected").await?;
        self.start_reader();
        self.check_whole("collected, without caches").await?;
        self.check_bucket().await
    }

    /// What readers leave out by now.
    fn expect_gone(&self) {
        let from = self.kept_from().filter(|_| self.setup.hides_old());
        if let Some(from) = from {
            self.oracle.lock().must_be_gone(from - HOUR);
        }
    }

    /// Waits until every member answers for what it acknowledged.
    async fn wait_counting(&self) -> Result<(), String> {
        let counts = || {
            let all = self.network.directory.all();
            let statuses = all.iter().flat_map(|ingester| ingester.status().partitions);
            statuses.filter(|p| p.counts).count() == self.setup.members
        };
        for _ in 0..120 {
            if counts() {
                return Ok(());
            }
            self.sleep(1).await;
        }
        let all = self.network.directory.all();
        let statuses: Vec<_> = all.iter().map(|ingester| ingester.status()).collect();
        Err(format!("a healed member does not count for reads: {statuses:?}"))
    }

    /// Whoever asked for a deletion and heard nothing looks whether it is listed, and has it applied.
    async fn know_deletions(&self) -> Result<(), String> {
        self.note_deletions().await;
        let version = self
            .manifests
            .known(&self.tenant)
            .map_or(0, |m| m.deletions_version());
        for ingester in self.network.directory.all() {
            self.apply_deletions(&ingester, version).await?;
        }
        self.oracle.lock().quiet();
        Ok(())
    }

    /// What was under way when everything healed may fail still. What was stored otherwise before is not sent again at once.
    async fn apply_deletions(&self, ingester: &Ingester, version: u64) -> Result<(), String> {
        let mut last = String::new();
        for tried in 0..10 {
            if tried > 5 {
                self.sleep(900).await;
            }
            let request = DeletionsRequest {
                tenant: self.tenant.clone(),
                partition: PARTITION,
                epoch: 1,
                version,
                with_held: false,
            };
            match ingester.deletions(request).await {
                Ok(_) => return Ok(()),
                Err(e) => last = e.to_string(),
            }
        }
        Err(format!("a healed member does not apply deletions: {last}"))
    }

    /// Compacts until nothing changes.
    async fn compact_all(&self) -> Result<(), String> {
        let mut before = 0;
        for _ in 0..10 {
            self.until_done(&Step::Compact(1)).await?;
            let version = self.manifests.probe(&self.tenant).await.unwrap().version;
            if version == before {
                return Ok(());
            }
            before = version;
            // Some looks are rarer than visits.
            self.sleep(301).await;
        }
        Ok(())
    }

    /// The folders of blocks whose `meta.json` was stored otherwise than it was sent, and cannot be read.
    async fn unreadable(&self, found: &BTreeSet<String>) -> BTreeSet<String> {
        let mut unreadable = BTreeSet::new();
        for name in found.iter().filter(|name| name.ends_with("/meta.json")) {
            let (folder, block) = block_of(name);
            let json = self.bucket.objects().get(&Path::from(name.as_str())).await;
            let json = json.unwrap().bytes().await.unwrap();
            let is_read = block.is_some_and(|block| BlockMeta::from_json(block, &json).is_ok());
            if !is_read {
                unreadable.insert(folder.to_owned());
            }
        }
        unreadable
    }

    /// Nothing is there that no reader needs, and nothing is missing.
    async fn check_bucket(&self) -> Result<(), String> {
        let manifest = self.manifests.probe(&self.tenant).await.unwrap();
        let mut wanted = BTreeSet::new();
        for block in &manifest.blocks {
            for part in &block.parts {
                wanted.insert(format!("{}/blocks/{}/{}", self.tenant, block.block, part.name));
            }
        }
        let names = self.bucket.names().await.into_iter();
        let found: BTreeSet<String> = names.filter(|n| n.contains("/blocks/")).collect();
        if let Some(missing) = wanted.difference(&found).next() {
            return Err(format!("{missing} is listed and gone"));
        }
        let unreadable = self.unreadable(&found).await;
        // What was uploaded whole before the first version stays: nobody can say that no lost one listed it. Nor of what says nothing.
        let is_unknown = |name: &&String| {
            let (folder, block) = block_of(name);
            let is_before = block.is_some_and(|b| b.time_ms() < manifest.begun_ms);
            is_before && found.contains(&format!("{folder}/meta.json")) || unreadable.contains(folder)
        };
        let mut orphans = found.difference(&wanted).filter(|name| !is_unknown(name));
        if let Some(orphan) = orphans.next() {
            return Err(format!("{orphan} stays although nothing lists it"));
        }
        for block in manifest.blocks.iter().filter(|b| b.resolution_ms == 0) {
            let is_past = self
                .kept_from()
                .is_some_and(|from| block.range.max < from - 4 * HOUR);
            if is_past {
                return Err(format!(
                    "all of block {} is too old, and it is listed",
                    block.block
                ));
            }
            for (key, held) in self.bytes_of(block).await.iter() {
                if !self.oracle.lock().may_be_kept(key, held) {
                    return Err(format!(
                        "{key:?} was deleted for good and is in block {}",
                        block.block
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The folder of an object, and the block that it is of.
fn block_of(name: &str) -> (&str, Option<BlockId>) {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let block = folder.rsplit('/').next().and_then(|b| b.parse().ok());
    (folder, block)
}
