//! Applying scrapes of 100,000 series, by reference as distributors send them; and late samples.

use std::time::{Duration, Instant};

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

/// A head of few series that is scraped for hours, cut and forgotten as an ingester does.
struct Scraped {
    head: Head,
    k: i64,
}

impl Scraped {
    const SERIES: u32 = 1000;
    /// Scrapes of a window.
    const WINDOW: i64 = 480;

    /// One that has an hour of scrapes.
    fn new(is_late: bool) -> Self {
        let mut scraped = Self {
            head: Head::new(HeadOptions::default()),
            k: 0,
        };
        for _ in 0..Self::WINDOW {
            scraped.apply_next(is_late);
        }
        scraped
    }

    /// The next scrape of every series; each tenth sample is of a time of its own up to an hour before, where some are late.
    fn next(&mut self, is_late: bool) -> BatchColumns {
        self.k += 1;
        let mut b = BatchColumns::default();
        for i in 0..Self::SERIES {
            b.push_series(SeriesHash(u128::from(i) + 1), labels(i).as_ref());
            let place = self.k + i64::from(i);
            let (delay, late) = match is_late && place % 10 == 0 {
                true => (1 + place * 7919 % 240, 1),
                false => (0, 0),
            };
            b.push_sample((self.k - delay) * STEP_MS + late, self.k as f64);
        }
        b
    }

    /// Applies it, and gives how long that took.
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
    fn apply_next(&mut self, is_late: bool) -> Duration {
        let batch = self.next(is_late);
        if self.k % Self::WINDOW == 0 {
            let windows = self.head.windows();
            let ended = windows.iter().filter(|w| w.range.max < (self.k - 240) * STEP_MS);
            for window in ended {
                let cut = self.head.cut(window.start);
                self.head.cut_listed(cut.id);
            }
            self.head.forget((self.k - 720) * STEP_MS);
        }
        let begun = Instant::now();
        self.head.apply(&batch, 0, 0);
        begun.elapsed()
    }
}

/// Scrapes of 1,000 series: in order; of which each tenth sample is late; and those in order of series that get late samples
/// with each third scrape, which is not counted.
fn late(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(u64::from(Scraped::SERIES)));
    for (name, before, is_late) in [
        ("all in order", false, false),
        ("a tenth late", true, true),
        ("in order beside late ones", true, false),
    ] {
        let mut scraped = Scraped::new(before);
        let mut next = |i: u64| {
            if before && !is_late && i.is_multiple_of(2) {
                scraped.apply_next(true);
            }
            scraped.apply_next(is_late)
        };
        group.bench_function(name, |b| b.iter_custom(|times| (0..times).map(&mut next).sum()));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
