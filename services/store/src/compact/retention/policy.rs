//! Which retention is in force: what the settings say, unless that is less than they may take away.

use koios_bucket::{
    ListedRule, Manifest, RetentionOrigin, RetentionPolicy, RetentionRecord, SummaryRetention,
};
use koios_model::TenantId;
use koios_tenancy::Overrides;

use crate::compact::CompactionSettings;
use crate::compact::settings::kept_ms;

/// What is masked follows the clock in steps of this part of the shortest retention…
const STEPS: i64 = 100;
/// …or of this, where that is shorter.
const STEP_MAX_MS: i64 = 3_600_000;
/// A horizon that moves further at once than this tells of a store that was away, or of a clock that is wrong: nothing is removed for
/// a while.
const LEAP_MS: i64 = 24 * 3_600_000;

/// What the settings say of a tenant: how it is compacted, and for how long what is kept.
pub(crate) fn configured(
    tenant: &TenantId,
    settings: &CompactionSettings,
    overrides: &Overrides,
) -> (CompactionSettings, RetentionPolicy) {
    let (own, all) = (overrides.own(tenant), overrides.default_limits());
    let limits = own.as_ref().unwrap_or(&all);
    let of_tenant = settings.of_tenant(&limits.retention);
    let given = settings.retention_given || all.retention != Default::default();
    let origin = match (own.is_some(), given) {
        (true, _) => RetentionOrigin::Tenant,
        (false, true) => RetentionOrigin::Process,
        (false, false) => RetentionOrigin::BuiltIn,
    };
    let summaries = of_tenant.downsampling.iter().map(|d| SummaryRetention {
        resolution_ms: d.resolution_ms,
        kept_ms: kept_ms(d.retention),
    });
    let policy = RetentionPolicy {
        origin,
        samples_ms: of_tenant.retention_ms(),
        summaries: summaries.collect(),
        rules: limits.retention.rules.iter().map(ListedRule::new).collect(),
        // Where summaries take the samples' place, these are there until that is done.
        masks_rest: limits.retention.samples.is_some() && !of_tenant.leaves_summaries(),
    };
    (of_tenant, policy)
}

/// The policy in force after what was, and whether it is held against the settings: what the weaker says, because what the stronger said is
/// no longer known, makes nothing go earlier.
pub(crate) fn in_force(
    configured: &RetentionPolicy,
    record: Option<&RetentionRecord>,
) -> (RetentionPolicy, bool) {
    match record {
        Some(record) if configured.origin < record.policy.origin => {
            (record.policy.at_least(configured), true)
        }
        _ => (configured.clone(), false),
    }
}

/// The record that the manifest should have, when it is not the one that it has. `now_ms` is the trusted time.
pub(crate) fn due_record(
    manifest: &Manifest,
    policy: &RetentionPolicy,
    now_ms: i64,
) -> Option<RetentionRecord> {
    let record = manifest.retention.as_ref();
    let Some(before) = record.filter(|r| r.policy == *policy) else {
        let is_told = policy.origin != RetentionOrigin::BuiltIn || policy.masks();
        if record.is_none() && !is_told {
            return None;
        }
        // What all tenants had from the beginning is no change.
        let is_new = record.is_some() || policy.masks();
        let since_ms = if is_new { now_ms } else { i64::MIN };
        return Some(RetentionRecord::new(policy.clone(), record, since_ms, now_ms));
    };
    let moved_ms = now_ms.saturating_sub(before.horizon_ms);
    let is_due = policy.masks() && moved_ms.saturating_abs() >= step_ms(policy);
    if !is_due || !is_any_old(manifest, policy, now_ms) {
        return None;
    }
    let leaps = moved_ms > LEAP_MS;
    Some(RetentionRecord {
        horizon_ms: now_ms,
        since_ms: if leaps {
            now_ms
        } else {
            before.since_ms.min(now_ms)
        },
        ..before.clone()
    })
}

/// In which steps what is masked follows the clock, milliseconds.
fn step_ms(policy: &RetentionPolicy) -> i64 {
    let rules = policy.rules.iter().filter_map(|rule| rule.kept_ms);
    let rest = policy.samples_ms.filter(|_| policy.masks_rest);
    let shortest = rules.chain(rest).min().unwrap_or(i64::MAX);
    (shortest / STEPS).clamp(1, STEP_MAX_MS)
}

/// Whether the age of any block matters: else the horizon stays where it is.
fn is_any_old(manifest: &Manifest, policy: &RetentionPolicy, now_ms: i64) -> bool {
    let rules = policy.rules.iter().filter_map(|rule| rule.kept_ms);
    let summaries = policy.summaries.iter().filter_map(|s| s.kept_ms);
    let Some(shortest) = rules.chain(summaries).chain(policy.samples_ms).min() else {
        return false;
    };
    let before = manifest.retention.as_ref().map_or(now_ms, |r| r.horizon_ms);
    let from = now_ms.max(before).saturating_sub(shortest);
    manifest.blocks.iter().any(|b| b.range.min < from)
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
