//! A full scan of a day's block on one core: warm, from the chunks that a store keeps, step by step up to what a query folds;
//! and cold, from the bytes of the block in memory.

#[path = "../../chunk/benches/days/mod.rs"]
mod days;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use days::Times;
use futures::StreamExt;
use futures::executor::block_on;
use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockSeries, BlockWriter, Layout,
    MemoryBlock, Result,
};
use koios_chunk::Chunk;
use koios_model::{Matchers, TenantId, TimeRange};

/// Room for all there is.
const CACHE_BYTES: u64 = 1 << 30;

/// As compaction leaves it.
fn written(times: Times) -> Result<Option<BlockParts>> {
    let mut writer = BlockWriter::new(BlockOptions {
        layout: Layout::compacted(),
        ..BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL)
    })?;
    for series in days::fleet(times) {
        writer.push_series(&series.labels, None, &series.timestamps, &series.values)?;
    }
    writer.finish()
}

/// Nothing of it is cached.
fn opened(block: &BlockParts) -> Result<BlockReader> {
    let cache = BlockCache::new(CACHE_BYTES, CACHE_BYTES).with_series_and_samples(CACHE_BYTES, CACHE_BYTES);
    let source = Arc::new(MemoryBlock::new(block));
    BlockReader::open(source, Arc::new(block.meta.clone()), Arc::new(cache))
}

async fn all_series(reader: &BlockReader) -> Result<Vec<BlockSeries>> {
    reader.select(&Matchers::default(), TimeRange::ALL).await
}

/// Decodes series by series; `fold` gets what each has.
fn decode(all: &[Vec<Chunk>], mut fold: impl FnMut(&[i64], &[f64])) {
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    for chunks in all {
        timestamps.clear();
        values.clear();
        for chunk in chunks {
            let decoded = chunk.decode(&mut timestamps, &mut values);
            assert!(decoded.is_ok());
        }
        fold(&timestamps, &values);
    }
}

fn bench(c: &mut Criterion) {
    for (name, times) in [("times of a target", Times::OfTarget), ("own times", Times::Own)] {
        if let Err(e) = scan(c, name, times) {
            panic!("{e}");
        }
    }
}

fn scan(c: &mut Criterion, name: &str, times: Times) -> Result<()> {
    let Some(block) = written(times)? else {
        return Ok(());
    };
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.throughput(Throughput::Elements(block.meta.samples));
    let warm = opened(&block)?;
    let series = block_on(all_series(&warm))?;
    let read = || block_on(warm.read_chunks(&series, TimeRange::ALL));
    let kept = read()?;
    group.bench_function("warm: series found", |b| {
        b.iter(|| block_on(all_series(&warm)));
    });
    group.bench_function("warm: chunks looked up", |b| b.iter(read));
    group.bench_function("warm: decoded", |b| {
        b.iter(|| decode(&kept, |timestamps, values| _ = black_box((timestamps, values))));
    });
    group.bench_function("warm: found, looked up, decoded and summed by time", |b| {
        b.iter(|| {
            let series = block_on(all_series(&warm))?;
            let chunks = block_on(warm.read_chunks(&series, TimeRange::ALL))?;
            let mut sums = vec![0.0; days::SAMPLES];
            decode(&chunks, |timestamps, values| {
                black_box(timestamps);
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            });
            Ok::<_, koios_block::Error>(sums)
        });
    });
    group.bench_function("cold: pages to chunks", |b| {
        b.iter(|| {
            let cold = opened(&block)?;
            let series = block_on(all_series(&cold))?;
            block_on(cold.read_chunks(&series, TimeRange::ALL))
        });
    });
    group.bench_function("cold: pages to columns", |b| {
        b.iter(|| {
            let cold = opened(&block)?;
            let series = block_on(all_series(&cold))?;
            block_on(async {
                let mut stream = cold.stream_samples(series, TimeRange::ALL);
                while let Some(samples) = stream.next().await {
                    black_box(samples?);
                }
                Ok::<_, koios_block::Error>(())
            })
        });
    });
    group.finish();
    Ok(())
}

criterion_group!(benches, bench);
criterion_main!(benches);
