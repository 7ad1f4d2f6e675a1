//! Query results as Prometheus writes them.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use koios_model::Histogram;
use koios_promql::{MatrixSeries, QueryOutput, QueryStats, SampleValue, Value, VectorSample};

use super::envelope::{Frame, Notes, Sending, TRUNCATED, is_enough, streamed, streamed_in_parts};
use super::histogram::write_histogram;
use super::json::{write_labels, write_string, write_time, write_value};

/// How long the stages of a query took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timings {
    pub(crate) queue: Duration,
    pub(crate) prepare: Duration,
    pub(crate) fetch: Duration,
    pub(crate) evaluate: Duration,
}

/// The answer to a query; at most `limit` series unless 0, and statistics if asked for.
pub(crate) fn answer(
    output: QueryOutput,
    limit: usize,
    timings: Option<Timings>,
    sending: Sending<'_>,
) -> Response {
    let texts = output.annotation_texts();
    let mut notes = Notes {
        warnings: texts.warnings,
        infos: texts.infos,
    };
    let stats = timings.map(|t| stats_json(&t, &output.stats)).unwrap_or_default();
    let kind = output.value.value_type().as_str();
    let frame = Frame {
        before: format!(r#"{{"resultType":"{kind}","result":["#)
            .into_bytes()
            .into(),
        after: format!("]{stats}}}").into_bytes().into(),
    };
    let mut truncate = |len: usize| {
        let cut = limit != 0 && len > limit;
        notes.warnings.extend(cut.then(|| TRUNCATED.to_owned()));
        if cut { limit } else { len }
    };
    match output.value {
        Value::Scalar(at, v) => {
            let items = vec![Pair::Time(at), Pair::Value(v)];
            streamed(&frame, items, write_pair, &notes, sending)
        }
        Value::String(at, text) => {
            let items = vec![Pair::Time(at), Pair::Text(text)];
            streamed(&frame, items, write_pair, &notes, sending)
        }
        Value::Vector(at, mut samples) => {
            samples.truncate(truncate(samples.len()));
            let write = move |out: &mut Vec<u8>, sample| write_sample(out, at, &sample);
            streamed(&frame, samples, write, &notes, sending)
        }
        Value::Matrix(mut series) => {
            series.retain(|s| !s.is_empty());
            series.truncate(truncate(series.len()));
            let items = series.into_iter().map(SeriesText::of).collect();
            let write = |out: &mut Vec<u8>, text: SeriesText| text.write(out);
            streamed_in_parts(&frame, items, write, &notes, sending)
        }
    }
}

/// One half of a scalar or string result.
enum Pair {
    Time(i64),
    Value(f64),
    Text(String),
}

fn write_pair(out: &mut Vec<u8>, pair: Pair) {
    match pair {
        Pair::Time(at) => write_time(out, at),
        Pair::Value(v) => write_value(out, v),
        Pair::Text(text) => write_string(out, &text),
    }
}

fn write_sample(out: &mut Vec<u8>, at: i64, sample: &VectorSample) {
    out.extend_from_slice(br#"{"metric":"#);
    write_labels(out, sample.labels.as_ref());
    match &sample.value {
        SampleValue::Float(v) => {
            out.extend_from_slice(br#","value":"#);
            write_point(out, at, *v);
        }
        SampleValue::Histogram(h) => {
            out.extend_from_slice(br#","histogram":"#);
            write_histogram_point(out, at, h);
        }
    }
    out.push(b'}');
}

/// A series, and how far it is written.
struct SeriesText {
    series: MatrixSeries,
    part: Part,
    /// The next slot to look at.
    slot: usize,
    /// Whether the list of the current part has begun.
    begun: bool,
}

/// What of a series is written next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Labels,
    Floats,
    Histograms,
}

impl SeriesText {
    fn of(series: MatrixSeries) -> Self {
        Self {
            series,
            part: Part::Labels,
            slot: 0,
            begun: false,
        }
    }

    /// Writes until there is enough or nothing left; gives back what is.
    fn write(mut self, out: &mut Vec<u8>) -> Option<Self> {
        if self.part == Part::Labels {
            out.extend_from_slice(br#"{"metric":"#);
            write_labels(out, self.series.labels.as_ref());
            self.part = Part::Floats;
        }
        if self.part == Part::Floats {
            while self.slot < self.series.float_slots() {
                if is_enough(out) {
                    return Some(self);
                }
                if let Some((t, v)) = self.series.float_at(self.slot) {
                    self.separate(out, br#","values":["#);
                    write_point(out, t, v);
                }
                self.slot += 1;
            }
            self.end(out);
            self.part = Part::Histograms;
        }
        while self.slot < self.series.histogram_slots() {
            if is_enough(out) {
                return Some(self);
            }
            if let Some((t, h)) = self.series.histogram_at(self.slot) {
                // Another handle on it: the writer itself is changed meanwhile.
                let h = Arc::clone(h);
                self.separate(out, br#","histograms":["#);
                write_histogram_point(out, t, &h);
            }
            self.slot += 1;
        }
        self.end(out);
        out.push(b'}');
        None
    }

    /// What stands before a point.
    fn separate(&mut self, out: &mut Vec<u8>, first: &[u8]) {
        if std::mem::replace(&mut self.begun, true) {
            out.push(b',');
        } else {
            out.extend_from_slice(first);
        }
    }

    /// Ends a list, if there is one.
    fn end(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.begun) {
            out.push(b']');
        }
        self.slot = 0;
    }
}

fn write_point(out: &mut Vec<u8>, t: i64, v: f64) {
    out.push(b'[');
    write_time(out, t);
    out.push(b',');
    write_value(out, v);
    out.push(b']');
}

fn write_histogram_point(out: &mut Vec<u8>, t: i64, h: &Arc<Histogram>) {
    out.push(b'[');
    write_time(out, t);
    out.push(b',');
    write_histogram(out, h);
    out.push(b']');
}

fn stats_json(t: &Timings, stats: &QueryStats) -> String {
    let total = t.prepare + t.fetch + t.evaluate;
    let timings = serde_json::json!({
        "evalTotalTime": total.as_secs_f64(),
        "resultSortTime": 0.0,
        "queryPreparationTime": (t.prepare + t.fetch).as_secs_f64(),
        "innerEvalTime": t.evaluate.as_secs_f64(),
        "execQueueTime": t.queue.as_secs_f64(),
        "execTotalTime": (t.queue + total).as_secs_f64(),
    });
    let samples = serde_json::json!({
        "totalQueryableSamples": stats.samples_total,
        "peakSamples": stats.samples_peak,
    });
    let stats = serde_json::json!({
        "timings": timings,
        "samples": samples,
        "seriesFetched": stats.series_fetched,
        "bytesFetched": stats.bytes_fetched,
        "peakBytes": stats.bytes_peak,
    });
    format!(",\"stats\":{stats}")
}
