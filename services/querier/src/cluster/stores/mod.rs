//! Reads of blocks: shared out over the stores, and done elsewhere when one of them fails or lags.
//!
//! The querier alone decides who reads what, and names the blocks: stores that see other members, or another manifest,
//! can neither leave a block out nor read it twice. Any store can read any block; who owns it is about caches alone.

mod ask;
mod board;
mod feed;
mod placement;
mod tried;

#[cfg(test)]
mod again_test;
#[cfg(test)]
mod races_test;
#[cfg(test)]
mod stores_test;

use koios_model::{Matchers, Metadata, TenantId, TimeRange};
use koios_wire::{SeriesExemplars, StoreLabelsRequest};

use super::collected::Charged;
use super::held::SourceError;

pub(crate) use ask::Asker;
pub(crate) use board::StoreBoard;
pub use board::StoreReads;
pub(crate) use feed::BlockFeed;

/// What to read from blocks, as of a pinned manifest.
#[derive(Clone, Debug)]
pub(crate) struct BlockRequest {
    pub(crate) tenant: TenantId,
    pub(crate) manifest_version: u64,
    pub(crate) blocks: Vec<String>,
    pub(crate) matchers: Matchers,
    pub(crate) range: TimeRange,
    pub(crate) labels_only: bool,
    pub(crate) limit: u64,
    /// With summaries, the sums of their native histograms.
    pub(crate) histogram_sums: bool,
}

impl BlockRequest {
    /// The same question about some of the blocks, for a store.
    fn about(&self, blocks: Vec<String>, name: &str) -> StoreLabelsRequest {
        StoreLabelsRequest {
            tenant: self.tenant.clone(),
            manifest_version: self.manifest_version,
            blocks,
            matchers: self.matchers.clone(),
            range: self.range,
            name: name.to_owned(),
            limit: self.limit,
        }
    }
}

impl Asker {
    /// Label names (`name` empty) or values of blocks, by store: of each sorted, and at most as many as the limit says.
    pub(crate) async fn labels(
        &self,
        request: &BlockRequest,
        name: &str,
    ) -> Result<Vec<Charged<Vec<String>>>, SourceError> {
        self.gather(request.blocks.clone(), &|store, blocks| {
            let request = request.about(blocks, name);
            Box::pin(async move {
                if request.name.is_empty() {
                    store.label_names(request).await
                } else {
                    store.label_values(request).await
                }
            })
        })
        .await
    }

    /// Exemplars of blocks; a series may come from several stores.
    pub(crate) async fn exemplars(
        &self,
        request: &BlockRequest,
    ) -> Result<Vec<Charged<Vec<SeriesExemplars>>>, SourceError> {
        self.gather(request.blocks.clone(), &|store, blocks| {
            let request = request.about(blocks, "");
            Box::pin(async move { store.exemplars(request).await })
        })
        .await
    }

    /// Metadata of the metrics of blocks; a metric may come from several stores.
    pub(crate) async fn metadata(
        &self,
        request: &BlockRequest,
    ) -> Result<Vec<Charged<Vec<(String, Metadata)>>>, SourceError> {
        self.gather(request.blocks.clone(), &|store, blocks| {
            let request = request.about(blocks, "");
            Box::pin(async move { store.metadata(request).await })
        })
        .await
    }
}
