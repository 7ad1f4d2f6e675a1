//! Fills gaps that stay, and drops streams that are over, once all members of a partition have said what they hold
//! ([`crate::streams`]).

use std::collections::{BTreeMap, BTreeSet};

use koios_control::Partition;
use koios_model::{BatchSet, StreamId, TenantId};
use koios_wire::TenantHoldings;

use crate::Result;
use crate::ingester::Inner;
use crate::record::{Entry, TakenOver};

/// What is missing of a partition, compared with what its members say.
pub(crate) struct Settling<'a> {
    inner: &'a Inner,
    partition: &'a Partition,
    /// Per tenant, what no member that was heard holds of the gaps.
    gaps: BTreeMap<TenantId, BatchSet>,
    /// The streams that they told of.
    told: BTreeMap<TenantId, BTreeSet<StreamId>>,
    /// Those of which one told something else than what is held here.
    differing: BTreeMap<TenantId, BTreeSet<StreamId>>,
    /// Members to be heard yet.
    missing: usize,
}

impl<'a> Settling<'a> {
    /// Takes the gaps before any member is asked: what is acknowledged of them was so before, and a majority tells of it.
    pub(crate) fn begin(inner: &'a Inner, partition: &'a Partition) -> Self {
        let mut gaps = BTreeMap::new();
        if inner.counts(partition.id) {
            for replica in inner.store.replicas_of(partition.id) {
                let of_tenant = replica.state.read().gaps(partition.epoch);
                if !of_tenant.is_empty() {
                    gaps.insert(replica.key.1.clone(), of_tenant);
                }
            }
        }
        Self {
            inner,
            partition,
            gaps,
            told: BTreeMap::new(),
            differing: BTreeMap::new(),
            missing: partition.replicas.len().saturating_sub(1),
        }
    }

    /// A member that counts has said what it holds of every tenant.
    pub(crate) fn heard(&mut self, tenants: &[TenantHoldings]) {
        self.missing = self.missing.saturating_sub(1);
        for theirs in tenants {
            if let Some(gaps) = self.gaps.get_mut(&theirs.tenant) {
                *gaps = gaps.difference(&theirs.held).difference(&theirs.logged);
            }
            let streams = theirs.held.streams().map(|(stream, _)| stream);
            self.told
                .entry(theirs.tenant.clone())
                .or_default()
                .extend(streams);
            if let Some(replica) = self.inner.store.replica(self.partition.id, &theirs.tenant) {
                let differing = replica.state.read().differing(&theirs.held);
                self.differing
                    .entry(theirs.tenant.clone())
                    .or_default()
                    .extend(differing);
            }
        }
    }

    /// Does what can be done, if all were heard.
    pub(crate) async fn end(self) {
        // One that lost something since has its gaps filled by repair only.
        if self.missing > 0 || !self.inner.counts(self.partition.id) {
            return;
        }
        for replica in self.inner.store.replicas_of(self.partition.id) {
            replica.state.write().age_filled();
        }
        for (tenant, gaps) in &self.gaps {
            if let Err(error) = self.fill(tenant, gaps).await {
                let partition = self.partition.id;
                tracing::warn!(%partition, %tenant, %error, "gaps in what is held stay for now");
            }
        }
        let nothing = BTreeSet::new();
        for replica in self.inner.store.replicas_of(self.partition.id) {
            let logged = self.inner.store.segments.lock().logged(&replica.key);
            let mut state = replica.state.write();
            let tenant = &replica.key.1;
            state.note_logged(&logged, self.differing.get(tenant).unwrap_or(&nothing));
            state.drop_streams(self.told.get(tenant).unwrap_or(&nothing));
        }
    }

    /// Has gaps pass for held.
    async fn fill(&self, tenant: &TenantId, gaps: &BatchSet) -> Result<()> {
        if gaps.is_empty() {
            return Ok(());
        }
        let (partition, batches) = (self.partition.id, gaps.len());
        if let Some(replica) = self.inner.store.replica(partition, tenant) {
            replica.state.write().note_filled(gaps);
        }
        let entry = Entry::TakenOver(TakenOver {
            partition,
            tenant: tenant.clone(),
            held: gaps.clone(),
            // They raise no floors.
            forgotten_below_ms: i64::MIN,
            manifest_version: 0,
        });
        self.inner.log(entry).await?;
        tracing::debug!(%partition, %tenant, batches, "batches that were never acknowledged are settled");
        Ok(())
    }
}
