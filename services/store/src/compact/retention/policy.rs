//! Which retention is in force: what the settings say, unless that is less than they may take away.

use std::time::Duration;

use koios_block::{RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_bucket::{
    ListedRule, Manifest, RetentionOrigin, RetentionPolicy, RetentionRecord, SummaryRetention,
};
use koios_model::TenantId;
use koios_tenancy::{Overrides, RetentionLimits};

use crate::compact::settings::kept_ms;
use crate::compact::{CompactionSettings, Downsampling};

/// What is carried out follows the clock in steps of this part of the shortest retention…
const STEPS: i64 = 100;
/// …or of this, where that is shorter.
const STEP_MAX_MS: i64 = 3_600_000;
/// A horizon that moves further at once than this tells of a store that was away, or of a clock that is wrong: nothing is removed for
/// a while.
const LEAP_MS: i64 = 24 * 3_600_000;

/// What the settings say of a tenant: for how long what is kept, and who says so.
pub(crate) fn configured(
    tenant: &TenantId,
    settings: &CompactionSettings,
    overrides: &Overrides,
) -> RetentionPolicy {
    let (own, all) = overrides.retention(tenant);
    let (samples, samples_origin) = first(
        own.samples,
        all.samples,
        settings.retention,
        settings.retention_given,
    );
    let (rules, rules_origin) = match (&own.rules, &all.rules) {
        (Some(rules), _) => (rules.as_slice(), RetentionOrigin::Tenant),
        (None, Some(rules)) => (rules.as_slice(), RetentionOrigin::Limits),
        (None, None) => (&[][..], RetentionOrigin::BuiltIn),
    };
    let summaries = settings.downsampling.iter();
    RetentionPolicy {
        samples_ms: kept_ms(samples),
        samples_origin,
        summaries: summaries.map(|d| summary(d, &own, &all)).collect(),
        rules: rules.iter().map(ListedRule::new).collect(),
        rules_origin,
        masks_rest: false,
    }
    .masking()
}

fn summary(d: &Downsampling, own: &RetentionLimits, all: &RetentionLimits) -> SummaryRetention {
    let of = |limits: &RetentionLimits| match d.resolution_ms {
        RESOLUTION_5M_MS => (limits.downsample_after_5m, limits.downsampled_5m),
        RESOLUTION_1H_MS => (limits.downsample_after_1h, limits.downsampled_1h),
        _ => (None, None),
    };
    let (own, all) = (of(own), of(all));
    let (after, after_origin) = first(own.0, all.0, d.after, d.after_given);
    let (kept, kept_origin) = first(own.1, all.1, d.retention, d.retention_given);
    SummaryRetention {
        resolution_ms: d.resolution_ms,
        kept_ms: kept_ms(kept),
        kept_origin,
        after_ms: kept_ms(after),
        after_origin,
    }
}

/// The first that says a value, and who that is.
fn first(
    own: Option<Duration>,
    all: Option<Duration>,
    process: Duration,
    is_given: bool,
) -> (Duration, RetentionOrigin) {
    match (own, all, is_given) {
        (Some(own), _, _) => (own, RetentionOrigin::Tenant),
        (None, Some(all), _) => (all, RetentionOrigin::Limits),
        (None, None, true) => (process, RetentionOrigin::Process),
        (None, None, false) => (process, RetentionOrigin::BuiltIn),
    }
}

/// The policy in force after what was, and the keys of `limits` that are held against the settings.
pub(crate) fn in_force(
    configured: &RetentionPolicy,
    record: Option<&RetentionRecord>,
) -> (RetentionPolicy, Vec<&'static str>) {
    match record {
        Some(record) => configured.after(&record.policy),
        None => (configured.clone(), Vec::new()),
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
        // Defaults are noted when they matter; what was said is, so that it is known should nobody say it any more.
        let is_said = record.is_some() || policy.origin() != RetentionOrigin::BuiltIn;
        let is_due = is_said || is_any_old(manifest, policy, now_ms);
        return is_due.then(|| RetentionRecord::new(policy.clone(), record, now_ms, now_ms));
    };
    let moved_ms = now_ms.saturating_sub(before.horizon_ms);
    if moved_ms.saturating_abs() < step_ms(policy) || !is_any_old(manifest, policy, now_ms) {
        return None;
    }
    let leaps = moved_ms > LEAP_MS;
    let since_ms = match leaps {
        true => now_ms,
        false => before.since_ms.min(now_ms),
    };
    Some(before.moved(since_ms, now_ms))
}

/// In which steps what is carried out follows the clock, milliseconds.
fn step_ms(policy: &RetentionPolicy) -> i64 {
    let shortest = policy.shortest_ms().unwrap_or(i64::MAX);
    (shortest / STEPS).clamp(1, STEP_MAX_MS)
}

/// Whether the age of any block matters: else the horizon stays where it is.
fn is_any_old(manifest: &Manifest, policy: &RetentionPolicy, now_ms: i64) -> bool {
    let Some(shortest) = policy.shortest_ms() else {
        return false;
    };
    let before = manifest.retention.as_ref().map_or(now_ms, |r| r.horizon_ms);
    let from = now_ms.max(before).saturating_sub(shortest);
    manifest.blocks.iter().any(|b| b.range.min < from)
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
