//! Listings: as long as they need to be, however slow the storage, and whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{tenant, writer};
use futures::stream::{self, BoxStream, StreamExt};
use koios_block::{BlockId, BlockOptions, BlockWriter};
use koios_bucket::{Bucket, Error, TenantManifests};
use koios_model::{Labels, TimeRange};
use koios_runtime::{ClockHandle, RngHandle, TokioClock};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// Objects on a page.
const PAGE: usize = 10;
/// What a page takes.
const PAGE_TAKES: Duration = Duration::from_secs(5);

/// A store that lists page by page, each of which takes a while.
#[derive(Debug)]
struct Paged {
    inner: Arc<InMemory>,
    clock: ClockHandle,
    /// Every so many-th page fails; 0 for none.
    fails_every: u32,
    /// The last page that may.
    fails_until: u32,
    /// Every so many-th page never comes; 0 for none.
    hangs_every: u32,
    is_sorted: bool,
    pages: Arc<AtomicU32>,
    listings: AtomicU32,
}

impl Paged {
    fn pages(
        &self,
        objects: BoxStream<'static, object_store::Result<ObjectMeta>>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (fails_every, fails_until, hangs_every) = (self.fails_every, self.fails_until, self.hangs_every);
        let (clock, pages, is_sorted) = (Arc::clone(&self.clock), Arc::clone(&self.pages), self.is_sorted);
        let all = stream::once(async move {
            let mut all: Vec<_> = objects.map(Result::unwrap).collect().await;
            if !is_sorted {
                all.reverse();
            }
            all
        });
        let pages = all
            .flat_map(|all| stream::iter(all).chunks(PAGE).boxed())
            .then(move |page| {
                let (clock, n) = (Arc::clone(&clock), pages.fetch_add(1, Ordering::Relaxed) + 1);
                let comes_up = move |every: u32| every != 0 && n.is_multiple_of(every);
                async move {
                    clock.sleep(PAGE_TAKES).await;
                    if comes_up(hangs_every) {
                        std::future::pending::<()>().await;
                    }
                    match comes_up(fails_every) && n <= fails_until {
                        true => vec![Err(object_store::Error::Generic {
                            store: "paged",
                            source: "injected".into(),
                        })],
                        false => page.into_iter().map(Ok).collect(),
                    }
                }
            });
        pages.flat_map(stream::iter).boxed()
    }
}

impl fmt::Display for Paged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("paged")
    }
}

#[async_trait]
impl ObjectStore for Paged {
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
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        self.pages(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.pages(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn id(n: u32) -> BlockId {
    BlockId::new(1_700_000_000_000, u128::from(n))
}

/// A bucket with so many uploads, and its store.
async fn uploads(count: u32, change: impl FnOnce(&mut Paged)) -> (Bucket, Arc<Paged>) {
    let inner = Arc::new(InMemory::new());
    for n in 0..count {
        let path = Path::from(format!("{}/uploads/{}/meta.json", tenant(), id(n)));
        inner.put(&path, PutPayload::from_static(b"{}")).await.unwrap();
    }
    let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let mut store = Paged {
        inner,
        clock: Arc::clone(&clock),
        fails_every: 0,
        fails_until: u32::MAX,
        hangs_every: 0,
        is_sorted: true,
        pages: Arc::default(),
        listings: AtomicU32::new(0),
    };
    change(&mut store);
    let store = Arc::new(store);
    let bucket = Bucket::new(Arc::<Paged>::clone(&store), "", clock, RngHandle::from_seed(1));
    (bucket, store)
}

#[tokio::test(start_paused = true)]
async fn i9_a_listing_may_take_longer_than_a_request_and_goes_on_where_it_was() {
    for (fails_every, hangs_every) in [(0, 0), (7, 0), (3, 5)] {
        let change = |s: &mut Paged| (s.fails_every, s.hangs_every) = (fails_every, hangs_every);
        // Four minutes of pages.
        let (bucket, store) = uploads(500, change).await;
        let found = bucket.uploads(&tenant()).await.unwrap();
        assert_eq!(found, (0..500).map(id).collect::<Vec<_>>());
        assert_eq!(store.listings.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn i4_a_listing_that_is_not_sorted_begins_anew_and_is_whole_or_fails() {
    let unsorted = |fails_every, fails_until| {
        move |s: &mut Paged| (s.is_sorted, s.fails_every, s.fails_until) = (false, fails_every, fails_until)
    };
    // Of thirty pages.
    for (fails_until, listings) in [(0, 1), (40, 3)] {
        let (bucket, store) = uploads(300, unsorted(20, fails_until)).await;
        assert_eq!(bucket.uploads(&tenant()).await.unwrap().len(), 300);
        assert_eq!(store.listings.load(Ordering::Relaxed), listings);
    }
    let (bucket, _) = uploads(300, unsorted(5, u32::MAX)).await;
    let error = bucket.uploads(&tenant()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn i9_a_listing_of_a_storage_that_is_gone_ends() {
    let (bucket, _) = uploads(300, |s| s.hangs_every = 1).await;
    let error = bucket.uploads(&tenant()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_without_a_version_is_not_listed_at_each_look_and_its_first_one_is_seen_at_once() {
    let (bucket, store) = uploads(3, |_| {}).await;
    let manifests = TenantManifests::new(bucket.clone(), Duration::ZERO);
    let listings = || store.listings.swap(0, Ordering::Relaxed);
    for _ in 0..10 {
        assert_eq!(manifests.probe(&tenant()).await.unwrap().version, 0);
    }
    assert_eq!(listings(), 2, "blocks and versions, once");
    store.clock.sleep(Duration::from_secs(301)).await;
    manifests.probe(&tenant()).await.unwrap();
    assert_eq!(listings(), 2, "not for ever");
    // Whoever was told of a version looks.
    assert!(manifests.at_least(&tenant(), 1).await.is_err());
    assert_eq!(listings(), 2);
    let begun = bucket.begin(&tenant(), &writer(1)).await.unwrap();
    listings();
    assert_eq!(manifests.probe(&tenant()).await.unwrap(), begun);
    assert_eq!(listings(), 0);
}

#[tokio::test(start_paused = true)]
async fn i10_nothing_is_committed_because_there_was_no_version_a_while_ago() {
    let (bucket, store) = uploads(3, |_| {}).await;
    let manifests = TenantManifests::new(bucket.clone(), Duration::ZERO);
    assert_eq!(manifests.probe(&tenant()).await.unwrap().version, 0);
    // All versions of somebody else are gone by now, and a block is left of them.
    let options = BlockOptions {
        clean_up_to: 7,
        ..BlockOptions::new(id(1), tenant(), TimeRange::new(0, 7_199_999))
    };
    let mut block = BlockWriter::new(options).unwrap();
    let labels = Labels::from_pairs([("__name__", "m")]);
    block.push_series(&labels, None, &[1], &[1.0]).unwrap();
    let block = block.finish().unwrap().unwrap();
    bucket.upload_block(&tenant(), &block).await.unwrap();
    let commits = [
        manifests.commit(&tenant(), &writer(1), |_| Ok(())).await,
        manifests.claim(&tenant(), &writer(1)).await,
        manifests.begin(&tenant(), &writer(1)).await,
    ];
    for committed in commits {
        assert!(
            matches!(committed, Err(Error::Lost { seen: 7, .. })),
            "{committed:?}"
        );
    }
    let versions = Path::from(format!("{}/manifest", tenant()));
    let versions: Vec<_> = store.inner.list(Some(&versions)).collect().await;
    assert!(versions.is_empty(), "{versions:?}");
}
