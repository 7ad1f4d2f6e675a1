//! Who imports an upload says so, and others leave it alone.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koios_block::BlockId;
use koios_bucket::Bucket;
use koios_import::{ImportSettings, Importer, UploadState, Uploads};
use koios_model::{Labels, TenantId};
use koios_runtime::{Clock, ClockHandle, Cpu, MemoryWatch, RealClock, RngHandle, TokioClock};
use koios_testkit::distant::Distant;
use koios_testkit::tsdb::TsdbContent;

const ULID: &str = "01BKGTZQ1SYQJTR4PB43C8PD98";
/// What a read takes: an import takes minutes.
const READ: Duration = Duration::from_secs(10);

fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn block() -> BlockId {
    ULID.parse().unwrap()
}

struct World {
    clock: ClockHandle,
    store: Arc<Distant>,
}

impl World {
    /// One upload waits to be imported.
    async fn new() -> Self {
        let now_ms = RealClock::new().now_ms();
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(now_ms));
        let world = Self {
            store: Arc::new(Distant::new(Arc::clone(&clock), READ)),
            clock,
        };
        let from = now_ms - 72 * 3_600_000;
        let samples: Vec<_> = (0..500).map(|i| (from + i * 60_000, i as f64)).collect();
        let content = TsdbContent {
            ulid: ULID.to_owned(),
            ..TsdbContent::default()
        };
        let up = Labels::from_pairs([("__name__", "up")]);
        let files = content.with_floats(up, &samples, 120).files();
        let uploads = world.process("sender");
        let meta = Bytes::from(files["meta.json"].clone());
        uploads.start(&tenant(), block(), &meta, false).await.unwrap();
        for name in ["index", "chunks/000001"] {
            let mut file = uploads.begin_file(&tenant(), block(), name, None).await.unwrap();
            file.write(&files[name]).await.unwrap();
            file.finish().await.unwrap();
        }
        uploads.finish(&tenant(), block()).await.unwrap();
        world
    }

    fn bucket(&self) -> Bucket {
        let store = Arc::<Distant>::clone(&self.store);
        Bucket::new(store, "", Arc::clone(&self.clock), RngHandle::from_seed(1))
    }

    fn process(&self, name: &str) -> Uploads {
        Uploads::new(Importer {
            bucket: self.bucket(),
            settings: ImportSettings::default(),
            writer: name.to_owned(),
            clock: Arc::clone(&self.clock),
            rng: RngHandle::from_seed(2),
            cpu: Cpu::inline(),
            memory: MemoryWatch::default(),
        })
    }

    async fn samples(&self) -> u64 {
        let manifest = self.bucket().latest(&tenant()).await.unwrap();
        manifest.blocks.iter().map(|b| b.samples).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_that_takes_long_is_left_to_the_process_that_says_so() {
    let world = World::new().await;
    let (one, other) = (world.process("one"), world.process("other"));
    let (tenant, is_done) = (tenant(), Cell::new(false));
    let began = world.clock.elapsed();
    let work = async {
        let imported = one.work(&tenant).await.unwrap();
        is_done.set(true);
        imported
    };
    let watch = async {
        let mut taken = 0;
        while !is_done.get() {
            world.clock.sleep(READ).await;
            taken += other.work(&tenant).await.unwrap();
        }
        taken
    };
    assert_eq!(tokio::join!(work, watch), (1, 0));
    let took = world.clock.elapsed().saturating_sub(began);
    assert!(took > Duration::from_secs(120), "too short to tell: {took:?}");
    assert_eq!(world.samples().await, 500);
}

#[tokio::test(start_paused = true)]
async fn an_import_that_another_process_has_taken_over_is_given_up() {
    let world = World::new().await;
    let (one, other) = (world.process("one"), world.process("other"));
    let tenant = tenant();
    let take_over = async {
        world.clock.sleep(Duration::from_secs(50)).await;
        let now_ms = world.clock.now_ms();
        let state = format!(
            r#"{{"state":"validating","attempts":2,"at_ms":{now_ms},"version":0,"holder":"other","held_ms":{now_ms}}}"#
        );
        let put = world.bucket();
        put.put_file(&tenant, block(), "state.json", &Bytes::from(state))
            .await
            .unwrap();
    };
    let (imported, ()) = tokio::join!(one.work(&tenant), take_over);
    assert_eq!(imported.unwrap(), 0);
    assert_eq!(world.samples().await, 0);
    let state = one.state(&tenant, block()).await.unwrap();
    assert_eq!(state, UploadState::Validating, "it is the other's");
    assert_eq!(other.work(&tenant).await.unwrap(), 1);
    assert_eq!(world.samples().await, 500);
}
