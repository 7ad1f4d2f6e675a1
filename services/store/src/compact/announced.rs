//! What members tell of a tenant's manifest: where the bucket shows an older version than one of them has seen, versions are lost, and
//! nothing in the bucket need say so.

use std::time::Duration;

use koios_model::TenantId;

use super::Compactor;
use super::error::CompactError;

/// How long nothing is done for a tenant while members have not answered: those that start replay their logs before they can tell.
const MEMBERS_WAIT: Duration = Duration::from_secs(300);

/// What members have told of a tenant since the process started. What is committed later this process remembers.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The newest version that one of them knows.
    version: u64,
    first_asked: Option<Duration>,
    /// Whether they are asked no more: all have answered, or were waited for.
    is_over: bool,
}

impl Compactor {
    /// Whether members were heard, before anything of a tenant is committed or deleted.
    ///
    /// Those that do not answer are waited for, but not for ever: one that is gone would keep everything from being compacted.
    ///
    /// # Errors
    /// That the manifest lost versions, when it is older than what one of them knows.
    pub(super) async fn has_heard_members(&mut self, tenant: &TenantId) -> Result<bool, CompactError> {
        let told = &mut self.tenants.entry(tenant.clone()).or_default().told;
        if !told.is_over {
            let announced = self.deps.witness.announced(tenant).await;
            let now = self.deps.runtime.clock.elapsed();
            let first_asked = *told.first_asked.get_or_insert(now);
            told.version = told.version.max(announced.version);
            told.is_over = announced.by_all || now.saturating_sub(first_asked) >= MEMBERS_WAIT;
        }
        if told.version > 0 {
            self.deps.manifests.at_least(tenant, told.version).await?;
        }
        if !told.is_over {
            tracing::debug!(%tenant, "not compacted yet: members have not told which version of the manifest they know");
        }
        Ok(told.is_over)
    }
}
