//! Deletions: what members must have applied before what they read counts.
//!
//! A deletion is answered once a majority of each partition's members have applied it, so that of any that are read one
//! tells of it (I5): those that do not know it are read again, once they do.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::{BatchSet, PartitionId, TenantId};
use koios_promql::QueryError;
use koios_wire::{DeletionsReply, DeletionsRequest, ReadEnd};

use super::Cluster;
use super::heads::PartitionRead;

/// How long members are asked to apply a deletion: what goes is uploaded first.
const APPLY_WAIT: Duration = Duration::from_secs(60);
/// Wait before they are asked again.
const APPLY_RETRY: Duration = Duration::from_millis(200);

/// What members that are read must have applied.
#[derive(Debug, Default)]
pub(crate) struct DeletionsSeen {
    version: u64,
}

impl DeletionsSeen {
    /// The manifest version to ask for.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether all that was read knows of the same deletions; else it is to be read again.
    pub(crate) fn agree<T>(&mut self, reads: &[PartitionRead<T>]) -> bool {
        let ends = || {
            reads
                .iter()
                .flat_map(|r| &r.answers)
                .map(|(_, end)| end.deletions_version)
        };
        self.version = self.version.max(ends().max().unwrap_or(0));
        ends().all(|version| version >= self.version)
    }
}

impl Cluster {
    /// Asks a majority of each partition's members.
    async fn ask_deletions(
        &self,
        tenant: &TenantId,
        version: u64,
        with_held: bool,
    ) -> Result<Vec<PartitionRead<DeletionsReply>>, QueryError> {
        let mut plans = self.plans(tenant);
        loop {
            let plan = plans.next()?;
            let read = self.heads.all_partitions(&plan, |target| {
                let request = DeletionsRequest {
                    tenant: tenant.clone(),
                    partition: target.partition,
                    epoch: target.epoch,
                    version,
                    with_held,
                };
                self.heads.ask_partition(target, move |client| {
                    let request = request.clone();
                    async move { Ok((client.deletions(request).await?, ReadEnd::default())) }
                })
            });
            match read.await {
                Ok(reads) => return Ok(reads),
                Err(e) => plans.failed(&plan, e).await?,
            }
        }
    }

    /// The batches that were acknowledged before, and perhaps more, per partition.
    pub(crate) async fn held_batches(
        &self,
        tenant: &TenantId,
    ) -> Result<BTreeMap<PartitionId, BatchSet>, QueryError> {
        let mut held = BTreeMap::<PartitionId, BatchSet>::new();
        for read in self.ask_deletions(tenant, 0, true).await? {
            for (reply, _) in read.answers.iter().filter(|(reply, _)| !reply.held.is_empty()) {
                held.entry(read.partition).or_default().union_with(&reply.held);
            }
        }
        Ok(held)
    }

    /// The manifest version up to which members have applied deletions.
    pub(crate) async fn deletions_version(&self, tenant: &TenantId) -> Result<u64, QueryError> {
        let reads = self.ask_deletions(tenant, 0, false).await?;
        let versions = reads
            .iter()
            .flat_map(|r| &r.answers)
            .map(|(reply, _)| reply.version);
        Ok(versions.max().unwrap_or(0))
    }

    /// Returns once a majority of each partition's members have applied the deletions of a manifest version.
    pub(crate) async fn apply_deletions(&self, tenant: &TenantId, version: u64) -> Result<(), QueryError> {
        let clock = &self.heads.clock;
        let give_up = clock.elapsed().saturating_add(APPLY_WAIT);
        loop {
            match self.ask_deletions(tenant, version, false).await {
                Err(QueryError::Unavailable { .. }) if clock.elapsed() < give_up => {
                    clock.sleep(APPLY_RETRY).await;
                }
                asked => return asked.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(partition: u32, versions: &[u64]) -> PartitionRead<()> {
        let end = |version: &u64| ReadEnd {
            deletions_version: *version,
            ..ReadEnd::default()
        };
        PartitionRead {
            partition: PartitionId(partition),
            answers: versions.iter().map(|version| ((), end(version))).collect(),
        }
    }

    #[test]
    fn i10_members_are_read_again_until_all_know_what_one_does() {
        let mut seen = DeletionsSeen::default();
        assert!(seen.agree(&[read(0, &[0, 0]), read(1, &[0, 0])]));
        assert!(!seen.agree(&[read(0, &[7, 3]), read(1, &[0, 0])]));
        assert_eq!(seen.version(), 7);
        // A later one came meanwhile.
        assert!(!seen.agree(&[read(0, &[7, 9]), read(1, &[7, 7])]));
        assert!(seen.agree(&[read(0, &[9, 9]), read(1, &[9]), read(2, &[])]));
        // What was asked for counts, too.
        assert!(!seen.agree(&[read(0, &[8, 8])]));
    }
}
