//! Claims about what is merged when.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use koios_block::PartSummary;
use koios_model::{PartitionId, TenantId};

use super::*;

const HOUR: i64 = 3_600_000;

fn id(n: u128) -> BlockId {
    BlockId::new(1, n)
}

/// A block of some kilobytes over hours of the day.
fn block(n: u128, hours: std::ops::Range<i64>, kib: u64) -> ManifestBlock {
    let window = TimeRange::new(hours.start * HOUR, hours.end * HOUR - 1);
    ManifestBlock {
        block: id(n),
        partitions: vec![PartitionId(0)],
        epoch: 1,
        range: window,
        window,
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
        parts: vec![PartSummary {
            name: "samples.parquet".to_owned(),
            bytes: kib << 10,
            crc32c: 0,
            end_cell_bytes: None,
            end_in_meta: false,
        }],
    }
}

fn merged(n: u128, hours: std::ops::Range<i64>, kib: u64, sources: &[u128]) -> ManifestBlock {
    ManifestBlock {
        level: 1,
        sources: sources.iter().map(|n| id(*n)).collect(),
        ..block(n, hours, kib)
    }
}

fn due(blocks: Vec<ManifestBlock>, now_hours: i64) -> Vec<(Vec<u128>, std::ops::Range<i64>)> {
    due_without(blocks, now_hours, &[])
}

fn due_without(
    blocks: Vec<ManifestBlock>,
    now_hours: i64,
    bad: &[u128],
) -> Vec<(Vec<u128>, std::ops::Range<i64>)> {
    let mut manifest = Manifest::empty(TenantId::anonymous());
    manifest.blocks = blocks;
    let bad = bad.iter().map(|n| id(*n)).collect();
    let jobs = due_merges(&manifest, now_hours * HOUR, &CompactionSettings::default(), &bad);
    let number = |b: &ManifestBlock| (0..100).find(|n| id(*n) == b.block).unwrap();
    jobs.iter()
        .map(|j| {
            let hours = j.window.min / HOUR..(j.window.max + 1) / HOUR;
            (j.inputs.iter().map(number).collect(), hours)
        })
        .collect()
}

#[test]
fn blocks_of_one_window_are_merged_once_it_has_settled() {
    let two = vec![block(1, 0..2, 10), block(2, 0..2, 10)];
    assert_eq!(due(two.clone(), 2), []);
    assert_eq!(due(two, 3), [(vec![1, 2], 0..2)]);
    assert_eq!(due(vec![block(1, 0..2, 10)], 3), []);
}

#[test]
fn windows_widen_when_the_wider_one_has_passed() {
    let day: Vec<_> = (0..12)
        .map(|i| block(1 + i, i as i64 * 2..i as i64 * 2 + 2, 10))
        .collect();
    assert_eq!(due(day[..6].to_vec(), 12), []);
    assert_eq!(due(day[..6].to_vec(), 13), [(vec![1, 2, 3, 4, 5, 6], 0..12)]);
    // A store that was away finds the narrower windows first.
    let all = due(day, 25);
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].1, 0..12);
    assert_eq!(all[1].1, 12..24);
    let halves = vec![merged(20, 0..12, 60, &[1, 2]), merged(21, 12..24, 60, &[7, 8])];
    assert_eq!(due(halves, 25), [(vec![20, 21], 0..24)]);
}

#[test]
fn what_is_done_is_not_done_again() {
    let day = vec![merged(20, 0..24, 60, &[1, 2]), merged(21, 0..24, 60, &[1, 2])];
    assert_eq!(due(day, 99), []);
    let half = vec![merged(20, 0..12, 60, &[1, 2])];
    assert_eq!(due(half, 99), []);
}

#[test]
fn a_little_that_comes_late_waits_for_more() {
    let day = |late: Vec<ManifestBlock>| [vec![merged(20, 0..24, 800, &[1, 2])], late].concat();
    assert_eq!(due(day(vec![block(30, 2..4, 10)]), 99), []);
    // Late ones of the same window go together meanwhile.
    let two = due(day(vec![block(30, 2..4, 10), block(31, 2..4, 10)]), 99);
    assert_eq!(two, [(vec![30, 31], 2..4), (vec![30, 31], 0..12)]);
    assert_eq!(due(day(vec![block(30, 2..4, 100)]), 99), [(vec![20, 30], 0..24)]);
    let many = (0..7)
        .map(|i| block(30 + i, i as i64 * 2..i as i64 * 2 + 2, 1))
        .collect();
    assert_eq!(due(day(many), 99).last().unwrap().1, 0..24);
}

#[test]
fn i11_a_bad_block_is_left_alone_and_the_rest_goes_on() {
    let three = vec![block(1, 0..2, 10), block(2, 0..2, 10), block(3, 0..2, 10)];
    assert_eq!(due_without(three.clone(), 3, &[2]), [(vec![1, 3], 0..2)]);
    assert_eq!(due_without(three, 3, &[2, 3]), []);
}

#[test]
fn of_many_blocks_the_smallest_are_merged_first() {
    let many: Vec<_> = (0..40).map(|i| block(i, 0..2, 40 - i as u64)).collect();
    let jobs = due(many, 3);
    assert_eq!(jobs, [((24..40).collect::<Vec<u128>>(), 0..2)]);
}

#[test]
fn what_is_due_has_been_since_its_window_settled_and_all_of_it_was_there() {
    let settings = CompactionSettings::default();
    let since = |blocks: Vec<ManifestBlock>, tombstones: &[Tombstone]| {
        let mut manifest = Manifest::empty(TenantId::anonymous());
        manifest.tombstones = tombstones.to_vec();
        let job = MergeJob {
            inputs: blocks,
            window: TimeRange::new(0, 2 * HOUR - 1),
            level: 1,
        };
        due_since_ms(&manifest, &job, &settings)
    };
    let named = |at_ms: i64| ManifestBlock {
        block: BlockId::new(at_ms, 1),
        ..block(1, 0..2, 1)
    };
    let settled = 2 * HOUR + HOUR * 3 / 4;
    assert_eq!(since(vec![named(0), named(2 * HOUR)], &[]), settled);
    // Late ones.
    assert_eq!(since(vec![named(0), named(90 * HOUR)], &[]), 90 * HOUR);
    // One that is written again because of a deletion.
    let deletion = Tombstone {
        version: 1,
        at_ms: 70 * HOUR,
        state: TombstoneState::Final,
        ..Tombstone::new(
            koios_bucket::Nonce(1),
            &koios_model::Matchers::default(),
            TimeRange::ALL,
        )
    };
    assert_eq!(since(vec![named(0)], &[deletion]), 71 * HOUR);
}

#[test]
fn a_merged_block_that_is_written_again_keeps_its_sources_and_is_named() {
    let job = |inputs: Vec<ManifestBlock>| {
        let job = MergeJob {
            window: inputs[0].window,
            level: 1,
            inputs,
        };
        (job.sources(), job.rewrites())
    };
    let (a, b, m) = (block(1, 0..2, 1), block(2, 0..2, 1), merged(3, 0..2, 1, &[7, 8]));
    assert_eq!(job(vec![a.clone(), b]), (vec![id(1), id(2)], None));
    assert_eq!(job(vec![a.clone()]), (vec![id(1)], None));
    assert_eq!(job(vec![m.clone()]), (vec![id(7), id(8)], Some(id(3))));
    assert_eq!(job(vec![a, m]), (vec![id(1), id(3)], None));
}
