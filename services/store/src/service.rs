//! The service itself.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use koios_block::{BlockCache, HeldBudget, HeldCells, Subject};
use koios_bucket::{Blocks, DiskCache, TenantManifests};
use koios_chunk::Run;
use koios_model::Metadata;
use koios_runtime::Cpu;
use koios_server::Metrics;
use koios_wire::{
    SeriesExemplars, SeriesRuns, ServiceError, StoreItem, StoreLabelsRequest, StoreSelectRequest,
    StoreService, StoreStream,
};

use crate::bounds::{LabelsInWait, ReadBounds, RowsInWork};
use crate::departed::Departed;
use crate::disk_metrics;
use crate::exemplars::exemplars;
use crate::labels::{Question, labels};
use crate::masks::{Listed, MaskedBlock};
use crate::merge::Merge;
use crate::metadata::metadata;
use crate::metrics::StoreMetrics;
use crate::plan::{Wanted, listed, open};
use crate::sections::{Planner, Section, Sections};
use crate::window::{WindowRead, Windows};

/// Budgets of the store's caches, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Checked bytes of blocks; as many more may be held by reads that are under way, most of which are the same.
    pub cell_cache_bytes: u64,
    /// Parsed footers and page indexes.
    pub index_cache_bytes: u64,
    /// Decoded series: label indexes and label sets, about 200 bytes for each series of a block.
    pub table_cache_bytes: u64,
    /// Samples as chunks, about two bytes each.
    pub sample_cache_bytes: u64,
    /// Blocks' metadata.
    pub meta_cache_bytes: u64,
}

impl StoreSettings {
    /// Divides so many bytes among the caches.
    pub fn within(bytes: u64) -> Self {
        let twentieth = bytes / 20;
        Self {
            cell_cache_bytes: twentieth * 7,
            index_cache_bytes: twentieth * 2,
            table_cache_bytes: twentieth * 4,
            sample_cache_bytes: twentieth * 6,
            meta_cache_bytes: twentieth,
        }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self::within(640 << 20)
    }
}

/// Serves reads of blocks. Cheap to clone; clones share the caches.
#[derive(Clone, Debug)]
pub struct BlockStore {
    manifests: TenantManifests,
    blocks: Blocks,
    pub(crate) bounds: ReadBounds,
    pub(crate) rows: RowsInWork,
    pub(crate) labels_in_wait: LabelsInWait,
    /// What reads hold of what was fetched for them.
    held: HeldBudget,
    cpu: Cpu,
    metrics: StoreMetrics,
    departed: Option<Departed>,
}

impl BlockStore {
    /// Reads the bucket below `manifests`.
    pub fn new(manifests: TenantManifests, settings: StoreSettings, cpu: Cpu, metrics: &Metrics) -> Self {
        Self::with_disk_cache(manifests, settings, cpu, metrics, None)
    }

    /// The same, with what was read of blocks kept on disk, too.
    pub fn with_disk_cache(
        manifests: TenantManifests,
        settings: StoreSettings,
        cpu: Cpu,
        metrics: &Metrics,
        disk: Option<DiskCache>,
    ) -> Self {
        let mut cache = BlockCache::new(settings.cell_cache_bytes, settings.index_cache_bytes)
            .with_series_and_samples(settings.table_cache_bytes, settings.sample_cache_bytes);
        if let Some(disk) = &disk {
            cache = cache.with_cell_store(Arc::new(disk.clone()));
            disk_metrics::register(metrics, disk);
        }
        let bucket = manifests.bucket().clone();
        let (bounds, held) = (
            ReadBounds::of_bucket(bucket.url()),
            HeldBudget::new(settings.cell_cache_bytes),
        );
        let blocks = Blocks::new(bucket, Arc::new(cache), settings.meta_cache_bytes).with_cpu(cpu.clone());
        Self {
            manifests,
            cpu,
            bounds,
            rows: RowsInWork::new(),
            labels_in_wait: LabelsInWait::new(),
            metrics: StoreMetrics::new(metrics, &blocks, &held),
            held,
            blocks,
            departed: disk.map(Departed::new),
        }
    }

    async fn open(&self, wanted: Wanted<'_>, subject: Subject) -> Result<Vec<MaskedBlock>, ServiceError> {
        self.metrics.reads.inc();
        let mut found = listed(&self.manifests, wanted).await?;
        if subject == Subject::Exemplars {
            // Most have none, and what need not be opened need not be fetched.
            found.retain(Listed::has_exemplars);
        }
        if let (Some(departed), Some(manifest)) = (&self.departed, self.manifests.known(wanted.tenant)) {
            departed.note(&manifest);
        }
        self.metrics.blocks.inc_by(found.len() as u64);
        open(&self.blocks, subject, wanted.tenant, found).await
    }

    /// The series of a window. What is decoded is all gone when it is done; what is cached waits for nobody who decodes.
    async fn samples(&self, read: WindowRead) -> Result<Vec<SeriesRuns>, ServiceError> {
        let _in_work = match read.rows_missing() {
            0 => None,
            rows => Some(self.rows.reserve(rows).await?),
        };
        let series = read.finish(self.bounds, &self.cpu).await?;
        let samples: usize = series.iter().flat_map(|s| &s.runs).map(Run::count).sum();
        self.metrics.samples.inc_by(samples as u64);
        Ok(series)
    }

    async fn labels(&self, request: StoreLabelsRequest, values: bool) -> Result<Vec<String>, ServiceError> {
        let blocks = self.open(wanted(&request), Subject::Series).await?;
        let question = Question {
            name: values.then_some(request.name.as_str()),
            matchers: &request.matchers,
            range: request.range,
            limit: request.limit,
            bytes_max: self.bounds.names_bytes,
        };
        labels(blocks, question).await
    }
}

/// What a request for labels, or for exemplars, says about blocks.
fn wanted(request: &StoreLabelsRequest) -> Wanted<'_> {
    Wanted {
        tenant: &request.tenant,
        version: request.manifest_version,
        blocks: &request.blocks,
        range: request.range,
    }
}

/// A read on its way.
struct Reading {
    source: Source,
    /// Series that may still be sent.
    left: u64,
    store: BlockStore,
}

/// Where the series of a read come from.
enum Source {
    /// Label sets alone.
    Labels(Box<Windows>),
    Samples {
        sections: Box<Sections>,
        /// The present one.
        section: Section,
    },
}

impl Reading {
    /// The next batch, or the end.
    async fn next(&mut self) -> Result<StoreItem, ServiceError> {
        while let Some(series) = self.window().await? {
            if !series.is_empty() {
                self.left -= series.len() as u64;
                self.store.metrics.series.inc_by(series.len() as u64);
                return Ok(StoreItem::Series(series));
            }
        }
        Ok(StoreItem::End)
    }

    /// The series of the next window.
    async fn window(&mut self) -> Result<Option<Vec<SeriesRuns>>, ServiceError> {
        let (sections, section) = match &mut self.source {
            Source::Labels(windows) => {
                let window = windows.next(self.left).await?;
                return Ok((!window.found.is_empty()).then(|| window.labels()));
            }
            Source::Samples { sections, section } => (sections, section),
        };
        loop {
            if let Some(window) = section.windows.pop_front() {
                return self.store.samples(window).await.map(Some);
            }
            if section.is_last || self.left == 0 {
                return Ok(None);
            }
            *section = sections.next(self.left).await?;
        }
    }

    fn into_stream(self) -> StoreStream {
        stream::unfold(Some(self), |reading| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(StoreItem::End) => Some((Ok(StoreItem::End), None)),
                Ok(series) => Some((Ok(series), Some(reading))),
                Err(e) => Some((Err(reading.store.metrics.failed(e)), None)),
            }
        })
        .boxed()
    }
}

#[async_trait]
impl StoreService for BlockStore {
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = %request.tenant, version = request.manifest_version))]
    async fn select(&self, request: StoreSelectRequest) -> Result<StoreStream, ServiceError> {
        let wanted = Wanted {
            tenant: &request.tenant,
            version: request.manifest_version,
            blocks: &request.blocks,
            range: request.range,
        };
        let subject = match request.labels_only {
            true => Subject::Series,
            false => Subject::Samples,
        };
        let opened = self.open(wanted, subject).await;
        let blocks = opened.map_err(|e| self.metrics.failed(e))?;
        let held = HeldCells::new(&self.held);
        let with = |block: MaskedBlock| block.with_held(&held).with_histogram_sums(request.histogram_sums);
        let blocks: Vec<_> = blocks.into_iter().map(with).collect();
        let mut bounds = self.bounds;
        let left = match request.limit {
            0 => u64::MAX,
            limit => {
                // Who wants few series needs none that come after them.
                bounds.groups_ahead = 0;
                limit
            }
        };
        let StoreSelectRequest { matchers, range, .. } = &request;
        let windows = Windows::new(
            Merge::new(&blocks, matchers, *range, bounds, &self.labels_in_wait),
            bounds,
        );
        let source = match request.labels_only {
            true => Source::Labels(Box::new(windows)),
            false => Source::Samples {
                sections: Box::new(Sections::new(Planner::new(windows, blocks, *range, bounds, held))),
                section: Section::default(),
            },
        };
        let reading = Reading {
            source,
            left,
            store: self.clone(),
        };
        Ok(reading.into_stream())
    }

    async fn label_names(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        self.labels(request, false)
            .await
            .map_err(|e| self.metrics.failed(e))
    }

    async fn label_values(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        self.labels(request, true)
            .await
            .map_err(|e| self.metrics.failed(e))
    }

    async fn exemplars(&self, request: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let found = async {
            let blocks = self.open(wanted(&request), Subject::Exemplars).await?;
            exemplars(blocks, &request.matchers, request.range, self.bounds).await
        };
        found.await.map_err(|e| self.metrics.failed(e))
    }

    async fn metadata(&self, request: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        let found = async {
            let blocks = self.open(wanted(&request), Subject::Series).await?;
            metadata(blocks, &request.matchers, request.range, self.bounds).await
        };
        found.await.map_err(|e| self.metrics.failed(e))
    }
}
