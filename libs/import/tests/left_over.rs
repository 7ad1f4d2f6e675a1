//! Files that nobody needs any more, and that the storage does not delete.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use koios_block::BlockId;
use koios_bucket::Bucket;
use koios_import::{ImportSettings, Importer, UploadState, Uploads};
use koios_model::{Labels, TenantId};
use koios_runtime::{Clock, ClockHandle, Cpu, MemoryWatch, RealClock, RngHandle, TokioClock};
use koios_testkit::tsdb::TsdbContent;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// By name, the first of these is looked at first.
const ULIDS: [&str; 4] = [
    "01BKGTZQ1SYQJTR4PB43C8PD90",
    "01BKGTZQ1SYQJTR4PB43C8PD91",
    "01BKGTZQ1SYQJTR4PB43C8PD92",
    "01BKGTZQ1SYQJTR4PB43C8PD93",
];

fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn id(ulid: &str) -> BlockId {
    ulid.parse().unwrap()
}

/// A storage that deletes nothing while it is told not to.
#[derive(Debug)]
struct Keeping {
    inner: Arc<InMemory>,
    /// Whether it does not even answer.
    is_silent: bool,
    is_healed: AtomicBool,
    refused: AtomicUsize,
}

impl Keeping {
    fn check(&self, path: &Path) -> Result<()> {
        if self.is_healed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        match self.is_silent {
            true => Err(object_store::Error::Generic {
                store: "keeping",
                source: "503".into(),
            }),
            false => Err(object_store::Error::PermissionDenied {
                path: path.to_string(),
                source: "403: it is locked".into(),
            }),
        }
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keeping")
    }
}

/// So that streams may hold it.
#[derive(Clone, Debug)]
struct Store(Arc<Keeping>);

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |path: Result<Path>| {
            let store = store.clone();
            async move {
                let path = path?;
                store.0.check(&path)?;
                store.0.inner.delete(&path).await.map(|()| path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}

struct World {
    clock: ClockHandle,
    store: Arc<Keeping>,
    bucket: Bucket,
    uploads: Uploads,
}

impl World {
    fn new(is_silent: bool) -> Self {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(RealClock::new().now_ms()));
        let store = Arc::new(Keeping {
            inner: Arc::new(InMemory::new()),
            is_silent,
            is_healed: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
        });
        let objects = Arc::new(Store(Arc::clone(&store)));
        let bucket = Bucket::new(objects, "", Arc::clone(&clock), RngHandle::from_seed(1));
        let uploads = Uploads::new(Importer {
            bucket: bucket.clone(),
            settings: ImportSettings::default(),
            writer: "test".to_owned(),
            clock: Arc::clone(&clock),
            rng: RngHandle::from_seed(2),
            cpu: Cpu::inline(),
            memory: MemoryWatch::default(),
        });
        Self {
            clock,
            store,
            bucket,
            uploads,
        }
    }

    /// Begins an upload, and finishes it where it is to be imported.
    async fn upload(&self, ulid: &str, is_finished: bool) {
        let from = self.clock.now_ms() - 3 * 24 * 3_600_000;
        let samples: Vec<_> = (0..500).map(|i| (from + i * 15_000, i as f64)).collect();
        let content = TsdbContent {
            ulid: ulid.to_owned(),
            ..TsdbContent::default()
        };
        let up = Labels::from_pairs([("__name__", "up"), ("block", ulid)]);
        let files = content.with_floats(up, &samples, 120).files();
        let (uploads, block) = (&self.uploads, id(ulid));
        let meta = Bytes::from(files["meta.json"].clone());
        uploads.start(&tenant(), block, &meta, false).await.unwrap();
        for name in ["index", "chunks/000001"] {
            let mut file = uploads.begin_file(&tenant(), block, name, None).await.unwrap();
            file.write(&files[name]).await.unwrap();
            file.finish().await.unwrap();
        }
        if is_finished {
            uploads.finish(&tenant(), block).await.unwrap();
        }
    }

    async fn sleep(&self, hours: u64) {
        self.clock.sleep(Duration::from_secs(hours * 3600)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_files_are_not_deleted_keeps_no_other_from_being_imported() {
    for is_silent in [false, true] {
        let w = World::new(is_silent);
        w.upload(ULIDS[0], false).await;
        // Nobody finishes it.
        w.sleep(25).await;
        w.upload(ULIDS[1], true).await;
        w.upload(ULIDS[2], true).await;
        w.upload(ULIDS[3], true).await;
        assert_eq!(w.uploads.work(&tenant()).await.unwrap(), 3, "{is_silent}");
        assert_eq!(w.bucket.latest(&tenant()).await.unwrap().imports.len(), 3);
        // They are complete, whatever is left of their files, and are not asked for again and again.
        let refused = w.store.refused.load(Ordering::Relaxed);
        for _ in 0..8 {
            assert_eq!(w.uploads.work(&tenant()).await.unwrap(), 0, "{is_silent}");
        }
        if !is_silent {
            assert_eq!(w.store.refused.load(Ordering::Relaxed), refused);
        }
        for ulid in &ULIDS[1..] {
            let state = w.uploads.state(&tenant(), id(ulid)).await.unwrap();
            assert_eq!(state, UploadState::Complete, "{is_silent}");
        }
        // Once they may go, they do.
        w.store.is_healed.store(true, Ordering::Relaxed);
        w.sleep(26).await;
        w.uploads.work(&tenant()).await.unwrap();
        assert!(w.bucket.uploads(&tenant()).await.unwrap().is_empty());
    }
}
