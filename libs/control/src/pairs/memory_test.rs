use super::*;

const FAILOVER: Duration = Duration::from_secs(30);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn key() -> PairKey {
    (TenantId::anonymous(), "eu".to_owned())
}

/// A leader's memory with reports of two distributors; A is elected where `epoch` says so.
struct World {
    memory: Memory,
    elected: Option<Assignment>,
    version: u64,
}

impl World {
    fn new(elected: Option<&str>) -> Self {
        let elected = elected.map(|holder| Assignment {
            holder: holder.to_owned(),
            epoch: 1,
        });
        Self {
            memory: Memory::new(Duration::ZERO),
            elected,
            version: 1,
        }
    }

    /// `from` says at `now` that it has just seen these replicas with these newest samples, in seconds.
    fn report(&mut self, from: &str, now: u64, replicas: &[(&str, i64)]) {
        // As the process looks every half second.
        self.memory.looked_at = secs(now);
        let report = self.made(replicas);
        self.hear(from, now, &report);
    }

    fn made(&self, replicas: &[(&str, i64)]) -> PairReport {
        let replicas = replicas.iter().map(|(replica, newest)| Sighting {
            replica: (*replica).to_owned(),
            newest_ms: newest * 1000,
            age_ms: 0,
            span: Some(Span::at(newest * 1000)),
            lost_ms: None,
        });
        PairReport {
            tenant: key().0,
            cluster: key().1,
            failover_ms: FAILOVER.as_millis() as u64,
            pairs_max: 100,
            epoch: self.elected.as_ref().map_or(0, |e| e.epoch),
            replicas: replicas.collect(),
        }
    }

    fn hear(&mut self, from: &str, now: u64, report: &PairReport) {
        self.memory.hear_of(from, secs(now));
        let elected = (self.version, self.elected.as_ref());
        assert!(self.memory.hear(report, elected, secs(now)));
    }

    fn choice(&self, now: u64) -> Option<&str> {
        self.memory.choice(&key(), secs(now))
    }
}

#[test]
fn the_first_election_does_not_wait_and_takes_the_newest() {
    let mut world = World::new(None);
    world.report("d1", 1, &[("a", 100), ("b", 101)]);
    assert_eq!(world.choice(1), Some("b"));
    world.report("d2", 1, &[("a", 101)]);
    assert_eq!(world.choice(1), Some("a"), "of equals the first by name");
}

#[test]
fn a_takeover_waits_until_every_distributor_has_not_seen_the_elected_one_for_the_timeout() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 40)]);
    world.report("d2", 40, &[("b", 40)]);
    for now in 41..70 {
        world.report("d2", now, &[("b", now as i64)]);
        assert_eq!(world.choice(now), None, "{now}");
    }
    // The other distributor, which saw it last, has not spoken since.
    world.report("d2", 75, &[("b", 75)]);
    assert_eq!(world.choice(75), None);
    world.report("d1", 76, &[]);
    assert_eq!(world.choice(76), Some("b"));
}

#[test]
fn a_distributor_that_is_silent_for_long_is_not_waited_for() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 40)]);
    world.report("d2", 100, &[("b", 100)]);
    assert_eq!(world.choice(100), None);
    world.report("d2", 101, &[("b", 101)]);
    assert_eq!(world.choice(101), Some("b"));
}

#[test]
fn a_new_leader_waits_until_all_who_would_be_waited_for_had_time_to_speak() {
    let mut world = World::new(Some("a"));
    for now in [1, 29, 30, 59] {
        world.report("d1", now, &[("b", now as i64)]);
        assert_eq!(world.choice(now), None, "{now}");
    }
    world.report("d1", 60, &[("b", 60)]);
    assert_eq!(world.choice(60), Some("b"));
}

#[test]
fn a_leader_that_may_not_have_led_all_the_time_begins_anew() {
    let mut world = World::new(Some("a"));
    world.report("d1", 70, &[("b", 70)]);
    assert_eq!(world.choice(70), Some("b"));
    world.memory.look(secs(73));
    assert_eq!(world.choice(73), None);
    world.report("d1", 74, &[("b", 74)]);
    assert_eq!(world.choice(74), None, "once more");
}

#[test]
fn a_report_that_was_taken_down_under_an_older_state_brings_no_old_election_back() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 40), ("b", 40)]);
    let old = world.elected.replace(Assignment {
        holder: "b".to_owned(),
        epoch: 2,
    });
    world.version = 2;
    world.report("d1", 41, &[("a", 41), ("b", 41)]);
    (world.elected, world.version) = (old, 1);
    world.report("d2", 42, &[("a", 42)]);
    assert_eq!(world.memory.pairs[&key()].elected, ("b".to_owned(), 2));
    assert_eq!(
        world.memory.sighting(&key(), "b", secs(42)).unwrap().span,
        Some(Span::at(41_000))
    );
}

#[test]
fn what_was_brought_under_another_election_does_not_count() {
    let mut world = World::new(Some("a"));
    let mut report = world.made(&[("a", 40)]);
    report.epoch = 7;
    world.hear("d1", 40, &report);
    assert_eq!(world.memory.sighting(&key(), "a", secs(40)).unwrap().span, None);
    report.epoch = 1;
    world.hear("d1", 41, &report);
    assert!(
        world
            .memory
            .sighting(&key(), "a", secs(41))
            .unwrap()
            .span
            .is_some()
    );
}

#[test]
fn what_the_elected_one_lost_at_one_distributor_all_hear_of() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 40)]);
    let mut report = world.made(&[("a", 60)]);
    report.replicas[0].lost_ms = Some(50_000);
    world.hear("d2", 60, &report);
    let told = world.memory.sighting(&key(), "a", secs(60)).unwrap();
    let span = Span {
        from_ms: 50_001,
        newest_ms: 60_000,
    };
    assert_eq!((told.lost_ms, told.span), (Some(50_000), Some(span)));
}

#[test]
fn an_elected_replica_that_only_catches_up_is_replaced_by_the_live_one() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 1000), ("b", 1000)]);
    // It sends all the time, but samples of ten minutes ago.
    for now in 41..70 {
        world.report("d1", now, &[("a", 1000), ("b", 1031)]);
        assert_eq!(world.choice(now), None, "{now}");
    }
    world.report("d1", 70, &[("a", 1000), ("b", 1031)]);
    assert_eq!(world.choice(70), Some("b"));
}

#[test]
fn an_elected_replica_a_little_behind_stays() {
    let mut world = World::new(Some("a"));
    for now in 40..400 {
        world.report("d1", now, &[("a", now as i64 - 25), ("b", now as i64)]);
        assert_eq!(world.choice(now), None);
    }
}

#[test]
fn nobody_replaces_the_elected_one_when_nobody_else_sends() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 40), ("b", 40)]);
    world.report("d1", 400, &[]);
    assert_eq!(world.choice(400), None);
}

#[test]
fn i12_replicas_and_pairs_are_bounded_and_idle_ones_forgotten() {
    let mut world = World::new(Some("a"));
    world.report("d1", 1, &[("a", 1)]);
    for i in 0..100 {
        world.report("d1", 2 + i, &[(&format!("r{i}"), 1)]);
    }
    assert_eq!(world.memory.pairs[&key()].replicas.len(), REPLICAS_MAX);
    assert!(world.memory.sighting(&key(), "a", secs(110)).is_some());
    assert!(!world.memory.knows_who_is_idle(secs(1000)));
    let late = PAIR_IDLE + secs(102);
    world.memory.sweep(late);
    assert!(!world.memory.knows(&key()));
    assert!(world.memory.knows_who_is_idle(late));
    assert!(world.memory.reporters.is_empty());
}

#[test]
fn what_distributors_saw_of_the_elected_one_is_united() {
    let mut world = World::new(Some("a"));
    world.report("d1", 40, &[("a", 100)]);
    world.report("d2", 41, &[("a", 120), ("b", 130)]);
    let seen = world.memory.sighting(&key(), "a", secs(43)).unwrap();
    assert_eq!((seen.newest_ms, seen.age_ms), (120_000, 2_000));
    assert_eq!(
        seen.span,
        Some(Span {
            from_ms: 100_000,
            newest_ms: 120_000
        })
    );
    assert_eq!(world.memory.sighting(&key(), "b", secs(43)).unwrap().span, None);
}
