//! What the engine reads from: the cluster, for one query of one tenant.

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::TenantId;
use koios_promql::{QueryError, Queryable, SelectRequest, SeriesStream};

use super::manifests::QueryPin;
use super::merge::Wanted;
use super::{Budget, Cluster, Coarseness, Selection, SourceResolution};

/// The storage of a query. All its selectors share the query's [`Budget`].
#[derive(Clone, Debug)]
pub struct ClusterQueryable {
    cluster: Arc<Cluster>,
    tenant: TenantId,
    budget: Arc<Budget>,
    resolution: SourceResolution,
    /// What all selectors are read as of; each is by itself where there is none.
    pin: Option<QueryPin>,
}

impl ClusterQueryable {
    /// Reads a tenant's data within a budget.
    pub fn new(cluster: Arc<Cluster>, tenant: TenantId, budget: Arc<Budget>) -> Self {
        Self {
            cluster,
            tenant,
            budget,
            resolution: SourceResolution::default(),
            pin: None,
        }
    }

    /// The same for one query only: all its selectors are read as of the version of the manifest that the first one pins, unless heads
    /// have forgotten something since.
    #[must_use]
    pub fn for_one_query(mut self) -> Self {
        self.pin = Some(QueryPin::default());
        self
    }

    /// The same, with data as coarse as a query says.
    #[must_use]
    pub fn with_resolution(mut self, resolution: SourceResolution) -> Self {
        self.resolution = resolution;
        self
    }
}

#[async_trait]
impl Queryable for ClusterQueryable {
    async fn select(&self, req: SelectRequest) -> Result<SeriesStream, QueryError> {
        let selection = Selection {
            tenant: self.tenant.clone(),
            matchers: req.matchers,
            range: req.range,
            labels_only: false,
            wanted: Wanted {
                limit: req.hints.limit,
                shard: req.hints.shard,
                coarseness: Coarseness {
                    resolution: self.resolution,
                    step_ms: req.hints.step_ms,
                    range_ms: req.hints.range_ms,
                },
                histogram_sums: req.hints.histogram_sums,
                pin: self.pin.clone().unwrap_or_default(),
                ..Wanted::default()
            },
        };
        Ok(self.cluster.select(&selection, &self.budget).await?.into_stream())
    }
}
