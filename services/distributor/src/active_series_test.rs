//! What the gate lets in, and what it remembers.

use koios_tenancy::Limits;

use super::*;
use crate::known_series::{KnownSeries, NOT_ENCODED, NewSeries};

const P0: PartitionId = PartitionId(0);
const P1: PartitionId = PartitionId(1);

struct Rig {
    active: ActiveSeries,
    known: Arc<TenantKnown>,
    limit: u64,
}

impl Rig {
    fn with_limit(limit: u64) -> Self {
        Self {
            active: ActiveSeries::default(),
            known: KnownSeries::default().of(&TenantId::anonymous(), &Arc::new(Limits::default())),
            limit,
        }
    }

    fn gate(&self, at: Duration) -> SeriesGate {
        let tenant = TenantId::anonymous();
        self.active.gate(&tenant, self.limit, &self.known, at).unwrap()
    }

    /// Members count as many series in a partition.
    fn note(&self, partition: PartitionId, series: u64) {
        self.active
            .note(&TenantId::anonymous(), partition, series, Duration::ZERO);
    }

    /// One request: how many get in, how many do not, and of how many that cannot be told.
    fn ask(&self, gate: &mut SeriesGate, hashes: std::ops::Range<u128>) -> [usize; 3] {
        let mut out = [0; 3];
        for hash in hashes {
            match gate.admit(P0, SeriesHash(hash), false) {
                Ok(_) => out[0] += 1,
                Err(NotAdmitted::Rejected(_)) => out[1] += 1,
                Err(NotAdmitted::Undecided) => out[2] += 1,
            }
        }
        out
    }

    /// One request that is written.
    fn write(&self, at: Duration, hashes: std::ops::Range<u128>) -> [usize; 3] {
        let mut gate = self.gate(at);
        let out = self.ask(&mut gate, hashes);
        gate.into_parts().into_values().for_each(Admitted::acknowledged);
        out
    }

    fn remembered(&self) -> usize {
        let gate = self.gate(Duration::ZERO);
        let series = gate.series.lock();
        series.recent.len() + series.older.len() + series.doubtful.len()
    }
}

#[test]
fn series_that_exist_are_learnt_however_long_the_process_runs() {
    for began in [Duration::ZERO, 50 * LEARNING] {
        let rig = Rig::with_limit(100);
        // The members hold 150 series, of which nothing is known here.
        assert_eq!(rig.write(began, 0..1), [1, 0, 0]);
        rig.note(P0, 90);
        rig.note(P1, 60);
        let mut taken = 1;
        while taken < 150 {
            let [more, refused, _] = rig.write(began, taken..150);
            assert!(more > 0 && refused == 0, "of {taken} on, none is refused");
            taken += more as u128;
        }
        // They were there, so the count has not changed, and now they are known.
        assert_eq!(rig.write(began + LEARNING, 0..200), [150, 50, 0]);
        rig.note(P1, 5);
        assert_eq!(rig.write(began + LEARNING, 0..200), [155, 45, 0]);
    }
}

#[test]
fn while_learning_new_series_exceed_the_limit_by_no_more_than_a_tenth() {
    let rig = Rig::with_limit(100);
    let mut written = 0;
    loop {
        let [more, refused, undecided] = rig.write(Duration::ZERO, written..written + 500);
        written += more as u128;
        rig.note(P0, written as u64);
        if undecided == 0 {
            assert!(refused > 0);
            break;
        }
    }
    assert!((100..=110).contains(&written), "{written}");
}

#[test]
fn series_known_before_a_tenant_got_its_limit_get_in_at_once() {
    let (known, tenant) = (KnownSeries::default(), TenantId::anonymous());
    let limited = |max_series| {
        Arc::new(Limits {
            max_series,
            ..Limits::default()
        })
    };
    let active = ActiveSeries::default();
    let before = known.of(&tenant, &limited(0));
    assert!(active.gate(&tenant, 0, &before, Duration::ZERO).is_none());
    let series = (0..1000).map(|n| NewSeries {
        hash: SeriesHash(n),
        encoded: NOT_ENCODED,
    });
    before.learn(&series.collect::<Vec<_>>());
    let now = 10 * LEARNING;
    let known = known.of(&tenant, &limited(10));
    let mut gate = active.gate(&tenant, 10, &known, now).unwrap();
    active.note(&tenant, P0, 1000, now);
    assert!((0..1000).all(|n| gate.admit(P0, SeriesHash(n), false).is_ok()));
    assert_eq!(gate.admit(P0, SeriesHash(1000), false), Ok(true));
    assert_eq!(
        gate.admit(P0, SeriesHash(1001), false),
        Err(NotAdmitted::Undecided),
        "there is little room beyond"
    );
}

#[test]
fn only_what_was_written_is_remembered() {
    let rig = Rig::with_limit(100);
    rig.write(Duration::ZERO, 0..1);
    rig.note(P0, 1);
    for round in 1..100 {
        let mut gate = rig.gate(LEARNING);
        assert_eq!(rig.ask(&mut gate, round * 1000..round * 1000 + 50), [50, 0, 0]);
        if round % 2 == 0 {
            (0..50).for_each(|_| gate.take_back(P0));
        }
    }
    assert_eq!(rig.remembered(), 1);
    assert_eq!(rig.write(LEARNING, 1000..2000), [99, 901, 0]);
}

#[test]
fn requests_at_the_same_time_do_not_take_the_same_room() {
    let rig = Rig::with_limit(100);
    rig.write(Duration::ZERO, 0..1);
    rig.note(P0, 1);
    let mut gates: Vec<SeriesGate> = (0..5).map(|_| rig.gate(LEARNING)).collect();
    let mut asked = (1..).map(|n: u128| n * 1000..n * 1000 + 60);
    let answers: Vec<[usize; 3]> = gates
        .iter_mut()
        .map(|gate| rig.ask(gate, asked.next().unwrap()))
        .collect();
    assert_eq!(answers[0], [60, 0, 0]);
    assert_eq!(answers[1], [49, 0, 11], "a tenth may come too many");
    assert_eq!(answers[2], [0, 0, 60]);
    drop(gates);
    assert_eq!(rig.write(LEARNING, 9000..9099), [99, 0, 0], "room was given back");
}

#[test]
fn what_was_sent_and_not_acknowledged_keeps_its_room_for_a_while() {
    let rig = Rig::with_limit(100);
    rig.write(Duration::ZERO, 0..1);
    rig.note(P0, 1);
    let send = |hashes| {
        let mut gate = rig.gate(LEARNING);
        let out = rig.ask(&mut gate, hashes);
        gate.into_parts().into_values().for_each(|mut part| part.sent());
        out
    };
    assert_eq!(send(1000..1099), [99, 0, 0]);
    assert_eq!(send(1000..1099), [99, 0, 0], "the same once more");
    // They have arrived after all: the limit is reached.
    rig.note(P0, 100);
    assert_eq!(rig.write(LEARNING, 1000..1110), [99, 11, 0]);
    rig.note(P0, 1);
    assert_eq!(send(2000..2099), [99, 0, 0]);
    assert_eq!(
        rig.write(LEARNING, 3000..3099),
        [10, 0, 89],
        "a tenth may come too many"
    );
    let later = LEARNING + DOUBTED + Duration::from_secs(1);
    assert_eq!(rig.write(later, 4000..4099), [99, 0, 0]);
}

#[test]
fn a_series_without_samples_is_forgotten_and_so_is_a_tenant() {
    let rig = Rig::with_limit(100);
    let hours = |h: u32| LEARNING + (REMEMBERED + Duration::from_secs(1)) * h;
    rig.write(Duration::ZERO, 0..100);
    let tenant = TenantId::anonymous();
    let note = |h| rig.active.note(&tenant, P0, 100, hours(h));
    note(1);
    assert_eq!(rig.write(hours(1), 0..50), [50, 0, 0]);
    note(2);
    assert_eq!(
        rig.write(hours(2), 0..100),
        [50, 50, 0],
        "the others came last two turns ago"
    );
    let other = TenantId::new("other").unwrap();
    assert!(rig.active.gate(&other, 0, &rig.known, hours(5)).is_none());
    assert!(rig.active.tenants.lock().limited.is_empty());
}

#[test]
fn a_series_that_comes_often_in_a_request_takes_room_once() {
    let rig = Rig::with_limit(10);
    rig.write(Duration::ZERO, 0..1);
    rig.note(P0, 1);
    let mut gate = rig.gate(LEARNING);
    for _ in 0..100 {
        assert!(gate.admit(P0, SeriesHash(7), false).is_ok());
    }
    assert_eq!(rig.ask(&mut gate, 100..200), [8, 92, 0]);
}
