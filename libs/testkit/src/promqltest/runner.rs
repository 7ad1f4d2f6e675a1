//! Runs scripts.

use koios_promql::{
    Ast, At, Engine, Expr, FunctionId, MatrixSeries, ParseOptions, Query, QueryOutput, Queryable,
    SampleValue, Uninterrupted, Value, VectorSample,
};

use super::compare::{annotations, compare, in_label_order, values};
use super::script::{Command, Eval, Load, ScriptError, parse_script};
use super::storage::{MemoryStorage, Storage, custom_of};

/// What came of a script.
#[derive(Debug, Default)]
pub struct Report {
    /// How many evaluations gave what they should.
    pub passed: usize,
    /// Those that did not, and loads that failed.
    pub failures: Vec<Failure>,
}

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    /// The command's line, from 1.
    pub line: usize,
    /// The query; empty for a load.
    pub query: String,
    /// What is different.
    pub reason: String,
}

/// Runs a script over samples in memory.
///
/// # Errors
/// [`ScriptError`] if the text is not in the language.
pub async fn run(script: &str, engine: &Engine) -> Result<Report, ScriptError> {
    run_on(script, engine, &mut MemoryStorage::default()).await
}

/// Runs a script over a storage, which is cleared first.
///
/// # Errors
/// [`ScriptError`] if the text is not in the language.
pub async fn run_on(script: &str, engine: &Engine, storage: &mut dyn Storage) -> Result<Report, ScriptError> {
    let mut session = Session { engine, storage };
    let mut report = Report::default();
    let commands = parse_script(script)?;
    for command in std::iter::once(&Command::Clear).chain(&commands) {
        let (line, query, outcome) = match command {
            Command::Clear => (0, "", session.storage.clear().await.map(|()| 0)),
            Command::Load(line, load) => (*line, "", session.load(load).await.map(|()| 0)),
            Command::Eval(line, eval) => (*line, eval.query.as_str(), session.eval(eval).await.map(|()| 1)),
        };
        match outcome {
            Ok(evaluations) => report.passed += evaluations,
            Err(reason) => report.failures.push(Failure {
                line,
                query: query.to_owned(),
                reason,
            }),
        }
    }
    Ok(report)
}

/// A script while it runs.
struct Session<'a> {
    engine: &'a Engine,
    storage: &'a mut dyn Storage,
}

impl Session<'_> {
    async fn load(&mut self, load: &Load) -> Result<(), String> {
        let mut series = load.series.clone();
        if load.with_custom {
            for (labels, points) in custom_of(&load.series)? {
                series.entry(labels).or_default().extend(points);
            }
        }
        self.storage.add(&series).await
    }

    async fn eval(&self, eval: &Eval) -> Result<(), String> {
        let run = Run {
            engine: self.engine,
            storage: self.storage.queryable(),
            eval,
        };
        run.all().await
    }
}

/// One evaluation.
struct Run<'a> {
    engine: &'a Engine,
    storage: &'a dyn Queryable,
    eval: &'a Eval,
}

impl Run<'_> {
    async fn all(&self) -> Result<(), String> {
        let Some(at_ms) = self.eval.at_ms else {
            return self.range().await;
        };
        self.instant(&self.eval.query, at_ms).await?;
        let Some(pinned) = pinned(&self.eval.query, at_ms) else {
            return Ok(());
        };
        let others = if at_ms == 0 {
            vec![-1_000, 0, 1_000]
        } else {
            vec![-10 * at_ms, 0, at_ms / 5, at_ms, 10 * at_ms]
        };
        for other_ms in others {
            let run = self.instant(&pinned, other_ms).await;
            run.map_err(|e| format!("as {pinned} at {other_ms}ms: {e}"))?;
        }
        Ok(())
    }

    async fn range(&self) -> Result<(), String> {
        let times = (self.eval.start_ms, self.eval.end_ms, self.eval.step_ms);
        let output = self.evaluate_range(&self.eval.query, times).await;
        match self.judge(output)? {
            Some(output) => compare(self.eval, &output.value),
            None => Ok(()),
        }
    }

    async fn instant(&self, query: &str, at_ms: i64) -> Result<(), String> {
        let output = self.evaluate_instant(query, at_ms).await;
        let Some(output) = self.judge(output)? else {
            return Ok(());
        };
        compare(self.eval, &output.value)?;
        // As Prometheus' own runner decides it.
        let depends_on_range = ["start()", "end()", "range()", "step()"]
            .iter()
            .any(|f| query.contains(f));
        if self.eval.instant_only || depends_on_range {
            return Ok(());
        }
        let scalar = matches!(output.value, Value::Scalar(..));
        self.as_range(query, at_ms, scalar)
            .await
            .map_err(|e| format!("in a range query: {e}"))
    }

    /// The same query as the middle step of a range.
    async fn as_range(&self, query: &str, at_ms: i64, scalar: bool) -> Result<(), String> {
        const STEP_MS: i64 = 60_000;
        let output = self
            .evaluate_range(query, (at_ms - STEP_MS, at_ms + STEP_MS, STEP_MS))
            .await?;
        if self.eval.ordered {
            return Ok(());
        }
        let Value::Matrix(series) = output.value else {
            return Err(format!(
                "expected a matrix, got a {}",
                output.value.value_type().as_str()
            ));
        };
        in_label_order(&series)?;
        let sample = |series: &MatrixSeries| {
            let value = values(series).remove(&at_ms)?;
            Some(VectorSample {
                labels: series.labels.clone(),
                value,
            })
        };
        let samples: Vec<VectorSample> = series.iter().filter_map(sample).collect();
        let value = match samples.as_slice() {
            [
                VectorSample {
                    labels,
                    value: SampleValue::Float(value),
                },
            ] if scalar && labels.is_empty() => Value::Scalar(at_ms, *value),
            _ if scalar => return Err(format!("expected one value, got {samples:?}")),
            _ => Value::Vector(at_ms, samples),
        };
        compare(self.eval, &value)
    }

    /// Checks failure and annotations; answers the output to compare, if there should be one.
    fn judge(&self, output: Result<QueryOutput, String>) -> Result<Option<QueryOutput>, String> {
        match (output, &self.eval.fail) {
            (Err(error), Some(pattern)) if pattern.matches(&error) => Ok(None),
            (Err(error), Some(pattern)) => Err(format!("expected failure {pattern:?}, got: {error}")),
            (Err(error), None) => Err(error),
            (Ok(_), Some(pattern)) => Err(format!("expected failure {pattern:?}, got none")),
            (Ok(output), None) => {
                annotations(self.eval, &output.annotation_texts())?;
                Ok(Some(output))
            }
        }
    }

    async fn evaluate_instant(&self, query: &str, at_ms: i64) -> Result<QueryOutput, String> {
        let query = Query::parse(query, &ParseOptions::default()).map_err(|e| e.to_string())?;
        let output = self
            .engine
            .instant(self.storage, &query, at_ms, &Uninterrupted)
            .await;
        output.map_err(|e| e.to_string())
    }

    async fn evaluate_range(&self, query: &str, times: (i64, i64, i64)) -> Result<QueryOutput, String> {
        let query = Query::parse(query, &ParseOptions::default()).map_err(|e| e.to_string())?;
        let output = self
            .engine
            .range(self.storage, &query, times, &Uninterrupted)
            .await;
        output.map_err(|e| e.to_string())
    }
}

/// The query with `@ <t>` on every selector and subquery that has none, so that it gives the same at any time; `None` if
/// a function in it depends on the time even so.
fn pinned(query: &str, at_ms: i64) -> Option<String> {
    let mut ast = koios_promql::parse(query).ok()?;
    if ast.exprs().any(depends_on_time) {
        return None;
    }
    pin(&mut ast, at_ms);
    Some(ast.to_string())
}

fn depends_on_time(expr: &Expr) -> bool {
    match expr {
        Expr::Call(call) => matches!(
            call.function,
            FunctionId::DaysInMonth
                | FunctionId::DayOfMonth
                | FunctionId::DayOfWeek
                | FunctionId::DayOfYear
                | FunctionId::End
                | FunctionId::Hour
                | FunctionId::Minute
                | FunctionId::Month
                | FunctionId::Year
                | FunctionId::PredictLinear
                | FunctionId::Range
                | FunctionId::Start
                | FunctionId::Step
                | FunctionId::Time
                | FunctionId::Timestamp
        ),
        _ => false,
    }
}

fn pin(ast: &mut Ast, at_ms: i64) {
    let mut left = vec![ast.root().id()];
    while let Some(id) = left.pop() {
        let at = match ast.expr_mut(id) {
            Expr::Vector(selector) => &mut selector.at,
            Expr::Matrix(matrix) => &mut matrix.selector.at,
            // What is below a pinned subquery already gives the same at any time.
            Expr::Subquery(subquery) => &mut subquery.at,
            other => {
                left.extend(other.children());
                continue;
            }
        };
        // A written timestamp stays; `start()` and `end()` mean another time once the query runs at another.
        if !matches!(at, Some(At::Timestamp(_))) {
            *at = Some(At::Timestamp(at_ms));
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn pins_selectors_and_subqueries() {
        let pinned = |query| pinned(query, 1_500);
        assert_eq!(
            pinned("rate(a[5m]) + b @ 3 + max_over_time(c[5m:]) + d @ end()").unwrap(),
            "rate(a[5m] @ 1.500) + b @ 3.000 + max_over_time(c[5m:] @ 1.500) + d @ 1.500"
        );
        assert_eq!(pinned("time() + a"), None);
    }

    #[test]
    fn a_series_named_like_a_histogram_stays_beside_what_is_made_of_it() {
        let script = "
load_with_nhcb 1m
  w 5 _ _
  w_bucket{le=\"1\"} _ 2 4
  w_bucket{le=\"+Inf\"} _ 2 4

eval instant at 0m w
  w 5

eval instant at 2m histogram_count(w)
  {} 4
";
        let report = futures::executor::block_on(run(script, &Engine::default())).unwrap();
        assert_eq!(report.passed, 2, "{:?}", report.failures);
    }

    #[test]
    fn reports_what_differs_and_goes_on() {
        let script = "
load 1m
  a 1 2 3

eval instant at 1m a
  a 2

eval instant at 1m a
  a 3

eval range from 0 to 2m step 1m a * 2
  {} 2 4 6

eval instant at 1m a +
  expect fail regex: parse error
";
        let report = futures::executor::block_on(run(script, &Engine::default())).unwrap();
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
        assert_eq!((report.passed, report.failures[0].line), (3, 8));
    }
}
