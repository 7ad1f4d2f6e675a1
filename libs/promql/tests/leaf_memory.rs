//! What a query holds while its series arrive: those that are computed at once are given back, what is made of them stays.

mod support;

use async_trait::async_trait;
use futures::StreamExt;
use koios_model::{Labels, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, EngineOptions, QueryError, QueryOutput, Queryable, SelectRequest, Series,
    SeriesData, SeriesStream, StreamItem, Uninterrupted,
};

const SERIES: usize = 64;
const SERIES_BYTES: usize = 1 << 20;
const LIMIT: usize = 24 << 20;
const STEPS: i64 = 20_000;

/// One sample that is said to be large.
#[derive(Debug)]
struct Large;

impl SeriesData for Large {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        if range.contains(0) {
            out.push_float(0, 1.0);
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        SERIES_BYTES
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        16
    }
}

/// More large series than the limit allows for, one by one.
struct Storage;

#[async_trait]
impl Queryable for Storage {
    async fn select(&self, _: SelectRequest) -> Result<SeriesStream, QueryError> {
        let series = (0..SERIES).map(|i| Series {
            labels: Labels::from_pairs([("__name__", "x".to_owned()), ("i", format!("{i:02}"))]),
            data: Box::new(Large),
        });
        let batches = series.map(|one| Ok(StreamItem::Series(vec![one])));
        let items: Vec<_> = batches
            .chain([Ok(StreamItem::End(Completeness::Complete))])
            .collect();
        Ok(futures::stream::iter(items).boxed())
    }
}

fn run(text: &str) -> Result<QueryOutput, QueryError> {
    let engine = Engine::new(EngineOptions {
        max_memory_bytes: LIMIT,
        ..EngineOptions::default()
    });
    let query = support::parsed(text);
    let range = engine.range(&Storage, &query, (0, STEPS - 1, 1), &Uninterrupted);
    futures::executor::block_on(range)
}

#[test]
fn i12_series_are_given_back_once_a_leaf_has_taken_them_in() {
    let peak = run("sum(x)").unwrap().stats.bytes_peak;
    // One that is computed, one that waits for it, and one that arrives.
    let one = SERIES_BYTES as u64;
    assert!((one..4 * one).contains(&peak), "{peak}");
}

#[test]
fn i12_the_rows_of_a_leaf_count_once() {
    let peak = run("avg_over_time(x[1m])").unwrap().stats.bytes_peak;
    let rows = (SERIES * STEPS as usize * size_of::<f64>()) as u64;
    assert!((rows..2 * rows).contains(&peak), "{peak}");
}

#[test]
fn i12_the_samples_of_a_leaf_count_once() {
    let peak = run("avg_over_time(x[1m])").unwrap().stats.samples_peak;
    // Of the one sample each has, 60,000 ms long; a row of few samples costs a quarter of a full one.
    let rows = (SERIES * STEPS as usize) as u64;
    assert!((rows / 4..rows + rows / 2).contains(&peak), "{peak} of {rows}");
}

#[test]
fn i12_series_that_are_kept_and_what_leaves_make_count_to_the_end() {
    // The series of the first are needed twice, the groups of the second are many.
    for text in ["x @ 0 + x @ 0", "sum by (i) (x)"] {
        let error = run(text).map(|output| output.stats).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("query memory limit of 25165824 bytes exceeded"),
            "{text}: {error}"
        );
    }
}
