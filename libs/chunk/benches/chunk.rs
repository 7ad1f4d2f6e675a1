//! Speed of chunks on a fleet-like mix. Their size is asserted by tests/size.rs.

mod fleet;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fleet::{SAMPLES, SERIES, series};
use koios_chunk::{Chunk, Encoder};

fn bench(c: &mut Criterion) {
    for (name, jitter) in [("jittered", true), ("regular", false)] {
        let fleet: Vec<_> = (0..SERIES).map(|i| series(i, jitter)).collect();
        let mut encoder = Encoder::default();
        let chunks: Vec<Bytes> = fleet
            .iter()
            .filter_map(|(ts, vs)| encoder.encode(ts, vs).ok().map(Bytes::from))
            .collect();
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements((SERIES * SAMPLES) as u64));
        group.bench_function("encode", |b| {
            b.iter(|| {
                for (ts, vs) in &fleet {
                    black_box(encoder.encode(ts, vs)).ok();
                }
            });
        });
        let (mut ts, mut vs) = (Vec::new(), Vec::new());
        group.bench_function("decode", |b| {
            b.iter(|| {
                for chunk in &chunks {
                    ts.clear();
                    vs.clear();
                    if let Ok(chunk) = Chunk::parse(chunk.clone()) {
                        chunk.decode(&mut ts, &mut vs).ok();
                    }
                    black_box((&ts, &vs));
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
