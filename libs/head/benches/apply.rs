//! Applying scrapes of 100,000 series, by reference as distributors send them; and late samples.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use koios_head::{Head, HeadOptions};
use koios_model::{BatchColumns, Labels, SeriesHash};

const SERIES: u32 = 100_000;
const STEP_MS: i64 = 15_000;

fn labels(i: u32) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("metric_{}_total", i % 1000)),
        ("cluster", "eu-1".to_owned()),
        (
            "instance",
            format!("10.0.{}.{}:9100", i / 1000 / 250, i / 1000 % 250),
        ),
        ("job", "node".to_owned()),
        ("mode", ["user", "system", "idle"][i as usize % 3].to_owned()),
    ])
}

/// Scrape `k` of every series.
fn scrape(k: i64, with_labels: bool) -> BatchColumns {
    let mut b = BatchColumns::default();
    for i in 0..SERIES {
        // Spread as real hashes are, so that probes miss the cache.
        let hash = SeriesHash(u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        b.push_series(hash, labels(i).as_ref());
        b.push_sample(
            k * STEP_MS + i64::from(i % 15_000),
            (k * i64::from(i % 97)) as f64,
        );
    }
    if !with_labels {
        b.label_ends.clear();
        b.label_bytes.clear();
    }
    b
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(u64::from(SERIES)));
    group.sample_size(20);
    let first = scrape(0, true);
    group.bench_function("new series", |b| {
        b.iter_batched(
            || Head::new(HeadOptions::default()),
            |mut head| head.apply(&first, 0, 0),
            BatchSize::PerIteration,
        );
    });
    let mut head = Head::new(HeadOptions::default());
    head.apply(&first, 0, 0);
    let mut k = 0;
    group.bench_function("known series", |b| {
        b.iter_batched(
            || {
                k += 1;
                scrape(k, false)
            },
            |batch| head.apply(&batch, 0, 0),
            BatchSize::PerIteration,
        );
    });
    group.finish();
    late(c);
}

/// Scrapes of 1,000 series in which each tenth sample comes up to an hour late.
fn late(c: &mut Criterion) {
    const FEW: u32 = 1000;
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(u64::from(FEW)));
    let mut head = Head::new(HeadOptions::default());
    let scrape = |head: &mut Head, k: i64| {
        let mut b = BatchColumns::default();
        for i in 0..FEW {
            b.push_series(SeriesHash(u128::from(i) + 1), labels(i).as_ref());
            let late = (k + i64::from(i)) % 10 == 0;
            let delay = if late {
                1 + (k * 7919 + i64::from(i)) % 240
            } else {
                0
            };
            // A late one is of a time of its own.
            b.push_sample((k - delay) * STEP_MS + i64::from(late), k as f64);
        }
        head.apply(&b, 0, 0)
    };
    for k in 0..480 {
        scrape(&mut head, k);
    }
    let mut k = 480;
    group.bench_function("a tenth late", |b| {
        b.iter(|| {
            k += 1;
            scrape(&mut head, k)
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
