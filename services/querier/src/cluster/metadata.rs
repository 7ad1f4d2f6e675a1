//! Reads of metrics' metadata: of heads what was sent lately, of blocks what was cut with their series.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use koios_model::{METRIC_NAME, Matcher, Matchers, Metadata, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_wire::{MetadataRequest, ReadEnd};

use super::budget::{Budget, Charge};
use super::collected::Charged;
use super::deletions::DeletionsSeen;
use super::stores::BlockRequest;
use super::{Cluster, Coarseness, resolution};

/// How long blocks are waited for: whoever asks wants a list of metrics, which heads have most of.
const BLOCKS_WAIT: Duration = Duration::from_secs(5);

/// Metadata of metrics as one member or store answered it.
type Answer = Charged<Vec<(String, Metadata)>>;

/// Metadata that was found.
#[derive(Debug)]
pub(crate) struct FoundMetadata {
    /// By metric, which may have several entries.
    pub(crate) metrics: BTreeMap<String, BTreeSet<Metadata>>,
    /// What is missing, if anything is.
    pub(crate) warning: Option<String>,
    /// What all of it is charged to the query.
    pub(crate) charge: Charge,
}

impl Cluster {
    /// Metadata of one metric, or of all when `metric` is empty: of heads, and of the blocks of a range. Without the bucket,
    /// without a store, or when they have more than an answer, or the query, may hold, heads answer alone, and the warning says so (I4, I9):
    /// it describes data, and is none. Nor are blocks waited for as long as a query waits.
    ///
    /// # Errors
    /// When heads cannot answer, or the manifest is damaged.
    pub(crate) async fn metadata(
        &self,
        tenant: &TenantId,
        metric: &str,
        range: TimeRange,
        budget: &Arc<Budget>,
    ) -> Result<FoundMetadata, QueryError> {
        let mut found = FoundMetadata {
            metrics: BTreeMap::new(),
            warning: None,
            charge: budget.charge(0)?,
        };
        // What blocks have takes no room from what heads have: it is charged to the query when that is there.
        let aside = budget.aside();
        let deleted_up_to = self.deletions_version(tenant).await?;
        let of_blocks = Box::pin(self.metadata_of_blocks(tenant, metric, range, deleted_up_to, &aside));
        let of_blocks = self.heads.clock.timeout(BLOCKS_WAIT, of_blocks);
        let of_heads = Box::pin(self.metadata_of_heads(tenant, metric, deleted_up_to, budget));
        let (of_heads, of_blocks) = futures::join!(of_heads, of_blocks);
        let of_heads = of_heads?;
        let of_blocks = of_blocks
            .map_err(|e| QueryError::unavailable(format!("no answer: {e}")))
            .flatten()
            .and_then(|answers| aside.take().map(|()| answers));
        let of_blocks = match of_blocks {
            Ok(of_blocks) => of_blocks,
            Err(damage @ QueryError::Internal { .. }) => return Err(damage),
            Err(e) => {
                let text = format!("metadata of blocks is missing: {e}");
                tracing::warn!(%tenant, error = %e, "metadata of blocks cannot be read");
                found.warning = Some(text);
                Vec::new()
            }
        };
        for answer in of_heads.into_iter().chain(of_blocks) {
            let (all, charge) = answer.into_parts();
            found.charge.absorb(charge);
            for (metric, metadata) in all {
                found.metrics.entry(metric).or_default().insert(metadata);
            }
        }
        Ok(found)
    }

    /// That of members that have applied the deletions up to a manifest version, or of as many as a read needs where they cannot
    /// learn of these.
    async fn metadata_of_heads(
        &self,
        tenant: &TenantId,
        metric: &str,
        deleted_up_to: u64,
        budget: &Arc<Budget>,
    ) -> Result<Vec<Answer>, QueryError> {
        let mut plans = self.plans(tenant);
        let mut seen = DeletionsSeen::up_to(deleted_up_to);
        let reads = loop {
            let plan = plans.next()?;
            let deletions_version = seen.to_ask_for();
            let heads = self.heads.seeing(&seen);
            let read = heads.all_partitions(&plan, |target| {
                let request = MetadataRequest {
                    tenant: tenant.clone(),
                    partition: target.partition,
                    epoch: target.epoch,
                    metric: metric.to_owned(),
                    deletions_version,
                };
                heads.ask_partition_within(target, budget, move |client| {
                    let request = request.clone();
                    async move { Ok((client.metadata(request).await?, ReadEnd::default())) }
                })
            });
            match read.await {
                Ok(reads) => break reads,
                Err(e) if seen.has_another_way(&e) => {}
                Err(e) => plans.failed(&plan, e).await?,
            }
        };
        let answers = reads.into_iter().flat_map(|r| r.answers);
        Ok(answers.map(|(all, _)| all).collect())
    }

    /// That of blocks with samples in a range, as far as these are not deleted, as of a manifest version or a later one.
    async fn metadata_of_blocks(
        &self,
        tenant: &TenantId,
        metric: &str,
        range: TimeRange,
        floor: u64,
        budget: &Arc<Budget>,
    ) -> Result<Vec<Answer>, QueryError> {
        let view = match self.manifests.recent(tenant).await {
            Ok(view) if view.version >= floor => view,
            Ok(_) => self.manifests.pin(tenant, floor).await?,
            Err(none) => return Err(none.into()),
        };
        let wanted = resolution::choose(&view, Coarseness::default(), |b| b.range.overlaps(&range));
        let named = (!metric.is_empty()).then(|| Matcher::equal(METRIC_NAME, metric));
        let request = BlockRequest {
            tenant: tenant.clone(),
            manifest_version: view.version,
            blocks: wanted.into_iter().map(|b| b.id.clone()).collect(),
            matchers: Matchers(named.into_iter().collect()),
            range,
            labels_only: true,
            limit: 0,
            histogram_sums: false,
        };
        let asker = self.asker(budget).without_waiting();
        let found = asker.metadata(&request).await;
        found.map_err(|e| self.blocks_failed(tenant, e))
    }
}
