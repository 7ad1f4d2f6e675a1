//! Claims about which blocks are written again because of rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use koios_block::RESOLUTION_1H_MS;
use koios_bucket::{ListedRule, RetentionOrigin, RetentionPolicy, RetentionRecord, SummaryRetention};
use koios_model::{Matcher, Matchers, RetentionRule, TenantId, TimeRange};

use super::*;
use crate::compact::Downsampling;
use crate::compact::retention::Aged;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn id(n: u128) -> BlockId {
    BlockId::new(1, n)
}

/// A block of the day 0.
fn block(n: u128, resolution_ms: i64, sources: &[u128]) -> ManifestBlock {
    let window = TimeRange::new(0, DAY - 1);
    ManifestBlock {
        block: id(n),
        partitions: Vec::new(),
        epoch: 1,
        range: window,
        window,
        resolution_ms,
        level: 1,
        split: (0, 1),
        series: 1,
        samples: 1,
        covers: BTreeMap::new(),
        windows: Vec::new(),
        sources: sources.iter().map(|n| id(*n)).collect(),
        clean_up_to: 0,
        lacks: Vec::new(),
        parts: Vec::new(),
    }
}

/// Rules for the jobs 0, 1, and so on, by days; 0 for ever. Classes are called 1, 2, and so on.
fn manifest(rules: &[i64], horizon_ms: i64, blocks: Vec<ManifestBlock>) -> Manifest {
    let rule = |(job, days): (usize, &i64)| {
        ListedRule::new(&RetentionRule {
            matchers: Matchers(vec![Matcher::equal("job", job.to_string())]),
            kept_ms: (*days != 0).then(|| days * DAY),
        })
    };
    let policy = RetentionPolicy {
        rules_origin: RetentionOrigin::Tenant,
        samples_ms: Some(30 * DAY),
        summaries: vec![SummaryRetention {
            resolution_ms: RESOLUTION_1H_MS,
            kept_ms: Some(300 * DAY),
            kept_origin: RetentionOrigin::BuiltIn,
            after_ms: Some(DAY),
            after_origin: RetentionOrigin::BuiltIn,
        }],
        rules: rules.iter().enumerate().map(rule).collect(),
        ..RetentionPolicy::default()
    };
    let mut manifest = Manifest::empty(TenantId::anonymous());
    manifest.blocks = blocks;
    manifest.retention = Some(RetentionRecord::new(policy, None, 0, horizon_ms));
    manifest
}

/// With summaries, and without.
fn settings(is_summarised: bool) -> CompactionSettings {
    let any = Duration::ZERO;
    CompactionSettings {
        downsampling: Vec::from_iter(is_summarised.then(|| Downsampling::by_1h(any, any))),
        ..CompactionSettings::default()
    }
}

/// The same that obey what is noted.
fn obeying(m: &Manifest, settings: &CompactionSettings) -> CompactionSettings {
    settings
        .clone()
        .obeying(m.retention.as_ref().unwrap().policy.clone())
}

fn gone(
    m: &Manifest,
    settings: &CompactionSettings,
    bad: &[u128],
) -> crate::compact::downsample_plan::Expired {
    let bad = bad.iter().map(|n| id(*n)).collect();
    expired(m, i64::MAX, &obeying(m, settings), &bad)
}

fn due(m: &Manifest, settings: &CompactionSettings) -> Vec<(BlockId, Vec<usize>)> {
    let none = BTreeSet::new();
    let jobs = due_expiries(m, i64::MAX, &obeying(m, settings), &none, &none);
    jobs.into_iter().map(|j| (j.block.block, j.classes)).collect()
}

#[test]
fn i10_a_block_is_written_again_once_for_each_retention_when_all_of_it_is_older() {
    let settings = settings(false);
    let at = |days: i64, lacks: &[u64]| {
        let mut m = manifest(&[7, 14, 0], days * DAY, vec![block(1, 0, &[])]);
        m.note_lacks(id(1), lacks);
        due(&m, &settings)
    };
    assert_eq!(at(7, &[]), [], "the day's end is not older");
    assert_eq!(at(8, &[]), [(id(1), vec![0])]);
    assert_eq!(at(8, &[1]), []);
    assert_eq!(at(15, &[1]), [(id(1), vec![1])]);
    assert_eq!(at(15, &[]), [(id(1), vec![0, 1])]);
    // What no rule speaks of goes, what is kept for ever stays.
    assert_eq!(at(31, &[1, 2]), [(id(1), vec![3])]);
    assert_eq!(at(31, &[1, 2, 4]), []);
    let mut m = manifest(&[7, 14, 0], 31 * DAY, vec![block(1, 0, &[])]);
    assert_eq!(gone(&m, &settings, &[]).blocks, []);
    m.note_lacks(id(1), &[3]);
    assert_eq!(gone(&m, &settings, &[]).blocks, [id(1)]);
    assert_eq!(due(&m, &settings), [], "all of it goes");
}

#[test]
fn i10_nothing_is_removed_that_readers_see_or_that_may_be_taken_back() {
    let settings = settings(false);
    let mut m = manifest(&[7], 8 * DAY, vec![block(1, 0, &[])]);
    assert_eq!(due(&m, &settings), [(id(1), vec![0])]);
    // The policy is as old as the window in which it may be taken back, or younger.
    m.retention.as_mut().unwrap().since_ms = 8 * DAY - HOUR;
    assert_eq!(due(&m, &settings), [(id(1), vec![0])]);
    m.retention.as_mut().unwrap().since_ms += 1;
    assert_eq!(due(&m, &settings), []);
    // The clock may have gone on: what is masked has not.
    let m = manifest(&[7], 8 * DAY - 1, vec![block(1, 0, &[])]);
    assert_eq!(due(&m, &settings), []);
    let mut m = manifest(&[60], 31 * DAY, vec![block(1, 0, &[])]);
    m.retention.as_mut().unwrap().since_ms = 31 * DAY;
    m.note_lacks(id(1), &[1]);
    assert_eq!(gone(&m, &settings, &[]).blocks, []);
    m.retention.as_mut().unwrap().since_ms = 0;
    assert_eq!(gone(&m, &settings, &[]).blocks, [id(1)]);
}

#[test]
fn i10_summaries_take_the_place_of_samples_but_of_those_that_a_rule_keeps() {
    let settings = settings(true);
    let raw = || vec![block(1, 0, &[]), block(2, 0, &[])];
    let of = |m: &Manifest| gone(m, &settings, &[]);
    // Not summarised yet: rules go on.
    let m = manifest(&[7, 60], 31 * DAY, raw());
    assert_eq!(due(&m, &settings), [(id(1), vec![0]), (id(2), vec![0])]);
    assert_eq!(of(&m).waiting, BTreeSet::from([id(1), id(2)]));
    // Of one block only.
    let some = [raw(), vec![block(10, RESOLUTION_1H_MS, &[1])]].concat();
    assert!(of(&manifest(&[60], 31 * DAY, some)).splits.is_empty());
    let all = || [raw(), vec![block(10, RESOLUTION_1H_MS, &[1, 2])]].concat();
    let m = manifest(&[60], 31 * DAY, all());
    let found = of(&m);
    assert_eq!((found.blocks, found.standing_in), (vec![], vec![]));
    let split = &found.splits[0];
    assert_eq!((split.raw.len(), split.summaries.len()), (2, 1));
    assert_eq!(due(&m, &settings), [], "it is divided");
    // Nothing is kept by the rule.
    let mut m = manifest(&[60], 31 * DAY, all());
    m.note_lacks(id(1), &[1]);
    assert_eq!(of(&m).splits.len(), 1);
    m.note_lacks(id(2), &[1]);
    let found = of(&m);
    assert_eq!(
        (found.blocks, found.standing_in),
        (vec![id(1), id(2)], vec![id(10)])
    );
}

#[test]
fn i10_what_a_rule_keeps_goes_by_its_rule_and_its_summaries_with_it() {
    let settings = settings(true);
    let mut kept = block(3, 0, &[]);
    kept.lacks = vec![2];
    let mut of_kept = block(11, RESOLUTION_1H_MS, &[3]);
    of_kept.lacks = vec![2];
    let mut rest = block(10, RESOLUTION_1H_MS, &[]);
    rest.lacks = vec![1];
    let at = |days: i64| {
        let blocks = vec![kept.clone(), of_kept.clone(), rest.clone()];
        let m = manifest(&[60], days * DAY, blocks);
        assert_eq!(due(&m, &settings), []);
        gone(&m, &settings, &[]).blocks
    };
    assert_eq!(at(60), []);
    assert_eq!(at(61), [id(3), id(11)]);
    assert_eq!(at(302), [id(3), id(11), id(10)]);
}

#[test]
fn i10_nothing_goes_by_other_values_than_those_that_are_noted() {
    let none = BTreeSet::new();
    let expired = |m: &Manifest, settings: &CompactionSettings| expired(m, i64::MAX, settings, &none).blocks;
    let mut m = manifest(&[], 31 * DAY, vec![block(1, 0, &[])]);
    let settings = settings(false);
    let obeying = obeying(&m, &settings);
    assert_eq!(expired(&m, &obeying), [id(1)]);
    // Told while a visit lasts, or noted by another one.
    let mut other = m.retention.as_ref().unwrap().policy.clone();
    other.samples_ms = Some(DAY);
    assert_eq!(expired(&m, &settings.clone().obeying(other)), []);
    let policy = &mut m.retention.as_mut().unwrap().policy;
    policy.samples_ms = Some(DAY);
    assert_eq!(expired(&m, &obeying), []);
    // Nobody knows whose they are, or nothing is noted.
    assert_eq!(expired(&m, &settings), []);
    m.retention = None;
    assert_eq!(expired(&m, &obeying), []);
}

#[test]
fn i2_samples_that_are_left_of_a_damaged_block_are_not_in_summaries_alone_too() {
    let blocks = || {
        let raw = vec![block(1, 0, &[]), block(2, 0, &[])];
        [raw, vec![block(10, RESOLUTION_1H_MS, &[1, 2])]].concat()
    };
    let settings = settings(true);
    let m = manifest(&[60], 31 * DAY, blocks());
    assert_eq!(gone(&m, &settings, &[]).splits.len(), 1);
    let found = gone(&m, &settings, &[2]);
    assert_eq!(
        (found.splits.len(), found.standing_in, found.blocks),
        (0, vec![], vec![])
    );
    // Also when nothing of the other one is kept.
    let mut m = manifest(&[60], 31 * DAY, blocks());
    m.note_lacks(id(1), &[1]);
    let found = gone(&m, &settings, &[2]);
    assert_eq!(
        (found.splits.len(), found.standing_in, found.blocks),
        (0, vec![], vec![])
    );
    // Of neither: a damaged block is not waited for.
    m.note_lacks(id(2), &[1]);
    assert_eq!(gone(&m, &settings, &[2]).blocks, [id(1), id(2)]);
    // As of the commit.
    let m = manifest(&[60], 31 * DAY, blocks());
    let split = gone(&m, &settings, &[]).splits.remove(0);
    assert!(split.has_all_that_is_summarised(&m));
    let mut more = m;
    more.add_block(block(3, 0, &[])).unwrap();
    more.blocks
        .iter_mut()
        .find(|b| b.block == id(10))
        .unwrap()
        .sources
        .push(id(3));
    assert!(!split.has_all_that_is_summarised(&more));
}

#[test]
fn i10_what_is_left_out_goes_by_the_same_retention_for_as_long_and_as_of_no_earlier_time() {
    let begun = manifest(&[7], 30 * DAY, vec![block(1, 0, &[])]);
    let aged = Aged::new(&begun, begun.expiry().unwrap(), Vec::new());
    assert!(aged.expiry.latest().is_some() && aged.holds_in(&begun));
    let with = |change: fn(&mut RetentionRecord)| {
        let mut later = begun.clone();
        change(later.retention.as_mut().unwrap());
        aged.holds_in(&later)
    };
    assert!(with(|r| r.horizon_ms += 1));
    assert!(!with(|r| r.horizon_ms -= 1));
    assert!(!with(|r| r.since_ms += 1), "it was taken back, and said again");
    assert!(!with(|r| r.policy.samples_ms = None));
    let mut unknown = begun.clone();
    unknown.retention = None;
    assert!(!aged.holds_in(&unknown));
    assert!(Aged::nothing(&begun, &[]).holds_in(&unknown));
}
