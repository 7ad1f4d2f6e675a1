//! The bucket as one run of the process sees it: slow, at times away, and at times it does what it says it has not done.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use koios_runtime::{ClockHandle, RngHandle};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// The switches of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    /// Every request fails.
    pub(crate) down: AtomicBool,
    /// The process that used it is gone.
    pub(crate) dead: AtomicBool,
    /// Nothing fails by itself.
    pub(crate) calm: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct SimBucket {
    pub(crate) inner: Arc<InMemory>,
    pub(crate) switches: Arc<Switches>,
    pub(crate) rng: RngHandle,
    pub(crate) clock: ClockHandle,
}

impl fmt::Display for SimBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

fn failed() -> Error {
    Error::Generic {
        store: "simulated",
        source: "injected".into(),
    }
}

impl SimBucket {
    /// Waits as a network does, and fails by chance.
    async fn travel(&self) -> Result<()> {
        match self.rng.below(8) {
            0..4 => {}
            4..6 => tokio::task::yield_now().await,
            _ => self.clock.sleep(Duration::from_millis(self.rng.below(30))).await,
        }
        let switches = &self.switches;
        let chance = !switches.calm.load(Ordering::Relaxed) && self.rng.below(40) == 0;
        match chance || switches.down.load(Ordering::Relaxed) || switches.dead.load(Ordering::Relaxed) {
            true => Err(failed()),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for SimBucket {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.travel().await?;
        let put = self.inner.put_opts(path, payload, options).await;
        // The answer may be lost although it is done.
        self.travel().await?;
        put
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.travel().await?;
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.travel().await?;
        self.inner.get_opts(path, options).await
    }
    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.travel().await?;
        self.inner.get_ranges(path, ranges).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.travel().await?;
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.travel().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
