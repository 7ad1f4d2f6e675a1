//! The engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use koios_model::{Histogram, Labels, ResetHint};
use koios_promql::{
    Ast, Engine, EngineOptions, Expr, FunctionId, Interrupt, ParseOptions, Query, QueryContext, QueryError,
    QueryOutput, SampleValue, Value, ValueType,
};

use super::choices::Choices;
use super::data::{SPAN_MS, storage};
use super::expression::expression;
use crate::promqltest::MemoryStorage;

/// Most samples a query may hold.
const SAMPLES_MAX: usize = 20_000;
/// Most bytes a query may hold.
const MEMORY_BYTES_MAX: usize = 8 << 20;
/// How often a query may ask whether to go on, which it does for every series of every node at least.
const CHECKS_MAX: u64 = 200_000;
/// Most steps of a range query.
const STEPS_MAX: i64 = 12;

/// Stops what takes too long.
#[derive(Clone, Debug, Default)]
struct Bounded(Arc<AtomicU64>);

impl QueryContext for Bounded {
    fn interrupted(&self) -> Option<Interrupt> {
        let asked = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(
            asked <= CHECKS_MAX + 1_000,
            "the query goes on after it was told to stop"
        );
        (asked > CHECKS_MAX).then_some(Interrupt::Timeout)
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(self.clone())
    }
}

/// Any query on any data is answered or refused within its limits, and a range query is its instant queries side by
/// side.
///
/// The first byte chooses the data, the next three the times; the rest is either a text (if the fifth byte is odd) or
/// decisions that make up a type-correct expression.
pub fn promql_eval(bytes: &[u8]) -> Evaluated {
    let mut choices = Choices::new(bytes);
    let storage = storage(&mut choices);
    let start = SPAN_MS * i64::from(choices.byte()) / 256;
    let step = 1 + i64::from(choices.byte()) * 300;
    let count = i64::from(choices.byte()) % STEPS_MAX;
    let text = if choices.byte() % 2 == 1 {
        match std::str::from_utf8(choices.rest()) {
            Ok(text) if text.len() < 2_000 => text.to_owned(),
            _ => return Evaluated::Refused,
        }
    } else {
        expression(&mut choices)
    };
    let options = ParseOptions {
        nodes_max: 200,
        regexes_max: 8,
        ..ParseOptions::default()
    };
    let Ok(query) = Query::parse(&text, &options) else {
        return Evaluated::Refused;
    };
    let run = Run {
        storage,
        query,
        engine: Engine::new(EngineOptions {
            max_samples: SAMPLES_MAX,
            max_memory_bytes: MEMORY_BYTES_MAX,
            ..EngineOptions::default()
        }),
    };
    run.compare((start, start + step * count, step))
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluated {
    /// It is no query.
    Refused,
    /// The query fails, at some time at least.
    Failed,
    /// The query is answered, with nothing.
    Empty,
    /// The query is answered with samples.
    Samples,
}

struct Run {
    storage: MemoryStorage,
    query: Query,
    engine: Engine,
}

impl Run {
    fn compare(&self, (start, end, step): (i64, i64, i64)) -> Evaluated {
        let mut instants = Ok(Points::new());
        for at in (start..=end).step_by(usize::try_from(step).unwrap_or(1)) {
            let answered = self.checked(block_on(self.engine.instant(
                &self.storage,
                &self.query,
                at,
                &Bounded::default(),
            )));
            match (&mut instants, answered) {
                (Ok(all), Ok(output)) => all.extend(points(output.value)),
                (_, Err(e)) => instants = Err(e),
                (Err(_), Ok(_)) => {}
            }
        }
        let outcome = match &instants {
            Err(_) => Evaluated::Failed,
            Ok(points) if points.is_empty() => Evaluated::Empty,
            Ok(_) => Evaluated::Samples,
        };
        if !matches!(
            self.query.ast().value_type(),
            ValueType::Scalar | ValueType::Vector
        ) {
            return outcome;
        }
        let times = (start, end, step);
        let range = self.checked(block_on(self.engine.range(
            &self.storage,
            &self.query,
            times,
            &Bounded::default(),
        )));
        if depends_on_request(self.query.ast()) {
            return outcome;
        }
        let text = self.query.text();
        match (range, instants) {
            (Ok(range), Ok(instants)) => {
                let range = points(range.value);
                assert!(
                    range == instants,
                    "{text} at {times:?}\n range    {range:?}\n instants {instants:?}"
                );
            }
            (Err(e), _) | (_, Err(e)) if is_limit(&e) => {}
            (range, instants) => assert!(
                range.is_err() == instants.is_err(),
                "{text} at {times:?}: range {range:?}, instants {instants:?}"
            ),
        }
        outcome
    }

    /// Whatever comes is no bug by the engine's own account.
    fn checked(&self, result: Result<QueryOutput, QueryError>) -> Result<QueryOutput, QueryError> {
        let text = self.query.text();
        match &result {
            Ok(output) => {
                assert!(
                    output.stats.samples_peak <= SAMPLES_MAX as u64,
                    "{text}: {:?}",
                    output.stats
                );
                assert!(
                    output.stats.bytes_peak <= MEMORY_BYTES_MAX as u64,
                    "{text}: {:?}",
                    output.stats
                );
                let _ = output.annotation_texts();
            }
            Err(e) => assert!(!matches!(e, QueryError::Internal { .. }), "{text}: {e}"),
        }
        result
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

fn is_limit(e: &QueryError) -> bool {
    matches!(
        e,
        QueryError::TooManySamples(_) | QueryError::LimitExceeded(_) | QueryError::Timeout(_)
    )
}

/// Whether a query means something else in an instant query than in a range query.
fn depends_on_request(ast: &Ast) -> bool {
    use FunctionId as F;
    // `@ start()`, `start()`, and `step()` within durations alike.
    let text = ast.to_string();
    if ["start()", "end()", "step()", "range()"]
        .iter()
        .any(|word| text.contains(word))
    {
        return true;
    }
    ast.exprs().any(
        |e| matches!(e, Expr::Call(call) if matches!(call.function, F::Start | F::End | F::Range | F::Step)),
    )
}

/// Samples by series and time, as text: NaNs are all alike.
type Points = BTreeMap<(Labels, i64), String>;

fn points(value: Value) -> Points {
    match value {
        Value::Scalar(at, v) => Points::from([((Labels::empty(), at), float(v))]),
        Value::String(..) => Points::new(),
        Value::Vector(at, samples) => samples
            .into_iter()
            .map(|s| {
                let text = match &s.value {
                    SampleValue::Float(v) => float(*v),
                    SampleValue::Histogram(h) => histogram(h),
                };
                ((s.labels, at), text)
            })
            .collect(),
        Value::Matrix(series) => {
            let mut all = Points::new();
            for s in &series {
                let floats = s.floats().map(|(t, v)| (t, float(v)));
                let histograms = s.histograms().map(|(t, h)| (t, histogram(h)));
                all.extend(
                    floats
                        .chain(histograms)
                        .map(|(t, text)| ((s.labels.clone(), t), text)),
                );
            }
            all
        }
    }
}

fn float(v: f64) -> String {
    format!("{v:?}")
}

fn histogram(h: &Histogram) -> String {
    // What is known about the sample before depends on which samples were looked at.
    let plain = Histogram {
        reset_hint: ResetHint::Unknown,
        ..h.clone()
    };
    format!("{plain:?}")
}
