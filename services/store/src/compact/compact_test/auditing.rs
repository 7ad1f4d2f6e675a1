//! Claims about audit lines: nothing goes without one.

use std::fmt::Debug;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

/// The audit lines, each as its fields in their order.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "koios::audit"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().push(fields.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn blocks_that_go_leave_a_line_wherever_the_bucket_ends() {
    let lines = Lines::default();
    let _lines = tracing::subscriber::set_default(lines.clone());
    let mut unknown = 0;
    for effect in [false, true] {
        for last in 0.. {
            let mut world = World::new(14);
            world.settings.retention = Duration::from_secs(40 * 24 * 3600);
            let data = world.some_data(0..2);
            let block = world.cut(0..2, &data).await;
            let crashing = Crashing::over(&world.objects, last, effect);
            let mut compactor =
                world.compactor_on(world.manifests_on(Arc::<Crashing>::clone(&crashing) as _));
            lines.0.lock().clear();
            for wait in [0, 11 * 24 * 3600, 3601] {
                world.sleep(wait).await;
                compactor.visit_all().await;
            }
            let what = format!("end at operation {last}, effect {effect}");
            let is_gone = world.manifest().await.block(block).is_none();
            let of_block: Vec<String> = lines.0.lock().drain(..).collect();
            let of_block = of_block
                .into_iter()
                .filter(|line| line.contains("retention_blocks"));
            let of_block: Vec<String> = of_block.collect();
            assert!(
                of_block.iter().all(|line| line.contains(&block.to_string())),
                "{what}"
            );
            let outcomes = |outcome: &str| {
                let said = format!("outcome={outcome:?}");
                of_block.iter().filter(|line| line.contains(&said)).count()
            };
            assert!(!is_gone || !of_block.is_empty(), "{what}");
            assert!(is_gone || outcomes("done") == 0, "{what}: {of_block:?}");
            assert_eq!(outcomes("done") + outcomes("unknown"), of_block.len(), "{what}");
            unknown += usize::from(is_gone) * outcomes("unknown");
            if !crashing.has_crashed() {
                assert!(is_gone && outcomes("done") == 1, "{what}: {of_block:?}");
                break;
            }
        }
    }
    assert!(unknown > 0);
}
