//! Claims about blocks that are there and that the storage does not hand out, and about what else it refuses.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

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
}

/// A storage that refuses something.
#[derive(Debug)]
struct Refusing {
    inner: Arc<InMemory>,
    refusal: Refusal,
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
        let Refusal::Keeps(block) = self.refusal else {
            return self.inner.delete_stream(paths);
        };
        let inner = Arc::clone(&self.inner);
        let delete = move |path: object_store::Result<Path>| {
            let inner = Arc::clone(&inner);
            async move {
                let path = path?;
                if path.as_ref().contains(&block.to_string()) {
                    return Err(object_store::Error::PermissionDenied {
                        path: path.to_string(),
                        source: "403: it is locked".into(),
                    });
                }
                inner.delete(&path).await.map(|()| path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.refusal {
            Refusal::Lists => stream::iter([Err(broken())]).boxed(),
            Refusal::Denied(_) | Refusal::Fails(_) | Refusal::Keeps(_) => self.inner.list(prefix),
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
        let inner = Arc::clone(&self.objects);
        self.compactor_on(self.manifests_on(Arc::new(Refusing { inner, refusal })))
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
async fn a_block_that_the_storage_does_not_delete_keeps_no_other_from_being_deleted() {
    let mut world = World::new(11);
    world.day().await;
    compact(&mut world.compactor()).await;
    let merged = world.manifest().await;
    let (live, dead): (BTreeSet<_>, Vec<_>) = (
        merged.blocks.iter().map(|b| b.block).collect(),
        merged.dead.iter().map(|d| d.block).collect(),
    );
    assert!(dead.len() > 3, "{dead:?}");
    let kept = dead[0];
    let mut compactor = world.refusing(Refusal::Keeps(kept));
    for _ in 0..3 {
        compact(&mut compactor).await;
        world.sleep(3601).await;
    }
    let expected: BTreeSet<_> = live.iter().copied().chain([kept]).collect();
    assert_eq!(world.blocks_with_bytes().await, expected);
    assert!(compactor.metrics.failures.get() > 0, "and that is told");
    // Once it may go, it does.
    let mut compactor = world.compactor();
    for _ in 0..3 {
        compact(&mut compactor).await;
        world.sleep(3601).await;
    }
    assert_eq!(world.blocks_with_bytes().await, live);
}
