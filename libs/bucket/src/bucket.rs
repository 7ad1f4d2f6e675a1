//! The bucket: one object store under a prefix, with our own retries.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use koios_model::TenantId;
use koios_runtime::{ClockHandle, RngHandle};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::blocks::PIECE_BYTES;
use crate::layout::{CLUSTER, Layout};
use crate::retry::{Retry, RetryPolicy};
use crate::store::{self, Opened, Pages};
use crate::{Error, Result, listing, verdict};

/// Folder of the objects by which the storage's clock is read.
const CLOCK_FOLDER: &str = "clock";

/// An object store under a prefix. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    pages: Option<Pages>,
    layout: Layout,
    retry: Retry,
    /// Whether the storage is reached over a network.
    remote: bool,
    /// The storage ignores preconditions and this process is its only writer: commits look before they write.
    emulate_create: AtomicBool,
    /// Serialises emulated creations.
    emulation: tokio::sync::Mutex<()>,
    piece_bytes: usize,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

/// How a creation ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// The object is ours.
    Yes,
    /// Somebody's object is there, perhaps our own from an attempt whose answer was lost.
    Exists,
}

impl Bucket {
    /// A bucket over any store, with everything under `prefix` ("" for the root).
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, clock: ClockHandle, rng: RngHandle) -> Self {
        let opened = Opened {
            store,
            pages: None,
            prefix: Path::from(prefix),
            remote: false,
        };
        Self::assemble(opened, Retry::new(format!("{prefix:?}").into(), clock, rng))
    }

    /// Opens a bucket by URL: `file:///absolute/folder` (created if missing; synced on every write), `s3://bucket/prefix`,
    /// `gs://bucket/prefix` or `az://container/prefix`. Endpoint, region, credentials and encryption come from the clouds' usual
    /// environment variables: docs/object-storage.md.
    ///
    /// # Errors
    /// [`Error::Url`] when the URL, or what the environment says, cannot be used.
    pub fn open(url: &str, clock: ClockHandle, rng: RngHandle) -> Result<Self> {
        Self::open_with_env(url, environment(), clock, rng)
    }

    /// As [`Self::open`], for those who look at what is there: a folder that does not exist is not made.
    ///
    /// # Errors
    /// [`Error::Url`] also when there is no such folder.
    pub fn open_existing(url: &str, clock: ClockHandle, rng: RngHandle) -> Result<Self> {
        let opened = store::open(url, environment(), true, &rng)?;
        Ok(Self::assemble(opened, Retry::new(url.into(), clock, rng)))
    }

    /// As [`Self::open`] with other environment variables.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn open_with_env(
        url: &str,
        env: impl IntoIterator<Item = (String, String)>,
        clock: ClockHandle,
        rng: RngHandle,
    ) -> Result<Self> {
        let opened = store::open(url, env.into_iter(), false, &rng)?;
        Ok(Self::assemble(opened, Retry::new(url.into(), clock, rng)))
    }

    pub(crate) fn assemble(opened: Opened, retry: Retry) -> Self {
        Self::assemble_with(opened, retry, PIECE_BYTES)
    }

    fn assemble_with(opened: Opened, retry: Retry, piece_bytes: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                store: opened.store,
                pages: opened.pages,
                layout: Layout::new(opened.prefix),
                retry,
                remote: opened.remote,
                emulate_create: AtomicBool::new(false),
                emulation: tokio::sync::Mutex::new(()),
                piece_bytes,
            }),
        }
    }

    /// The same bucket with another retry policy.
    pub fn with_retry(&self, policy: RetryPolicy) -> Self {
        self.rebuilt(self.inner.retry.with(policy), self.inner.piece_bytes)
    }

    /// The same bucket, to which parts of blocks larger than this are sent in pieces of this size, at least one byte: storages of the
    /// clouds take none below 5 MiB.
    pub fn with_pieces_of(&self, bytes: usize) -> Self {
        self.rebuilt(self.inner.retry.clone(), bytes.max(1))
    }

    fn rebuilt(&self, retry: Retry, piece_bytes: usize) -> Self {
        let inner = &self.inner;
        let opened = Opened {
            store: Arc::clone(&inner.store),
            pages: inner.pages.clone(),
            prefix: inner.layout.root().clone(),
            remote: inner.remote,
        };
        let bucket = Self::assemble_with(opened, retry, piece_bytes);
        bucket.set_emulate_create(inner.emulate_create.load(Ordering::Relaxed));
        bucket
    }

    /// The URL it was opened with, for messages.
    pub fn url(&self) -> &str {
        &self.inner.retry.bucket
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.store
    }

    pub(crate) fn clock(&self) -> &ClockHandle {
        &self.inner.retry.clock
    }

    pub(crate) fn rng(&self) -> &RngHandle {
        &self.inner.retry.rng
    }

    pub(crate) fn retry_for(&self, bytes: u64) -> Retry {
        self.inner.retry.with(self.inner.retry.policy.for_bytes(bytes))
    }

    pub(crate) fn piece_bytes(&self) -> usize {
        self.inner.piece_bytes
    }

    pub(crate) fn is_remote(&self) -> bool {
        self.inner.remote
    }

    pub(crate) fn set_emulate_create(&self, on: bool) {
        self.inner.emulate_create.store(on, Ordering::Relaxed);
    }

    /// The whole object, or `None` when it does not exist.
    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>> {
        let store = self.store();
        let attempt = || async move { store.get(path).await?.bytes().await };
        match self.inner.retry.run(path, attempt).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The size of an object, or `None` when it does not exist.
    pub(crate) async fn size(&self, path: &Path) -> Result<Option<u64>> {
        let store = self.store();
        match self.inner.retry.run(path, || store.head(path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the storage's own clock says, milliseconds: when it took an object that is written now, by `who`. Of a folder it is this
    /// machine's. Storages tell whole seconds.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stored_now_ms(&self, who: &str) -> Result<i64> {
        let path = self.layout().cluster(CLOCK_FOLDER).join(who);
        self.put(&path, &Bytes::from_static(b"what time is it?\n"))
            .await?;
        let store = self.store();
        let meta = self.inner.retry.run(&path, || store.head(&path)).await?;
        Ok(meta.last_modified.timestamp_millis())
    }

    /// Writes an object, replacing what is there.
    pub(crate) async fn put(&self, path: &Path, bytes: &Bytes) -> Result<()> {
        let store = self.store();
        let attempt = || store.put(path, PutPayload::from_bytes(bytes.clone()));
        self.retry_for(bytes.len() as u64)
            .run(path, attempt)
            .await
            .map(|_| ())
    }

    /// Writes an object unless there is one.
    pub(crate) async fn create(&self, path: &Path, bytes: &Bytes) -> Result<Created> {
        if self.inner.emulate_create.load(Ordering::Relaxed) {
            let _one_at_a_time = self.inner.emulation.lock().await;
            if self.size(path).await?.is_some() {
                return Ok(Created::Exists);
            }
            return self.put(path, bytes).await.map(|()| Created::Yes);
        }
        let store = self.store();
        let attempt = || async move {
            let options = PutOptions::from(PutMode::Create);
            match store
                .put_opts(path, PutPayload::from_bytes(bytes.clone()), options)
                .await
            {
                Ok(_) => Ok(Created::Yes),
                Err(e) if verdict::is_creation_under_way(&e) => Err(e),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Created::Exists)
                }
                Err(e) => Err(e),
            }
        };
        self.retry_for(bytes.len() as u64).run(path, attempt).await
    }

    /// Deletes an object; one that is gone already is fine.
    pub(crate) async fn delete(&self, path: &Path) -> Result<()> {
        let store = self.store();
        match self.inner.retry.run(path, || store.delete(path)).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The objects under a folder, by name. Lists: never on a hot path.
    pub(crate) async fn list(&self, folder: &Path) -> Result<Vec<Path>> {
        listing::list(self.store(), folder, &self.inner.retry).await
    }

    /// The tenants that have anything in the bucket, by name. Lists: for start-up and administration.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Rejected`].
    pub async fn tenants(&self) -> Result<Vec<TenantId>> {
        let folders = self.folders().await?;
        let names = folders.iter().filter_map(Path::filename);
        let mut tenants: Vec<TenantId> = names.filter_map(|name| TenantId::new(name).ok()).collect();
        tenants.sort_unstable();
        tenants.dedup();
        Ok(tenants)
    }

    /// Whether a cluster keeps something of its own here: one without any tenant does too.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Rejected`].
    pub async fn has_cluster(&self) -> Result<bool> {
        let folders = self.folders().await?;
        Ok(folders.iter().any(|f| f.filename() == Some(CLUSTER)))
    }

    /// What stands at the top of the bucket.
    async fn folders(&self) -> Result<Vec<Path>> {
        let (root, retry) = (self.layout().root(), &self.inner.retry);
        match &self.inner.pages {
            Some(Pages(pages)) => listing::folders(pages.as_ref(), root, retry).await,
            None => listing::folders_at_once(self.store().as_ref(), root, retry).await,
        }
    }
}

/// The environment variables that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
