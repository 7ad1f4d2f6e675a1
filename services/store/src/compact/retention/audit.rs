//! Audit lines of what goes because of its age, in the form of those of deletions.

use koios_bucket::{ManifestBlock, RetentionPolicy};
use koios_model::{TenantId, TimeRange};

use super::rewrite::Removed;

/// Most names of blocks in a line.
const NAMES_MAX: usize = 20;

/// Another retention came into force.
pub(crate) fn audit_policy(tenant: &TenantId, before: Option<&RetentionPolicy>, now: &RetentionPolicy) {
    let (was, what) = (before.map(in_words).unwrap_or_default(), in_words(now));
    tracing::info!(target: "koios::audit", %tenant, user = "", action = "retention_changed", ?what, was, outcome = "done", "audit");
}

fn in_words(policy: &RetentionPolicy) -> String {
    let kept = |ms: Option<i64>| ms.map_or_else(|| "for ever".to_owned(), |ms| format!("{} s", ms / 1000));
    let mut text = format!("samples {}", kept(policy.samples_ms));
    for s in &policy.summaries {
        text.push_str(&format!(
            ", summaries of {} s {}",
            s.resolution_ms / 1000,
            kept(s.kept_ms)
        ));
    }
    for rule in &policy.rules {
        text.push_str(&format!(", {} {}", rule.selector(), kept(rule.kept_ms)));
    }
    text
}

/// Blocks went as a whole, or may have: see `outcome`.
pub(crate) fn audit_blocks(tenant: &TenantId, blocks: &[ManifestBlock], outcome: &str) {
    let Some(range) = blocks.iter().map(|b| b.range).reduce(|a, b| a.union(&b)) else {
        return;
    };
    let samples: u64 = blocks.iter().map(|b| b.samples).sum();
    let mut what: Vec<String> = blocks
        .iter()
        .take(NAMES_MAX)
        .map(|b| b.block.to_string())
        .collect();
    if blocks.len() > NAMES_MAX {
        what.push(format!("and {} more", blocks.len() - NAMES_MAX));
    }
    let what = what.join(" ");
    let (TimeRange { min, max }, blocks) = (range, blocks.len());
    tracing::info!(target: "koios::audit", %tenant, user = "", action = "retention_blocks", ?what, blocks, samples, from_ms = min, to_ms = max, outcome, "audit");
}

/// Series went from blocks that others stay in.
pub(crate) fn audit_series(tenant: &TenantId, removed: &Removed) {
    let what = removed.rules.join(" ");
    let (TimeRange { min, max }, samples) = (removed.range, removed.samples);
    let (blocks, into) = (removed.blocks, removed.into);
    tracing::info!(target: "koios::audit", %tenant, user = "", action = "retention_series", ?what, blocks, into, samples, from_ms = min, to_ms = max, outcome = "done", "audit");
}
