//! Claims about which retention is in force.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use koios_block::BlockId;
use koios_bucket::ManifestBlock;
use koios_model::{Matcher, Matchers, RetentionRule, TimeRange};
use koios_tenancy::{Limits, RetentionLimits};

use super::*;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

fn rule(kept_days: i64) -> RetentionRule {
    RetentionRule {
        matchers: Matchers(vec![Matcher::equal("job", "debug")]),
        kept_ms: Some(kept_days * DAY),
    }
}

fn limits(samples: Option<Duration>, rules: &[RetentionRule]) -> Limits {
    Limits {
        retention: RetentionLimits {
            samples,
            rules: Some(rules.to_vec()),
            ..RetentionLimits::default()
        },
        ..Limits::default()
    }
}

fn of(settings: &CompactionSettings, all: Limits, own: Option<Limits>) -> RetentionPolicy {
    let tenant = TenantId::anonymous();
    let own: BTreeMap<_, _> = own.into_iter().map(|l| (tenant.clone(), l)).collect();
    configured(&tenant, settings, &Overrides::new(all, own))
}

fn manifest(policy: Option<RetentionPolicy>, from: i64) -> Manifest {
    let mut manifest = Manifest::empty(TenantId::anonymous());
    let range = TimeRange::new(from, from + HOUR);
    manifest.blocks.push(ManifestBlock {
        block: BlockId::new(1, 1),
        partitions: Vec::new(),
        epoch: 0,
        range,
        window: range,
        resolution_ms: 0,
        level: 0,
        split: (0, 1),
        series: 1,
        samples: 1,
        covers: BTreeMap::new(),
        windows: Vec::new(),
        sources: Vec::new(),
        clean_up_to: 0,
        lacks: Vec::new(),
        parts: Vec::new(),
    });
    manifest.retention = policy.map(|p| RetentionRecord::new(p, None, 0, 0));
    manifest
}

#[test]
fn a_tenant_has_what_it_says_and_else_what_all_have() {
    let settings = CompactionSettings::default();
    let builtin = of(&settings, Limits::default(), None);
    assert_eq!(builtin.origin(), RetentionOrigin::BuiltIn);
    assert_eq!((builtin.samples_ms, builtin.masks()), (Some(150 * DAY), false));
    let own = of(
        &settings,
        Limits::default(),
        Some(limits(Some(days(7)), &[rule(2)])),
    );
    assert_eq!(own.origin(), RetentionOrigin::Tenant);
    assert_eq!((own.samples_ms, own.rules.len()), (Some(7 * DAY), 1));
    assert_eq!(own.summaries, builtin.summaries);
    let for_ever = of(&settings, Limits::default(), Some(limits(Some(days(0)), &[])));
    assert_eq!(for_ever.samples_ms, None);
    // For all tenants.
    let all = of(&settings, limits(None, &[rule(2)]), None);
    assert_eq!((all.origin(), all.masks()), (RetentionOrigin::Limits, true));
    let given = CompactionSettings {
        retention_given: true,
        ..settings
    };
    assert_eq!(
        of(&given, Limits::default(), None).origin(),
        RetentionOrigin::Process
    );
    let mut ages = limits(None, &[]);
    ages.retention.downsample_after_5m = Some(Duration::ZERO);
    ages.retention.downsampled_1h = Some(days(9));
    let overrides = Overrides::new(ages, BTreeMap::new());
    let policy = configured(&TenantId::anonymous(), &given, &overrides);
    let compaction = given.obeying(policy.clone());
    assert_eq!(compaction.downsampling[0].after, Duration::ZERO);
    assert_eq!(compaction.downsampling[1].retention, days(9));
    assert_eq!(policy.summaries[1].kept_ms, Some(9 * DAY));
}

#[test]
fn samples_of_the_rest_are_masked_where_no_summaries_take_their_place() {
    let settings = CompactionSettings::default();
    let masks = |settings: &CompactionSettings, samples| {
        of(settings, Limits::default(), Some(limits(samples, &[]))).masks_rest
    };
    assert!(!masks(&settings, Some(days(7))));
    assert!(
        masks(&settings, Some(days(3000))),
        "summaries go before the samples"
    );
    let without = CompactionSettings {
        downsampling: Vec::new(),
        ..settings
    };
    assert!(masks(&without, Some(days(7))));
    assert!(!masks(&without, None), "as ever, where a tenant says nothing");
}

#[test]
fn i10_who_said_a_value_is_told_value_by_value() {
    let settings = CompactionSettings::default();
    let mut own = limits(None, &[rule(2)]);
    own.retention.downsample_after_1h = Some(days(1));
    let given = CompactionSettings {
        retention_given: true,
        ..settings.clone()
    };
    let mut all = limits(None, &[]);
    all.retention.rules = None;
    all.retention.downsampled_5m = Some(days(9));
    let got = of(&given, all, Some(own));
    assert_eq!(got.samples_origin, RetentionOrigin::Process);
    assert_eq!(got.rules_origin, RetentionOrigin::Tenant);
    let of_summaries = |at: usize| (got.summaries[at].kept_origin, got.summaries[at].after_origin);
    assert_eq!(
        of_summaries(0),
        (RetentionOrigin::Limits, RetentionOrigin::BuiltIn)
    );
    assert_eq!(
        of_summaries(1),
        (RetentionOrigin::BuiltIn, RetentionOrigin::Tenant)
    );
    // A tenant that is named for another reason says nothing of how long.
    let named = of(&settings, Limits::default(), Some(Limits::default()));
    assert_eq!(named.origin(), RetentionOrigin::BuiltIn);
}

#[test]
fn i10_a_tenant_of_which_nothing_is_known_any_more_keeps_what_it_had() {
    let settings = CompactionSettings::default();
    let own = of(
        &settings,
        Limits::default(),
        Some(limits(Some(days(700)), &[rule(2)])),
    );
    let record = RetentionRecord::new(own.clone(), None, 0, 0);
    let lost = of(&settings, Limits::default(), None);
    let (held, keys) = in_force(&lost, Some(&record));
    assert_eq!(keys, ["retention", "retention-rules"]);
    assert_eq!((held.samples_ms, held.origin()), (Some(700 * DAY), own.origin()));
    assert_eq!(
        held.rules[0].kept_ms,
        Some(150 * DAY),
        "no shorter than the default"
    );
    // Who says the same values of the tenant is obeyed.
    let told = of(&settings, Limits::default(), Some(limits(Some(days(3)), &[])));
    assert_eq!(in_force(&told, Some(&record)), (told, vec![]));
    // What the process was told is not forgotten because another is not.
    let given = CompactionSettings {
        retention: days(1000),
        retention_given: true,
        ..settings.clone()
    };
    let record = RetentionRecord::new(of(&given, Limits::default(), None), None, 0, 0);
    let named = of(&settings, Limits::default(), Some(Limits::default()));
    let (held, keys) = in_force(&named, Some(&record));
    assert_eq!((held.samples_ms, keys), (Some(1000 * DAY), vec!["retention"]));
}

#[test]
fn i10_whatever_is_noted_first_can_be_taken_back() {
    let settings = CompactionSettings::default();
    let mut summaries = limits(None, &[]);
    summaries.retention.rules = None;
    summaries.retention.downsampled_1h = Some(days(7));
    let given = CompactionSettings {
        retention_given: true,
        ..settings.clone()
    };
    for policy in [
        of(&settings, Limits::default(), Some(limits(Some(days(1)), &[]))),
        of(&settings, Limits::default(), Some(summaries.clone())),
        of(&settings, summaries, None),
        of(&settings, limits(Some(days(1)), &[]), None),
        of(&given, Limits::default(), None),
        of(&settings, Limits::default(), None),
    ] {
        assert!(!policy.masks());
        let noted = due_record(&manifest(None, 0), &policy, 500 * DAY).unwrap();
        assert_eq!((noted.since_ms, noted.horizon_ms), (500 * DAY, 500 * DAY));
    }
}

#[test]
fn what_all_tenants_have_anyway_is_noted_when_it_matters() {
    let settings = CompactionSettings::default();
    let builtin = of(&settings, Limits::default(), None);
    assert_eq!(due_record(&manifest(None, 0), &builtin, 150 * DAY), None);
    assert!(due_record(&manifest(None, 0), &builtin, 150 * DAY + 1).is_some());
    let said = CompactionSettings {
        retention_given: true,
        ..settings
    };
    let said = of(&said, Limits::default(), None);
    assert!(due_record(&manifest(None, 0), &said, DAY).is_some());
}

#[test]
fn i10_a_leap_of_the_horizon_is_waited_out_without_rules_too() {
    let settings = CompactionSettings::default();
    let policy = of(&settings, Limits::default(), None);
    let at = |horizon_ms: i64| {
        let mut m = manifest(Some(policy.clone()), 0);
        let record = m.retention.as_mut().unwrap();
        (record.horizon_ms, record.since_ms) = (horizon_ms, 5);
        m
    };
    let due = |m: &Manifest, now| due_record(m, &policy, now).map(|r| (r.horizon_ms, r.since_ms));
    assert_eq!(due(&at(200 * DAY), 200 * DAY + HOUR - 1), None);
    let later = 200 * DAY + HOUR;
    assert_eq!(due(&at(200 * DAY), later), Some((later, 5)));
    assert_eq!(due(&at(200 * DAY), 400 * DAY), Some((400 * DAY, 400 * DAY)));
}

#[test]
fn i10_a_change_counts_from_when_it_is_noted() {
    let settings = CompactionSettings::default();
    let with = |kept| of(&settings, Limits::default(), Some(limits(None, &[rule(kept)])));
    let first = due_record(&manifest(None, 0), &with(7), 500 * DAY).unwrap();
    assert_eq!((first.since_ms, first.horizon_ms), (500 * DAY, 500 * DAY));
    let mut noted = manifest(None, 0);
    noted.retention = Some(first.clone());
    assert_eq!(due_record(&noted, &with(7), 500 * DAY + 1), None);
    let second = due_record(&noted, &with(6), 500 * DAY + 1).unwrap();
    assert_eq!(second.since_ms, 500 * DAY + 1);
    assert_eq!(second.classes, first.classes, "the same series");
}

#[test]
fn the_horizon_follows_the_clock_in_steps_while_it_matters() {
    let settings = CompactionSettings::default();
    let policy = of(&settings, Limits::default(), Some(limits(None, &[rule(7)])));
    let at = |horizon_ms: i64| {
        let mut m = manifest(Some(policy.clone()), 0);
        let record = m.retention.as_mut().unwrap();
        (record.horizon_ms, record.since_ms) = (horizon_ms, 5);
        m
    };
    let due = |m: &Manifest, now| due_record(m, &policy, now).map(|r| (r.horizon_ms, r.since_ms));
    // A hundredth of the retention would be more than an hour.
    assert_eq!(due(&at(10 * DAY), 10 * DAY + HOUR - 1), None);
    assert_eq!(due(&at(10 * DAY), 10 * DAY + HOUR), Some((10 * DAY + HOUR, 5)));
    // The clock was wrong, or is.
    assert_eq!(due(&at(10 * DAY), 9 * DAY), Some((9 * DAY, 5)));
    assert_eq!(due(&at(10 * DAY), 30 * DAY), Some((30 * DAY, 30 * DAY)));
    // Nothing is as old as that.
    let mut young = at(10 * DAY);
    young.blocks[0].range.min = 6 * DAY;
    assert_eq!(due(&young, 12 * DAY), None);
}
