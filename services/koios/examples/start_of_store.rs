//! How long a process takes to start over very many blocks, and then its first query: `cargo run --release -p koios --example
//! start_of_store [<tenants> <days> <blocks a day>]`.
//!
//! The whole program runs in one process over a simulated object store each of whose requests takes 10 ms, however many run at once. A
//! manifest of each tenant lists a number of blocks for each of some days up to yesterday. Those of 30 days of the first tenant are there;
//! of all others only the manifest tells, and objects of a byte, which listings find. Without arguments all rows of the table in
//! docs/benchmarks.md, each in a process of its own.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use koios::{Node, NodeOptions};
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, Layout};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Tombstone, Writer};
use koios_model::{Labels, TenantId, TimeRange};
use koios_runtime::{ClockHandle, MemoryWatch, RngHandle, Runtime};
use koios_server::config::Target;
use koios_server::{Metrics, Settings};
use koios_store::{
    Announced, CompactionDeps, CompactionDuty, CompactionSettings, Compactor, DeletionWitness,
};
use koios_tenancy::Overrides;
use koios_testkit::distant::Distant;
use koios_testkit::http::HttpClient;
use koios_testkit::query;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

const REQUEST: Duration = Duration::from_millis(10);
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// What is queried.
const QUERIED_DAYS: i64 = 30;
/// Of each block that is there.
const SERIES: usize = 50;
const SAMPLE_EVERY_MS: i64 = 300_000;
/// Tenants, days, and blocks a day.
const ROWS: [[i64; 3]; 5] = [
    [1, 1000, 1],
    [1, 1000, 10],
    [1, 1000, 100],
    [100, 1000, 1],
    [1000, 100, 1],
];

/// What lies in the bucket.
#[derive(Clone, Copy)]
struct Contents {
    tenants: i64,
    days: i64,
    /// A tenant has so many blocks for each day, as compaction begins a new one when one is full.
    a_day: i64,
    /// The midnight up to which there are blocks.
    end_ms: i64,
}

impl Contents {
    fn window(self, day: i64) -> TimeRange {
        let start = self.end_ms - (day + 1) * DAY_MS;
        TimeRange::new(start, start + DAY_MS - 1)
    }

    /// The name of a block, which has its time.
    fn id(self, day: i64, place: i64) -> BlockId {
        let made = self.window(day).max;
        BlockId::new(
            made,
            (u128::from(day.unsigned_abs()) << 32) | u128::from(place.unsigned_abs()),
        )
    }

    /// A block of the first tenant: its blocks of a day have the series one after the other.
    fn block(self, tenant: &TenantId, day: i64, place: i64) -> BlockParts {
        let window = self.window(day);
        let mut options = BlockOptions::new(self.id(day, place), tenant.clone(), window);
        options.layout = Layout::compacted();
        options.level = 2;
        options.sources = vec![BlockId::new(window.min, 1), BlockId::new(window.min, 2)];
        let mut writer = BlockWriter::new(options).unwrap();
        let times: Vec<i64> = (window.min..window.max)
            .step_by(usize::try_from(SAMPLE_EVERY_MS).unwrap())
            .collect();
        for series in 0..SERIES {
            let labels = series_labels(place, series);
            let values: Vec<f64> = (0..times.len()).map(|i| (i * (series + 1)) as f64).collect();
            writer.push_series(&labels, None, &times, &values).unwrap();
        }
        writer.finish().unwrap().unwrap()
    }
}

fn series_labels(place: i64, series: usize) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("metric_{place:04}_total")),
        ("instance", format!("host-{series:05}.example.org:9100")),
        ("job", "node".to_owned()),
    ])
}

fn tenant(number: i64) -> TenantId {
    match number {
        0 => TenantId::anonymous(),
        _ => TenantId::new(&format!("team-{number:04}")).unwrap(),
    }
}

/// Puts everything into the bucket.
async fn fill(objects: &Arc<Distant>, bucket: &Bucket, contents: Contents) {
    let mut template = None;
    for number in 0..contents.tenants {
        let tenant = tenant(number);
        let mut entries = Vec::new();
        for day in 0..contents.days {
            for place in 0..contents.a_day {
                let is_there = number == 0 && day < QUERIED_DAYS;
                if is_there {
                    let block = contents.block(&tenant, day, place);
                    bucket.upload_block(&tenant, &block).await.unwrap();
                    let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
                    template = Some(entry.clone());
                    entries.push(entry);
                    continue;
                }
                let window = contents.window(day);
                let entry = ManifestBlock {
                    block: contents.id(day, place),
                    range: window,
                    window,
                    ..template.clone().unwrap()
                };
                for part in &entry.parts {
                    let path = format!("{tenant}/blocks/{}/{}", entry.block, part.name);
                    let byte = PutPayload::from_static(b"?");
                    objects.put(&Path::from(path), byte).await.unwrap();
                }
                entries.push(entry);
            }
        }
        let writer = Writer::compaction("table", 1);
        entries.sort_by_key(|entry| entry.block);
        bucket
            .commit(&tenant, &writer, |m| {
                entries.iter().try_for_each(|entry| m.add_block(entry.clone()))
            })
            .await
            .unwrap();
    }
}

/// Resident memory of this process in MB, now or at its most.
fn resident(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib * 1024.0 / 1e6
}

/// Everybody is on duty, and nothing was deleted.
#[derive(Debug)]
struct Alone;

#[async_trait]
impl CompactionDuty for Alone {
    async fn epoch(&self, _: &TenantId, _: bool) -> Option<u64> {
        Some(1)
    }
}

#[async_trait]
impl DeletionWitness for Alone {
    async fn is_forgotten(&self, _: &TenantId, _: &Tombstone) -> bool {
        true
    }

    async fn announced(&self, _: &TenantId) -> Announced {
        Announced::NONE
    }
}

/// What a step took.
struct Step<'a> {
    clock: &'a ClockHandle,
    objects: &'a Distant,
    since: Duration,
}

impl<'a> Step<'a> {
    fn begin(clock: &'a ClockHandle, objects: &'a Distant) -> Self {
        objects.take();
        let since = clock.elapsed();
        Self {
            clock,
            objects,
            since,
        }
    }

    /// Seconds, requests and MB.
    fn end(self) -> (f64, u64, f64) {
        let seconds = self.clock.elapsed().saturating_sub(self.since).as_secs_f64();
        let (requests, bytes) = self.objects.take();
        (seconds, requests, bytes as f64 / 1e6)
    }
}

/// One row of the table.
async fn row([tenants, days, a_day]: [i64; 3]) {
    let memory = MemoryWatch::of_process(0);
    let runtime = Runtime {
        memory: memory.clone(),
        ..Runtime::real().unwrap()
    };
    let (clock, net) = (Arc::clone(&runtime.clock), Arc::clone(&runtime.net));
    let contents = Contents {
        tenants,
        days,
        a_day,
        end_ms: clock.now_ms() / DAY_MS * DAY_MS,
    };
    let objects = Arc::new(Distant::new(Arc::clone(&clock), Duration::ZERO));
    let of = |objects: &Arc<Distant>| {
        let store: Arc<dyn ObjectStore> = Arc::<Distant>::clone(objects);
        Bucket::new(store, "", Arc::clone(&clock), RngHandle::from_seed(1))
    };
    fill(&objects, &of(&objects), contents).await;
    let objects = &objects;
    objects.set_request(REQUEST);
    memory.freed(clock.elapsed());
    let before = resident("VmRSS:");

    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings {
        data_dir: dir.path().join("data"),
        retention: Duration::ZERO,
        ..Settings::default()
    };
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.grpc.listen = "127.0.0.1:0".to_owned();
    settings.self_metrics.interval = Duration::ZERO;
    // By its first round it would begin to work through what is due: that is measured by itself.
    settings.store.compaction = false;
    let options = NodeOptions {
        object_store: Some(Arc::<Distant>::clone(objects)),
        ..NodeOptions::default()
    };
    let starting = Step::begin(&clock, objects);
    let node = Node::start(Target::All, settings, runtime.clone(), options)
        .await
        .unwrap();
    let client = HttpClient::new(net, Arc::clone(&clock), Duration::from_secs(300));
    let addr = node.http_addr().to_owned();
    while client.get(&addr, "/ready").await.unwrap().status != 200 {
        clock.sleep(Duration::from_millis(2)).await;
    }
    let (ready_s, ready_requests, ready_mb) = starting.end();
    let at_ready = resident("VmRSS:");
    let ready_grown = at_ready - before;

    let place = a_day / 2;
    let one = |series: usize| {
        let (client, addr, end_ms) = (&client, &addr, contents.end_ms);
        async move {
            let expr = format!("metric_{place:04}_total{{instance=\"host-{series:05}.example.org:9100\"}}");
            // From an hour later on, so that nothing is looked for before these days.
            let range = (
                end_ms - QUERIED_DAYS * DAY_MS + HOUR_MS,
                end_ms - HOUR_MS,
                HOUR_MS,
            );
            let found = query::range(client, addr, tenant(0).as_str(), &expr, range)
                .await
                .unwrap();
            let points: i64 = found
                .values()
                .map(|samples| i64::try_from(samples.len()).unwrap())
                .sum();
            assert_eq!(points, 24 * QUERIED_DAYS - 1);
        }
    };
    // From here on what it takes at most is counted.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let step = Step::begin(&clock, objects);
    one(7).await;
    let (first_s, first_requests, first_mb) = step.end();
    let step = Step::begin(&clock, objects);
    one(31).await;
    let (second_s, second_requests, _) = step.end();
    let (grown, most) = (resident("VmRSS:") - at_ready, resident("VmHWM:") - at_ready);
    node.stop().await.unwrap();

    let settings = CompactionSettings {
        retention: Duration::ZERO,
        downsampling: Vec::new(),
        ..CompactionSettings::default()
    };
    let deps = CompactionDeps {
        runtime,
        member: "table".to_owned(),
        manifests: TenantManifests::new(of(objects), Duration::ZERO),
        duty: Arc::new(Alone),
        witness: Arc::new(Alone),
        overrides: Overrides::default(),
        metrics: Metrics::new(),
    };
    let mut compactor = Compactor::new(settings, deps);
    let step = Step::begin(&clock, objects);
    assert!(!compactor.visit_all().await, "nothing is due");
    let (round_s, round_requests, round_mb) = step.end();
    let step = Step::begin(&clock, objects);
    compactor.visit_all().await;
    let (again_s, again_requests, _) = step.end();
    println!(
        "| {tenants} | {} | {ready_s:.2} | {ready_requests} | {ready_mb:.1} | {ready_grown:.0} | {first_s:.2} | {first_requests} | {first_mb:.1} | {second_s:.2} | {second_requests} | {grown:.0} | {most:.0} | {round_s:.1} | {round_requests} | {round_mb:.1} | {again_s:.1} | {again_requests} |",
        days * a_day,
    );
}

#[tokio::main]
async fn main() {
    let given: Vec<i64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if let Ok(given) = <[i64; 3]>::try_from(given) {
        return Box::pin(row(given)).await;
    }
    println!(
        "| tenants | blocks of each | s until ready | requests | MB read | MB grown | first query, s | requests | MB read | the like again, s | requests | MB grown | at most | compaction's first round, s | requests | MB read | the next, s | requests |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for given in ROWS {
        let program = std::env::current_exe().unwrap();
        let given = given.map(|n| n.to_string());
        let ended = std::process::Command::new(program).args(given).status();
        if !ended.unwrap().success() {
            eprintln!("a row failed");
        }
    }
}
