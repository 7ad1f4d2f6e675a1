//! Reads, as queries do and as nobody may.

use futures::StreamExt;
use futures::TryStreamExt;
use koios_block::{BlockCache, BlockMerge, MergeInput};
use koios_bucket::{Blocks, ManifestBlock};
use koios_model::{Matchers, TimeRange};
use koios_promql::{Columns, Completeness, QueryError, Queryable, SelectHints, SelectRequest, StreamItem};
use koios_querier::{Budget, Cluster, ClusterQueryable};
use std::sync::Arc;

use crate::held::{Found, Held, canonical};
use crate::world::World;

impl World {
    /// What a query gets.
    pub(crate) fn reader(&self) -> Arc<Cluster> {
        self.reader.lock().clone().expect("the reader runs")
    }

    /// The exemplars that a query gets from a certain querier.
    pub(crate) async fn exemplars_from(&self, cluster: Arc<Cluster>) -> Result<Found, QueryError> {
        let budget = Budget::new(1 << 30, 1 << 30);
        let all = [Matchers::default()];
        let read = cluster.exemplars(&self.tenant, &all, TimeRange::ALL, &budget);
        let (series, _charge) = read.await?.into_parts();
        let mut found = Found::default();
        for (labels, exemplars) in series {
            for exemplar in exemplars {
                found.add_exemplar(&labels, exemplar);
            }
        }
        Ok(found)
    }

    /// The samples that a query gets from a certain querier.
    pub(crate) async fn samples_from(&self, cluster: Arc<Cluster>) -> Result<Found, QueryError> {
        let budget = Budget::new(1 << 30, 1 << 30);
        let queryable = ClusterQueryable::new(cluster, self.tenant.clone(), budget);
        let request = SelectRequest {
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            hints: SelectHints::default(),
        };
        let mut stream = queryable.select(request).await?;
        let mut found = Found::default();
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
                for (i, (&t, v)) in columns.timestamps().iter().zip(columns.values()).enumerate() {
                    let histogram = columns.histograms().and_then(|all| all[i].as_deref());
                    let held = histogram.map_or(Held::Float(*v), canonical);
                    found.add_value(&series.labels, t, held);
                    let start = columns.start_timestamps().map_or(0, |all| all[i]);
                    found.add_start(&series.labels, t, start);
                }
            }
        }
        panic!("the stream has no end (I4)");
    }

    /// What is in a block, deleted or not.
    pub(crate) async fn bytes_of(&self, block: &ManifestBlock) -> Found {
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        let blocks = Blocks::new(self.manifests.bucket().clone(), cache, 1 << 20);
        let reader = blocks.open(&self.tenant, block).await.unwrap();
        let mut found = Found::default();
        let mut exemplars = reader.scan_exemplars(Matchers::default(), TimeRange::ALL);
        while let Some(batch) = exemplars.try_next().await.unwrap() {
            for (labels, of_series) in batch {
                for exemplar in of_series {
                    found.add_exemplar(&labels, exemplar);
                }
            }
        }
        let mut merge = BlockMerge::new([MergeInput::from(reader)]);
        while let Some(series) = merge.next().await.unwrap() {
            for sample in series.samples {
                found.add_value(&series.labels, sample.t, Held::Float(sample.v));
            }
            for (t, histogram) in series.histograms {
                found.add_value(&series.labels, t, canonical(&histogram));
            }
            for (t, start) in series.starts {
                found.add_start(&series.labels, t, start);
            }
        }
        found
    }
}
