//! A full scan of what a store keeps of blocks: the chunks of a day's series become columns of times and values, all of
//! them, one series after the other, on one core.

mod days;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use days::{Kind, SAMPLES, Series, Times};
use koios_chunk::{Chunk, Encoder};

/// As a store makes them of pages.
fn kept(series: impl Iterator<Item = Series>) -> Vec<Vec<Chunk>> {
    let mut encoder = Encoder::default();
    series
        .map(|series| {
            let mut chunks = Vec::new();
            encoder
                .encode_run(&series.timestamps, &series.values, &mut chunks)
                .ok();
            chunks
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("full scan");
    group.sample_size(20);
    let kinds = [
        ("counters", Some(Kind::Counter)),
        ("gauges", Some(Kind::Gauge)),
        ("constants", Some(Kind::Constant)),
        ("full precision", Some(Kind::FullPrecision)),
        ("counters with stale markers", Some(Kind::Restarted)),
        ("fleet", None),
    ];
    let orders = [("times of a target", Times::OfTarget), ("own times", Times::Own)];
    for (name, kind) in kinds {
        for (whose, times) in orders {
            let all = match kind {
                Some(kind) => kept(days::of_kind(kind, times)),
                None => kept(days::fleet(times)),
            };
            let samples: usize = all.iter().flatten().map(Chunk::count).sum();
            assert_eq!(samples, all.len() * SAMPLES);
            group.throughput(Throughput::Elements(samples as u64));
            let (mut timestamps, mut values) = (Vec::new(), Vec::new());
            group.bench_function(format!("{name}, {whose}"), |b| {
                b.iter(|| {
                    for chunks in &all {
                        timestamps.clear();
                        values.clear();
                        for chunk in chunks {
                            let decoded = chunk.decode(&mut timestamps, &mut values);
                            assert!(decoded.is_ok());
                        }
                        black_box((&timestamps, &values));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
