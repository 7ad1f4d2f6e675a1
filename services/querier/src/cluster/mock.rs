//! Members in memory, with faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use koios_chunk::{Chunk, Run};
use koios_model::{BatchSet, Expiry, Labels, Metadata, StreamId, TimeRange};
use koios_runtime::{Clock as _, TokioClock};
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadEnd, ReadItem, ReadRequest, ReadStream,
    SeriesExemplars, SeriesRuns, ServiceError, ServiceErrorCode, StoreItem, StoreLabelsRequest,
    StoreSelectRequest, StoreService, StoreStream,
};
use parking_lot::Mutex;

mod world;

pub(crate) use world::{MockManifests, World, plan};

pub(crate) type Data = BTreeMap<Labels, BTreeMap<i64, f64>>;

/// One of two batches; every member holds number 0, and none number 1.
fn batch(sequence: u64) -> BatchSet {
    let mut set = BatchSet::default();
    set.insert(StreamId(1), sequence);
    set
}

/// How a mock answers.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mode {
    #[default]
    Well,
    /// Every call fails.
    Fails(ServiceErrorCode),
    /// The first so many calls fail.
    FailsFirst(u64, ServiceErrorCode),
    /// Never answers.
    Hangs,
    /// Answers well, but this late.
    Late(Duration),
    /// Fails this late.
    FailsLate(Duration, ServiceErrorCode),
    /// Streams break off after so many series; without an end, or with an error.
    BreaksAfter(usize, Option<ServiceErrorCode>),
    /// Streams hang after so many series.
    HangsAfter(usize),
    /// Streams take so long for each series.
    Slow(Duration),
}

pub(crate) fn labels(name: &str, i: u32) -> Labels {
    Labels::from_pairs([("__name__", name.to_owned()), ("i", i.to_string())])
}

pub(crate) fn data(series: impl IntoIterator<Item = (Labels, Vec<(i64, f64)>)>) -> Data {
    series
        .into_iter()
        .map(|(l, s)| (l, s.into_iter().collect()))
        .collect()
}

fn runs_of(samples: &BTreeMap<i64, f64>, labels_only: bool) -> Vec<Run> {
    let samples: Vec<_> = samples.iter().collect();
    let encode = |part: &[(&i64, &f64)]| {
        let times: Vec<_> = part.iter().map(|(t, _)| **t).collect();
        let values: Vec<_> = part.iter().map(|(_, v)| **v).collect();
        let chunk = koios_chunk::encode(&times, &values).unwrap();
        Run::Chunk(Chunk::parse(chunk.into()).unwrap())
    };
    if labels_only {
        Vec::new()
    } else {
        samples.chunks(3).map(encode).collect()
    }
}

fn select(
    data: &Data,
    matchers: &koios_model::Matchers,
    range: TimeRange,
    expiry: &Expiry,
    labels_only: bool,
    limit: u64,
) -> Vec<SeriesRuns> {
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let is_kept =
        |l: &Labels, t: i64| range.contains(t) && expiry.kept_from(l.as_ref()).is_none_or(|from| from <= t);
    data.iter()
        .filter(|(l, s)| matchers.matches(l.as_ref()) && s.keys().any(|t| is_kept(l, *t)))
        .take(limit)
        .map(|(l, s)| SeriesRuns {
            labels: l.clone(),
            runs: runs_of(s, labels_only),
        })
        .collect()
}

fn names(series: &[SeriesRuns], name: &str) -> Vec<String> {
    let all: std::collections::BTreeSet<String> = series
        .iter()
        .flat_map(|s| s.labels.iter())
        .filter(|(n, _)| name.is_empty() || *n == name)
        .map(|(n, v)| {
            if name.is_empty() {
                n.to_owned()
            } else {
                v.to_owned()
            }
        })
        .collect();
    all.into_iter().collect()
}

/// Faults of a mock, applied to each call.
#[derive(Debug, Default)]
struct Faults {
    mode: Arc<Mutex<Mode>>,
    calls: AtomicU64,
}

impl Faults {
    async fn enter(&self) -> Result<Mode, ServiceError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mode = self.mode.lock().clone();
        match mode {
            Mode::Fails(code) => Err(ServiceError::new(code, "injected").with_state_version(7)),
            Mode::FailsFirst(n, code) if call < n => {
                Err(ServiceError::new(code, "injected").with_state_version(7))
            }
            Mode::Hangs => std::future::pending().await,
            Mode::Late(late) => {
                TokioClock::starting_at(0).sleep(late).await;
                Ok(Mode::Well)
            }
            Mode::FailsLate(late, code) => {
                TokioClock::starting_at(0).sleep(late).await;
                Err(ServiceError::new(code, "injected").with_state_version(7))
            }
            mode => Ok(mode),
        }
    }

    fn stream<T: Send + 'static>(
        mode: &Mode,
        series: Vec<SeriesRuns>,
        item: fn(Vec<SeriesRuns>) -> T,
        end: T,
    ) -> stream::BoxStream<'static, Result<T, ServiceError>> {
        let one = move |s| Ok(item(vec![s]));
        match *mode {
            Mode::BreaksAfter(n, None) => stream::iter(series.into_iter().take(n).map(one)).boxed(),
            Mode::BreaksAfter(n, Some(code)) => stream::iter(series.into_iter().take(n).map(one))
                .chain(stream::iter([Err(ServiceError::new(
                    code,
                    "block 01A failed checksum",
                ))]))
                .boxed(),
            Mode::Slow(each) => stream::iter(series.into_iter().map(one))
                .chain(stream::iter([Ok(end)]))
                .then(move |item| async move {
                    TokioClock::starting_at(0).sleep(each).await;
                    item
                })
                .boxed(),
            Mode::HangsAfter(n) => stream::iter(series.into_iter().take(n).map(one))
                .chain(stream::pending())
                .boxed(),
            _ => stream::iter(series.into_iter().map(one))
                .chain(stream::iter([Ok(end)]))
                .boxed(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct MockIngester {
    pub(crate) epoch: AtomicU64,
    data: Mutex<Data>,
    end: Mutex<ReadEnd>,
    metadata: Mutex<Vec<(String, Metadata)>>,
    /// Metrics of which metadata goes with the deletions of a manifest version.
    deleted_metrics: Mutex<Vec<(String, u64)>>,
    pub(crate) exemplars: Mutex<Vec<SeriesExemplars>>,
    /// Whether it cannot reach the bucket, from which it would learn of deletions.
    without_bucket: Mutex<bool>,
    /// Whether it cannot tell which series have nothing but what is too old.
    pub(crate) is_blunt: Mutex<bool>,
    faults: Faults,
}

impl Default for MockIngester {
    fn default() -> Self {
        let end = ReadEnd {
            held: batch(0),
            forgotten_below_ms: i64::MIN,
            manifest_floor: 0,
            deletions_version: 0,
        };
        Self {
            epoch: AtomicU64::default(),
            data: Mutex::default(),
            end: Mutex::new(end),
            metadata: Mutex::default(),
            deleted_metrics: Mutex::default(),
            exemplars: Mutex::default(),
            without_bucket: Mutex::default(),
            is_blunt: Mutex::default(),
            faults: Faults::default(),
        }
    }
}

impl MockIngester {
    /// It has applied the deletions of a manifest version.
    pub(crate) fn applied(&self, version: u64) {
        self.end.lock().deletions_version = version;
    }

    pub(crate) fn lose_bucket(&self) {
        *self.without_bucket.lock() = true;
    }

    /// Learns of deletions, or does not come to an end.
    async fn learn(&self, version: u64) {
        let must_learn = self.end.lock().deletions_version < version;
        if must_learn && *self.without_bucket.lock() {
            std::future::pending::<()>().await;
        }
        let mut end = self.end.lock();
        end.deletions_version = end.deletions_version.max(version);
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.faults.mode.lock() = mode;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.faults.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn hold(&self, data: Data) {
        *self.data.lock() = data;
    }

    pub(crate) fn forget_below(&self, below: i64, floor: u64) {
        let mut end = self.end.lock();
        end.forgotten_below_ms = below;
        end.manifest_floor = floor;
        for samples in self.data.lock().values_mut() {
            samples.retain(|t, _| *t >= below);
        }
    }

    pub(crate) fn describe(&self, metric: &str, kind: &str) {
        let metadata = Metadata {
            kind: kind.to_owned(),
            ..Metadata::default()
        };
        self.metadata.lock().push((metric.to_owned(), metadata));
    }

    /// Once it has applied the deletions of a manifest version it has no metadata of a metric.
    pub(crate) fn deletes_metric(&self, metric: &str, version: u64) {
        self.deleted_metrics.lock().push((metric.to_owned(), version));
    }

    fn check(&self, epoch: u64) -> Result<(), ServiceError> {
        match epoch.cmp(&self.epoch.load(Ordering::Relaxed)) {
            std::cmp::Ordering::Less => {
                Err(ServiceError::new(ServiceErrorCode::Stale, "newer epoch").with_state_version(9))
            }
            std::cmp::Ordering::Greater => Err(ServiceError::new(ServiceErrorCode::Behind, "older epoch")),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    async fn labels(&self, request: LabelsRequest, name: &str) -> Result<LabelsReply, ServiceError> {
        self.faults.enter().await?;
        self.check(request.epoch)?;
        self.learn(request.deletions_version).await;
        let LabelsRequest {
            matchers,
            range,
            expiry,
            ..
        } = request;
        let series = select(&self.data.lock(), &matchers, range, &expiry, true, 0);
        Ok(LabelsReply {
            names: names(&series, name),
            end: self.end.lock().clone(),
        })
    }
}

#[async_trait]
impl IngesterService for MockIngester {
    async fn push(&self, _: Arc<Batch>) -> Result<PushAck, ServiceError> {
        Ok(PushAck::default())
    }

    async fn held_series(&self, _: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError> {
        Ok(HeldSeriesReply::default())
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadStream, ServiceError> {
        let mode = self.faults.enter().await?;
        self.check(request.epoch)?;
        self.learn(request.deletions_version).await;
        let ReadRequest {
            matchers,
            range,
            labels_only,
            limit,
            expiry,
            ..
        } = request;
        let expiry = Some(expiry)
            .filter(|_| !*self.is_blunt.lock())
            .unwrap_or_default();
        let series = select(&self.data.lock(), &matchers, range, &expiry, labels_only, limit);
        let end = ReadItem::End(self.end.lock().clone());
        Ok(Faults::stream(&mode, series, ReadItem::Series, end))
    }

    async fn label_names(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        self.labels(request, "").await
    }

    async fn label_values(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        let name = request.name.clone();
        self.labels(request, &name).await
    }

    async fn metadata(&self, request: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        self.faults.enter().await?;
        self.learn(request.deletions_version).await;
        let (applied, deleted) = (self.end.lock().deletions_version, self.deleted_metrics.lock());
        let mut all = self.metadata.lock().clone();
        all.retain(|(metric, _)| {
            !deleted
                .iter()
                .any(|(of, version)| of == metric && *version <= applied)
        });
        Ok(all)
    }

    async fn exemplars(&self, _: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.faults.enter().await?;
        Ok(self.exemplars.lock().clone())
    }

    async fn batch_sets(&self, _: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        Ok(BatchSetsReply::default())
    }

    async fn fetch_batches(&self, _: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        Ok(stream::empty().boxed())
    }

    async fn deletions(&self, request: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        self.faults.enter().await?;
        self.check(request.epoch)?;
        let mut end = self.end.lock();
        if request.version > 0 {
            end.deletions_version = end.deletions_version.max(request.version);
        }
        Ok(DeletionsReply {
            held: end.held.clone(),
            version: end.deletions_version,
            logged_from: 0,
            manifest_version: end.manifest_floor,
        })
    }

    async fn flush(&self, _: FlushRequest) -> Result<FlushReply, ServiceError> {
        Ok(FlushReply::default())
    }
}

/// A bucket of blocks, which all mock stores read.
pub(crate) type Blocks = Arc<Mutex<BTreeMap<String, Data>>>;

#[derive(Debug, Default)]
pub(crate) struct MockStore {
    blocks: Blocks,
    faults: Faults,
    pub(crate) exemplars: Mutex<Vec<SeriesExemplars>>,
    pub(crate) metadata: Mutex<Vec<(String, Metadata)>>,
    /// The blocks of each read, in order.
    asked: Mutex<Vec<Vec<String>>>,
}

impl MockStore {
    /// One of several over the same bucket.
    pub(crate) fn over(blocks: &Blocks) -> Arc<Self> {
        Arc::new(Self {
            blocks: Arc::clone(blocks),
            ..Self::default()
        })
    }

    /// The blocks of each read since it was last asked.
    pub(crate) fn take_asked(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut *self.asked.lock())
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.faults.mode.lock() = mode;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.faults.calls.load(Ordering::Relaxed)
    }

    fn gather(&self, ids: &[String]) -> Result<Data, ServiceError> {
        self.asked.lock().push(ids.to_vec());
        let blocks = self.blocks.lock();
        let mut all = Data::new();
        for id in ids {
            let gone = || ServiceError::new(ServiceErrorCode::NotFound, format!("block {id} is gone"));
            for (l, s) in blocks.get(id).ok_or_else(gone)? {
                all.entry(l.clone()).or_default().extend(s);
            }
        }
        Ok(all)
    }
}

#[async_trait]
impl StoreService for MockStore {
    async fn select(&self, request: StoreSelectRequest) -> Result<StoreStream, ServiceError> {
        let mode = self.faults.enter().await?;
        let data = self.gather(&request.blocks)?;
        let StoreSelectRequest {
            matchers,
            range,
            labels_only,
            limit,
            ..
        } = request;
        let series = select(&data, &matchers, range, &Expiry::default(), labels_only, limit);
        let stream = Faults::stream(&mode, series, StoreItem::Series, StoreItem::End);
        // Of a store that is gone the streams are, too.
        let mode = Arc::clone(&self.faults.mode);
        let gone = move |item| match *mode.lock() {
            Mode::Fails(code) => Err(ServiceError::new(code, "injected")),
            _ => item,
        };
        Ok(stream.map(gone).boxed())
    }

    async fn label_names(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        self.label_values(request).await
    }

    async fn label_values(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        self.faults.enter().await?;
        let series = select(
            &self.gather(&request.blocks)?,
            &request.matchers,
            request.range,
            &Expiry::default(),
            true,
            0,
        );
        Ok(names(&series, &request.name))
    }

    async fn exemplars(&self, _: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.faults.enter().await?;
        Ok(self.exemplars.lock().clone())
    }

    async fn metadata(&self, request: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        self.faults.enter().await?;
        self.gather(&request.blocks)?;
        Ok(self.metadata.lock().clone())
    }
}
