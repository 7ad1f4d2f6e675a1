//! Builders shared by the tests of the bucket.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod life;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use koios_block::{BlockId, BlockMeta, BlockOptions, BlockParts, BlockWriter, PartMeta};
use koios_bucket::{Bucket, ManifestBlock, RetryPolicy, Writer};
use koios_model::{Labels, PartitionId, TenantId, TimeRange};
use koios_runtime::{ClockHandle, RealClock, RngHandle};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

pub(crate) fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

pub(crate) fn clock() -> ClockHandle {
    Arc::new(RealClock::new())
}

pub(crate) fn bucket_over(store: Arc<dyn ObjectStore>, seed: u64) -> Bucket {
    Bucket::new(store, "prefix", clock(), RngHandle::from_seed(seed)).with_retry(RetryPolicy {
        attempt_timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(60),
        backoff_min: Duration::from_micros(50),
        backoff_max: Duration::from_micros(200),
    })
}

pub(crate) fn bucket() -> Bucket {
    bucket_over(Arc::new(InMemory::new()), 1)
}

pub(crate) fn writer(epoch: u64) -> Writer {
    Writer::partition("test", PartitionId(0), epoch)
}

pub(crate) fn id(n: u64) -> BlockId {
    BlockId::new(1_700_000_000_000, u128::from(n))
}

/// A block of `series` with a sample each.
pub(crate) fn block(n: u64, series: usize) -> BlockParts {
    let mut w = BlockWriter::new(BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999))).unwrap();
    for i in 0..series {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
        w.push_series(&labels, None, &[i as i64], &[i as f64]).unwrap();
    }
    w.finish().unwrap().unwrap()
}

/// A block, if not one to be opened, with a part large enough to go in pieces.
pub(crate) fn in_pieces() -> BlockParts {
    let bytes = Bytes::from(vec![7u8; 40 << 20]);
    let mut meta = block(2, 1).meta;
    meta.parts = vec![PartMeta {
        name: "series.parquet".to_owned(),
        bytes: bytes.len() as u64,
        crc32c: crc32c::crc32c(&bytes),
        rows: 1,
        cells: Vec::new(),
        small_cells: None,
        end: None,
    }];
    let parts = vec![("series.parquet".to_owned(), bytes)];
    BlockParts { meta, parts }
}

pub(crate) fn entry(meta: &BlockMeta) -> ManifestBlock {
    ManifestBlock::new(meta, BTreeMap::new())
}

pub(crate) fn small_entry(n: u64) -> ManifestBlock {
    entry(&block(n, 1).meta)
}

/// What a store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Every `n`-th put takes effect and then reports a failure.
    LostAnswer(u32),
    /// Every `n`-th put fails without effect.
    LostRequest(u32),
    /// Preconditions are ignored.
    IgnoresPreconditions,
    /// Nothing works, from the start.
    Down,
    /// Everything works, until told otherwise.
    None,
    /// Written objects lose their last byte.
    Truncates,
}

/// An object store with a fault.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<InMemory>,
    fault: Fault,
    puts: AtomicU32,
    down: AtomicBool,
    /// What the path of an object that is refused ends in.
    denied: Mutex<Option<String>>,
    /// So many reads of ranges fail in a way that passes.
    pub(crate) busy: AtomicU32,
}

impl Faulty {
    pub(crate) fn over(inner: &Arc<InMemory>, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            fault,
            puts: AtomicU32::new(0),
            down: AtomicBool::new(fault == Fault::Down),
            denied: Mutex::default(),
            busy: AtomicU32::new(0),
        })
    }

    /// From now on nothing works.
    pub(crate) fn go_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    /// From now on objects whose path ends so are refused.
    pub(crate) fn deny(&self, end: &str) {
        *self.denied.lock() = Some(end.to_owned());
    }

    fn check_read(&self, path: &Path) -> object_store::Result<()> {
        self.check()?;
        match &*self.denied.lock() {
            Some(end) if path.as_ref().ends_with(end.as_str()) => Err(object_store::Error::Generic {
                store: "faulty",
                source: "Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>"
                    .into(),
            }),
            _ => Ok(()),
        }
    }

    fn check(&self) -> object_store::Result<()> {
        if self.down.load(Ordering::Relaxed) {
            Err(broken())
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty({:?})", self.fault)
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "injected".into(),
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.check()?;
        let n = self.puts.fetch_add(1, Ordering::Relaxed) + 1;
        match self.fault {
            Fault::LostRequest(every) if n.is_multiple_of(every) => Err(broken()),
            Fault::LostAnswer(every) if n.is_multiple_of(every) => {
                let _ = self.inner.put_opts(path, payload, options).await;
                Err(broken())
            }
            Fault::IgnoresPreconditions => self.inner.put_opts(path, payload, PutOptions::default()).await,
            Fault::Truncates => {
                let bytes: Bytes = payload.into();
                let cut = bytes.slice(..bytes.len().saturating_sub(1));
                self.inner.put_opts(path, cut.into(), options).await
            }
            _ => self.inner.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.check_read(path)?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.check_read(path)?;
        let count_down = |busy: u32| busy.checked_sub(1);
        match self
            .busy
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down)
        {
            Ok(_) => Err(broken()),
            Err(_) => self.inner.get_ranges(path, ranges).await,
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.check()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
