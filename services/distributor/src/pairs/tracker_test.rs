use koios_control::Assignment;
use proptest::prelude::*;

use super::*;

const A: &str = "prometheus-0";
const B: &str = "prometheus-1";

/// When first samples come, an election that was known before has settled at second 5.
fn secs(n: u64) -> Duration {
    Duration::from_secs(n) + SETTLING - Duration::from_secs(5)
}

fn elected(replica: &str, epoch: u64) -> ClusterState {
    let assignment = Assignment {
        holder: replica.to_owned(),
        epoch,
    };
    let task = election_task(&TenantId::anonymous(), "eu");
    ClusterState {
        version: epoch,
        assignments: [(task, assignment)].into(),
        ..ClusterState::default()
    }
}

fn limits() -> Limits {
    Limits {
        ha_dedup: true,
        ha_max_clusters: 3,
        ..Limits::default()
    }
}

#[derive(Default)]
struct World {
    tracker: Tracker,
    state: ClusterState,
}

impl World {
    fn new(replica: &str, epoch: u64) -> Self {
        Self {
            state: elected(replica, epoch),
            ..Self::default()
        }
    }

    fn decide(&self, replica: &str, now: u64) -> Verdict {
        self.decide_in("eu", replica, now)
    }

    fn decide_in(&self, cluster: &str, replica: &str, now: u64) -> Verdict {
        let (tenant, limits) = (TenantId::anonymous(), limits());
        self.tracker
            .decide((&tenant, &limits), (cluster, replica), &self.state, secs(now))
    }

    /// A request of `replica` arrives and is acknowledged; its newest sample is at `t`, in seconds.
    fn arrives(&self, replica: &str, now: u64, t: i64) {
        self.arrives_in("eu", replica, now, t);
    }

    /// The first request that this process sees, at its start.
    fn begins(&self, replica: &str) {
        self.note("eu", replica, 1001, Duration::ZERO);
    }

    fn arrives_in(&self, cluster: &str, replica: &str, now: u64, t: i64) {
        self.decide_in(cluster, replica, now);
        self.note(cluster, replica, t, secs(now));
    }

    fn note(&self, cluster: &str, replica: &str, t: i64, now: Duration) {
        let brought = Brought {
            cluster: cluster.to_owned(),
            replica: replica.to_owned(),
            newest_ms: t * 1000,
        };
        let (tenant, limits) = (TenantId::anonymous(), limits());
        self.tracker
            .note((&tenant, &limits), &[brought], &self.state, now);
    }

    /// The leader says that others saw the elected one `age` seconds before `now`.
    fn ruled(&self, elected: (&str, u64), age: u64, span: (i64, i64), now: u64) {
        let report = self.tracker.report(secs(now)).remove(0);
        let ruling = Ruling {
            elected: Some(elected.0.to_owned()),
            epoch: elected.1,
            sighting: Some(Sighting {
                replica: elected.0.to_owned(),
                newest_ms: span.1 * 1000,
                age_ms: age * 1000,
                span: Some(Span {
                    from_ms: span.0 * 1000,
                    newest_ms: span.1 * 1000,
                }),
                lost_ms: None,
            }),
            refused: None,
        };
        self.tracker.learn(&report, &ruling, secs(now));
    }
}

fn drops(from: i64, until: i64) -> Verdict {
    Verdict::Drop {
        from_ms: from * 1000,
        until_ms: until * 1000,
    }
}

#[test]
fn without_an_election_everything_is_taken() {
    let world = World::default();
    world.begins(A);
    assert_eq!(world.decide(B, 1), Verdict::Undecided("no_election"));
}

#[test]
fn what_the_elected_one_covers_is_dropped_from_others_and_nothing_else() {
    let world = World::new(A, 1);
    world.begins(A);
    assert_eq!(world.decide(B, 2), Verdict::Undecided("new_election"));
    // It has settled, but what came before is not known to have been taken everywhere.
    assert_eq!(world.decide(B, 7), Verdict::Undecided("elected_away"));
    world.arrives(A, 8, 1008);
    world.arrives(A, 20, 1020);
    assert_eq!(world.decide(B, 21), drops(1008, 1050));
    assert_eq!(world.decide(A, 21), Verdict::Elected);
    assert_eq!(world.decide("prometheus-2", 21), drops(1008, 1050));
}

#[test]
fn an_election_drops_only_while_the_elected_one_is_seen() {
    let world = World::new(A, 1);
    world.begins(A);
    world.arrives(A, 10, 1010);
    assert_eq!(world.decide(B, 40), drops(1010, 1040));
    assert_eq!(world.decide(B, 41), Verdict::Undecided("elected_away"));
    // Without any new election it goes on when it is back; what it may have missed is not dropped from others.
    world.arrives(A, 100, 1100);
    assert_eq!(world.decide(B, 101), drops(1100, 1130));
}

#[test]
fn an_elected_one_that_catches_up_drops_only_what_it_has_caught_up_with() {
    let world = World::new(A, 1);
    world.begins(A);
    world.arrives(A, 10, 1010);
    // Its connection is back after ten minutes, its queue comes in order.
    world.arrives(A, 610, 1011);
    world.arrives(A, 612, 1030);
    assert_eq!(
        world.decide(B, 612),
        drops(1010, 1060),
        "live samples of the other are taken"
    );
}

#[test]
fn what_other_distributors_saw_counts_as_long_as_it_is_fresh() {
    let world = World::new(A, 3);
    world.begins(B);
    world.arrives(B, 10, 1010);
    assert_eq!(world.decide(B, 10), Verdict::Undecided("elected_away"));
    world.ruled((A, 3), 2, (900, 1008), 10);
    assert_eq!(world.decide(B, 11), drops(900, 1038));
    assert_eq!(world.decide(B, 38), drops(900, 1038));
    assert_eq!(world.decide(B, 39), Verdict::Undecided("elected_away"));
    // Of another election than the one in the state nothing is believed.
    world.ruled((A, 4), 0, (900, 1040), 40);
    assert_eq!(world.decide(B, 40), Verdict::Undecided("new_election"));
}

#[test]
fn what_the_leader_said_is_not_reported_back_to_it() {
    let world = World::new(A, 3);
    world.begins(B);
    world.ruled((A, 3), 2, (900, 1008), 10);
    let report = world.tracker.report(secs(11));
    let replicas: Vec<_> = report[0]
        .replicas
        .iter()
        .map(|s| (s.replica.as_str(), s.age_ms))
        .collect();
    assert_eq!(replicas, [(B, 26_000)]);
    assert!(world.tracker.report(secs(62)).is_empty());
}

#[test]
fn after_a_takeover_the_new_one_is_taken_at_once_and_nobody_dropped_for_a_while() {
    let mut world = World::new(A, 1);
    world.begins(A);
    world.arrives(A, 10, 1010);
    world.arrives(B, 60, 1060);
    world.state = elected(B, 2);
    assert_eq!(world.decide(B, 61), Verdict::Elected);
    // The old one comes back with its queue.
    assert_eq!(world.decide(A, 62), Verdict::Undecided("new_election"));
    world.arrives(B, 85, 1085);
    // What lies before the takeover fills the gap that the failover left.
    assert_eq!(world.decide(A, 86), drops(1085, 1115));
}

#[test]
fn a_request_that_was_admitted_under_an_older_state_changes_nothing() {
    let mut world = World::new(B, 2);
    world.begins(B);
    world.arrives(B, 10, 1010);
    world.state = elected(A, 1);
    world.arrives(A, 11, 1011);
    assert_eq!(world.decide(A, 12), drops(1010, 1040));
}

#[test]
fn i12_pairs_and_replicas_are_bounded_and_idle_ones_forgotten() {
    let world = World::default();
    let long = "x".repeat(254);
    for bad in [long.as_str(), "a\nb"] {
        assert_eq!(world.decide_in(bad, A, 1), Verdict::Undecided("invalid_label"));
        assert_eq!(world.decide_in("eu", bad, 1), Verdict::Undecided("invalid_label"));
    }
    for i in 0..100 {
        world.arrives(&format!("r{i}"), 1 + i, 1000);
    }
    let report = world.tracker.report(secs(100));
    assert!(report[0].replicas.len() <= REPLICAS_MAX);
    for i in 0..10 {
        // What is not acknowledged takes no room.
        assert_eq!(
            world.decide_in(&format!("c{i}"), A, 100),
            Verdict::Undecided("no_election")
        );
    }
    for (cluster, wanted) in [
        ("us", "no_election"),
        ("ap", "no_election"),
        ("sa", "too_many_pairs"),
    ] {
        assert_eq!(world.decide_in(cluster, A, 100), Verdict::Undecided(wanted));
        world.arrives_in(cluster, A, 100, 1100);
    }
    assert_eq!(world.tracker.sweep(secs(100)), 3);
    assert_eq!(world.tracker.sweep(secs(200) + PAIR_IDLE), 0);
    assert!(world.tracker.tenants.lock().is_empty());
}

/// One thing that happens, `dt` seconds after the one before.
#[derive(Clone, Debug)]
enum Event {
    /// A request with samples of `lag` seconds ago.
    Arrives {
        replica: &'static str,
        lag: i64,
    },
    Elected {
        replica: &'static str,
    },
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let replica = prop::sample::select(vec![A, B]);
    let arrives = (replica.clone(), prop_oneof![Just(0_i64), 0_i64..100])
        .prop_map(|(replica, lag)| Event::Arrives { replica, lag });
    let elected = replica.prop_map(|replica| Event::Elected { replica });
    let dt = prop_oneof![4 => 0_u64..5, 1 => 0_u64..60];
    prop::collection::vec((dt, prop_oneof![12 => arrives, 1 => elected]), 0..120)
}

#[test]
fn while_the_leader_knows_another_election_nothing_is_dropped() {
    let mut world = World::new(A, 1);
    world.begins(A);
    world.arrives(A, 10, 1010);
    assert_eq!(world.decide(B, 10), drops(1010, 1040));
    for other in [(B, 2), (A, 2), (B, 1)] {
        world.ruled(other, 0, (900, 1010), 11);
        assert_eq!(
            world.decide(B, 11),
            Verdict::Undecided("new_election"),
            "{other:?}"
        );
        world.ruled((A, 1), 0, (1010, 1010), 12);
        assert_eq!(world.decide(B, 12), drops(1010, 1040));
    }
    world.ruled((B, 2), 0, (900, 1010), 13);
    world.state = elected(B, 2);
    assert_eq!(world.decide(B, 14), Verdict::Elected);
    assert_eq!(world.decide(A, 14 + 19), Verdict::Undecided("new_election"));
    world.arrives(B, 14 + 20, 1034);
    assert_eq!(world.decide(A, 14 + 21), drops(1034, 1064));
}

#[test]
fn what_the_elected_one_lost_is_taken_from_others() {
    let world = World::new(A, 1);
    world.begins(A);
    world.arrives(A, 10, 1010);
    world.arrives(A, 20, 1020);
    let lost = Brought {
        cluster: "eu".to_owned(),
        replica: A.to_owned(),
        newest_ms: 1_025_000,
    };
    let tenant = TenantId::anonymous();
    world
        .tracker
        .lose(&tenant, std::slice::from_ref(&lost), &world.state, secs(21));
    assert_eq!(world.decide(B, 21), Verdict::Undecided("elected_away"));
    let told = &world.tracker.report(secs(21))[0];
    assert_eq!((told.epoch, told.replicas[0].lost_ms), (1, Some(1_025_000)));
    world.arrives(A, 26, 1030);
    let from_ms = 1_025_001;
    assert_eq!(
        world.decide(B, 27),
        Verdict::Drop {
            from_ms,
            until_ms: 1_060_000
        }
    );
    // What the other one lost says nothing.
    let lost = Brought {
        replica: B.to_owned(),
        ..lost
    };
    world.tracker.lose(&tenant, &[lost], &world.state, secs(27));
    assert_eq!(
        world.decide(B, 27),
        Verdict::Drop {
            from_ms,
            until_ms: 1_060_000
        }
    );
}

#[test]
fn a_request_without_pairs_takes_no_lock() {
    let world = World::new(A, 1);
    let _held = world.tracker.tenants.lock();
    let (tenant, limits) = (TenantId::anonymous(), limits());
    world.tracker.note((&tenant, &limits), &[], &world.state, secs(1));
}

proptest! {
    #[test]
    fn a_time_is_dropped_only_if_the_elected_one_is_seen_and_brought_samples_a_timeout_before_at_most(events in events()) {
        let mut world = World::new(A, 1);
        let failover = limits().ha_failover_timeout.as_secs() as i64;
        let (mut now, mut elected_now) = (1_000_u64, A);
        // What this election's replica brought: when, and which sample time.
        let mut brought: Vec<(u64, i64)> = Vec::new();
        for (dt, event) in events {
            now += dt;
            match event {
                Event::Elected { replica } => {
                    if replica != elected_now {
                        brought.clear();
                        elected_now = replica;
                    }
                    let epoch = world.state.version + 1;
                    world.state = elected(replica, epoch);
                }
                Event::Arrives { replica, lag } => {
                    let t = now as i64 - lag;
                    world.arrives(replica, now, t);
                    if replica == elected_now {
                        brought.push((now, t));
                    }
                }
            }
            prop_assert_eq!(world.decide(elected_now, now), Verdict::Elected);
            let other = if elected_now == A { B } else { A };
            if let Verdict::Drop { from_ms, until_ms } = world.decide(other, now) {
                prop_assert!(brought.iter().any(|(at, _)| (now - at) as i64 <= failover));
                for t in from_ms / 1000..=until_ms / 1000 {
                    let covered = brought.iter().any(|(_, e)| *e <= t && t - e <= failover);
                    prop_assert!(covered, "second {t} of {from_ms}..={until_ms} at {now}: {brought:?}");
                }
            }
        }
    }
}
