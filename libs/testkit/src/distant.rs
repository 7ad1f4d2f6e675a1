//! An object store far away: every request takes its time, however many run at once, so that on a paused clock the time a
//! read takes is the number of requests that waited for one another.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use koios_runtime::Clock;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// Objects on a page of a listing.
const PAGE: usize = 1000;

/// Objects in memory whose reads take a while and are counted. Writes take no time.
#[derive(Debug)]
pub struct Distant {
    objects: InMemory,
    clock: Arc<dyn Clock>,
    request_micros: AtomicU64,
    requests: Arc<AtomicU64>,
    bytes: AtomicU64,
    ranges: Mutex<Vec<(Path, Range<u64>)>>,
    /// How many reads are still answered.
    left: AtomicU64,
    /// Each so many reads one fails.
    falters: AtomicU64,
    asked: AtomicU64,
}

impl Distant {
    /// An empty one whose reads each take `request`.
    pub fn new(clock: Arc<dyn Clock>, request: Duration) -> Self {
        Self {
            objects: InMemory::new(),
            clock,
            request_micros: AtomicU64::new(micros(request)),
            requests: Arc::default(),
            bytes: AtomicU64::new(0),
            ranges: Mutex::default(),
            left: AtomicU64::new(u64::MAX),
            falters: AtomicU64::new(u64::MAX),
            asked: AtomicU64::new(0),
        }
    }

    /// From now on each read takes `request`.
    pub fn set_request(&self, request: Duration) {
        self.request_micros.store(micros(request), Ordering::Relaxed);
    }

    fn request(&self) -> Duration {
        Duration::from_micros(self.request_micros.load(Ordering::Relaxed))
    }

    /// Answers so many reads more, and fails all that come after them.
    pub fn break_down_after(&self, reads: u64) {
        self.left.store(reads, Ordering::Relaxed);
    }

    /// Fails each `reads`-th read from now on.
    pub fn falter_every(&self, reads: u64) {
        self.falters.store(reads, Ordering::Relaxed);
    }

    /// What was read since this was last asked.
    pub fn take_ranges(&self) -> Vec<(Path, Range<u64>)> {
        std::mem::take(&mut *self.ranges.lock())
    }

    /// How many reads there were since this was last asked, and how many bytes they got.
    pub fn take(&self) -> (u64, u64) {
        (
            self.requests.swap(0, Ordering::Relaxed),
            self.bytes.swap(0, Ordering::Relaxed),
        )
    }

    async fn requests(&self, count: usize) -> Result<()> {
        let count = count as u64;
        self.requests.fetch_add(count, Ordering::Relaxed);
        self.clock.sleep(self.request()).await;
        let failed = |text: &str| object_store::Error::Generic {
            store: "distant",
            source: text.into(),
        };
        let (asked, every) = (
            self.asked.fetch_add(1, Ordering::Relaxed) + 1,
            self.falters.load(Ordering::Relaxed),
        );
        if asked.is_multiple_of(every) {
            return Err(failed("it falters"));
        }
        let answer = |left: u64| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(count),
        };
        let answered = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, answer);
        answered.map(|_| ()).map_err(|_| failed("it has broken down"))
    }

    fn read(&self, path: &Path, range: Range<u64>) {
        self.bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        self.ranges.lock().push((path.clone(), range));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Display for Distant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("distant")
    }
}

#[async_trait]
impl ObjectStore for Distant {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.requests(1).await?;
        let found = self.objects.get_opts(path, options).await?;
        self.read(path, found.range.clone());
        Ok(found)
    }

    /// As many requests as ranges: object stores answer one range each.
    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.requests(ranges.len()).await?;
        let found = self.objects.get_ranges(path, ranges).await?;
        for (range, bytes) in ranges.iter().zip(&found) {
            self.read(path, range.start..range.start + bytes.len() as u64);
        }
        Ok(found)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }

    /// A request for each page.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (requests, clock, request) = (
            Arc::clone(&self.requests),
            Arc::clone(&self.clock),
            self.request(),
        );
        let pages = self.objects.list(prefix).chunks(PAGE);
        let paged = pages.then(move |page| {
            requests.fetch_add(1, Ordering::Relaxed);
            let clock = Arc::clone(&clock);
            async move {
                clock.sleep(request).await;
                stream::iter(page)
            }
        });
        paged.flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.requests(1).await?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
