//! Answers of the query API in comparable form, and how two of them differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use koios_model::Labels;
use koios_promql::{MatrixSeries, QueryError, SampleValue, Value};

use super::histogram::HistogramValue;

/// Relative difference between values that is none: engines add up in different orders.
const TOLERANCE: f64 = 1e-9;

/// What one side answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A result.
    Success(Success),
    /// An error.
    Failure(Failure),
}

/// A result.
#[derive(Clone, Debug, PartialEq)]
pub struct Success {
    /// `scalar`, `string`, `vector` or `matrix`.
    pub kind: String,
    /// The samples of each series; those of a scalar are without labels.
    pub series: BTreeMap<Labels, Vec<Point>>,
    /// The labels as they came: after sorting, that means something.
    pub order: Vec<Labels>,
    /// The text of a string.
    pub text: String,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status of the response; none where nothing went over HTTP.
    pub status: Option<u16>,
    /// The API's `errorType`.
    pub kind: String,
    /// The message.
    pub message: String,
}

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its time, milliseconds.
    pub t_ms: i64,
    /// Its value.
    pub value: PointValue,
}

/// A sample's value.
#[derive(Clone, Debug, PartialEq)]
pub enum PointValue {
    /// A float.
    Float(f64),
    /// A native histogram.
    Histogram(HistogramValue),
}

impl PointValue {
    /// Whether both are the same to the last bit, the sign of zero included; one NaN is as good as another.
    fn identical(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            (a, b) => a == b,
        }
    }

    /// The number, or how many observations a histogram has.
    pub(super) fn counted(&self) -> f64 {
        match self {
            Self::Float(v) => *v,
            Self::Histogram(h) => h.count(),
        }
    }

    /// Whether both differ by rounding at most.
    pub(super) fn close(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => close(*a, *b),
            (Self::Histogram(a), Self::Histogram(b)) => a.close(b),
            _ => false,
        }
    }
}

/// Whether two numbers differ by rounding at most.
pub(super) fn close(a: f64, b: f64) -> bool {
    a == b
        || (a.is_nan() && b.is_nan())
        || (a.is_finite() && b.is_finite() && (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()))
}

/// The first difference found between two answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// One answers, the other does not.
    Failure,
    /// Both fail with different error types.
    ErrorType,
    /// Both fail alike, but the statuses of the responses differ.
    Status,
    /// The results are of different types.
    Kind,
    /// Series, times or the types of samples differ.
    Shape(String),
    /// Values differ.
    Value {
        /// The series.
        labels: Labels,
        /// When, milliseconds.
        t_ms: i64,
        /// What Prometheus answers.
        prometheus: PointValue,
        /// What Koios answers.
        koios: PointValue,
    },
    /// Values are in another order.
    Order,
}

impl Success {
    /// Whether there is a sample or a text at all.
    pub fn is_telling(&self) -> bool {
        self.series.values().any(|points| !points.is_empty()) || !self.text.is_empty()
    }

    /// All floats.
    pub fn floats(&self) -> impl Iterator<Item = f64> + '_ {
        self.series
            .values()
            .flatten()
            .filter_map(|point| match point.value {
                PointValue::Float(v) => Some(v),
                PointValue::Histogram(_) => None,
            })
    }

    fn values_in_order(&self) -> Vec<&PointValue> {
        let points = self.order.iter().filter_map(|labels| self.series.get(labels));
        points.flatten().map(|point| &point.value).collect()
    }
}

impl Answer {
    /// The result, if it is one.
    pub fn success(&self) -> Option<&Success> {
        match self {
            Self::Success(success) => Some(success),
            Self::Failure(_) => None,
        }
    }

    /// The error, if it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Success(_) => None,
            Self::Failure(failure) => Some(failure),
        }
    }

    /// Reads the status and the body of a response of the query API.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(status: u16, json: &serde_json::Value) -> Result<Self> {
        if json["status"] == "error" {
            let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
            return Ok(Self::Failure(Failure {
                status: Some(status),
                kind: text("errorType"),
                message: text("error"),
            }));
        }
        ensure!(status == 200, "status {status} with a result");
        let data = &json["data"];
        let (kind, result) = (data["resultType"].as_str(), &data["result"]);
        let mut success = Success {
            kind: kind.context("resultType")?.to_owned(),
            series: BTreeMap::new(),
            order: Vec::new(),
            text: String::new(),
        };
        match success.kind.as_str() {
            "string" => success.text = result[1].as_str().context("text")?.to_owned(),
            "scalar" => {
                success.series.insert(Labels::empty(), vec![float(result)?]);
            }
            _ => {
                for series in result.as_array().context("result")? {
                    success.add(series)?;
                }
            }
        }
        Ok(Self::Success(success))
    }

    /// An answer of the engine in this process.
    ///
    /// # Errors
    /// When a series is there twice.
    pub fn from_engine(result: Result<Value, QueryError>) -> Result<Self> {
        let value = match result {
            Ok(value) => value,
            Err(e) => {
                return Ok(Self::Failure(Failure {
                    status: None,
                    kind: e.kind().error_type().to_owned(),
                    message: e.to_string(),
                }));
            }
        };
        let point = |t_ms, value: &SampleValue| Point {
            t_ms,
            value: match value {
                SampleValue::Float(v) => PointValue::Float(*v),
                SampleValue::Histogram(h) => PointValue::Histogram(HistogramValue::from(h.as_ref())),
            },
        };
        let (kind, text, series): (&str, String, Vec<(Labels, Vec<Point>)>) = match value {
            Value::Scalar(t, v) => {
                let points = vec![point(t, &SampleValue::Float(v))];
                ("scalar", String::new(), vec![(Labels::empty(), points)])
            }
            Value::String(_, text) => ("string", text, Vec::new()),
            Value::Vector(t, samples) => {
                let series = samples.into_iter().map(|s| (s.labels, vec![point(t, &s.value)]));
                ("vector", String::new(), series.collect())
            }
            Value::Matrix(series) => {
                let series = series.into_iter().map(|s| (s.labels.clone(), points(&s)));
                ("matrix", String::new(), series.collect())
            }
        };
        let mut success = Success {
            kind: kind.to_owned(),
            series: BTreeMap::new(),
            order: Vec::new(),
            text,
        };
        for (labels, points) in series {
            success.insert(labels, points)?;
        }
        Ok(Self::Success(success))
    }

    /// How Koios' answer differs from Prometheus'.
    pub fn difference(prometheus: &Self, koios: &Self, ordered: bool) -> Option<Difference> {
        match (prometheus, koios) {
            (Self::Failure(a), Self::Failure(b)) if a.kind != b.kind => Some(Difference::ErrorType),
            (Self::Failure(a), Self::Failure(b)) => {
                let both = a.status.zip(b.status);
                both.is_some_and(|(a, b)| a != b).then_some(Difference::Status)
            }
            (Self::Success(a), Self::Success(b)) => difference(a, b, ordered),
            _ => Some(Difference::Failure),
        }
    }

    /// The times at which two results differ; `None` where one is none, or they are of different types.
    pub(super) fn times_of_difference(&self, other: &Self) -> Option<BTreeSet<i64>> {
        let (a, b) = (self.success()?, other.success()?);
        let at_time = |success: &Success| -> BTreeMap<(i64, Labels), PointValue> {
            let series = success.series.iter();
            let points = series.flat_map(|(labels, points)| points.iter().map(move |p| (labels, p)));
            points
                .map(|(labels, p)| ((p.t_ms, labels.clone()), p.value.clone()))
                .collect()
        };
        let (of_a, of_b) = (at_time(a), at_time(b));
        let keys = of_a.keys().chain(of_b.keys());
        let differs = |key: &&(i64, Labels)| match (of_a.get(*key), of_b.get(*key)) {
            (Some(a), Some(b)) => !a.close(b),
            _ => true,
        };
        (a.kind == b.kind).then(|| keys.filter(differs).map(|(t, _)| *t).collect())
    }

    /// Whether both say the same to the last bit.
    pub fn identical(&self, other: &Self) -> bool {
        let (Self::Success(a), Self::Success(b)) = (self, other) else {
            return self.failure().is_some() && other.failure().is_some();
        };
        a.series.len() == b.series.len()
            && a.series.iter().zip(&b.series).all(|((la, a), (lb, b))| {
                la == lb
                    && a.len() == b.len()
                    && a.iter()
                        .zip(b)
                        .all(|(a, b)| a.t_ms == b.t_ms && a.value.identical(&b.value))
            })
    }
}

impl Success {
    fn add(&mut self, json: &serde_json::Value) -> Result<()> {
        let metric = json["metric"].as_object().context("metric")?;
        let pairs = metric.iter().map(|(n, v)| (n, v.as_str().unwrap_or_default()));
        let labels = Labels::from_pairs(pairs);
        let mut points = Vec::new();
        let many = |name: &str| json[name].as_array().into_iter().flatten();
        for json in many("values").chain(json.get("value")) {
            points.push(float(json)?);
        }
        for json in many("histograms").chain(json.get("histogram")) {
            points.push(Point {
                t_ms: time_ms(&json[0])?,
                value: PointValue::Histogram(HistogramValue::from_json(&json[1])?),
            });
        }
        points.sort_by_key(|point| point.t_ms);
        self.insert(labels, points)
    }

    fn insert(&mut self, labels: Labels, points: Vec<Point>) -> Result<()> {
        if self.series.insert(labels.clone(), points).is_some() {
            bail!("series {labels} is there twice");
        }
        self.order.push(labels);
        Ok(())
    }
}

fn points(series: &MatrixSeries) -> Vec<Point> {
    let floats = series.floats().map(|(t_ms, v)| Point {
        t_ms,
        value: PointValue::Float(v),
    });
    let histograms = series.histograms().map(|(t_ms, h)| Point {
        t_ms,
        value: PointValue::Histogram(HistogramValue::from(h.as_ref())),
    });
    let mut points: Vec<Point> = floats.chain(histograms).collect();
    points.sort_by_key(|point| point.t_ms);
    points
}

fn time_ms(json: &serde_json::Value) -> Result<i64> {
    Ok((json.as_f64().context("timestamp")? * 1000.0).round() as i64)
}

fn float(json: &serde_json::Value) -> Result<Point> {
    Ok(Point {
        t_ms: time_ms(&json[0])?,
        value: PointValue::Float(number(&json[1])?),
    })
}

/// A number as the API writes it.
pub(super) fn number(json: &serde_json::Value) -> Result<f64> {
    Ok(match json.as_str().context("value")? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse()?,
    })
}

fn difference(prometheus: &Success, koios: &Success, ordered: bool) -> Option<Difference> {
    if prometheus.kind != koios.kind || prometheus.text != koios.text {
        return Some(Difference::Kind);
    }
    for (labels, want) in &prometheus.series {
        let Some(got) = koios.series.get(labels) else {
            return Some(Difference::Shape(format!("only Prometheus has {labels}")));
        };
        let times = |points: &[Point]| points.iter().map(|p| p.t_ms).collect::<Vec<_>>();
        if times(want) != times(got) {
            return Some(Difference::Shape(format!("{labels} has samples at other times")));
        }
        if let Some((want, got)) = want.iter().zip(got).find(|(a, b)| !a.value.close(&b.value)) {
            return Some(Difference::Value {
                labels: labels.clone(),
                t_ms: want.t_ms,
                prometheus: want.value.clone(),
                koios: got.value.clone(),
            });
        }
    }
    if let Some(labels) = koios.series.keys().find(|l| !prometheus.series.contains_key(*l)) {
        return Some(Difference::Shape(format!("only Koios has {labels}")));
    }
    let (a, b) = (prometheus.values_in_order(), koios.values_in_order());
    let same_order = !ordered || a.iter().zip(&b).all(|(a, b)| a.close(b));
    (!same_order).then_some(Difference::Order)
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see what is the matter.
        const SERIES: usize = 8;
        const POINTS: usize = 6;
        match self {
            Self::Failure(e) => {
                if let Some(status) = e.status {
                    write!(f, "{status} ")?;
                }
                write!(f, "{}: {}", e.kind, e.message)
            }
            Self::Success(success) => {
                write!(f, "{} of {} series", success.kind, success.series.len())?;
                if !success.text.is_empty() {
                    write!(f, " {:?}", success.text)?;
                }
                let ordered = success
                    .order
                    .iter()
                    .filter_map(|l| Some((l, success.series.get(l)?)));
                for (labels, points) in ordered.take(SERIES) {
                    write!(f, "\n      {labels}")?;
                    for point in points.iter().take(POINTS) {
                        write!(f, " {}@{}", point.value, point.t_ms)?;
                    }
                    if points.len() > POINTS {
                        write!(f, " … {} samples", points.len())?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PointValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(v) => write!(f, "{v:?}"),
            Self::Histogram(h) => write!(f, "{h}"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure => f.write_str("one of them fails"),
            Self::ErrorType => f.write_str("the error types differ"),
            Self::Status => f.write_str("the statuses differ"),
            Self::Kind => f.write_str("the results are of different types"),
            Self::Shape(what) => f.write_str(what),
            Self::Value {
                labels,
                t_ms,
                prometheus,
                koios,
            } => write!(f, "{labels} @{t_ms}: {koios}, Prometheus says {prometheus}"),
            Self::Order => f.write_str("the order differs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_promql::VectorSample;

    use super::*;

    fn answer(json: &serde_json::Value) -> Answer {
        let body = serde_json::json!({"status": "success", "data": {"resultType": "vector", "result": json}});
        Answer::from_json(200, &body).unwrap()
    }

    #[test]
    fn rounding_is_no_difference_but_order_may_be() {
        let one = |v: &str| serde_json::json!({"metric": {"v": v}, "value": [1.5, v]});
        let (a, b) = (one("1"), one("2.5"));
        let want = answer(&serde_json::json!([a, b]));
        let got = answer(&serde_json::json!([b, a]));
        assert_eq!(Answer::difference(&want, &got, false), None);
        assert_eq!(Answer::difference(&want, &got, true), Some(Difference::Order));
        assert!(close(1.0, 1.0 + 1e-12) && !close(1.0, 1.0 + 1e-6));
        assert!(close(f64::NAN, f64::NAN) && !close(f64::INFINITY, f64::MAX));
        let none = answer(&serde_json::json!([]));
        let Some(Difference::Shape(text)) = Answer::difference(&want, &none, false) else {
            panic!("a missing series is a difference of shape");
        };
        assert_eq!(text, r#"only Prometheus has {v="1"}"#);
    }

    #[test]
    fn a_series_that_is_there_twice_is_no_answer() {
        let sample = VectorSample {
            labels: Labels::empty(),
            value: SampleValue::Float(1.0),
        };
        let value = Value::Vector(0, vec![sample.clone(), sample]);
        assert!(Answer::from_engine(Ok(value)).is_err());
    }

    #[test]
    fn a_range_differs_where_samples_are_missing_or_different() {
        let matrix = |values: &[(i64, &str)]| {
            let values: Vec<_> = values.iter().map(|(t, v)| serde_json::json!([t, v])).collect();
            let result = serde_json::json!([{"metric": {}, "values": values}]);
            let data = serde_json::json!({"resultType": "matrix", "result": result});
            Answer::from_json(200, &serde_json::json!({"status": "success", "data": data})).unwrap()
        };
        let a = matrix(&[(1, "1"), (2, "2"), (3, "3")]);
        let b = matrix(&[(1, "1"), (3, "4"), (5, "5")]);
        let times = a.times_of_difference(&b).unwrap();
        assert_eq!(times.into_iter().collect::<Vec<_>>(), [2_000, 3_000, 5_000]);
    }

    #[test]
    fn errors_are_compared_by_their_type() {
        let error = |status, kind: &str| {
            let body = serde_json::json!({"status": "error", "errorType": kind, "error": "why"});
            Answer::from_json(status, &body).unwrap()
        };
        let (bad, execution) = (error(400, "bad_data"), error(422, "execution"));
        assert_eq!(Answer::difference(&bad, &bad.clone(), false), None);
        assert_eq!(
            Answer::difference(&bad, &error(422, "bad_data"), false),
            Some(Difference::Status)
        );
        assert_eq!(
            Answer::difference(&bad, &execution, false),
            Some(Difference::ErrorType)
        );
        assert_eq!(
            Answer::difference(&bad, &answer(&serde_json::json!([])), false),
            Some(Difference::Failure)
        );
    }
}
