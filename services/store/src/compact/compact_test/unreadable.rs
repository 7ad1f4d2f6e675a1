//! Claims about blocks that are there and that the storage does not hand out, and about what else it refuses.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

use super::*;

/// What a storage does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// One block's samples are kept back by a right or a key.
    Denied(BlockId),
    /// They cannot be read.
    Fails(BlockId),
    /// Nothing is listed.
    Lists,
    /// Nothing of one block is deleted.
    Keeps(BlockId),
    /// It is not said why.
    BusyWith(BlockId),
    /// Nothing is deleted.
    KeepsAll,
    /// No deletion is answered.
    DeletesNothing,
}

impl Refusal {
    /// What comes of a deletion.
    fn of_deletion(self, path: &Path) -> object_store::Result<()> {
        let denied = || object_store::Error::PermissionDenied {
            path: path.to_string(),
            source: "403: it is locked".into(),
        };
        let is_of = |block: BlockId| path.as_ref().contains(&block.to_string());
        match self {
            Self::Keeps(block) if is_of(block) => Err(denied()),
            Self::KeepsAll => Err(denied()),
            Self::BusyWith(block) if is_of(block) => Err(broken()),
            Self::DeletesNothing => Err(broken()),
            _ => Ok(()),
        }
    }
}

/// A storage that refuses something.
#[derive(Debug)]
struct Refusing {
    inner: Arc<InMemory>,
    refusal: Refusal,
    /// The blocks of which something was to be deleted, in the order in which that was asked for.
    deletions: Arc<Mutex<Vec<BlockId>>>,
}

impl Refusing {
    fn check(&self, path: &Path) -> object_store::Result<()> {
        let is_of = |block: BlockId| {
            path.as_ref().contains(&block.to_string()) && path.as_ref().ends_with("samples.parquet")
        };
        match self.refusal {
            Refusal::Denied(block) if is_of(block) => Err(object_store::Error::PermissionDenied {
                path: path.to_string(),
                source: "403".into(),
            }),
            Refusal::Fails(block) if is_of(block) => Err(broken()),
            _ => Ok(()),
        }
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "refusing",
        source: "input/output error".into(),
    }
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refusing")
    }
}

#[async_trait]
impl ObjectStore for Refusing {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.check(path)?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.check(path)?;
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, refusal) = (Arc::clone(&self.inner), self.refusal);
        let deletions = Arc::clone(&self.deletions);
        let delete = move |path: object_store::Result<Path>| {
            let (inner, deletions) = (Arc::clone(&inner), Arc::clone(&deletions));
            async move {
                let path = path?;
                let block = path.parts().find_map(|p| p.as_ref().parse::<BlockId>().ok());
                deletions.lock().extend(block);
                refusal.of_deletion(&path)?;
                inner.delete(&path).await.map(|()| path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.refusal {
            Refusal::Lists => stream::iter([Err(broken())]).boxed(),
            _ => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl World {
    fn refusing(&self, refusal: Refusal) -> Compactor {
        self.telling(refusal).0
    }

    /// The same, and what is asked to be deleted.
    fn telling(&self, refusal: Refusal) -> (Compactor, Arc<Mutex<Vec<BlockId>>>) {
        let (inner, deletions) = (Arc::clone(&self.objects), Arc::default());
        let store = Refusing {
            inner,
            refusal,
            deletions: Arc::clone(&deletions),
        };
        (self.compactor_on(self.manifests_on(Arc::new(store))), deletions)
    }

    /// Merges a day; the blocks that are live then, and those that are dead.
    async fn merged_day(&mut self) -> (BTreeSet<BlockId>, Vec<BlockId>) {
        self.day().await;
        compact(&mut self.compactor()).await;
        let merged = self.manifest().await;
        let live = merged.blocks.iter().map(|b| b.block).collect();
        (live, merged.dead.iter().map(|d| d.block).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn i11_a_block_that_cannot_be_read_is_left_alone_and_the_rest_goes_on() {
    for refusal in [Refusal::Denied, Refusal::Fails] {
        let mut world = World::new(7);
        world.settings.retention = Duration::from_secs(40 * 24 * 3600);
        world.settings.undelete_window = Duration::ZERO;
        world.day().await;
        let bad = world.manifest().await.blocks[2].block;
        let old = world.some_data(-302..-300);
        let old = world.cut(-302..-300, &old).await;
        let mut compactor = world.refusing(refusal(bad));
        for _ in 0..6 {
            compact(&mut compactor).await;
            world.sleep(61).await;
        }
        let what = format!("{:?}", refusal(bad));
        let left = world.manifest().await;
        assert!(left.is_dead(old), "{what}: what is too old goes");
        assert!(left.block(bad).is_some(), "{what}");
        assert_eq!(left.blocks.len(), 2, "{what}");
        let now = world.clock.elapsed();
        let reported = |c: &Compactor| c.tenants[&world.tenant].reported(now);
        assert_eq!(reported(&compactor), 1, "{what}");
        // It is not lost: what asks for it again finds it.
        world.settings.retention = Duration::ZERO;
        compact(&mut world.compactor()).await;
        assert!(world.manifest().await.block(bad).is_some() || world.manifest().await.blocks.len() == 1);
    }
}

#[tokio::test(start_paused = true)]
async fn i9_a_bucket_that_is_gone_puts_no_block_aside() {
    let mut world = World::new(8);
    world.day().await;
    let crashing = Crashing::over(&world.objects, 40, false);
    let mut compactor = world.compactor_on(world.manifests_on(Arc::<Crashing>::clone(&crashing) as _));
    for _ in 0..6 {
        compactor.visit_all().await;
        world.sleep(61).await;
    }
    assert!(crashing.has_crashed());
    let known = compactor.tenants.get_mut(&world.tenant).unwrap();
    assert!(known.bad(world.clock.elapsed()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn i9_merges_go_on_while_nothing_can_be_listed() {
    let mut world = World::new(9);
    world.day().await;
    let mut compactor = world.refusing(Refusal::Lists);
    compact(&mut compactor).await;
    assert_eq!(world.manifest().await.blocks.len(), 1);
    assert!(compactor.metrics.failures.get() > 0);
    world.check("merged").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_told_with_its_age_right_after_a_start() {
    let mut world = World::new(10);
    world.clock = Arc::new(TokioClock::starting_at(20 * HOUR));
    let data = world.some_data(0..2);
    world.clock = Arc::new(TokioClock::starting_at(2 * HOUR));
    world.cut(0..2, &data).await;
    world.cut(0..2, &data).await;
    world.clock = Arc::new(TokioClock::starting_at(20 * HOUR));
    let mut compactor = world.compactor();
    let told = configured(&world.tenant, &world.settings, &world.overrides);
    let (_, standing) = compactor.stand(&*world.manifest().await, &told);
    // The window of two hours, and that of twelve.
    assert_eq!(standing.oldest_due, Duration::from_secs(20 * 3600 - 165 * 60));
    compact(&mut compactor).await;
    let (_, standing) = compactor.stand(&*world.manifest().await, &told);
    assert_eq!(standing.oldest_due, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_alone_is_due_all_the_same_until_it_is_given_up() {
    let mut world = downsampled::world(13);
    world.day().await;
    let downsampling = std::mem::take(&mut world.settings.downsampling);
    compact(&mut world.compactor()).await;
    world.settings.downsampling = downsampling;
    let manifest = world.manifest().await;
    let mut compactor = world.compactor();
    let told = configured(&world.tenant, &world.settings, &world.overrides);
    let (_, before) = compactor.stand(&manifest, &told);
    assert!(before.has_work && before.due_downsamplings == 1);
    for fails in 1..4u32 {
        let known = compactor.tenants.get_mut(&world.tenant).unwrap();
        known.note_failed(names(&manifest.blocks), world.clock.elapsed());
        let (jobs, stuck) = compactor.stand(&manifest, &told);
        assert!(jobs.is_empty() && !stuck.has_work);
        assert_eq!((stuck.due_downsamplings, stuck.bad), (1, manifest.blocks.len()));
        let passed = Duration::from_secs(6 * 3600) * (fails - 1);
        assert_eq!(
            stuck.oldest_due_downsampling,
            before.oldest_due_downsampling + passed
        );
        world.sleep(6 * 3600).await;
    }
    // What is surely damaged nothing waits for.
    for _ in 0..2 {
        let known = compactor.tenants.get_mut(&world.tenant).unwrap();
        for block in names(&manifest.blocks) {
            known.note_damaged(block, world.clock.elapsed());
        }
    }
    let (_, given_up) = compactor.stand(&manifest, &told);
    assert_eq!(
        (given_up.due_downsamplings, given_up.oldest_due_downsampling),
        (0, Duration::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn a_block_that_the_storage_does_not_delete_keeps_no_other_from_being_deleted() {
    for refusal in [Refusal::Keeps, Refusal::BusyWith] {
        let mut world = World::new(11);
        let (live, dead) = world.merged_day().await;
        assert!(dead.len() > 10, "{dead:?}");
        let kept = dead[0];
        let what = format!("{:?}", refusal(kept));
        let mut compactor = world.refusing(refusal(kept));
        for _ in 0..3 {
            compact(&mut compactor).await;
            world.sleep(3601).await;
        }
        let expected: BTreeSet<_> = live.iter().copied().chain([kept]).collect();
        assert_eq!(world.blocks_with_bytes().await, expected, "{what}");
        assert!(compactor.metrics.failures.get() > 0, "{what}: and that is told");
        // Once it may go, it does.
        let mut compactor = world.compactor();
        for _ in 0..3 {
            compact(&mut compactor).await;
            world.sleep(3601).await;
        }
        assert_eq!(world.blocks_with_bytes().await, live, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_deletes_nothing_is_asked_for_a_few_blocks_only_and_for_others_next_time() {
    for (refusal, at_a_time) in [(Refusal::KeepsAll, 8), (Refusal::DeletesNothing, 2)] {
        let mut world = World::new(12);
        let (_, dead) = world.merged_day().await;
        assert!(dead.len() > 2 * at_a_time, "{dead:?}");
        let (mut compactor, deletions) = world.telling(refusal);
        // They are seen dead.
        compactor.visit_all().await;
        world.sleep(3601).await;
        let mut asked = Vec::new();
        for _ in 0..2 {
            compactor.visit_all().await;
            let now: BTreeSet<BlockId> = deletions.lock().drain(..).collect();
            asked.push(now);
        }
        let expected = |from: usize| {
            dead.iter()
                .skip(from)
                .take(at_a_time)
                .copied()
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(asked, [expected(0), expected(at_a_time)], "{refusal:?}");
        // After an hour they are tried again.
        world.sleep(3601).await;
        deletions.lock().clear();
        compactor.visit_all().await;
        let again: BTreeSet<BlockId> = deletions.lock().drain(..).collect();
        assert_eq!(again, expected(0), "{refusal:?}");
    }
}
