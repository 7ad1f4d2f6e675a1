//! How blocks are imported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use koios_bucket::Manifest;
use koios_model::TenantId;

/// What becomes of labels that a block's `meta.json` names and its series do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalLabels {
    /// Every series gets them, but for these.
    AddExcept(BTreeSet<String>),
    /// None are added.
    Ignore,
}

impl ExternalLabels {
    /// Those that are added. Names that begin with two underscores are notes that Mimir makes for itself.
    pub(crate) fn of(&self, external: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let Self::AddExcept(left_out) = self else {
            return BTreeMap::new();
        };
        let added = external.iter().filter(|(name, value)| {
            !name.starts_with("__") && !value.is_empty() && !left_out.contains(*name)
        });
        added.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// Knows how long samples of tenants are kept.
pub trait Retentions: fmt::Debug + Send + Sync {
    /// The longest that any sample of a tenant is; zero for ever.
    fn of(&self, tenant: &TenantId) -> Duration;
}

/// How blocks are imported.
#[derive(Clone, Debug)]
pub struct ImportSettings {
    /// Width of the windows that blocks are cut for. Default 2 h.
    pub block_range: Duration,
    /// Windows that ended longer ago are left out; zero takes all. Default 150 days. Where nobody said it, what the tenant's
    /// manifest notes counts instead.
    pub retention: Duration,
    /// Whether somebody said [`Self::retention`].
    pub retention_given: bool,
    /// Says it by tenant instead; where the manifest notes more, that counts.
    pub retentions: Option<Arc<dyn Retentions>>,
    /// A block ends at about so many bytes: it is in memory until it is uploaded. Default 128 MiB.
    pub block_bytes: usize,
    /// The same for series. Default 500,000.
    pub block_series: usize,
    /// What becomes of external labels. Default: all are added.
    pub external: ExternalLabels,
    /// Whether everything is read and checked, and nothing written. Default false.
    pub dry_run: bool,
    /// Whether what was imported before is imported once more. Default false.
    pub again: bool,
}

impl Default for ImportSettings {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            block_range: 2 * HOUR,
            retention: 150 * 24 * HOUR,
            retention_given: false,
            retentions: None,
            block_bytes: 128 << 20,
            block_series: 500_000,
            external: ExternalLabels::AddExcept(BTreeSet::new()),
            dry_run: false,
            again: false,
        }
    }
}

impl ImportSettings {
    /// How long samples of a manifest's tenant are kept.
    pub(crate) fn kept(&self, manifest: &Manifest) -> Kept {
        let of_tenant = self.retentions.as_ref().map(|r| r.of(&manifest.tenant));
        let retention = of_tenant.unwrap_or(self.retention);
        let told = (!retention.is_zero()).then(|| millis(retention));
        let is_longer = |noted: Option<i64>| told.is_some_and(|told| noted.is_none_or(|ms| ms > told));
        let noted = manifest.retention.as_ref().map(|r| r.policy.longest_ms());
        let counts = |noted: &Option<i64>| match of_tenant {
            // What the settings of a cluster say by now may be held against what they said before.
            Some(_) => is_longer(*noted),
            None => !self.retention_given,
        };
        match noted.filter(counts) {
            Some(ms) => Kept { ms, is_noted: true },
            None => Kept {
                ms: told,
                is_noted: false,
            },
        }
    }
}

/// How long samples of a tenant are kept, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Milliseconds; `None` for ever.
    pub ms: Option<i64>,
    /// Whether it is what the tenant's manifest notes, and not what the import was told.
    pub is_noted: bool,
}

impl Kept {
    /// The first time that is kept, `None` when all are.
    pub(crate) fn since(self, now_ms: i64) -> Option<i64> {
        self.ms.map(|ms| now_ms.saturating_sub(ms))
    }
}

pub(crate) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
