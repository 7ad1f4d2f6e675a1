use koios_model::{PartitionId, SeriesHash, TenantId};

use super::*;

const HOUR_MS: i64 = 3_600_000;
const WINDOW: i64 = 0;

fn replica() -> Replica {
    let key = (PartitionId(0), TenantId::new("team").unwrap());
    Replica::new(key, HeadOptions::default())
}

/// A sample comes, of a batch that is not told of.
fn comes_untold(state: &mut ReplicaState, t: i64) {
    let mut columns = BatchColumns::default();
    let labels = Labels::from_pairs([("__name__", "up".to_owned())]);
    columns.push_series(SeriesHash(1), labels.as_ref());
    columns.push_sample(t, 1.0);
    state.head.apply(&columns, 0, 1);
    let times = BatchTimes::of(&columns, state.window_ms());
    state.note_unaccounted(&times);
}

#[test]
fn i3_what_comes_untold_while_a_cut_is_made_is_not_told_by_its_listing() {
    let replica = replica();
    let mut state = replica.state.write();
    comes_untold(&mut state, 0);
    let first = BlockId::new(1, 1);
    assert_eq!(state.begin_cut(WINDOW, first).batches, None);
    comes_untold(&mut state, HOUR_MS);
    state.cut_listed(first, 1);
    assert_eq!(state.unaccounted(), [WINDOW]);
    let second = BlockId::new(2, 2);
    assert_eq!(state.begin_cut(WINDOW, second).batches, None);
    assert_eq!(state.unaccounted(), [WINDOW], "a snapshot must know");
    state.abandon(second);
    assert_eq!(state.unaccounted(), [WINDOW]);
    let third = BlockId::new(3, 3);
    assert_eq!(state.begin_cut(WINDOW, third).batches, None);
    state.cut_listed(third, 2);
    assert!(state.unaccounted().is_empty());
}

#[test]
fn i16_a_snapshot_of_an_earlier_version_says_that_there_is_something_untold() {
    let (mut before, replica) = (replica().state.into_inner(), replica());
    comes_untold(&mut before, 0);
    let mut state = replica.state.write();
    let accounts = ReplicaAccounts {
        checkpoint: before.checkpoint(&replica.key),
        uncut: before.uncut(),
        manifest_floor: 0,
        cut_through: 0,
        unaccounted: Vec::new(),
        has_unaccounted: true,
    };
    state.install(before.head, accounts);
    assert_eq!(state.unaccounted(), [WINDOW]);
}

#[test]
fn i10_a_head_may_have_samples_of_what_its_snapshot_had_and_of_what_nothing_tells_of() {
    let batches = |sequences: &[u64]| {
        let mut set = BatchSet::default();
        for n in sequences {
            set.insert(StreamId(1), *n);
        }
        set
    };
    let lost = Found {
        lost: true,
        unaccounted: false,
    };
    let replica = replica();
    let mut state = replica.state.write();
    state.in_snapshot = Some(batches(&[1, 2]));
    state.replayed(lost);
    assert!(state.may_have(&batches(&[2, 3])));
    assert!(!state.may_have(&batches(&[3])));
    comes_untold(&mut state, 0);
    assert!(state.may_have(&batches(&[3])));
}
