//! What a read costs of which nothing is cached but the manifest.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_block::{BlockId, BlockOptions, BlockWriter};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_testkit::distant::Distant;
use koios_wire::{StoreItem, StoreSelectRequest, StoreService};

const REQUEST: Duration = Duration::from_millis(10);
const BLOCKS: i64 = 30;
const SERIES: u64 = 20;
const ROWS: i64 = 4_000;

/// Most milliseconds between two samples of a series.
const STEP_MS: i64 = 1 << 28;

fn noise(t: i64, series: u64) -> u64 {
    let mixed = (t.unsigned_abs() * SERIES + series + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// A block whose samples no codec makes smaller: some hundred kilobytes. Its series have the same times, or each its own, which
/// are as many bytes then.
fn block(number: i64, own_times: bool) -> koios_block::BlockParts {
    let time = |row: i64, series: u64| match own_times {
        true => row * STEP_MS + noise(row, series).cast_signed().rem_euclid(STEP_MS),
        false => row * STEP_MS,
    };
    let (first, end) = (number * ROWS, (number + 1) * ROWS);
    let window = TimeRange::new(first * STEP_MS, end * STEP_MS - 1);
    let id = BlockId::new(window.max, u128::try_from(number).unwrap());
    let mut writer = BlockWriter::new(BlockOptions::new(id, TenantId::anonymous(), window)).unwrap();
    for series in 0..SERIES {
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{series:02}"))]);
        let times: Vec<i64> = (first..end).map(|row| time(row, series)).collect();
        let values = times.iter().map(|&t| f64::from_bits(noise(t, series) >> 2));
        let values: Vec<f64> = values.collect();
        writer.push_series(&labels, None, &times, &values).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_series_over_thirty_blocks_takes_four_round_trips_at_most() {
    for own_times in [false, true] {
        Box::pin(one_series_over_thirty_blocks(own_times)).await;
    }
}

async fn one_series_over_thirty_blocks(own_times: bool) {
    let clock = Arc::new(RealClock::new());
    let objects = Arc::new(Distant::new(Arc::<RealClock>::clone(&clock), REQUEST));
    let bucket = Bucket::new(
        Arc::<Distant>::clone(&objects),
        "",
        clock,
        RngHandle::from_seed(1),
    );
    let tenant = TenantId::anonymous();
    for number in 0..BLOCKS {
        let block = block(number, own_times);
        let large = |part: &koios_block::PartMeta| part.bytes > 256 << 10;
        let large: Vec<_> = block.meta.parts.iter().filter(|part| large(part)).collect();
        assert_eq!(
            large.len(),
            1 + usize::from(own_times),
            "more than a tail: {large:?}"
        );
        bucket.upload_block(&tenant, &block).await.unwrap();
        let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
        let writer = Writer::partition("test", PartitionId(0), 1);
        let commit = bucket.commit(&tenant, &writer, |m| m.add_block(entry.clone()));
        commit.await.unwrap();
    }
    let manifests = TenantManifests::new(bucket, Duration::from_secs(86_400));
    let version = manifests.latest(&tenant).await.unwrap().version;
    let store = BlockStore::new(
        manifests,
        StoreSettings::default(),
        Cpu::inline(),
        &Metrics::new(),
    );

    objects.take();
    let before = tokio::time::Instant::now();
    let request = StoreSelectRequest {
        tenant,
        manifest_version: version,
        blocks: Vec::new(),
        matchers: Matchers(vec![Matcher::equal("i", "07")]),
        range: TimeRange::ALL,
        labels_only: false,
        limit: 0,
    };
    let mut stream = store.select(request).await.unwrap();
    let mut samples = 0;
    while let Some(item) = stream.next().await {
        if let StoreItem::Series(found) = item.unwrap() {
            let runs = found.iter().flat_map(|s| &s.runs);
            samples += runs.map(koios_chunk::Run::count).sum::<usize>();
        }
    }
    assert_eq!(samples as i64, BLOCKS * ROWS);
    let rounds = before.elapsed().as_millis() / REQUEST.as_millis();
    let (requests, _) = objects.take();
    assert!(rounds <= 4, "{rounds} rounds, own times {own_times}");
    assert!(
        requests <= 6 * BLOCKS as u64,
        "{requests} requests, own times {own_times}"
    );
}
