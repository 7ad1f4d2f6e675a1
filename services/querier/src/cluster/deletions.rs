//! Deletions: what members must have applied before what they read counts.
//!
//! A deletion is answered once a majority of each partition's members have applied it, so that of any that are read one
//! tells of it (I5): those that do not know it are read again, once they do. Where they cannot learn it, for the bucket is
//! away, a majority that does not know of a deletion is as good as one that does: nobody was told that it is applied (I9).

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::{BatchSet, PartitionId, TenantId};
use koios_promql::QueryError;
use koios_wire::{DeletionsReply, DeletionsRequest, ReadEnd};

use super::Cluster;
use super::heads::{HeadError, PartitionRead};

/// How long members are asked to apply a deletion: what goes is uploaded first.
const APPLY_WAIT: Duration = Duration::from_secs(60);
/// How long a read waits for a member to learn of a deletion, before it looks for a majority that agrees as it is.
const LEARN_WAIT: Duration = Duration::from_secs(2);
/// Wait before they are asked again.
const APPLY_RETRY: Duration = Duration::from_millis(200);

/// What members that are read must have applied.
#[derive(Debug, Default)]
pub(crate) struct DeletionsSeen {
    version: u64,
    way: Way,
}

/// How members that disagree are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    /// Those that do not know what others do learn it first.
    #[default]
    Learning,
    /// Of each partition a majority that knows of the last deletion, or one that does not.
    Apart,
    /// As first, for as long as it takes.
    Insisting,
}

impl DeletionsSeen {
    /// A member told of this manifest version before.
    pub(crate) fn up_to(version: u64) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// The latest manifest version that a member told of.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The manifest version to ask for.
    pub(crate) fn to_ask_for(&self) -> u64 {
        match self.way {
            Way::Learning | Way::Insisting => self.version,
            Way::Apart => 0,
        }
    }

    /// The version by which answers are kept apart; 0 where they need not be.
    pub(crate) fn apart(&self) -> u64 {
        match self.way {
            Way::Learning | Way::Insisting => 0,
            Way::Apart => self.version,
        }
    }

    /// How long a member may take to begin its answer, where it is to learn something before it does; what it sends then takes
    /// as long as it takes.
    pub(crate) fn answer_wait(&self) -> Option<Duration> {
        (self.version > 0 && self.way == Way::Learning).then_some(LEARN_WAIT)
    }

    /// Whether all that was read knows of the same deletions; else it is to be read again.
    pub(crate) fn agree<T>(&mut self, reads: &[PartitionRead<T>]) -> bool {
        let of_partition = |r: &PartitionRead<T>| -> Vec<u64> {
            r.answers.iter().map(|(_, end)| end.deletions_version).collect()
        };
        if self.way == Way::Apart {
            // What a majority of any partition does not know of, nobody was told to be applied.
            let agree = reads
                .iter()
                .map(of_partition)
                .all(|of| of.iter().all(|v| Some(v) == of.first()));
            if !agree {
                self.way = Way::Insisting;
            }
            return agree;
        }
        let all: Vec<u64> = reads.iter().flat_map(of_partition).collect();
        self.version = self.version.max(all.iter().copied().max().unwrap_or(0));
        all.into_iter().all(|version| version >= self.version)
    }

    /// Whether a read that failed, for members did not learn of a deletion, is worth another way.
    pub(crate) fn has_another_way(&mut self, e: &HeadError) -> bool {
        if self.version == 0 || !matches!(e, HeadError::Query(QueryError::Unavailable { .. })) {
            return false;
        }
        let (way, has) = match self.way {
            Way::Learning => (Way::Apart, true),
            Way::Apart => (Way::Insisting, true),
            Way::Insisting => (Way::Insisting, false),
        };
        self.way = way;
        has
    }
}

/// What members say before a deletion.
#[derive(Debug, Default)]
pub(crate) struct HeldBatches {
    /// The batches that were acknowledged before, and perhaps more, per partition.
    pub(crate) batches: BTreeMap<PartitionId, BatchSet>,
    /// The newest manifest version that they tell of: to one that is older nothing may be committed.
    pub(crate) announced: u64,
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

    /// What members hold.
    pub(crate) async fn held_batches(&self, tenant: &TenantId) -> Result<HeldBatches, QueryError> {
        let mut held = HeldBatches::default();
        for read in self.ask_deletions(tenant, 0, true).await? {
            for (reply, _) in &read.answers {
                held.announced = held.announced.max(reply.announced());
                if !reply.held.is_empty() {
                    let of = held.batches.entry(read.partition).or_default();
                    of.union_with(&reply.held);
                }
            }
        }
        Ok(held)
    }

    /// The newest manifest version that members tell of: to one that is older nothing may be committed.
    pub(crate) async fn announced_version(&self, tenant: &TenantId) -> Result<u64, QueryError> {
        let reads = self.ask_deletions(tenant, 0, false).await?;
        let answers = reads.iter().flat_map(|r| &r.answers);
        Ok(answers.map(|(reply, _)| reply.announced()).max().unwrap_or(0))
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
