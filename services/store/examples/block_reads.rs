//! Times reads of the blocks in a local bucket: `block_reads FOLDER [TENANT]`. Each read is made once cold and then warm.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_bucket::{Bucket, TenantManifests};
use koios_model::{MatchOp, Matcher, Matchers, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_wire::{StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService};
use object_store::local::LocalFileSystem;

/// Least time a read is repeated for.
const REPEATED_FOR: Duration = Duration::from_millis(500);

struct World {
    clock: Arc<RealClock>,
    store: BlockStore,
    tenant: TenantId,
    version: u64,
}

impl World {
    async fn labels(&self, name: &str, matchers: &[Matcher], range: TimeRange) -> usize {
        let request = StoreLabelsRequest {
            tenant: self.tenant.clone(),
            manifest_version: self.version,
            blocks: Vec::new(),
            matchers: Matchers(matchers.to_vec()),
            range,
            name: name.to_owned(),
            limit: 0,
        };
        let found = if name.is_empty() {
            self.store.label_names(request).await
        } else {
            self.store.label_values(request).await
        };
        found.unwrap().len()
    }

    async fn select(&self, matchers: &[Matcher], labels_only: bool, range: TimeRange) -> usize {
        let request = StoreSelectRequest {
            tenant: self.tenant.clone(),
            manifest_version: self.version,
            blocks: Vec::new(),
            matchers: Matchers(matchers.to_vec()),
            range,
            labels_only,
            limit: 0,
            histogram_sums: false,
        };
        let mut stream = self.store.select(request).await.unwrap();
        let mut count = 0;
        while let Some(item) = stream.next().await {
            match item.unwrap() {
                StoreItem::Series(series) => count += series.len(),
                StoreItem::End => break,
            }
        }
        count
    }

    async fn report<F: Future<Output = usize>>(&self, what: &str, read: impl Fn() -> F) {
        let start = self.clock.elapsed();
        let found = read().await;
        let cold = self.clock.elapsed() - start;
        let (start, mut times, mut best) = (self.clock.elapsed(), 0u32, Duration::MAX);
        while self.clock.elapsed() - start < REPEATED_FOR || times < 5 {
            let before = self.clock.elapsed();
            read().await;
            best = best.min(self.clock.elapsed() - before);
            times += 1;
        }
        let mean = (self.clock.elapsed() - start) / times;
        println!(
            "{what:44} {found:7} found  first {:9.3} ms  mean {:9.3} ms  best {:9.3} ms",
            cold.as_secs_f64() * 1e3,
            mean.as_secs_f64() * 1e3,
            best.as_secs_f64() * 1e3
        );
    }
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap();
    let tenant = args
        .next()
        .map_or_else(TenantId::anonymous, |t| TenantId::new(&t).unwrap());
    let objects = Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap());
    let clock = Arc::new(RealClock::new());
    let bucket = Bucket::new(
        objects,
        "",
        Arc::<RealClock>::clone(&clock),
        RngHandle::from_seed(1),
    );
    let manifests = TenantManifests::new(bucket, Duration::from_secs(3600));
    let manifest = manifests.latest(&tenant).await.unwrap();
    println!(
        "{} blocks, {} samples",
        manifest.blocks.len(),
        manifest.blocks.iter().map(|b| b.samples).sum::<u64>()
    );
    let range = manifest
        .blocks
        .iter()
        .map(|b| b.range)
        .reduce(|a, b| a.union(&b))
        .unwrap();
    let inner = TimeRange::new(range.min + 1_800_000, range.max - 1_800_000);
    let cpu = Cpu::threaded(2).unwrap();
    let store = BlockStore::new(manifests, StoreSettings::default(), cpu, &Metrics::new());
    let world = World {
        clock,
        store,
        tenant,
        version: manifest.version,
    };
    let eq = Matcher::equal;
    let re = |n: &str, v: &str| Matcher::new(MatchOp::Regex, n, v).unwrap();
    let all = TimeRange::ALL;
    // An instance to ask for.
    let mut instances = Vec::new();
    let request = StoreLabelsRequest {
        tenant: world.tenant.clone(),
        manifest_version: world.version,
        blocks: Vec::new(),
        matchers: Matchers(vec![eq("__name__", "node_load1")]),
        range: all,
        name: "instance".to_owned(),
        limit: 0,
    };
    instances.extend(world.store.label_values(request).await.unwrap());
    let instance = instances.first().cloned().unwrap_or_default();
    let one = [eq("__name__", "node_load1"), eq("instance", &instance)];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let w = &world;

    w.report("one series, 24 h", || w.select(&one, false, all)).await;
    w.report("one series, 23 h", || w.select(&one, false, inner))
        .await;
    w.report("another series each time, 24 h", || async {
        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % instances.len();
        let other = [eq("__name__", "node_load1"), eq("instance", &instances[i])];
        w.select(&other, false, all).await
    })
    .await;
    let metric = [eq("__name__", "node_load1")];
    w.report("one metric, 24 h", || w.select(&metric, false, all))
        .await;
    let of_instance = [eq("instance", &instance)];
    w.report("one instance, 24 h", || w.select(&of_instance, false, all))
        .await;
    w.report("one instance, labels only", || w.select(&of_instance, true, all))
        .await;
    let some = [re("__name__", "node_(load|memory).*[15a-z]")];
    w.report("regex, labels only", || w.select(&some, true, all))
        .await;
    w.report("all, labels only", || w.select(&[], true, all)).await;
    w.report("label names", || w.labels("", &[], all)).await;
    w.report("label names, 23 h", || w.labels("", &[], inner)).await;
    w.report("label names of a metric", || w.labels("", &metric, all))
        .await;
    w.report("label values of instance", || w.labels("instance", &[], all))
        .await;
    w.report("label values of instance, 23 h", || {
        w.labels("instance", &[], inner)
    })
    .await;
    w.report("label values of __name__ of an instance", || {
        w.labels("__name__", &of_instance, all)
    })
    .await;
    w.report("all, 24 h", || w.select(&[], false, all)).await;
}
