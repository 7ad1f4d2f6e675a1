//! Whether a query is refused for its memory does not depend on how many threads run it (I12).

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::{Histogram, Labels, Span, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, EngineOptions, QueryError, Queryable, SelectRequest, Series, SeriesData,
    SeriesStream, stream_of,
};
use support::threads::Threads;

const SERIES: i64 = 64;
const STEPS: i64 = 600;
const STEP_MS: i64 = 10;
const SAMPLE_MS: i64 = 500;
const BUCKETS: u32 = 8;

/// As many series of floats `f` as of histograms `h`.
#[derive(Debug)]
struct Storage;

#[derive(Debug)]
struct Made {
    histograms: bool,
}

impl Made {
    fn times(&self, range: TimeRange) -> impl Iterator<Item = i64> {
        (0..=STEPS * STEP_MS / SAMPLE_MS)
            .map(|i| i * SAMPLE_MS)
            .filter(move |&t| range.contains(t))
    }
}

impl SeriesData for Made {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        for t in self.times(range) {
            if !self.histograms {
                out.push_float(t, t as f64);
                continue;
            }
            let h = Histogram {
                count: f64::from(BUCKETS),
                positive_spans: vec![Span {
                    offset: 0,
                    length: BUCKETS,
                }],
                positive_buckets: vec![t as f64; BUCKETS as usize],
                ..Histogram::default()
            };
            out.push_histogram(t, Arc::new(h));
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        100
    }

    fn decoded_bytes(&self, range: TimeRange) -> usize {
        self.times(range).count() * if self.histograms { 400 } else { 16 }
    }
}

#[async_trait]
impl Queryable for Storage {
    async fn select(&self, req: SelectRequest) -> Result<SeriesStream, QueryError> {
        let names = ["f", "h"]
            .into_iter()
            .flat_map(|name| (0..SERIES).map(move |i| (name, i)));
        let series = names.map(|(name, i)| Series {
            labels: Labels::from_pairs([
                ("__name__", name.to_owned()),
                ("i", format!("{i:02}")),
                ("j", (i % 4).to_string()),
            ]),
            data: Box::new(Made {
                histograms: name == "h",
            }),
        });
        let wanted = series.filter(|s| req.matchers.matches(s.labels.as_ref()));
        Ok(stream_of(wanted.collect(), Completeness::Complete))
    }
}

fn run(query: &str, max_memory_bytes: usize, threads: usize) -> Result<(), String> {
    let engine = Engine::new(EngineOptions {
        max_memory_bytes,
        ..EngineOptions::default()
    });
    let (query, ctx) = (support::parsed(query), Threads(threads));
    let times = (1_000, 1_000 + (STEPS - 1) * STEP_MS, STEP_MS);
    let range = engine.range(&Storage, &query, times, &ctx);
    futures::executor::block_on(range)
        .map(drop)
        .map_err(|e| e.to_string())
}

#[test]
fn i12_whether_a_query_is_refused_does_not_depend_on_how_many_threads_run_it() {
    for query in [
        "f",
        "sum by (j) (rate(f[2s]))",
        "stddev by (i) (f)",
        "quantile_over_time(0.5, f[3s])",
        "h",
        "sum by (j) (h)",
        "rate(h[1s])",
    ] {
        // The least limit that lets it pass on one thread, roughly.
        let (mut refused, mut passed) = (0, 256 << 20);
        while passed - refused > passed / 32 {
            let limit = usize::midpoint(refused, passed);
            match run(query, limit, 1) {
                Ok(()) => passed = limit,
                Err(_) => refused = limit,
            }
        }
        for threads in [2, 16] {
            assert_eq!(run(query, passed, threads), Ok(()), "{query}");
            assert!(run(query, refused, threads).is_err(), "{query}");
        }
    }
}
