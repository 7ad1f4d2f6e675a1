//! Claims about retention by rules: what is too old is gone for readers at once, whenever compaction runs, and from the bucket in time;
//! all else stays (I10).

use koios_block::{RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_bucket::TombstoneState;
use koios_model::{Matcher, RetentionRule};
use koios_tenancy::{Limits, RetentionLimits};

use super::downsampled::{check_summaries, of, summaries, summaries_in};
use super::*;

pub(super) const DAY: i64 = 24 * HOUR;
pub(super) const DAYS: u64 = 24 * 3600;

fn rule(op: MatchOp, name: &str, kept_days: i64) -> RetentionRule {
    RetentionRule {
        matchers: Matchers(vec![Matcher::new(op, "__name__", name).unwrap()]),
        kept_ms: (kept_days != 0).then(|| kept_days * DAY),
    }
}

pub(super) fn only(name: &str, kept_days: i64) -> RetentionRule {
    rule(MatchOp::Equal, name, kept_days)
}

fn limits(samples_days: Option<u64>, rules: &[RetentionRule]) -> Limits {
    Limits {
        retention: RetentionLimits {
            samples: samples_days.map(|d| Duration::from_secs(d * DAYS)),
            rules: Some(rules.to_vec()),
            ..RetentionLimits::default()
        },
        ..Limits::default()
    }
}

impl World {
    /// Gives the tenant a retention of its own.
    pub(super) fn retain(&self, samples_days: Option<u64>, rules: &[RetentionRule]) {
        let own = [(self.tenant.clone(), limits(samples_days, rules))];
        self.overrides.replace(Limits::default(), own.into());
    }

    /// Leaves of what is expected what a name and a time tell to keep.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&str, i64) -> bool) {
        for (labels, samples) in &mut self.expected {
            let name = labels.get("__name__").unwrap_or("").to_owned();
            samples.retain(|t, _| is_kept(&name, *t));
        }
        self.expected.retain(|_, samples| !samples.is_empty());
    }

    fn expected_samples(&self) -> u64 {
        self.expected.values().map(|s| s.len() as u64).sum()
    }

    pub(super) async fn horizon(&self) -> i64 {
        self.manifest().await.retention.as_ref().unwrap().horizon_ms
    }

    pub(super) async fn live(&self) -> Vec<BlockId> {
        self.manifest().await.blocks.iter().map(|b| b.block).collect()
    }

    async fn listed_samples(&self) -> u64 {
        self.manifest().await.blocks.iter().map(|b| b.samples).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_rule_hides_at_once_and_removes_when_it_cannot_be_taken_back() {
    let mut world = World::new(1);
    world.members_have_forgotten = true;
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let all = world.expected.clone();
    world.retain(None, &[only("m1", 10)]);
    let before = world.live().await;
    compact(&mut compactor).await;
    world.keep(|name, _| name != "m1");
    world.check("hidden").await;
    assert_eq!(world.live().await, before, "nothing is removed yet");
    assert_eq!(world.manifest().await.format, 4, "older readers would show it");
    // Taken back in time.
    world.retain(None, &[only("m1", 31)]);
    compact(&mut compactor).await;
    let hidden = std::mem::replace(&mut world.expected, all);
    world.check("taken back").await;
    world.retain(None, &[only("m1", 10)]);
    world.expected = hidden;
    world.sleep(7200).await;
    compact(&mut compactor).await;
    world.check("hidden again").await;
    assert_eq!(world.live().await, before, "it counts from when it was noted");
    world.sleep(3700).await;
    compact(&mut compactor).await;
    world.check("removed").await;
    assert_ne!(world.live().await, before);
    assert_eq!(world.listed_samples().await, world.expected_samples());
    // Nothing is looked at twice.
    let looked = compactor.retention.looked_through.get();
    let rewritten = compactor.retention.rewrites.get();
    world.sleep(2 * DAYS).await;
    compact(&mut compactor).await;
    assert_eq!(compactor.retention.looked_through.get(), looked);
    assert_eq!((rewritten, compactor.retention.rewrites.get()), (1, 1));
    world.check("later").await;
}

#[tokio::test(start_paused = true)]
async fn i10_of_a_block_that_a_rule_reaches_into_nothing_is_hidden_too_early() {
    let mut world = World::new(2);
    world.day().await;
    // All lies 30 days back: the first half of the day is older.
    world.retain(None, &[only("m1", 0), rule(MatchOp::Regex, "m.", 29)]);
    world.clock = Arc::new(TokioClock::starting_at(29 * DAY + 12 * HOUR));
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.keep(|name, t| name == "m1" || t >= 12 * HOUR);
    world.check("half of the day").await;
    world.sleep(6 * 3600).await;
    // A read between two visits sees what it saw.
    world.check("before the next visit").await;
    compact(&mut compactor).await;
    let from = world.horizon().await - 29 * DAY;
    assert!((18 * HOUR..19 * HOUR).contains(&from), "{from}");
    world.keep(|name, t| name == "m1" || t >= from);
    world.check("three quarters").await;
    world.sleep(7 * 3600).await;
    compact(&mut compactor).await;
    world.keep(|name, _| name == "m1");
    world.check("the day").await;
    assert_eq!(world.listed_samples().await, world.expected_samples());
}

#[tokio::test(start_paused = true)]
async fn i10_a_rule_may_keep_longer_than_the_tenant() {
    let mut world = World::new(3);
    world.settings.retention = Duration::from_secs(40 * DAYS);
    world.day().await;
    world.retain(None, &[only("m0", 0), only("m2", 100)]);
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.check("young").await;
    world.sleep(11 * DAYS).await;
    compact(&mut compactor).await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    world.keep(|name, _| name != "m1");
    world.check("the tenant's retention").await;
    assert_eq!(world.listed_samples().await, world.expected_samples());
    world.sleep(60 * DAYS).await;
    compact(&mut compactor).await;
    world.keep(|name, _| name == "m0");
    world.check("the rule's").await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    assert_eq!(world.listed_samples().await, world.expected_samples());
    // The rule goes: what it kept is as all else.
    world.retain(None, &[]);
    compact(&mut compactor).await;
    world.check("it may come back").await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.blocks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn i10_a_block_goes_when_the_rules_that_would_keep_something_find_nothing() {
    let mut world = World::new(4);
    world.settings.retention = Duration::from_secs(40 * DAYS);
    world.day().await;
    world.retain(None, &[only("nobody", 0)]);
    world.sleep(11 * DAYS).await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    assert_eq!(world.manifest().await.blocks.len(), 1);
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.blocks.is_empty());
    assert_eq!(compactor.retention.rewrites.get(), 0, "nothing was written again");
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_left_is_told_by_the_horizon_whenever_compaction_runs() {
    for seed in 0..30 {
        let mut world = World::new(100 + seed);
        world.day().await;
        let kept = |rng: &RngHandle| 20 + rng.below(12) as i64;
        let rules = [
            rule(MatchOp::Equal, "m0", kept(&world.rng)),
            rule(MatchOp::Regex, "m[01]", kept(&world.rng)),
        ];
        let rest = kept(&world.rng);
        world.retain(Some(rest as u64), &rules);
        world.clock = Arc::new(TokioClock::starting_at(20 * DAY));
        let mut compactor = world.compactor();
        let all = world.expected.clone();
        for _ in 0..40 {
            world.sleep(world.rng.below(12 * 3600)).await;
            if world.rng.below(3) == 0 {
                compactor = world.compactor();
            }
            compactor.visit_all().await;
            let (horizon, now) = (world.horizon().await, world.clock.now_ms());
            assert!(horizon <= now, "seed {seed}");
            world.expected = all.clone();
            let times = [rules[0].kept_ms, rules[1].kept_ms, Some(rest * DAY)];
            let kept_ms = |name: &str| match name {
                "m0" => times[0].unwrap(),
                "m1" => times[1].unwrap(),
                _ => times[2].unwrap(),
            };
            world.keep(|name, t| t >= horizon - kept_ms(name));
            // Twelve hours between visits, and one for the step.
            world.keep(|name, t| {
                assert!(t >= now - kept_ms(name) - 13 * HOUR, "seed {seed}: {name} at {t}");
                true
            });
            world.check(&format!("seed {seed}, horizon {horizon}")).await;
        }
        compact(&mut compactor).await;
        world.sleep(20 * DAYS).await;
        compact(&mut compactor).await;
        world.sleep(2 * 3600).await;
        compact(&mut compactor).await;
        assert!(world.manifest().await.blocks.is_empty(), "seed {seed}");
        assert_eq!(compactor.metrics.failures.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn i10_rules_and_deletions_do_not_disturb_each_other() {
    let mut world = World::new(5);
    world.members_have_forgotten = true;
    world.day().await;
    world.retain(None, &[only("m1", 10)]);
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let matchers = Matchers(vec![Matcher::new(MatchOp::Regex, "__name__", "m[12]").unwrap()]);
    let tombstone = Tombstone {
        at_ms: world.clock.now_ms(),
        ..Tombstone::new(Nonce(1), &matchers, TimeRange::new(2 * HOUR, 9 * HOUR))
    };
    let writer = Writer::partition("operator", PartitionId(0), 1);
    let add = |m: &mut Manifest| {
        m.add_tombstone(tombstone.clone());
        Ok(())
    };
    let manifests = world.manifests();
    manifests.commit(&world.tenant, &writer, add).await.unwrap();
    let before_deletion = world.expected.clone();
    world.keep(|name, t| name != "m1" && (name != "m2" || !(2 * HOUR..=9 * HOUR).contains(&t)));
    world.check("both masked").await;
    // The deletion is taken back after the rule has had its way.
    world.sleep(3700).await;
    let undo = |m: &mut Manifest| {
        m.set_tombstone_state(Nonce(1), TombstoneState::Undone);
        Ok(())
    };
    manifests.commit(&world.tenant, &writer, undo).await.unwrap();
    compact(&mut compactor).await;
    world.expected = before_deletion;
    world.keep(|name, _| name != "m1");
    world.check("taken back, and removed by age").await;
    assert_eq!(world.listed_samples().await, world.expected_samples());
    // And once more, for good.
    let again = Tombstone {
        state: TombstoneState::Final,
        ..Tombstone::new(Nonce(2), &matchers, TimeRange::new(2 * HOUR, 9 * HOUR))
    };
    let add = |m: &mut Manifest| {
        m.add_tombstone(again.clone());
        Ok(())
    };
    manifests.commit(&world.tenant, &writer, add).await.unwrap();
    compact(&mut compactor).await;
    world.keep(|name, t| name != "m2" || !(2 * HOUR..=9 * HOUR).contains(&t));
    world.check("deleted").await;
    let manifest = world.manifest().await;
    assert!(
        manifest.blocks.iter().all(|b| !b.lacks.is_empty()),
        "it is known still"
    );
}

#[tokio::test(start_paused = true)]
async fn i10_a_tenant_whose_overrides_are_lost_loses_nothing() {
    let mut world = World::new(6);
    world.day().await;
    world.retain(Some(400), &[only("m1", 300)]);
    compact(&mut world.compactor()).await;
    // The next process was given another file.
    world.overrides = Overrides::default();
    let mut compactor = world.compactor();
    world.sleep(150 * DAYS).await;
    compact(&mut compactor).await;
    world.sleep(2 * DAYS).await;
    compact(&mut compactor).await;
    world.check("held").await;
    world.sleep(130 * DAYS).await;
    compact(&mut compactor).await;
    world.sleep(2 * DAYS).await;
    compact(&mut compactor).await;
    world.keep(|name, _| name != "m1");
    world.check("as it was said").await;
    // Who names the tenant is obeyed.
    world.retain(Some(150), &[]);
    compact(&mut compactor).await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.blocks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn i10_a_clock_in_the_future_makes_nothing_old() {
    let mut world = World::new(7);
    let real_ms = world.manifests().bucket().stored_now_ms("test").await.unwrap();
    // Half a year ahead of the storage.
    world.clock = Arc::new(TokioClock::starting_at(real_ms + 180 * DAY));
    let hours = (real_ms / DAY - 2) * 24..(real_ms / DAY - 1) * 24;
    let data = world.some_data(hours.clone());
    world.cut(hours, &data).await;
    world.retain(Some(100), &[only("m1", 50)]);
    world.settings.undelete_window = Duration::ZERO;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.check("all is there").await;
    assert!(compactor.trusted.ahead_seconds() >= 180 * 86_400 - 60);
    assert!(compactor.retention.ahead.get() > 0);
}

#[tokio::test(start_paused = true)]
async fn i10_a_crash_while_rules_are_carried_out_loses_nothing() {
    for last in (0..40).step_by(2) {
        for effect in [false, true] {
            let mut world = World::new(last + 300);
            world.settings.downsampling = CompactionSettings::default().downsampling;
            world.settings.retention = Duration::from_secs(40 * DAYS);
            world.settings.undelete_window = Duration::ZERO;
            world.day().await;
            world.retain(None, &[only("m1", 10), only("m2", 100)]);
            compact(&mut world.compactor()).await;
            world.keep(|name, _| name != "m1");
            world.check("before").await;
            world.sleep(11 * DAYS).await;
            let crashing = Crashing::over(&world.objects, last, effect);
            let mut doomed = world.compactor_on(world.manifests_on(Arc::<Crashing>::clone(&crashing) as _));
            for _ in 0..6 {
                doomed.visit_all().await;
            }
            compact(&mut world.compactor()).await;
            check_summaries(&world, "after the crash").await;
            world.keep(|name, _| name == "m2");
            world.check("after the crash").await;
        }
    }
}

/// The blocks of a resolution that stand in for samples.
fn stand_ins(manifest: &Arc<Manifest>, resolution_ms: i64) -> Vec<String> {
    let all = of(manifest, resolution_ms).into_iter();
    let left = all.filter(|b| b.sources.is_empty());
    left.map(|b| b.block.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn i2_a_series_is_in_samples_or_in_what_stands_in_for_them() {
    for seed in 0..8 {
        let mut world = World::new(500 + seed);
        world.settings.downsampling = CompactionSettings::default().downsampling;
        world.settings.retention = Duration::from_secs(40 * DAYS);
        world.day().await;
        let mut compactor = world.compactor();
        world.retain(None, &[only("m0", 20), only("m1", 90)]);
        compact(&mut compactor).await;
        world.sleep(2 * 3600).await;
        compact(&mut compactor).await;
        world.keep(|name, _| name != "m0");
        world.check("the short rule").await;
        check_summaries(&world, "the short rule").await;
        assert_eq!(
            of(&world.manifest().await, 0)[0].samples,
            world.expected_samples()
        );

        world.sleep(11 * DAYS).await;
        compact(&mut compactor).await;
        world.sleep(2 * 3600).await;
        compact(&mut compactor).await;
        // All are summarised, those that a rule keeps beside their samples.
        check_summaries(&world, "divided").await;
        let with_summaries = world.expected.clone();
        world.keep(|name, _| name == "m1");
        world.check("divided").await;
        let manifest = world.manifest().await;
        for resolution_ms in [RESOLUTION_5M_MS, RESOLUTION_1H_MS] {
            let alone = summaries_in(&world, stand_ins(&manifest, resolution_ms)).await;
            let names: BTreeSet<_> = alone.keys().filter_map(|l| l.get("__name__")).collect();
            assert!(
                !names.contains("m1") && !names.contains("m0"),
                "seed {seed}: {names:?}"
            );
        }

        world.sleep(50 * DAYS).await;
        compact(&mut compactor).await;
        world.sleep(2 * 3600).await;
        compact(&mut compactor).await;
        assert!(of(&world.manifest().await, 0).is_empty(), "seed {seed}");
        world.expected = with_summaries;
        world.keep(|name, _| name == "m2");
        if !world.expected.is_empty() {
            check_summaries(&world, "the long rule's").await;
        }
        assert_eq!(compactor.metrics.failures.get(), 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_longer_rule_brings_nothing_back_and_takes_nothing_away() {
    let mut world = World::new(600);
    world.settings.downsampling = CompactionSettings::default().downsampling;
    world.settings.retention = Duration::from_secs(40 * DAYS);
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.sleep(11 * DAYS).await;
    compact(&mut compactor).await;
    world.sleep(3600).await;
    compact(&mut compactor).await;
    assert!(of(&world.manifest().await, 0).is_empty());
    // Too late for the samples; the summaries are all that is left of them.
    world.retain(None, &[only("m1", 200)]);
    compact(&mut compactor).await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    check_summaries(&world, "as before").await;
    world.sleep(160 * DAYS).await;
    compact(&mut compactor).await;
    world.sleep(2 * 3600).await;
    compact(&mut compactor).await;
    world.keep(|name, _| name != "m1");
    check_summaries(&world, "the rule is for all of the series").await;
    let labels = summaries(&world, RESOLUTION_1H_MS).await;
    assert!(labels.keys().all(|l| l.get("__name__") != Some("m1")));
}

#[tokio::test(start_paused = true)]
async fn i10_a_first_retention_without_rules_can_be_taken_back() {
    let mut world = World::new(700);
    world.settings.downsampling = CompactionSettings::default().downsampling;
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let mut own = limits(Some(1), &[]);
    own.retention.rules = None;
    world
        .overrides
        .replace(Limits::default(), [(world.tenant.clone(), own)].into());
    compact(&mut compactor).await;
    assert!(!world.manifest().await.retention.as_ref().unwrap().policy.masks());
    world.check("nothing is removed yet").await;
    // It was meant to be a year.
    world.retain(Some(365), &[]);
    compact(&mut compactor).await;
    world.sleep(2 * DAYS).await;
    compact(&mut compactor).await;
    world.check("taken back").await;
    world.retain(Some(1), &[]);
    compact(&mut compactor).await;
    world.sleep(6 * 3600).await;
    compact(&mut compactor).await;
    assert!(of(&world.manifest().await, 0).is_empty(), "in the end it goes");
    check_summaries(&world, "in the end").await;
}

#[tokio::test(start_paused = true)]
async fn i10_summaries_of_a_shorter_first_retention_can_be_taken_back() {
    let mut world = World::new(701);
    world.settings.downsampling = CompactionSettings::default().downsampling;
    world.settings.retention = Duration::from_secs(20 * DAYS);
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.sleep(3600).await;
    compact(&mut compactor).await;
    assert!(of(&world.manifest().await, 0).is_empty());
    let mut own = Limits::default();
    own.retention.downsampled_1h = Some(Duration::from_secs(7 * DAYS));
    world
        .overrides
        .replace(Limits::default(), [(world.tenant.clone(), own)].into());
    compact(&mut compactor).await;
    check_summaries(&world, "nothing is removed yet").await;
    world.sleep(7 * 3600).await;
    compact(&mut compactor).await;
    assert!(of(&world.manifest().await, RESOLUTION_1H_MS).is_empty());
    assert!(!of(&world.manifest().await, RESOLUTION_5M_MS).is_empty());
}
