//! Claims about blocks of exemplars alone, as those become that came after the samples of their window were forgotten.

use koios_model::{Matcher, RetentionRule};
use koios_tenancy::{Limits, RetentionLimits};

use super::*;

fn named(name: &str) -> Labels {
    Labels::from_pairs([("__name__", name)])
}

impl World {
    /// Lists a block with an exemplar of each metric at the start of a window, and nothing else.
    async fn cut_exemplars(&self, hours: std::ops::Range<i64>, metrics: &[&str]) {
        let t = hours.start * HOUR;
        let mut writer = self.writer(hours, 0);
        for name in metrics {
            writer.push_exemplars(&named(name), &[exemplar(t)]).unwrap();
        }
        self.list(writer).await;
    }

    async fn metrics_with_exemplars(&self) -> Vec<(String, usize)> {
        let all = self.exemplars().await.into_iter();
        all.map(|(labels, all)| (labels.metric_name().to_owned(), all.len()))
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn i10_exemplars_alone_are_merged_and_stay() {
    let mut world = World::new(1);
    for window in 0..12 {
        world
            .cut_exemplars(window * 2..window * 2 + 2, &["alone", "other"])
            .await;
    }
    compact(&mut world.compactor()).await;
    let manifest = world.manifest().await;
    assert_eq!(manifest.blocks.len(), 1);
    let block = &manifest.blocks[0];
    assert_eq!((block.samples, block.range), (0, TimeRange::new(0, 22 * HOUR)));
    let both = [("alone".to_owned(), 12), ("other".to_owned(), 12)];
    assert_eq!(world.metrics_with_exemplars().await, both);
    // With samples of the same day.
    let data = Data::from([(named("alone"), [(HOUR, 1.0)].into())]);
    for _ in 0..8 {
        world.cut(0..2, &data).await;
    }
    compact(&mut world.compactor()).await;
    assert_eq!(world.manifest().await.blocks.len(), 1);
    assert_eq!(world.found().await, world.expected);
    let both = [("alone".to_owned(), 13), ("other".to_owned(), 12)];
    assert_eq!(world.metrics_with_exemplars().await, both);
}

#[tokio::test(start_paused = true)]
async fn a_day_of_exemplars_alone_needs_no_summaries() {
    let mut world = World::new(2);
    world.settings.downsampling = CompactionSettings::default().downsampling;
    for window in 0..12 {
        world.cut_exemplars(window * 2..window * 2 + 2, &["alone"]).await;
    }
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    let version = world.manifest().await.version;
    compact(&mut compactor).await;
    assert_eq!(world.manifest().await.version, version, "there is nothing to do");
    assert_eq!(world.metrics_with_exemplars().await, [("alone".to_owned(), 12)]);
}

#[tokio::test(start_paused = true)]
async fn i10_exemplars_alone_go_with_their_rule_and_others_stay() {
    let mut world = World::new(3);
    world.settings.undelete_window = Duration::ZERO;
    world.cut_exemplars(0..2, &["gone", "kept"]).await;
    let rule = RetentionRule {
        matchers: Matchers(vec![Matcher::equal("__name__", "gone")]),
        kept_ms: Some(10 * 24 * HOUR),
    };
    let limits = Limits {
        retention: RetentionLimits {
            rules: Some(vec![rule]),
            ..RetentionLimits::default()
        },
        ..Limits::default()
    };
    let own = [(world.tenant.clone(), limits)];
    world.overrides.replace(Limits::default(), own.into());
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.sleep(3700).await;
    compact(&mut compactor).await;
    assert_eq!(world.metrics_with_exemplars().await, [("kept".to_owned(), 1)]);
    assert_eq!(world.manifest().await.blocks.len(), 1);
}
