//! Manifests of every format that there ever was, as they were written: they stay readable, and say what they said. With
//! `KOIOS_WRITE_FIXTURES` set a missing one is written; one that is there never changes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{bucket_over, id, tenant};
use koios_block::PartSummary;
use koios_bucket::{
    Coverage, DeadBlock, ImportedBlock, ListedRule, Manifest, ManifestBlock, Nonce, RetentionOrigin,
    RetentionPolicy, RetentionRecord, SummaryRetention, Tombstone, TombstoneMatcher, TombstoneState,
};
use koios_model::{BatchSet, MatchOp, PartitionId, StreamId, TimeRange};
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, path};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn part(name: &str, end_cell_bytes: Option<u64>) -> PartSummary {
    PartSummary {
        name: name.to_owned(),
        bytes: 123_456_789_012,
        crc32c: 0xdead_beef,
        end_cell_bytes,
        end_in_meta: false,
    }
}

/// Batches of two streams, one with a gap.
fn batches(from: u64) -> BTreeMap<PartitionId, BatchSet> {
    let mut set = BatchSet::default();
    for sequence in [from, from + 1, from + 7] {
        set.insert(StreamId(u128::MAX - 1), sequence);
        set.insert(StreamId(3), sequence);
    }
    BTreeMap::from([(PartitionId(0), set), (PartitionId(41), BatchSet::default())])
}

/// A block as it was cut.
fn cut(n: u64) -> ManifestBlock {
    ManifestBlock {
        block: id(n),
        partitions: vec![PartitionId(0), PartitionId(41)],
        epoch: 7,
        range: TimeRange::new(-5, 2 * HOUR - 1),
        window: TimeRange::new(0, 2 * HOUR - 1),
        resolution_ms: 0,
        level: 0,
        split: (0, 1),
        series: 12,
        samples: 1 << 40,
        covers: batches(n),
        windows: Vec::new(),
        sources: Vec::new(),
        clean_up_to: 0,
        lacks: Vec::new(),
        parts: vec![
            part("meta.json", None),
            part("series.parquet", Some(8192)),
            part("samples.parquet", None),
        ],
    }
}

fn merged(n: u64) -> ManifestBlock {
    let window = |hours: i64| Coverage {
        window: TimeRange::new(hours * HOUR, (hours + 2) * HOUR - 1),
        covers: batches(n + 1),
    };
    ManifestBlock {
        window: TimeRange::new(0, DAY - 1),
        level: 2,
        split: (1, 4),
        windows: vec![window(0), window(4)],
        sources: vec![id(n + 100), id(n + 101)],
        ..cut(n)
    }
}

fn summaries(n: u64, resolution_ms: i64, sources: &[u64]) -> ManifestBlock {
    ManifestBlock {
        resolution_ms,
        level: 3,
        covers: BTreeMap::new(),
        sources: sources.iter().map(|n| id(*n)).collect(),
        clean_up_to: 4,
        lacks: vec![2, 5],
        parts: vec![part("meta.json", None), part("samples-1h.parquet", Some(16_384))],
        ..cut(n)
    }
}

fn matchers() -> Vec<TombstoneMatcher> {
    let ops = [
        MatchOp::Equal,
        MatchOp::NotEqual,
        MatchOp::Regex,
        MatchOp::NotRegex,
    ];
    let matcher = |(op, value): (MatchOp, &str)| TombstoneMatcher {
        name: "ä.\"b\"".to_owned(),
        op,
        value: value.to_owned(),
    };
    ops.into_iter()
        .zip(["", "x\n", "a|b.*", "[0-9]+"])
        .map(matcher)
        .collect()
}

fn tombstone(n: u64, state: TombstoneState) -> Tombstone {
    Tombstone {
        id: Nonce(u128::MAX - u128::from(n)),
        matchers: matchers(),
        range: if n == 0 {
            TimeRange::ALL
        } else {
            TimeRange::new(-1, DAY)
        },
        version: 3 + n,
        covers: batches(9),
        at_ms: 1_700_000_000_001,
        by: "ops@example.org".to_owned(),
        state,
        changed: n,
    }
}

fn retention() -> RetentionRecord {
    let policy = RetentionPolicy {
        samples_ms: Some(150 * DAY),
        samples_origin: RetentionOrigin::Limits,
        summaries: vec![
            SummaryRetention {
                resolution_ms: 300_000,
                kept_ms: Some(366 * DAY),
                kept_origin: RetentionOrigin::BuiltIn,
                after_ms: Some(40 * HOUR),
                after_origin: RetentionOrigin::Process,
            },
            SummaryRetention {
                resolution_ms: HOUR,
                kept_ms: None,
                kept_origin: RetentionOrigin::Tenant,
                after_ms: None,
                after_origin: RetentionOrigin::Tenant,
            },
        ],
        rules: vec![
            ListedRule {
                matchers: matchers(),
                kept_ms: Some(DAY),
            },
            ListedRule {
                matchers: Vec::new(),
                kept_ms: None,
            },
        ],
        rules_origin: RetentionOrigin::Tenant,
        masks_rest: true,
    };
    let mut record = RetentionRecord::new(policy, None, 1_700_000_000_002, 1_699_999_999_999);
    record.masks_since = Some(6);
    record
}

/// What the manifest of a format says: of the newest, all that one may.
fn manifest(format: u32) -> Manifest {
    let mut manifest = Manifest {
        format,
        version: u64::from(format),
        writer: "store-1".to_owned(),
        nonce: Nonce(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        committed_ms: 1_700_000_000_003,
        epochs: BTreeMap::from([("compaction".to_owned(), 3), ("partition/0".to_owned(), u64::MAX)]),
        blocks: vec![cut(1)],
        ..Manifest::empty(tenant())
    };
    if format >= 2 {
        manifest.blocks.push(merged(2));
        manifest.blocks.push(summaries(3, 300_000, &[2]));
        manifest.blocks.push(summaries(4, HOUR, &[]));
        manifest.dead.push(DeadBlock {
            block: id(90),
            version: 2,
            at_ms: 1_700_000_000_004,
            parts: vec!["meta.json".to_owned(), "series.parquet".to_owned()],
        });
    }
    if format >= 3 {
        let states = [
            TombstoneState::Masked,
            TombstoneState::Final,
            TombstoneState::Undone,
        ];
        manifest.tombstones = (0..).zip(states).map(|(n, state)| tombstone(n, state)).collect();
    }
    if format >= 4 {
        let import = |n: u64, left_out_before_ms| ImportedBlock {
            source: id(n),
            samples: 5,
            version: 2,
            left_out_before_ms,
        };
        manifest.imports = vec![import(200, None), import(201, Some(DAY))];
        manifest.retention = Some(retention());
        manifest.rebuilt = 1;
        manifest.begun_ms = 1_600_000_000_000;
        manifest.deletions_done = 2;
    }
    manifest
}

fn file(format: u32) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(format!("manifest-v{format}.json"))
}

fn write_missing(format: u32) {
    let file = file(format);
    if file.exists() || std::env::var_os("KOIOS_WRITE_FIXTURES").is_none() {
        return;
    }
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let json = serde_json::to_string(&manifest(format)).unwrap();
    let sum = crc32c::crc32c(json.as_bytes());
    std::fs::write(file, format!("{{\"crc32c\":\"{sum:08x}\",\"manifest\":{json}}}")).unwrap();
}

#[tokio::test]
async fn manifests_of_every_format_are_read_as_they_were_written() {
    for format in 1..=4 {
        write_missing(format);
        let store = Arc::new(InMemory::new());
        let version = u64::from(format);
        let at = path::Path::from(format!("prefix/{}/manifest/{version:020}.json", tenant()));
        let bytes = std::fs::read(file(format)).unwrap();
        store.put(&at, bytes.into()).await.unwrap();
        let found = bucket_over(store, 1).manifest(&tenant(), version).await.unwrap();
        assert_eq!(*found.unwrap(), manifest(format), "format {format}");
    }
}
