//! Retention by tenant and by rules: what is in force, what is past it, and how that goes.
//!
//! **Data flow.** *Policy* (pure) says what the settings mean for a tenant, and what is in force given what the manifest notes: [`note`] writes that
//! there, with the time as of which readers leave out what is older. *Horizon* (pure) says which classes of series of which blocks are
//! past. Blocks of which nothing is left go with `cleanup::retire`; *plan* (pure) says which others are to be looked through, *rewrite*
//! does that, and *split* lets summaries take the place of samples but for those that a rule keeps.
//!
//! **Invariants.** What is removed is told by the manifest alone: nothing before the policy in force has been noted there, unchanged, for as
//! long as it can be taken back, by no other values and as of no later time than are noted there, and so nothing that readers still see (I10).
//! Nothing goes earlier because what was said is no longer known. What a block lacks is a fact of its samples, whatever rules follow.

mod audit;
mod clock;
mod horizon;
mod metrics;
mod plan;
mod policy;
mod rewrite;
mod split;
mod steps;

use koios_bucket::{Manifest, ManifestBlock, RetentionPolicy, RetentionRecord, TenantManifests, Writer};
use koios_model::Expiry;

pub(crate) use audit::audit_blocks;
pub(crate) use clock::TrustedClock;
pub(crate) use horizon::Horizon;
pub(crate) use metrics::RetentionMetrics;

use super::CompactionSettings;
use super::error::CompactError;
use audit::audit_policy;
use horizon::is_settled;
use plan::ExpiryJob;
pub(crate) use plan::due_expiries;
pub(crate) use policy::configured;
use policy::due_record;

/// What merges leave out because of its age, and which classes of series their blocks lack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aged {
    pub(crate) expiry: Expiry,
    pub(crate) lacks: Vec<u64>,
    /// What was in force when that was decided.
    record: Option<RetentionRecord>,
}

impl Aged {
    /// Of a merge of blocks: what readers leave out of them anyway.
    pub(crate) fn of(
        manifest: &Manifest,
        inputs: &[ManifestBlock],
        settings: &CompactionSettings,
    ) -> Result<Self, CompactError> {
        let record = manifest.retention.as_ref();
        let expiry = match record.is_some_and(|r| is_settled(r, r.horizon_ms, settings)) {
            true => manifest.expiry()?,
            false => Expiry::default(),
        };
        Ok(Self::new(manifest, expiry, common_lacks(manifest, inputs)))
    }

    /// As a manifest tells to.
    pub(crate) fn new(manifest: &Manifest, expiry: Expiry, lacks: Vec<u64>) -> Self {
        Self {
            expiry,
            lacks,
            record: manifest.retention.clone(),
        }
    }

    /// Of blocks that are written again for another reason.
    pub(crate) fn nothing(manifest: &Manifest, inputs: &[ManifestBlock]) -> Self {
        Self::new(manifest, Expiry::default(), common_lacks(manifest, inputs))
    }

    /// Whether what is left out may go by another version of the manifest, too: the same is in force, has been for as long, and is carried
    /// out as of no earlier time.
    pub(crate) fn holds_in(&self, manifest: &Manifest) -> bool {
        let leaves_nothing_out = self.expiry.latest().is_none();
        let both = self.record.as_ref().zip(manifest.retention.as_ref());
        leaves_nothing_out
            || both.is_some_and(|(then, now)| {
                now.policy == then.policy
                    && now.since_ms <= then.since_ms
                    && now.horizon_ms >= then.horizon_ms
            })
    }
}

/// The classes of series that none of some blocks has.
fn common_lacks(manifest: &Manifest, blocks: &[ManifestBlock]) -> Vec<u64> {
    let names = manifest.retention.iter().flat_map(|r| &r.classes);
    let lacked = names.filter(|name| blocks.iter().all(|b| b.lacks.contains(name)));
    lacked.copied().collect()
}

/// Writes into the manifest what is in force, and as of when, where that is not there. Whether it wrote.
pub(crate) async fn note(
    manifests: &TenantManifests,
    manifest: &Manifest,
    policy: &RetentionPolicy,
    now_ms: i64,
    writer: &Writer,
) -> Result<bool, CompactError> {
    let Some(due) = due_record(manifest, policy, now_ms) else {
        return Ok(false);
    };
    let write = |m: &mut Manifest| {
        // What another one noted meanwhile is not what this policy follows.
        if m.retention == manifest.retention {
            m.retention = due_record(m, policy, now_ms).or_else(|| m.retention.take());
        }
        Ok(())
    };
    manifests.commit(&manifest.tenant, writer, write).await?;
    let before = manifest.retention.as_ref().map(|r| &r.policy);
    if before != Some(policy) {
        audit_policy(&manifest.tenant, before, &due.policy);
    }
    Ok(true)
}
