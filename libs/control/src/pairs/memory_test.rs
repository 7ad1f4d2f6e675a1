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
        }
    }

    /// `from` says at `now` that it has just seen these replicas with these newest samples, in seconds.
    fn report(&mut self, from: &str, now: u64, replicas: &[(&str, i64)]) {
        let replicas = replicas.iter().map(|(replica, newest)| Sighting {
            replica: (*replica).to_owned(),
            newest_ms: newest * 1000,
            age_ms: 0,
            span: Some(Span::at(newest * 1000)),
        });
        let report = PairReport {
            tenant: key().0,
            cluster: key().1,
            failover_ms: FAILOVER.as_millis() as u64,
            pairs_max: 100,
            replicas: replicas.collect(),
        };
        // As the process looks every half second.
        self.memory.looked_at = secs(now);
        self.memory.hear_of(from, secs(now));
        assert!(self.memory.hear(&report, self.elected.as_ref(), secs(now)));
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
fn a_new_leader_waits_one_whole_timeout() {
    let mut world = World::new(Some("a"));
    world.report("d1", 1, &[("b", 1)]);
    assert_eq!(world.choice(29), None);
    world.report("d1", 29, &[("b", 29)]);
    assert_eq!(world.choice(29), None);
    world.report("d1", 30, &[("b", 30)]);
    assert_eq!(world.choice(30), Some("b"));
}

#[test]
fn a_leader_that_may_not_have_led_all_the_time_begins_anew() {
    let mut world = World::new(Some("a"));
    world.report("d1", 50, &[("b", 50)]);
    assert_eq!(world.choice(50), Some("b"));
    world.memory.look(secs(53));
    assert_eq!(world.choice(53), None);
    world.report("d1", 54, &[("b", 54)]);
    assert_eq!(world.choice(54), None, "one timeout more");
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
