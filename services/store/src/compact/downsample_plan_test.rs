//! Claims about what is downsampled when, and what goes when.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use koios_block::{PartSummary, RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_bucket::{Nonce, RetentionRecord, Tombstone, TombstoneState};
use koios_model::{Matchers, PartitionId, TenantId};

use super::*;
use crate::compact::retention::configured;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn id(n: u128) -> BlockId {
    BlockId::new(1, n)
}

/// A block of hours of the first days.
fn block(n: u128, hours: std::ops::Range<i64>, kib: u64) -> ManifestBlock {
    let window = TimeRange::new(hours.start * HOUR, hours.end * HOUR - 1);
    ManifestBlock {
        block: id(n),
        partitions: vec![PartitionId(0)],
        epoch: 1,
        range: window,
        window,
        resolution_ms: 0,
        level: 1,
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

fn summaries(n: u128, resolution_ms: i64, sources: &[u128]) -> ManifestBlock {
    ManifestBlock {
        resolution_ms,
        sources: sources.iter().map(|n| id(*n)).collect(),
        ..block(n, 0..24, 1)
    }
}

fn manifest(blocks: Vec<ManifestBlock>) -> Manifest {
    let mut manifest = Manifest::empty(TenantId::anonymous());
    manifest.blocks = blocks;
    manifest
}

fn settings() -> CompactionSettings {
    CompactionSettings {
        retention: Duration::from_secs(10 * 24 * 3600),
        ..CompactionSettings::default()
    }
}

/// The inputs, resolutions in minutes, and the blocks replaced of what is due.
fn due(manifest: &Manifest, now_ms: i64) -> Vec<(Vec<u128>, Vec<i64>, Vec<u128>)> {
    let none = BTreeSet::new();
    let (manifest, settings) = noted(manifest, &settings());
    let jobs = due_downsamplings(&manifest, now_ms, &settings, &none, &none);
    let number = |wanted: &BlockId| (0..1000).find(|n| id(*n) == *wanted).unwrap();
    jobs.iter()
        .map(|j| {
            let inputs = j.inputs.iter().map(|b| number(&b.block)).collect();
            let minutes = j.resolutions.iter().map(|r| r / 60_000).collect();
            (inputs, minutes, j.replaced.iter().map(number).collect())
        })
        .collect()
}

#[test]
fn a_day_is_downsampled_to_all_resolutions_once_it_is_old_enough() {
    let m = manifest(vec![block(1, 0..24, 10), block(2, 0..12, 1)]);
    assert_eq!(due(&m, DAY + 40 * HOUR - 1), []);
    assert_eq!(due(&m, DAY + 41 * HOUR), [(vec![1, 2], vec![5, 60], vec![])]);
    let both = |n| {
        [
            summaries(n, RESOLUTION_5M_MS, &[1, 2]),
            summaries(n + 1, RESOLUTION_1H_MS, &[1, 2]),
        ]
    };
    let done = manifest([m.blocks.clone(), both(10).to_vec()].concat());
    assert_eq!(due(&done, 3 * DAY), []);
    let half = manifest(done.blocks[..3].to_vec());
    assert_eq!(due(&half, 3 * DAY), [(vec![1, 2], vec![60], vec![])]);
    // Nobody would keep summaries of five minutes any more.
    assert_eq!(due(&m, 400 * DAY), [(vec![1, 2], vec![60], vec![])]);
}

#[test]
fn a_merge_of_what_is_summarised_changes_nothing() {
    let mut m = manifest(vec![
        block(1, 0..24, 10),
        block(2, 0..12, 1),
        summaries(10, RESOLUTION_5M_MS, &[1, 2]),
        summaries(11, RESOLUTION_1H_MS, &[1, 2]),
    ]);
    for n in [1, 2] {
        m.remove_block(id(n));
    }
    for n in [20, 21] {
        m.add_block(block(n, 0..24, 6)).unwrap();
    }
    let untold = m.clone();
    m.note_merged(&[id(1), id(2)], &[id(20), id(21)]);
    assert_eq!(due(&m, 3 * DAY), []);
    assert_eq!(m.block(id(10)).unwrap().sources, [id(20), id(21)]);
    // By one who does not know of summaries.
    assert_eq!(due(&untold, 3 * DAY), [(vec![20, 21], vec![5, 60], vec![10, 11])]);
    // With something that is not summarised.
    m.note_merged(&[id(20), id(30)], &[id(40)]);
    assert_eq!(m.block(id(10)).unwrap().sources, [id(20), id(21)]);
}

#[test]
fn what_comes_late_is_summarised_when_it_is_worth_it_or_about_to_go() {
    let late = |kib| {
        manifest(vec![
            block(1, 0..24, 800),
            block(2, 2..4, kib),
            summaries(10, RESOLUTION_5M_MS, &[1]),
            summaries(11, RESOLUTION_1H_MS, &[1]),
        ])
    };
    assert_eq!(due(&late(10), 5 * DAY), []);
    let all = [(vec![1, 2], vec![5, 60], vec![10, 11])];
    assert_eq!(due(&late(100), 5 * DAY), all);
    assert_eq!(due(&late(10), 12 * DAY), all);
}

#[test]
fn i10_what_is_deleted_is_summarised_anew() {
    let mut m = manifest(vec![
        block(1, 0..24, 10),
        summaries(10, RESOLUTION_5M_MS, &[1]),
        summaries(11, RESOLUTION_1H_MS, &[1]),
    ]);
    assert_eq!(due(&m, 3 * DAY), []);
    m.version = 1;
    m.tombstones.push(Tombstone {
        version: 1,
        ..Tombstone::new(Nonce(1), &Matchers::default(), TimeRange::new(0, HOUR))
    });
    // Until it is final it may be taken back.
    assert_eq!(due(&m, 3 * DAY), []);
    m.tombstones[0].state = TombstoneState::Final;
    assert_eq!(due(&m, 3 * DAY), [(vec![1], vec![5, 60], vec![10, 11])]);
    // Of samples that are gone there is nothing to summarise.
    m.blocks[1].sources.clear();
    m.blocks[2].sources.clear();
    m.remove_block(id(1));
    assert_eq!(due(&m, 3 * DAY), []);
}

#[test]
fn i11_summaries_of_a_damaged_block_stay() {
    let m = manifest(vec![
        block(1, 0..24, 10),
        block(2, 0..24, 10),
        block(3, 0..24, 10),
        summaries(10, RESOLUTION_5M_MS, &[1, 2]),
    ]);
    let none = BTreeSet::new();
    let due = |bad: &BTreeSet<BlockId>| {
        let jobs = due_downsamplings(&m, 3 * DAY, &settings(), bad, &none);
        jobs.into_iter().map(|j| j.resolutions).collect::<Vec<_>>()
    };
    assert_eq!(due(&none), [[RESOLUTION_5M_MS, RESOLUTION_1H_MS]]);
    assert_eq!(due(&BTreeSet::from([id(2)])), Vec::<Vec<i64>>::new());
    assert!(due_downsamplings(&m, 3 * DAY, &settings(), &none, &BTreeSet::from([id(2)])).is_empty());
}

/// A manifest that notes since ever what settings say, and settings that obey it.
fn noted(m: &Manifest, settings: &CompactionSettings) -> (Manifest, CompactionSettings) {
    let policy = configured(&m.tenant, settings, &koios_tenancy::Overrides::default());
    let mut m = m.clone();
    m.retention = Some(RetentionRecord::new(policy.clone(), None, i64::MIN, i64::MAX));
    (m, settings.clone().obeying(policy))
}

fn gone(m: &Manifest, now_ms: i64, settings: &CompactionSettings) -> (Vec<BlockId>, Vec<BlockId>) {
    let (m, settings) = noted(m, settings);
    let found = expired(&m, now_ms, &settings, &BTreeSet::new());
    (found.blocks, found.standing_in)
}

#[test]
fn i10_samples_go_once_all_of_their_window_are_old_and_summarised() {
    let raw = manifest(vec![block(1, 0..12, 10), block(2, 12..24, 10)]);
    let old = 12 * DAY;
    assert_eq!(gone(&raw, old, &settings()), (vec![], vec![]));
    let off = CompactionSettings {
        downsampling: Vec::new(),
        ..settings()
    };
    assert_eq!(gone(&raw, old, &off).0, [id(1), id(2)]);
    assert_eq!(gone(&raw, 10 * DAY + 20 * HOUR, &off).0, [id(1)]);
    let mut m = raw;
    m.add_block(summaries(10, RESOLUTION_5M_MS, &[1, 2])).unwrap();
    assert_eq!(gone(&m, old, &settings()), (vec![], vec![]));
    m.add_block(summaries(11, RESOLUTION_1H_MS, &[1, 2])).unwrap();
    // Together, not one after the other.
    assert_eq!(gone(&m, 10 * DAY + 20 * HOUR, &settings()), (vec![], vec![]));
    assert_eq!(
        gone(&m, old, &settings()),
        (vec![id(1), id(2)], vec![id(10), id(11)])
    );
    // Those of summaries are their own retentions.
    m.stand_in(&[id(10), id(11)]);
    m.remove_block(id(1));
    m.remove_block(id(2));
    assert_eq!(gone(&m, old, &settings()), (vec![], vec![]));
    assert_eq!(gone(&m, 370 * DAY, &settings()).0, [id(10)]);
    assert_eq!(gone(&m, 2000 * DAY, &settings()).0, [id(10), id(11)]);
}

#[test]
fn summaries_whose_samples_went_otherwise_stand_in_for_them() {
    let m = manifest(vec![summaries(10, RESOLUTION_5M_MS, &[1])]);
    assert_eq!(gone(&m, 3 * DAY, &settings()), (vec![], vec![id(10)]));
}

#[test]
fn what_is_older_than_the_retention_goes_and_without_one_nothing_does() {
    let m = manifest(vec![block(1, 0..2, 10), block(2, 2..4, 10)]);
    let kept = |hours: u64| CompactionSettings {
        retention: Duration::from_secs(hours * 3600),
        downsampling: Vec::new(),
        ..CompactionSettings::default()
    };
    assert_eq!(gone(&m, 12 * HOUR, &kept(10)).0, [id(1)]);
    assert_eq!(gone(&m, 11 * HOUR, &kept(10)).0, []);
    assert_eq!(gone(&m, 1_000_000 * HOUR, &kept(0)).0, []);
}

#[test]
fn a_window_is_due_since_it_was_old_enough_or_its_last_block_came() {
    let settings = settings();
    let named = |at_ms: i64, n: u128| ManifestBlock {
        block: BlockId::new(at_ms, n),
        ..block(n, 0..24, 1)
    };
    let since = |inputs: Vec<ManifestBlock>, settings: &CompactionSettings| {
        let job = DownsampleJob {
            window: TimeRange::new(0, DAY - 1),
            inputs,
            resolutions: vec![RESOLUTION_1H_MS],
            replaced: Vec::new(),
        };
        downsampling_due_since_ms(&job, settings)
    };
    let old_enough = DAY - 1 + 40 * HOUR;
    assert_eq!(
        since(vec![named(0, 1), named(30 * HOUR, 2)], &settings),
        old_enough
    );
    let late = 90 * HOUR;
    assert_eq!(since(vec![named(0, 1), named(late, 2)], &settings), late);
    // What is about to go does not wait.
    let short = CompactionSettings {
        retention: Duration::from_secs(3600),
        ..settings
    };
    assert_eq!(since(vec![named(0, 1)], &short), DAY - 1 + HOUR);
}
