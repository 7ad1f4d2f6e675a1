//! A bucket that is gone from some operation on, as for a process that crashes there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// An object store for a process that crashes.
#[derive(Debug)]
pub(crate) struct Crashing {
    inner: Arc<InMemory>,
    /// Operations before the last.
    before: u64,
    /// Whether the last one takes effect.
    effect: bool,
    operations: AtomicU64,
}

impl Crashing {
    pub(crate) fn over(inner: &Arc<InMemory>, before: u64, effect: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            before,
            effect,
            operations: AtomicU64::new(0),
        })
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.operations.load(Ordering::Relaxed) > self.before
    }

    /// Whether an operation takes effect, and whether it is answered.
    fn operation(&self) -> (bool, bool) {
        let n = self.operations.fetch_add(1, Ordering::Relaxed);
        (
            n < self.before || n == self.before && self.effect,
            n < self.before,
        )
    }

    async fn run<T>(
        &self,
        operation: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let (takes_effect, is_answered) = self.operation();
        if !takes_effect {
            return Err(gone());
        }
        let answer = operation.await;
        if is_answered { answer } else { Err(gone()) }
    }
}

fn gone() -> object_store::Error {
    object_store::Error::Generic {
        store: "crashing",
        source: "gone".into(),
    }
}

impl fmt::Display for Crashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("crashing")
    }
}

#[async_trait]
impl ObjectStore for Crashing {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.run(self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.run(self.inner.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.run(self.inner.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.run(self.inner.get_ranges(path, ranges)).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (takes_effect, is_answered) = self.operation();
        let broken = stream::iter([Err(gone())]);
        match (takes_effect, is_answered) {
            (true, true) => self.inner.delete_stream(paths),
            (true, false) => {
                let deleted = self.inner.delete_stream(paths);
                deleted.map(|_| Err(gone())).boxed()
            }
            (false, _) => broken.boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.operation() {
            (_, true) => self.inner.list(prefix),
            (_, false) => stream::iter([Err(gone())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.run(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.run(self.inner.copy_opts(from, to, options)).await
    }
}
