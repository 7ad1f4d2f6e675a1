//! Reads over the whole cluster: heads by quorum, then blocks of a pinned manifest, merged exactly once.

mod bucket;
mod budget;
mod collected;
mod deletions;
mod exemplars;
mod heads;
mod held;
mod kept_run;
mod labels;
mod manifests;
mod merge;
mod metadata;
mod queryable;
mod resolution;
mod seam;
mod state;
mod stores;
mod summarised;
mod topology;

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod lookup_limits_test;
#[cfg(test)]
mod lookups_test;
#[cfg(test)]
pub(crate) mod mock;
#[cfg(test)]
mod versions_test;

use std::future::Future;
use std::sync::Arc;

use koios_model::{Expiry, Labels, Matchers, PartitionId, TenantId, TimeRange};
use koios_promql::{Completeness, QueryError};
use koios_runtime::ClockHandle;
use koios_server::Metrics;
use koios_wire::{ReadRequest, ServiceErrorCode};

pub use bucket::BucketManifests;
pub use budget::{Budget, Charge};
pub use exemplars::FoundExemplars;
pub use heads::Patience;
pub use manifests::{ListedBlock, ManifestView, Manifests, Summarised};
pub use queryable::ClusterQueryable;
pub use resolution::SourceResolution;
pub use state::{ClusterTopology, Members};
pub use stores::StoreReads;
pub use topology::{PartitionTarget, ReadPlan, Replica, StoreMember, Topology};

pub(crate) use collected::{Collected, Footprint};
use deletions::DeletionsSeen;
use heads::{HeadError, HeadReader};
use held::SourceError;
use manifests::{ManifestCache, NoManifest, UnknownManifest};
pub(crate) use merge::Wanted;
use merge::{Feed, MemberAnswer, Merge, source_failed};
pub(crate) use resolution::Coarseness;
use seam::Seam;
use stores::{Asker, BlockFeed, BlockRequest, StoreBoard};

/// The cluster as queries see it. Shared by all of them.
#[derive(Debug)]
pub struct Cluster {
    topology: Arc<dyn Topology>,
    manifests: ManifestCache,
    heads: HeadReader,
    stores: Arc<StoreBoard>,
}

/// Which series to read, of whom.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) tenant: TenantId,
    pub(crate) matchers: Matchers,
    pub(crate) range: TimeRange,
    pub(crate) labels_only: bool,
    pub(crate) wanted: Wanted,
}

/// What a read needs of a manifest.
struct BlocksToRead {
    view: Arc<ManifestView>,
    /// Their names; of none where only the heads have anything.
    blocks: Vec<String>,
}

/// What there is beside heads.
enum Beside {
    Known(BlocksToRead),
    /// Heads say that they need no blocks; but of those from before their time they do not know, so that there may be more.
    Unknown(UnknownManifest),
}

impl Beside {
    /// What is too old of a range, as far as a manifest is known.
    fn expiry_in(&self, range: TimeRange) -> Option<Expiry> {
        match self {
            Self::Known(blocks) => Some(blocks.view.expiry_in(range)),
            Self::Unknown(_) => None,
        }
    }
}

/// Hands out plans until one is not refused as stale.
struct Plans<'a> {
    cluster: &'a Cluster,
    tenant: &'a TenantId,
    tries: u32,
}

impl Plans<'_> {
    fn next(&self) -> Result<ReadPlan, QueryError> {
        let plan = self.cluster.topology.plan(self.tenant);
        if plan.partitions.is_empty() {
            return Err(QueryError::unavailable(format!(
                "no partition is known in control state {}: wait until the cluster has formed",
                plan.state_version
            )));
        }
        Ok(plan)
    }

    /// Deals with a failed read: waits for a newer state when the plan was stale.
    async fn failed(&mut self, plan: &ReadPlan, e: HeadError) -> Result<(), QueryError> {
        let version = match e {
            HeadError::Query(e) => return Err(e),
            HeadError::Stale(version) => version.max(plan.state_version + 1),
        };
        let patience = self.cluster.heads.patience;
        if self.tries >= patience.retries {
            return Err(QueryError::unavailable(format!(
                "members have control state {version} or later, this querier {}: it has not caught up yet",
                plan.state_version
            )));
        }
        self.tries += 1;
        self.cluster.topology.catch_up(version).await;
        self.cluster.heads.clock.sleep(patience.retry).await;
        Ok(())
    }

    /// Deals with members of which not all knew a deletion that another told of: they do when they are asked again.
    async fn disagreed(&mut self, version: u64) -> Result<(), QueryError> {
        let patience = self.cluster.heads.patience;
        if self.tries >= patience.retries {
            return Err(QueryError::unavailable(format!(
                "not all members know of the deletions of manifest version {version}: ask again; members of versions before deletions \
                 are to be replaced first"
            )));
        }
        if self.tries > 0 {
            self.cluster.heads.clock.sleep(patience.retry).await;
        }
        self.tries += 1;
        Ok(())
    }
}

impl Cluster {
    /// Puts the parts together.
    pub fn new(
        topology: Arc<dyn Topology>,
        manifests: Arc<dyn Manifests>,
        clock: ClockHandle,
        patience: Patience,
    ) -> Arc<Self> {
        Self::with_stores(
            topology,
            manifests,
            clock,
            patience,
            StoreReads::default(),
            &Metrics::new(),
        )
    }

    /// As [`Self::new`], with blocks read as `reads` says.
    pub fn with_stores(
        topology: Arc<dyn Topology>,
        manifests: Arc<dyn Manifests>,
        clock: ClockHandle,
        patience: Patience,
        reads: StoreReads,
        metrics: &Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            topology,
            manifests: ManifestCache::new(manifests, Arc::clone(&clock), patience.manifest_age),
            stores: StoreBoard::new(Arc::clone(&clock), reads, metrics),
            heads: HeadReader::new(clock, patience),
        })
    }

    /// The stores as they are now, for a read within a budget.
    fn asker(&self, budget: &Arc<Budget>) -> Asker {
        let (topology, board) = (Arc::clone(&self.topology), Arc::clone(&self.stores));
        Asker::new(topology, board, Arc::clone(budget))
    }

    fn plans<'a>(&'a self, tenant: &'a TenantId) -> Plans<'a> {
        Plans {
            cluster: self,
            tenant,
            tries: 0,
        }
    }

    /// Reads series: heads first, then the blocks that hold what the heads may have forgotten.
    pub(crate) async fn select(
        &self,
        selection: &Selection,
        budget: &Arc<Budget>,
    ) -> Result<Merge, QueryError> {
        let (heads, blocks) = if selection.labels_only {
            let read = |expiry| self.select_heads(selection, expiry, budget);
            self.read_as_of_one_version(selection, read).await?
        } else {
            self.select_samples(selection, budget).await?
        };
        let mut feeds: Vec<_> = heads.into_iter().map(Feed::Held).collect();
        let mut wanted = selection.wanted.clone();
        let completeness = match blocks {
            Beside::Known(BlocksToRead { view, blocks }) => {
                wanted.expiry = view.expiry_in(selection.range);
                // Without names a store would read all blocks.
                if !blocks.is_empty() {
                    let request = BlockRequest {
                        tenant: selection.tenant.clone(),
                        manifest_version: view.version,
                        blocks,
                        matchers: selection.matchers.clone(),
                        range: selection.range,
                        labels_only: selection.labels_only,
                        limit: limit_of(&selection.wanted, budget),
                        histogram_sums: selection.wanted.histogram_sums,
                    };
                    let feed = BlockFeed::new(self.asker(budget), request);
                    feeds.push(Feed::Blocks(Box::new(feed)));
                }
                Completeness::Complete
            }
            Beside::Unknown(none) => none.into(),
        };
        let merge = Merge::start(feeds, &selection.tenant, wanted, Arc::clone(budget)).await;
        let merge = merge.map_err(|e| self.blocks_failed(&selection.tenant, e))?;
        Ok(merge.lacking(completeness))
    }

    /// Reads heads for samples. What is too old of these is left out where they are merged; but members that sent as many series as they
    /// may have to leave it out themselves, or there would be others in the place of what is left out.
    async fn select_samples(
        &self,
        selection: &Selection,
        budget: &Arc<Budget>,
    ) -> Result<(Vec<MemberAnswer>, Beside), QueryError> {
        let mut expiry = Expiry::default();
        for _ in 0..=self.heads.patience.retries {
            let (heads, seam) = self.select_heads(selection, expiry.clone(), budget).await?;
            let blocks = self.blocks_for(selection, &seam).await?;
            let left_out = expiry != Expiry::default() || heads.iter().any(MemberAnswer::is_cut);
            match blocks.expiry_in(selection.range) {
                Some(pinned) if left_out && pinned != expiry => expiry = pinned,
                _ => return Ok((heads, blocks)),
            }
        }
        Err(expiry_changes(&selection.tenant))
    }

    /// Reads heads for labels, which show no times: heads leave out what is too old by themselves, as the manifest says that the answer
    /// is of. That is known only when they have answered; nearly always it says what the one before did.
    async fn read_as_of_one_version<T, F>(
        &self,
        selection: &Selection,
        read: impl Fn(Expiry) -> F,
    ) -> Result<(T, Beside), QueryError>
    where
        F: Future<Output = Result<(T, Seam), QueryError>>,
    {
        let Selection { tenant, range, .. } = selection;
        let known = self.manifests.recent(tenant).await;
        let mut expiry = known.map(|view| view.expiry_in(*range)).unwrap_or_default();
        for _ in 0..=self.heads.patience.retries {
            let (found, seam) = read(expiry.clone()).await?;
            let blocks = self.blocks_for(selection, &seam).await?;
            match blocks.expiry_in(*range) {
                Some(pinned) if pinned != expiry => expiry = pinned,
                // Without a manifest what was known of one is the best that there is.
                _ => return Ok((found, blocks)),
            }
        }
        Err(expiry_changes(tenant))
    }

    async fn select_heads(
        &self,
        selection: &Selection,
        expiry: Expiry,
        budget: &Arc<Budget>,
    ) -> Result<(Vec<MemberAnswer>, Seam), QueryError> {
        let mut request = ReadRequest {
            tenant: selection.tenant.clone(),
            partition: PartitionId(0),
            epoch: 0,
            matchers: selection.matchers.clone(),
            range: selection.range,
            labels_only: selection.labels_only,
            encoded: false,
            limit: limit_of(&selection.wanted, budget),
            deletions_version: 0,
            expiry,
        };
        let mut plans = self.plans(&selection.tenant);
        let mut seen = DeletionsSeen::default();
        let reads = loop {
            let plan = plans.next()?;
            request.deletions_version = seen.to_ask_for();
            let heads = self.heads.seeing(&seen);
            match heads.read_series(&plan, &request, budget).await {
                Ok(reads) if seen.agree(&reads) => break reads,
                Ok(_) => plans.disagreed(seen.version()).await?,
                Err(e) if seen.has_another_way(&e) => {}
                Err(e) => plans.failed(&plan, e).await?,
            }
        };
        let (mut seam, mut feeds) = (Seam::default(), Vec::new());
        for read in reads {
            for (series, end) in read.answers {
                seam.add(read.partition, end);
                feeds.push(MemberAnswer::new(series, request.limit));
            }
        }
        Ok((feeds, seam))
    }

    /// The blocks to read beside the heads, and the manifest that lists them.
    async fn blocks_for(&self, selection: &Selection, seam: &Seam) -> Result<Beside, QueryError> {
        let Selection { tenant, range, .. } = selection;
        let range = *range;
        let pin = &selection.wanted.pin;
        let view = match pin.at_least(seam.floor()) {
            Some(view) => view,
            None => match self.view_for(tenant, range, seam).await? {
                Ok(view) => view,
                Err(none) => return Ok(Beside::Unknown(none)),
            },
        };
        pin.set(&view);
        // Another selector of the query may have been faster with another version.
        let view = pin.at_least(seam.floor()).unwrap_or(view);
        let coarseness = selection.wanted.coarseness;
        let chosen = resolution::choose(&view, coarseness, |b| seam.needs_block(b, range));
        let blocks = chosen.into_iter().map(|b| b.id.clone()).collect();
        Ok(Beside::Known(BlocksToRead { view, blocks }))
    }

    /// The manifest to read as of, or that none is known where heads can do without. Where it is damaged they cannot: what it listed is
    /// not only late.
    async fn view_for(
        &self,
        tenant: &TenantId,
        range: TimeRange,
        seam: &Seam,
    ) -> Result<Result<Arc<ManifestView>, UnknownManifest>, QueryError> {
        // Heads do not know of blocks from before their time, so the manifest is looked at where it can be had; but
        // recent queries never depend on the bucket.
        if seam.needs_blocks(range) {
            return self.manifests.pin(tenant, seam.floor()).await.map(Ok);
        }
        let history_known = !self.topology.plan(tenant).history_unknown;
        match self.manifests.recent(tenant).await {
            Ok(view) if view.version >= seam.deletions_version() => Ok(Ok(view)),
            Err(NoManifest::Damaged(e)) => Err(e),
            Err(NoManifest::Unknown(none)) if history_known => Ok(Err(none)),
            stale => match (self.manifests.pin(tenant, seam.floor()).await, stale) {
                (Ok(view), _) => Ok(Ok(view)),
                // Its blocks would be read with what is deleted. It still says whether there are any to read.
                (Err(QueryError::Unavailable { .. }), Ok(stale))
                    if history_known && !seam.needs_any_of(&stale.blocks, range) =>
                {
                    Ok(Ok(stale))
                }
                (Err(e), _) => Err(e),
            },
        }
    }

    /// A block that is gone means that the pinned manifest is too old: the next read looks it up anew.
    fn blocks_failed(&self, tenant: &TenantId, e: SourceError) -> QueryError {
        if matches!(&e, SourceError::Service(e) if e.code == ServiceErrorCode::NotFound) {
            self.manifests.forget(tenant);
        }
        source_failed(e)
    }

    /// Label sets of matching series, in label order; those of several selections once.
    pub(crate) async fn series(
        &self,
        selections: &[Selection],
        limit: usize,
        budget: &Arc<Budget>,
    ) -> Result<Collected<Labels>, QueryError> {
        let mut found = Collected::new(budget)?;
        for selection in selections {
            let mut merge = self.select(selection, budget).await?;
            found.lacks(merge.completeness().clone());
            while let Some(series) = merge
                .next()
                .await
                .map_err(|e| self.blocks_failed(&selection.tenant, e))?
            {
                found.add(series.labels)?;
            }
        }
        // One more than the limit tells the caller that there are more.
        if limit != 0 {
            found.truncate(limit.saturating_add(1));
        }
        Ok(found)
    }
}

fn expiry_changes(tenant: &TenantId) -> QueryError {
    QueryError::unavailable(format!(
        "how long samples of tenant {tenant} are kept changed each time that heads were read: ask again"
    ))
}

/// How many series a source need send, 0 for all: it does not know which of them are in a shard.
fn limit_of(wanted: &Wanted, budget: &Budget) -> u64 {
    match (wanted.limit, wanted.shard) {
        (_, Some(_)) => 0,
        (0, None) => budget.series_to_ask(),
        (limit, None) => (limit as u64).min(budget.series_to_ask()),
    }
}
