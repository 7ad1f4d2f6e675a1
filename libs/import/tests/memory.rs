//! What an import holds does not grow with what it imports (I12). One test, for the counts are of the whole process.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_bucket::Bucket;
use koios_import::{ImportSettings, Importer, Outcome};
use koios_model::{Histogram, Labels, Span, TenantId};
use koios_runtime::{Clock, Cpu, DiskHandle, MemoryWatch, RealClock, RealDisk, RngHandle};
use koios_testkit::tsdb::{ChunkKind, TsdbChunk, TsdbContent, TsdbSample, Value};
use koios_tsdb::DiskFiles;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Two hours begin here.
fn from() -> i64 {
    const DAY: i64 = 24 * 3_600_000;
    (RealClock::new().now_ms() / DAY - 3) * DAY
}

/// Series of floats, and how many samples there are.
fn floats(series: usize) -> (TsdbContent, u64) {
    const SAMPLES: i64 = 480;
    let mut content = TsdbContent {
        chunks_per_file: 1000,
        ..TsdbContent::default()
    };
    for n in 0..series {
        let value = |i: i64| (i * 7 % 13 + n as i64 % 5) as f64 / 100.0;
        let samples: Vec<(i64, f64)> = (0..SAMPLES).map(|i| (from() + i * 15_000, value(i))).collect();
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("n", format!("{n:06}"))]);
        content = content.with_floats(labels, &samples, 120);
    }
    (content, series as u64 * SAMPLES as u64)
}

/// The same of histograms with many buckets.
fn histograms(series: usize) -> (TsdbContent, u64) {
    const SAMPLES: i64 = 50;
    const BUCKETS: u32 = 320;
    let mut content = TsdbContent::default();
    for n in 0..series {
        let sample = |i: i64| TsdbSample {
            t: from() + i * 60_000,
            start: 0,
            value: Value::Histogram(Histogram {
                count: f64::from(BUCKETS) * i as f64,
                sum: i as f64,
                positive_spans: vec![Span {
                    offset: 0,
                    length: BUCKETS,
                }],
                positive_buckets: (0..i64::from(BUCKETS)).map(|b| (i + b % 7) as f64).collect(),
                ..Histogram::default()
            }),
        };
        let chunk = TsdbChunk {
            kind: ChunkKind::Histogram(false),
            samples: (0..SAMPLES).map(sample).collect(),
        };
        let labels = Labels::from_pairs([("__name__", "h".to_owned()), ("n", format!("{n:06}"))]);
        content.series.insert(labels, vec![chunk]);
    }
    (content, series as u64 * SAMPLES as u64)
}

/// The most that was held while a block was imported, from disk to disk.
async fn peak((content, samples): (TsdbContent, u64)) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let folder = content.write_to(dir.path()).unwrap();
    drop(content);
    let clock = Arc::new(RealClock::new());
    let bucket = dir.path().join("bucket");
    let importer = Importer {
        bucket: bucket_in(&bucket, &clock),
        settings: ImportSettings {
            block_bytes: 512 << 10,
            ..ImportSettings::default()
        },
        writer: "test".to_owned(),
        clock,
        rng: RngHandle::from_seed(2),
        cpu: Cpu::inline(),
        memory: MemoryWatch::default(),
    };
    let disk = DiskHandle::threaded(Arc::new(RealDisk), 1).unwrap();
    let files = Arc::new(DiskFiles::new(disk, folder));
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let tenant = TenantId::new("team-a").unwrap();
    let done = importer.import(&tenant, files, &|_| {}).await.unwrap();
    assert_eq!((done.outcome, done.samples), (Outcome::Imported, samples));
    PEAK.load(Ordering::Relaxed) - before
}

fn bucket_in(folder: &Path, clock: &Arc<RealClock>) -> Bucket {
    let url = format!("file://{}", folder.display());
    Bucket::open(&url, clock.clone(), RngHandle::from_seed(1)).unwrap()
}

#[tokio::test]
async fn i12_an_import_holds_no_more_of_a_large_block_than_of_a_small_one() {
    // What the writer collects before it encodes is full with the smaller ones.
    let (small, large) = (peak(floats(250)).await, peak(floats(1000)).await);
    println!("floats: {small} and {large} bytes");
    assert!(large < small + (4 << 20), "{small} and {large} bytes");
    let (small, large) = (peak(histograms(100)).await, peak(histograms(400)).await);
    println!("histograms: {small} and {large} bytes");
    assert!(large < small + (8 << 20), "{small} and {large} bytes");
    assert!(large < 80 << 20, "{large} bytes");
}
