//! The same queries over the same samples wherever these are: in heads, in blocks as cut, in both, and after every visit of
//! the compactor, from the narrowest windows to the widest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use koios_model::Labels;
use koios_promql::{Engine, ParseOptions, Query, Uninterrupted};
use koios_testkit::promqltest::{Point, Storage};
use koios_testkit::query_gen::data::{SentSeries, floats, histograms};
use koios_testkit::query_gen::{Asked, QueryGenerator, Subject, Times};

use super::layout::{HEAD, Layout, MIDDLE};
use super::{Stored, tenant};

/// Windows are 5 and 30 minutes and an hour wide here, so that the two hours of samples have several of each.
const WINDOW: Duration = Duration::from_secs(300);
const WIDTHS_MS: [i64; 3] = [300_000, 1_800_000, 3_600_000];
const QUERIES: usize = 40;

/// Late samples, and some that were sent more than once, so that windows have several blocks each.
const OVERLAPPING: Layout = Layout {
    name: "overlapping blocks",
    all_cut: true,
    compacted: false,
    stores: 1,
    steps_of: |p| match (p.sample + p.series) % 4 {
        0 => &[0],
        1 => &[1],
        2 => &[0, 1, 2],
        _ => &[2],
    },
};

fn points(series: Vec<SentSeries>) -> BTreeMap<Labels, Vec<Point>> {
    let point = |(t_ms, value)| Point {
        t_ms,
        start_ms: 0,
        value,
    };
    let of_series = |s: SentSeries| (s.stored_labels(), s.samples.into_iter().map(point).collect());
    series.into_iter().map(of_series).collect()
}

fn queries(subject: Subject) -> Vec<Asked> {
    let mut generator = QueryGenerator::new(11, subject);
    (0..QUERIES).map(|_| generator.asked()).collect()
}

/// What a query answers, to the bit; or why it does not.
async fn answer(storage: &Stored, asked: &Asked) -> String {
    let query = match Query::parse(&asked.query, &ParseOptions::default()) {
        Ok(query) => query,
        Err(e) => return e.to_string(),
    };
    let (engine, queryable) = (Engine::default(), storage.queryable());
    let output = match asked.times {
        Times::At(t) => engine.instant(queryable, &query, t, &Uninterrupted).await,
        Times::Range { start, end, step } => {
            let times = (start, end, step);
            engine.range(queryable, &query, times, &Uninterrupted).await
        }
    };
    match output {
        Ok(output) => format!("{:?} {:?}", output.value, output.annotation_texts()),
        Err(e) => e.to_string(),
    }
}

async fn answers(storage: &Stored, queries: &[Asked]) -> Vec<String> {
    let mut all = Vec::new();
    for asked in queries {
        all.push(answer(storage, asked).await);
    }
    all
}

fn check(what: &str, queries: &[Asked], want: &[String], got: &[String]) {
    for ((asked, want), got) in queries.iter().zip(want).zip(got) {
        assert_eq!(want, got, "{what}: {asked}");
    }
}

impl Stored {
    /// The widths of the windows of live blocks.
    async fn widths_ms(&self) -> Vec<i64> {
        let manifest = self.manifests.probe(&tenant(self.tenants)).await;
        let manifest = manifest.expect("a bucket in memory");
        let width = |b: &koios_bucket::ManifestBlock| b.window.max - b.window.min + 1;
        manifest.blocks.iter().map(width).collect()
    }
}

async fn at_every_level(subject: Subject, samples: &BTreeMap<Labels, Vec<Point>>) {
    let queries = queries(subject);
    let mut head = Stored::start_with(HEAD, WINDOW).await;
    head.add(samples).await.unwrap();
    let want = answers(&head, &queries).await;
    let telling = want.iter().filter(|w| w.contains("labels")).count();
    assert!(telling * 3 > QUERIES, "{telling} answers have samples");
    head.stop().await;

    let mut mixed = Stored::start_with(MIDDLE, WINDOW).await;
    mixed.add(samples).await.unwrap();
    check(
        "heads and blocks",
        &queries,
        &want,
        &answers(&mixed, &queries).await,
    );
    mixed.stop().await;

    let mut blocks = Stored::start_with(OVERLAPPING, WINDOW).await;
    blocks.add(samples).await.unwrap();
    check(
        "blocks as cut",
        &queries,
        &want,
        &answers(&blocks, &queries).await,
    );
    // The widest window there is when a level is compared, and whether no narrower one is left.
    let mut seen = BTreeSet::new();
    let mut more = true;
    while more {
        more = blocks.visit().await;
        let widths = blocks.widths_ms().await;
        let what = format!(
            "{} blocks of {:?} ms",
            widths.len(),
            widths.iter().collect::<BTreeSet<_>>()
        );
        check(&what, &queries, &want, &answers(&blocks, &queries).await);
        seen.insert(widths.into_iter().max());
    }
    assert_eq!(seen, WIDTHS_MS.map(Some).into(), "every level was compared");
    blocks.stop().await;
}

#[tokio::test(start_paused = true)]
async fn i2_i10_random_queries_answer_alike_over_heads_blocks_both_and_after_each_level_of_compaction() {
    at_every_level(Subject::Floats, &points(floats(5))).await;
}

#[tokio::test(start_paused = true)]
async fn i2_i10_the_same_for_native_histograms() {
    at_every_level(Subject::NativeHistograms, &points(histograms(5))).await;
}
