//! A bucket that may vanish.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// A store that can be switched off.
#[derive(Debug, Default)]
pub(crate) struct FaultyStore {
    inner: InMemory,
    pub(crate) down: AtomicBool,
    pub(crate) puts: AtomicU64,
    /// A bit of what is written of blocks of tenants that begin with "a-" is another one in the storage.
    pub(crate) alters: AtomicBool,
    /// The same of all tenants.
    pub(crate) alters_all: AtomicBool,
    /// No version of a manifest is taken that lists a block.
    pub(crate) lists_nothing: AtomicBool,
    /// Who holds it for writing lets no block be written meanwhile.
    pub(crate) blocks: Arc<tokio::sync::RwLock<()>>,
    /// How often a block was to be written.
    pub(crate) block_puts: AtomicU64,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl FaultyStore {
    fn check(&self) -> object_store::Result<()> {
        if self.down.load(Ordering::Relaxed) {
            return Err(broken());
        }
        Ok(())
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "switched off".into(),
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.check()?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        if path.as_ref().contains("/blocks/") {
            self.block_puts.fetch_add(1, Ordering::Relaxed);
            drop(self.blocks.read().await);
        }
        if self.lists_nothing.load(Ordering::Relaxed) {
            let bytes: Bytes = payload.clone().into();
            if String::from_utf8_lossy(&bytes).contains(r#""blocks":[{"#) {
                return Err(broken());
            }
        }
        let alters = self.alters.load(Ordering::Relaxed) && path.as_ref().starts_with("a-");
        let alters = alters || self.alters_all.load(Ordering::Relaxed);
        if alters && path.as_ref().contains("/blocks/") {
            let mut bytes = Bytes::from(payload).to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            return self.inner.put_opts(path, bytes.into(), options).await;
        }
        self.inner.put_opts(path, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        self.check()?;
        self.inner.get_opts(path, options).await
    }
    async fn get_ranges(&self, path: &ObjectPath, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.check()?;
        self.inner.get_ranges(path, ranges).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.check()?;
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
