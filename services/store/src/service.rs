//! The service itself.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use koios_block::{BlockCache, BlockReader};
use koios_bucket::{Blocks, TenantManifests};
use koios_runtime::Cpu;
use koios_server::Metrics;
use koios_wire::{
    ServiceError, StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService, StoreStream,
};

use crate::encode::encode;
use crate::labels::labels;
use crate::merge::{Merge, Row, rows};
use crate::metrics::StoreMetrics;
use crate::plan::{Wanted, listed, open};

/// Most series in one item of a stream.
const BATCH_SERIES: usize = 256;
/// An item is sent once it holds this many samples.
const BATCH_SAMPLES: usize = 64 << 10;

/// Budgets of the store's caches, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Checked bytes of blocks. Default 256 MiB.
    pub cell_cache_bytes: u64,
    /// Parsed footers and page indexes. Default 64 MiB.
    pub index_cache_bytes: u64,
    /// Blocks' metadata. Default 32 MiB.
    pub meta_cache_bytes: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            cell_cache_bytes: 256 << 20,
            index_cache_bytes: 64 << 20,
            meta_cache_bytes: 32 << 20,
        }
    }
}

/// Serves reads of blocks. Cheap to clone; clones share the caches.
#[derive(Clone, Debug)]
pub struct BlockStore {
    manifests: TenantManifests,
    blocks: Blocks,
    cpu: Cpu,
    metrics: StoreMetrics,
}

impl BlockStore {
    /// Reads the bucket below `manifests`.
    pub fn new(manifests: TenantManifests, settings: StoreSettings, cpu: Cpu, metrics: &Metrics) -> Self {
        let cache = Arc::new(BlockCache::new(
            settings.cell_cache_bytes,
            settings.index_cache_bytes,
        ));
        Self {
            blocks: Blocks::new(manifests.bucket().clone(), cache, settings.meta_cache_bytes),
            manifests,
            cpu,
            metrics: StoreMetrics::new(metrics),
        }
    }

    async fn open(&self, wanted: Wanted<'_>) -> Result<Vec<BlockReader>, ServiceError> {
        self.metrics.reads.inc();
        let found = listed(&self.manifests, wanted).await?;
        self.metrics.blocks.inc_by(found.len() as u64);
        open(&self.blocks, wanted.tenant, found).await
    }

    async fn labels(&self, request: StoreLabelsRequest, values: bool) -> Result<Vec<String>, ServiceError> {
        let wanted = Wanted {
            tenant: &request.tenant,
            version: request.manifest_version,
            blocks: &request.blocks,
            range: request.range,
        };
        let blocks = self.open(wanted).await?;
        let name = values.then_some(request.name.as_str());
        labels(blocks, name, &request.matchers, request.range, request.limit).await
    }
}

/// A read on its way.
struct Reading {
    merge: Merge,
    /// Series that may still be sent.
    left: u64,
    cpu: Cpu,
    metrics: StoreMetrics,
}

impl Reading {
    /// The next batch, encoded; empty at the end.
    async fn next(&mut self) -> Result<StoreItem, ServiceError> {
        let (mut batch, mut samples) = (Vec::<Row>::new(), 0);
        while batch.len() < BATCH_SERIES && samples < BATCH_SAMPLES && self.left > 0 {
            let Some(row) = self.merge.next().await? else {
                break;
            };
            self.left -= 1;
            samples += row.1.timestamps.len();
            batch.push(row);
        }
        if batch.is_empty() {
            return Ok(StoreItem::End);
        }
        self.metrics.series.inc_by(batch.len() as u64);
        self.metrics.samples.inc_by(samples as u64);
        let encoded = self.cpu.run(|| encode(batch)).await;
        encoded
            .map_err(|e| ServiceError::internal(e.to_string()))?
            .map(StoreItem::Series)
    }

    fn into_stream(self) -> StoreStream {
        stream::unfold(Some(self), |reading| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(StoreItem::End) => Some((Ok(StoreItem::End), None)),
                Ok(series) => Some((Ok(series), Some(reading))),
                Err(e) => Some((Err(reading.metrics.failed(e)), None)),
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
        let blocks = self.open(wanted).await.map_err(|e| self.metrics.failed(e))?;
        let rows = |block| {
            rows(
                block,
                request.matchers.clone(),
                request.range,
                request.labels_only,
            )
        };
        let reading = Reading {
            merge: Merge::new(blocks.into_iter().map(rows).collect()),
            left: if request.limit == 0 {
                u64::MAX
            } else {
                request.limit
            },
            cpu: self.cpu.clone(),
            metrics: self.metrics.clone(),
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
}
