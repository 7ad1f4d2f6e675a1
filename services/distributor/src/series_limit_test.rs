//! Who gets in, and what room is taken.

use super::*;

const P0: PartitionId = PartitionId(0);
const P1: PartitionId = PartitionId(1);

struct Rig {
    limits: SeriesLimits,
    limit: u64,
    distributors: u64,
    partitions: BTreeMap<PartitionId, ()>,
}

/// How many series of a request got in, were refused, and are undecided.
type Outcome = [usize; 3];

impl Rig {
    fn with_limit(limit: u64) -> Self {
        Self {
            limits: SeriesLimits::default(),
            limit,
            distributors: 1,
            partitions: BTreeMap::from([(P0, ())]),
        }
    }

    fn room(&self, at: Duration) -> Room {
        self.limits
            .of(&TenantId::anonymous(), (self.limit, 0), at)
            .unwrap()
    }

    /// Members count as many series in a partition.
    fn note(&self, partition: PartitionId, series: u64, at: Duration) {
        self.room(at).note(partition, series, (at, at));
    }

    fn at_once(&self, at: Duration, hashes: std::ops::Range<u128>) -> Option<Reserved> {
        let unknown = BTreeMap::from([(P0, hashes.map(SeriesHash).collect())]);
        let taken = self
            .room(at)
            .take_at_once(&unknown, &self.partitions, self.distributors);
        taken.and_then(|mut reserved| reserved.remove(&P0))
    }

    fn decide(
        &self,
        at: Duration,
        hashes: std::ops::Range<u128>,
        existence: Existence,
    ) -> (Outcome, Reserved) {
        let series: Vec<_> = hashes.map(|n| (SeriesHash(n), existence)).collect();
        let all = series.len();
        let asked = BTreeMap::from([(P0, series)]);
        let mut decision = self.room(at).decide(&asked, &self.partitions, self.distributors);
        let (refused, undecided) = (decision.refused.len(), decision.undecided.len());
        let reserved = decision.reserved.remove(&P0).unwrap();
        ([all - refused - undecided, refused, undecided], reserved)
    }

    fn under_way(&self) -> u64 {
        self.room(Duration::ZERO).accounts.lock().under_way()
    }
}

const NOW: Duration = Duration::from_secs(10);

#[test]
fn what_exists_gets_in_whatever_the_limit_and_takes_no_room() {
    let rig = Rig::with_limit(100);
    rig.note(P0, 150, NOW);
    let (outcome, _reserved) = rig.decide(NOW, 0..150, Existence::Held);
    assert_eq!((outcome, rig.under_way()), ([150, 0, 0], 0));
    assert_eq!(rig.decide(NOW, 500..505, Existence::Absent).0, [0, 5, 0]);
}

#[test]
fn new_series_get_in_up_to_the_limit() {
    let rig = Rig::with_limit(100);
    rig.note(P0, 90, NOW);
    let (outcome, reserved) = rig.decide(NOW, 500..515, Existence::Absent);
    assert_eq!((outcome, rig.under_way()), ([10, 5, 0], 10));
    // There may be room for another request's, should these not arrive.
    assert_eq!(rig.decide(NOW, 600..601, Existence::Absent).0, [0, 0, 1]);
    rig.note(P0, 100, NOW);
    reserved.settled();
    assert_eq!(rig.under_way(), 0);
    assert_eq!(rig.decide(NOW, 515..520, Existence::Absent).0, [0, 5, 0]);
    // Those that exist are let in all the same.
    assert_eq!(rig.decide(NOW, 500..515, Existence::Held).0, [15, 0, 0]);
}

#[test]
fn nothing_is_refused_on_the_word_of_too_few_members() {
    let rig = Rig::with_limit(100);
    rig.note(P0, 100, NOW);
    assert_eq!(rig.decide(NOW, 0..3, Existence::Untold).0, [0, 0, 3]);
    rig.note(P0, 98, 2 * NOW);
    assert_eq!(rig.decide(NOW, 0..3, Existence::Untold).0, [2, 0, 1]);
}

#[test]
fn without_the_count_of_every_partition_nothing_new_gets_in() {
    let mut rig = Rig::with_limit(1000);
    rig.partitions.insert(P1, ());
    rig.note(P0, 1, NOW);
    assert!(rig.at_once(NOW, 0..1).is_none());
    assert_eq!(rig.decide(NOW, 0..1, Existence::Absent).0, [0, 0, 1]);
    assert_eq!(rig.decide(NOW, 0..1, Existence::Held).0, [1, 0, 0]);
    rig.note(P1, 1, NOW);
    assert!(rig.at_once(NOW, 0..1).is_some());
    // One that is no more does not count.
    rig.note(P1, 999, NOW);
    assert!(rig.at_once(NOW, 0..1).is_none());
    rig.partitions.remove(&P1);
    assert_eq!(rig.decide(NOW, 1..3, Existence::Absent).0, [2, 0, 0]);
    assert!(rig.at_once(NOW, 0..1).is_some());
}

#[test]
fn little_is_let_in_without_asking() {
    let rig = Rig::with_limit(1000);
    rig.note(P0, 100, NOW);
    for n in 0..5 {
        rig.at_once(NOW, n * 10..n * 10 + 10).unwrap().settled();
    }
    assert!(rig.at_once(NOW, 500..501).is_none(), "a twentieth got in");
    assert_eq!(rig.decide(NOW, 500..900, Existence::Absent).0, [400, 0, 0]);
    assert!(rig.at_once(NOW, 500..501).is_some());
    rig.note(P0, 1000, NOW);
    assert!(rig.at_once(NOW, 501..502).is_none());
}

#[test]
fn requests_at_the_same_time_do_not_take_the_same_room() {
    let rig = Rig::with_limit(100);
    rig.note(P0, 0, NOW);
    let requests: Vec<(Outcome, Reserved)> = (1..4)
        .map(|n| rig.decide(NOW, n * 1000..n * 1000 + 60, Existence::Absent))
        .collect();
    let outcomes: Vec<Outcome> = requests.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(outcomes, [[60, 0, 0], [40, 0, 20], [0, 0, 60]]);
    drop(requests);
    assert_eq!(rig.under_way(), 0, "none was sent");
}

#[test]
fn several_distributors_leave_room_to_each_other() {
    let mut rig = Rig::with_limit(100);
    rig.distributors = 2;
    rig.note(P0, 0, NOW);
    // A single request gets what there is; beside others it gets its part, and half of a twentieth.
    let (outcome, first) = rig.decide(NOW, 0..30, Existence::Absent);
    assert_eq!(outcome, [30, 0, 0]);
    let (outcome, _second) = rig.decide(NOW, 100..160, Existence::Absent);
    assert_eq!(outcome, [22, 0, 38]);
    rig.note(P0, 99, NOW);
    first.settled();
    assert_eq!(rig.decide(NOW, 200..202, Existence::Absent).0, [0, 0, 2]);
}

#[test]
fn what_was_sent_and_not_acknowledged_keeps_its_room_for_a_while() {
    let rig = Rig::with_limit(100);
    rig.note(P0, 0, NOW);
    let send = |hashes| {
        let (outcome, mut reserved) = rig.decide(NOW, hashes, Existence::Absent);
        reserved.sent();
        outcome
    };
    assert_eq!(send(1000..1100), [100, 0, 0]);
    assert_eq!(send(1000..1100), [100, 0, 0], "the same once more");
    assert_eq!(send(2000..2001), [0, 0, 1]);
    // One of them shows.
    assert_eq!(rig.decide(NOW, 1000..1001, Existence::Held).0, [1, 0, 0]);
    assert_eq!(rig.under_way(), 99);
    assert_eq!(
        rig.decide(NOW + DOUBTED, 2000..2003, Existence::Absent).0,
        [1, 0, 2]
    );
    let later = NOW + 2 * DOUBTED + Duration::from_secs(1);
    assert_eq!(rig.decide(later, 2000..2100, Existence::Absent).0, [100, 0, 0]);
}

#[test]
fn an_answer_that_was_overtaken_does_not_hide_series() {
    let rig = Rig::with_limit(100);
    let at = Duration::from_secs;
    let note = |series, times| rig.room(NOW).note(P0, series, times);
    let count = || rig.room(NOW).accounts.lock().count();
    note(50, (at(1), at(4)));
    note(40, (at(2), at(5)));
    assert_eq!(count(), 50, "it was asked for before the other came");
    note(60, (at(3), at(6)));
    assert_eq!(count(), 60);
    note(20, (at(7), at(8)));
    assert_eq!(count(), 20);
}

#[test]
fn i12_a_tenant_without_a_limit_or_without_requests_is_forgotten() {
    let rig = Rig::with_limit(100);
    let _room = rig.room(NOW);
    let tenants = || rig.limits.tenants.lock().limited.len();
    let other = TenantId::new("other").unwrap();
    rig.limits.of(&other, (5, 0), NOW).unwrap();
    assert_eq!(tenants(), 2);
    assert!(rig.limits.of(&other, (0, 0), NOW).is_none());
    assert_eq!(tenants(), 1);
    let later = NOW + 2 * REMEMBERED;
    rig.limits.of(&other, (5, 0), later).unwrap();
    assert_eq!(tenants(), 1);
}
