//! Self-metrics: one registry per process, exposed at `/metrics` and, in all-in-one, stored in itself.

use std::sync::Arc;

use koios_model::{Labels, LabelsBuilder, METRIC_NAME};
use koios_runtime::ProcessStats;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;

/// The media type of [`Metrics::encode`].
pub const EXPOSITION_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A family with one label, whose values are words known at compile time.
pub type ByWord<M> = Family<[(&'static str, &'static str); 1], M>;

/// The process' registry. Cheap to clone.
///
/// Names are whole, `koios_<service>_<noun>_<unit>[_total]`, as one finds them in a query.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry that holds `koios_build_info`.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::default())),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        metrics
            .registry
            .lock()
            .register("koios_build", "What this process was built from", build);
        metrics
    }

    /// Adds `process_*`: memory, CPU, files, and when the process started. Only for real processes.
    pub fn register_process(&self, started_ms: i64) {
        let collector = ProcessCollector { started_ms };
        self.registry.lock().register_collector(Box::new(collector));
    }

    /// Adds a metric and gives it back. `name` is the name in queries; the `_total` of counters is put there by the
    /// exposition, so it is taken off here.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let name = name.strip_suffix("_total").unwrap_or(name);
        self.registry.lock().register(name, help, metric.clone());
        metric
    }

    /// Adds a counter.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// Adds a histogram of durations in seconds, 1 ms to 60 s.
    pub fn durations(&self, name: &str, help: &str) -> Histogram {
        self.register(name, help, duration_histogram())
    }

    /// Everything as `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry.lock());
        out
    }

    /// Everything as series with values, sorted by label set.
    pub fn gather(&self) -> Vec<(Labels, f64)> {
        let text = self.encode();
        let mut samples: Vec<_> = text.lines().filter_map(parse_line).collect();
        samples.sort_by(|(a, _), (b, _)| a.cmp(b));
        samples
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A histogram of durations in seconds, 1 ms to 60 s.
pub fn duration_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

/// One line of our own exposition: `name{a="b",…} value`. Comments give `None`.
fn parse_line(line: &str) -> Option<(Labels, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let mut labels = LabelsBuilder::default();
    let name_end = line.find(['{', ' '])?;
    labels.set(METRIC_NAME, line.get(..name_end)?);
    let mut rest = line.get(name_end..)?;
    if let Some(inner) = rest.strip_prefix('{') {
        rest = parse_labels(inner, &mut labels)?;
    }
    let value = rest.trim_start().split(' ').next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some((labels.build(), value))
}

/// Reads `a="b",c="d"}` and gives what follows.
fn parse_labels<'a>(mut rest: &'a str, labels: &mut LabelsBuilder) -> Option<&'a str> {
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, c) => value.push(c),
            }
        };
        labels.set(name, &value);
        rest = quoted.get(end..)?;
    }
}

#[derive(Debug)]
struct ProcessCollector {
    started_ms: i64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = ProcessStats::read();
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge(
            "process_resident_memory_bytes",
            "Resident memory of the process",
            stats.resident_bytes as f64,
        )?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            stats.open_files as f64,
        )?;
        gauge(
            "process_start_time_seconds",
            "When the process started, Unix time",
            self.started_ms as f64 / 1000.0,
        )?;
        let lost = ConstCounter::new(crate::logging::lost_log_lines());
        lost.encode(encoder.encode_descriptor(
            "koios_log_lines_lost",
            "Log lines that could not be written to standard error",
            None,
            lost.metric_type(),
        )?)?;
        let cpu = ConstCounter::new(stats.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time of the process, user and system",
            None,
            cpu.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exposed_can_be_gathered() {
        let metrics = Metrics::new();
        metrics.counter("koios_test_things_total", "Things").inc_by(3);
        let by_word: Family<Vec<(String, String)>, Gauge> = Family::default();
        let by_word = metrics.register("koios_test_words", "Words", by_word);
        by_word
            .get_or_create(&vec![("word".to_owned(), "a\"b\\c\nd}".to_owned())])
            .set(-7);
        metrics
            .durations("koios_test_duration_seconds", "How long")
            .observe(0.02);
        metrics.register_process(1_500);

        let text = metrics.encode();
        assert!(text.contains("koios_test_things_total 3"), "{text}");
        let gathered = metrics.gather();
        let value = |pairs: &[(&str, &str)]| {
            let wanted = Labels::from_pairs(pairs.iter().copied());
            let found = gathered.iter().find(|(l, _)| *l == wanted);
            found.map(|(_, v)| *v)
        };
        assert_eq!(value(&[(METRIC_NAME, "koios_test_things_total")]), Some(3.0));
        assert_eq!(
            value(&[(METRIC_NAME, "koios_test_words"), ("word", "a\"b\\c\nd}")]),
            Some(-7.0)
        );
        let bucket = |le| value(&[(METRIC_NAME, "koios_test_duration_seconds_bucket"), ("le", le)]);
        assert_eq!(
            (bucket("0.01"), bucket("0.025"), bucket("+Inf")),
            (Some(0.0), Some(1.0), Some(1.0))
        );
        assert_eq!(value(&[(METRIC_NAME, "process_start_time_seconds")]), Some(1.5));
        let build = [
            (METRIC_NAME, "koios_build_info"),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        assert_eq!(value(&build), Some(1.0));
        assert!(
            gathered
                .iter()
                .any(|(l, _)| l.metric_name() == "process_cpu_seconds_total")
        );
        assert!(gathered.is_sorted_by(|a, b| a.0 < b.0));
    }
}
