//! The store as one process sees it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use koios_runtime::CancellationToken;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use super::SimBucket;
use super::faults::{BucketFaults, Fate, Weather};
use super::pieces::SimUpload;

/// Pieces that a slow body comes in.
const PIECE_BYTES: usize = 64;

/// An object store for one process. Clones are the same process.
#[derive(Clone)]
pub struct BucketHandle {
    bucket: SimBucket,
    inner: Arc<Inner>,
}

struct Inner {
    process: String,
    plan: Mutex<Plan>,
    died: CancellationToken,
}

struct Plan {
    operations: u64,
    /// The operation at which it dies, and whether that one takes effect.
    death: Option<(u64, bool)>,
    /// The operation before which it stops.
    stop: Option<(u64, Stop)>,
    weather: Weather,
    journal: Vec<String>,
    changes: Vec<u64>,
}

/// Where a process stands still.
#[derive(Clone, Debug, Default)]
struct Stop {
    reached: CancellationToken,
    released: CancellationToken,
}

/// What an operation is to do.
struct Admission {
    dies: Option<bool>,
    stop: Option<Stop>,
    fate: Fate,
}

impl fmt::Debug for BucketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketHandle")
            .field("process", &self.inner.process)
            .field("operations", &self.operations())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BucketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated, of {}", self.inner.process)
    }
}

fn failed(what: &'static str) -> Error {
    Error::Generic {
        store: "simulated",
        source: what.into(),
    }
}

fn not_found(path: &Path) -> Error {
    Error::NotFound {
        path: path.to_string(),
        source: "not seen yet".into(),
    }
}

impl BucketHandle {
    pub(super) fn new(bucket: SimBucket, process: &str) -> Self {
        Self {
            bucket,
            inner: Arc::new(Inner {
                process: process.to_owned(),
                plan: Mutex::new(Plan {
                    operations: 0,
                    death: None,
                    stop: None,
                    weather: Weather::new(BucketFaults::NONE),
                    journal: Vec::new(),
                    changes: Vec::new(),
                }),
                died: CancellationToken::new(),
            }),
        }
    }

    /// Operations that were begun.
    pub fn operations(&self) -> u64 {
        self.inner.plan.lock().operations
    }

    /// The operations that were begun, in words.
    pub fn journal(&self) -> Vec<String> {
        self.inner.plan.lock().journal.clone()
    }

    /// Which of its operations change something, counted from 0.
    pub fn changes(&self) -> Vec<u64> {
        self.inner.plan.lock().changes.clone()
    }

    /// Lets things happen to its operations, or no longer.
    pub fn set_faults(&self, faults: BucketFaults) {
        self.inner.plan.lock().weather = Weather::new(faults);
    }

    /// Dies at its operation `n`, counted from 0, before that one takes effect or after.
    pub fn die_at(&self, n: u64, after_effect: bool) {
        self.inner.plan.lock().death = Some((n, after_effect));
    }

    /// Does not die where it was told to, if it has not yet.
    pub fn spare(&self) {
        self.inner.plan.lock().death = None;
    }

    /// Dies now: nothing it asks for is done or answered any more.
    pub fn die(&self) {
        self.inner.died.cancel();
    }

    /// Whether it died.
    pub fn is_dead(&self) -> bool {
        self.inner.died.is_cancelled()
    }

    /// Returns once it died.
    pub async fn died(&self) {
        self.inner.died.cancelled().await;
    }

    /// Stops before its operation `n`, counted from 0, until it is released.
    pub fn stop_before(&self, n: u64) {
        self.inner.plan.lock().stop = Some((n, Stop::default()));
    }

    fn stop(&self) -> Option<Stop> {
        self.inner.plan.lock().stop.as_ref().map(|(_, stop)| stop.clone())
    }

    /// Returns once it stopped where it was told to; never if it was not told, or does not get there.
    pub async fn stopped(&self) {
        match self.stop() {
            Some(stop) => stop.reached.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Lets it go on.
    pub fn release(&self) {
        if let Some(stop) = self.stop() {
            stop.released.cancel();
        }
    }

    fn admit(&self, what: &'static str, path: &Path) -> Admission {
        let mut plan = self.inner.plan.lock();
        let n = plan.operations;
        plan.operations += 1;
        if !matches!(what, "get" | "head" | "get ranges" | "list" | "list folders") {
            plan.changes.push(n);
        }
        let fate = plan.weather.next(&self.bucket.rng);
        let told = match fate {
            Fate::Done => String::new(),
            other => format!(" ({other:?})"),
        };
        plan.journal
            .push(format!("{} {n}: {what} {path}{told}", self.inner.process));
        let dies = plan.death.filter(|(at, _)| *at == n).map(|(_, effect)| effect);
        let stop = plan.stop.as_ref().filter(|(at, _)| *at == n);
        Admission {
            dies,
            stop: stop.map(|(_, stop)| stop.clone()),
            fate,
        }
    }

    /// Runs an operation as the plan and the weather say. What it does is told what happens to it.
    pub(super) async fn operate<T, F>(
        &self,
        what: &'static str,
        path: &Path,
        act: impl FnOnce(Fate) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.be_alive().await;
        let admission = self.admit(what, path);
        if let Some(stop) = admission.stop {
            stop.reached.cancel();
            stop.released.cancelled().await;
        }
        tokio::task::yield_now().await;
        self.be_alive().await;
        if let Some(after_effect) = admission.dies {
            if after_effect {
                // Nobody hears of what came of it.
                let _ = act(Fate::Done).await;
            }
            self.die();
            return std::future::pending().await;
        }
        match admission.fate {
            Fate::Busy => return Err(failed("503 slow down")),
            Fate::Slow(wait) => self.bucket.clock.sleep(wait).await,
            _ => {}
        }
        let answer = act(admission.fate).await;
        tokio::task::yield_now().await;
        self.be_alive().await;
        match admission.fate {
            Fate::LostAnswer { silent: true } => std::future::pending().await,
            Fate::LostAnswer { silent: false } => Err(failed("the connection broke off")),
            _ => answer,
        }
    }

    /// The dead wait for ever.
    async fn be_alive(&self) {
        if self.is_dead() {
            std::future::pending().await
        }
    }

    fn objects(&self) -> &Arc<InMemory> {
        &self.bucket.objects
    }

    pub(super) async fn put_now(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let creates = matches!(options.mode, PutMode::Create);
        if !creates || self.objects().head(path).await.is_err() {
            self.bucket.remember(path).await;
        }
        self.objects().put_opts(path, payload, options).await
    }

    async fn delete_now(&self, path: Path) -> Result<Path> {
        self.bucket.remember(&path).await;
        let mut deleted = self
            .objects()
            .delete_stream(stream::iter([Ok(path.clone())]).boxed());
        deleted.next().await.unwrap_or(Ok(path))
    }

    /// What an object was before, under the same request.
    async fn get_stale(&self, path: &Path, options: GetOptions) -> Option<Result<GetResult>> {
        let Some(bytes) = self.bucket.stale(path)? else {
            return Some(Err(not_found(path)));
        };
        let aside = InMemory::new();
        let put = aside.put(path, PutPayload::from_bytes(bytes)).await;
        put.expect("memory takes every object");
        Some(aside.get_opts(path, options).await)
    }

    /// A body as it arrives: in pieces, and perhaps not all of them.
    fn arriving(&self, bytes: &Bytes, fate: Fate) -> BoxStream<'static, Result<Bytes>> {
        let pieces = |bytes: &Bytes| -> Vec<Result<Bytes>> {
            let starts = (0..bytes.len()).step_by(PIECE_BYTES);
            starts
                .map(|at| Ok(bytes.slice(at..bytes.len().min(at + PIECE_BYTES))))
                .collect()
        };
        match fate {
            Fate::Slow(_) => {
                let clock = Arc::clone(&self.bucket.clock);
                let slowly = stream::iter(pieces(bytes)).then(move |piece| {
                    let pause = clock.sleep(Duration::from_millis(20));
                    async move {
                        pause.await;
                        piece
                    }
                });
                slowly.boxed()
            }
            Fate::BrokenBody { permille, silent } => {
                let mut left = pieces(&bytes.slice(..share(bytes.len(), permille)));
                if !silent {
                    left.push(Err(failed("the body broke off")));
                }
                stream::iter(left).boxed()
            }
            _ => stream::iter([Ok(bytes.clone())]).boxed(),
        }
    }

    async fn get_now(&self, path: &Path, options: GetOptions, fate: Fate) -> Result<GetResult> {
        let before = match fate {
            Fate::Stale => self.get_stale(path, options.clone()).await,
            _ => None,
        };
        let found = match before {
            Some(before) => before?,
            None => self.objects().get_opts(path, options).await?,
        };
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let bytes = found.bytes().await?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(self.arriving(&bytes, fate)),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    async fn get_ranges_now(&self, path: &Path, ranges: &[Range<u64>], fate: Fate) -> Result<Vec<Bytes>> {
        // Parts of blocks are never written over: at most they are not seen yet.
        if fate == Fate::Stale && matches!(self.bucket.stale(path), Some(None)) {
            return Err(not_found(path));
        }
        let mut found = self.objects().get_ranges(path, ranges).await?;
        if let Fate::BrokenBody { permille, silent } = fate {
            if !silent {
                return Err(failed("the body broke off"));
            }
            if let Some(last) = found.last_mut() {
                last.truncate(share(last.len(), permille));
            }
        }
        Ok(found)
    }

    /// The same as folders and what lies beside them.
    async fn folders_now(&self, prefix: Option<&Path>, fate: Fate) -> Result<ListResult> {
        let root = prefix.cloned().unwrap_or_default();
        let mut listed = ListResult {
            common_prefixes: Vec::new(),
            objects: Vec::new(),
            extensions: Default::default(),
        };
        for object in self.list_now(prefix, fate).await? {
            let Some(below) = object.location.prefix_match(&root) else {
                continue;
            };
            let below: Vec<String> = below.take(2).map(|part| part.as_ref().to_owned()).collect();
            match below.as_slice() {
                [folder, _] => {
                    let folder = root.clone().join(folder.as_str());
                    if !listed.common_prefixes.contains(&folder) {
                        listed.common_prefixes.push(folder);
                    }
                }
                [_] => listed.objects.push(object),
                _ => {}
            }
        }
        Ok(listed)
    }

    async fn list_now(&self, prefix: Option<&Path>, fate: Fate) -> Result<Vec<ObjectMeta>> {
        let found = self.objects().list(prefix).collect::<Vec<_>>().await;
        let mut found: Vec<ObjectMeta> = found.into_iter().collect::<Result<_>>()?;
        match fate {
            Fate::Stale => {
                found.retain(|o| {
                    self.bucket
                        .stale(&o.location)
                        .is_none_or(|before| before.is_some())
                });
            }
            // The storage says when there are more pages.
            Fate::BrokenBody { .. } => return Err(failed("the listing broke off")),
            _ => {}
        }
        Ok(found)
    }
}

/// What arrives of a body that is written.
pub(super) fn sent(path: &Path, payload: PutPayload, fate: Fate) -> PutPayload {
    let Fate::Altered { permille } = fate else {
        return payload;
    };
    if !path.as_ref().contains("/blocks/") {
        return payload;
    }
    let mut bytes = Bytes::from(payload).to_vec();
    let at = share(bytes.len(), permille);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << (permille % 8);
    }
    bytes.into()
}

/// So many thousandths of a length.
fn share(len: usize, permille: u64) -> usize {
    usize::try_from(len as u64 * permille / 1000).unwrap_or(0)
}

#[async_trait]
impl ObjectStore for BucketHandle {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let creates = matches!(options.mode, PutMode::Create);
        let what = if creates { "create" } else { "put" };
        let put = |fate| async move {
            if creates && fate == Fate::Conflict {
                return Err(Error::AlreadyExists {
                    path: path.to_string(),
                    source: "409 conflict".into(),
                });
            }
            self.put_now(path, sent(path, payload, fate), options).await
        };
        self.operate(what, path, put).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begin = |_| async { Ok(()) };
        self.operate("begin multipart", path, begin).await?;
        Ok(Box::new(SimUpload::new(self.clone(), path, options.attributes)))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let what = if options.head { "head" } else { "get" };
        let get = |fate| self.get_now(path, options, fate);
        self.operate(what, path, get).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let get = |fate| self.get_ranges_now(path, ranges, fate);
        self.operate("get ranges", path, get).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |path: Result<Path>| {
            let this = this.clone();
            async move {
                let path = path?;
                let delete = |_| this.delete_now(path.clone());
                this.operate("delete", &path, delete).await
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let root = prefix.clone().unwrap_or_default();
            let list = |fate| this.list_now(prefix.as_ref(), fate);
            let all = match this.operate("list", &root, list).await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(e) => vec![Err(e)],
            };
            stream::iter(all)
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = prefix.cloned().unwrap_or_default();
        let list = |fate| self.folders_now(prefix, fate);
        self.operate("list folders", &root, list).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copy = |_| self.objects().copy_opts(from, to, options);
        self.operate("copy", to, copy).await
    }
}
