//! Reads, as queries do and as nobody may.

use futures::StreamExt;
use koios_block::BlockCache;
use koios_bucket::{Blocks, ManifestBlock};
use koios_model::{Matchers, TimeRange};
use koios_promql::{Columns, Completeness, QueryError, Queryable, SelectHints, SelectRequest, StreamItem};
use koios_querier::{Budget, Cluster, ClusterQueryable};
use std::sync::Arc;

use crate::oracle::Samples;
use crate::world::World;

impl World {
    /// What a query gets.
    pub(crate) async fn read(&self) -> Result<Samples, QueryError> {
        let cluster = self.reader.lock().clone().expect("the reader runs");
        self.read_from(cluster).await
    }

    /// What a query gets from a certain querier.
    pub(crate) async fn read_from(&self, cluster: Arc<Cluster>) -> Result<Samples, QueryError> {
        let budget = Budget::new(1 << 30, 1 << 30);
        let queryable = ClusterQueryable::new(cluster, self.tenant.clone(), budget);
        let request = SelectRequest {
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            hints: SelectHints::default(),
        };
        let mut stream = queryable.select(request).await?;
        let mut found = Samples::new();
        while let Some(item) = stream.next().await {
            let batch = match item? {
                StreamItem::Series(batch) => batch,
                StreamItem::End(Completeness::Complete) => return Ok(found),
                // Told to be incomplete, it is as good as one that fails.
                StreamItem::End(partial) => {
                    return Err(QueryError::unavailable(partial.warning().unwrap_or_default()));
                }
                other => panic!("unexpected {other:?}"),
            };
            for series in batch {
                let mut columns = Columns::default();
                series.data.decode(TimeRange::ALL, &mut columns)?;
                for (&t, v) in columns.timestamps().iter().zip(columns.values()) {
                    let twice = found.insert((series.labels.clone(), t), v.to_bits());
                    assert!(twice.is_none(), "{} @{t} is returned twice (I2)", series.labels);
                }
            }
        }
        panic!("the stream has no end (I4)");
    }

    /// What is in a block, deleted or not.
    pub(crate) async fn bytes_of(&self, block: &ManifestBlock) -> Samples {
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        let blocks = Blocks::new(self.manifests.bucket().clone(), cache, 1 << 20);
        let reader = blocks.open(&self.tenant, block).await.unwrap();
        let series = reader.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
        let columns = reader.read_samples(&series, TimeRange::ALL).await.unwrap();
        let mut found = Samples::new();
        for (series, columns) in series.iter().zip(columns) {
            for (&t, v) in columns.timestamps.iter().zip(&columns.values) {
                found.insert((series.labels.clone(), t), v.to_bits());
            }
        }
        found
    }
}
