//! Series in memory, written as in `up{job="a"} 1 2 _ 4`: one value every ten seconds from time 0, `_` for none.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

pub(crate) mod cancel;
pub(crate) mod hostile;
pub(crate) mod threads;

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;

use koios_model::{Labels, Sample, TimeRange, stale_nan};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryContext, QueryError, QueryOutput, Queryable,
    SelectRequest, Series, SeriesData, SeriesStream, StreamItem, Uninterrupted, Value, parse_metric_selector,
};

/// Distance of samples.
pub(crate) const STEP_MS: i64 = 10_000;

/// Storage that is a map, and notes what it is asked.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) series: BTreeMap<Labels, Vec<Sample>>,
    pub(crate) completeness: Completeness,
    pub(crate) asked: Mutex<Vec<SelectRequest>>,
    /// How many series come in one batch.
    pub(crate) batch: usize,
}

#[derive(Debug)]
struct Samples(Vec<Sample>);

impl SeriesData for Samples {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        for s in self.0.iter().filter(|s| range.contains(s.t)) {
            out.push_float(s.t, s.v);
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        self.0.len() * 16
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        self.0.len() * 16
    }
}

#[async_trait]
impl Queryable for Memory {
    async fn select(&self, req: SelectRequest) -> Result<SeriesStream, QueryError> {
        let matching: Vec<Series> = self
            .series
            .iter()
            .filter(|(labels, samples)| {
                req.matchers.matches(labels.as_ref()) && samples.iter().any(|s| req.range.contains(s.t))
            })
            .map(|(labels, samples)| Series {
                labels: labels.clone(),
                data: Box::new(Samples(samples.clone())),
            })
            .collect();
        self.asked.lock().push(req);
        let mut items = Vec::new();
        let mut rest = matching.into_iter().peekable();
        while rest.peek().is_some() {
            items.push(Ok(StreamItem::Series(
                rest.by_ref().take(self.batch.max(1)).collect(),
            )));
        }
        items.push(Ok(StreamItem::End(self.completeness.clone())));
        Ok(futures::stream::iter(items).boxed())
    }
}

/// The label set of `name{label="value"}`.
pub(crate) fn labels(text: &str) -> Labels {
    if text.is_empty() || text == "{}" {
        return Labels::empty();
    }
    let matchers = parse_metric_selector(text).unwrap();
    Labels::from_pairs(
        matchers
            .iter()
            .map(|m| (m.name().to_owned(), m.value().to_owned())),
    )
}

impl Memory {
    /// From lines of series.
    pub(crate) fn load(text: &str) -> Self {
        let mut memory = Self {
            batch: 2,
            ..Self::default()
        };
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let at = line.rfind('}').map(|i| i + 1).or_else(|| line.find(' ')).unwrap();
            let (name, values) = line.split_at(at);
            let points = values.split_whitespace().enumerate();
            let samples = points.filter(|(_, v)| *v != "_").map(|(i, v)| Sample {
                t: STEP_MS * i as i64,
                v: if v == "stale" {
                    stale_nan()
                } else {
                    v.parse().unwrap()
                },
            });
            memory.series.insert(labels(name), samples.collect());
        }
        memory
    }

    pub(crate) fn instant(&self, query: &str, at_s: i64) -> Result<QueryOutput, QueryError> {
        self.instant_with(&Engine::default(), query, at_s, &Uninterrupted)
    }

    pub(crate) fn instant_with(
        &self,
        engine: &Engine,
        query: &str,
        at_s: i64,
        ctx: &dyn QueryContext,
    ) -> Result<QueryOutput, QueryError> {
        let query = parsed(query);
        futures::executor::block_on(engine.instant(self, &query, at_s * 1000, ctx))
    }

    pub(crate) fn range(
        &self,
        query: &str,
        start_s: i64,
        end_s: i64,
        step_s: i64,
    ) -> Result<QueryOutput, QueryError> {
        let times = (start_s * 1000, end_s * 1000, step_s * 1000);
        futures::executor::block_on(Engine::default().range(self, &parsed(query), times, &Uninterrupted))
    }
}

pub(crate) fn parsed(query: &str) -> Query {
    Query::parse(query, &ParseOptions::default()).unwrap_or_else(|e| panic!("{query}: {e}"))
}

/// `labels value` per sample of an instant result, in order; floats only.
pub(crate) fn lines(output: &QueryOutput) -> Vec<String> {
    match &output.value {
        Value::Vector(_, samples) => samples
            .iter()
            .map(|s| match &s.value {
                koios_promql::SampleValue::Float(v) => format!("{} {v}", s.labels),
                koios_promql::SampleValue::Histogram(h) => format!("{} {h:?}", s.labels),
            })
            .collect(),
        Value::Scalar(_, v) => vec![format!("{v}")],
        Value::String(_, s) => vec![s.clone()],
        Value::Matrix(series) => series
            .iter()
            .map(|s| {
                let points: Vec<_> = s.floats().map(|(t, v)| format!("{v}@{}", t / 1000)).collect();
                format!("{} {}", s.labels, points.join(" "))
            })
            .collect(),
    }
}
