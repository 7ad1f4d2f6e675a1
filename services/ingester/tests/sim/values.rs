//! What is judged of a series: floats and native histograms in one line, its start timestamps and its exemplars each as series of their
//! own beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_chunk::Run;
use koios_model::merge::{
    float_wins, histogram_winner, settle_kinds, sort_and_dedup, sort_and_dedup_histograms,
    sort_and_dedup_starts, winner,
};
use koios_model::{Exemplar, Histogram, Labels, Sample, TimeRange};
use koios_testkit::oracle::Judged;

/// What a series has at a time.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Float(f64),
    Histogram(Arc<Histogram>),
}

/// A value and its time.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) t: i64,
    pub(crate) v: Value,
}

/// Points by series.
pub(crate) type Series = Vec<(Labels, Vec<Point>)>;

/// The same, found.
pub(crate) type Found = BTreeMap<Labels, Vec<Point>>;

impl Value {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Histogram(a), Self::Histogram(b)) => a.bits_cmp(b).is_eq(),
            _ => false,
        }
    }

    fn wins_over(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => winner(*a, *b).to_bits() == a.to_bits(),
            (Self::Histogram(a), Self::Histogram(b)) => histogram_winner(a, b).bits_cmp(a).is_eq(),
            (Self::Float(v), Self::Histogram(h)) => float_wins(*v, h),
            (Self::Histogram(h), Self::Float(v)) => !float_wins(*v, h),
        }
    }
}

impl Judged for Point {
    fn time(&self) -> i64 {
        self.t
    }

    fn is_same(&self, other: &Self) -> bool {
        self.v.is_same(&other.v)
    }

    fn wins_over(&self, other: &Self) -> bool {
        self.v.wins_over(&other.v)
    }

    fn tell(&self) -> String {
        match &self.v {
            Value::Float(v) => format!("{v} ({:016x})", v.to_bits()),
            Value::Histogram(h) => format!("{h:?}"),
        }
    }
}

fn float(t: i64, v: f64) -> Point {
    Point {
        t,
        v: Value::Float(v),
    }
}

/// Label of a series of start timestamps.
const STARTS: &str = "starts_of";
/// Labels of a series of one exemplar: its own labels and its value, which tell it from others of its time.
const EXEMPLAR: &str = "exemplar_of";
const EXEMPLAR_BITS: &str = "exemplar_bits";

/// Where the start timestamps of a series are judged: of several at one time the largest wins, as of their bits as values.
pub(crate) fn starts_of(labels: &Labels) -> Labels {
    Labels::from_pairs(labels.iter().chain([(STARTS, "it")]))
}

/// Where an exemplar of a series is judged. All of a time are kept.
pub(crate) fn exemplar_of(labels: &Labels, exemplar: &Exemplar) -> Labels {
    let own: Vec<String> = exemplar.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let bits = format!("{:016x}", exemplar.v.to_bits());
    let beside = [(EXEMPLAR, own.join(",")), (EXEMPLAR_BITS, bits)];
    let pairs = labels.iter().map(|(n, v)| (n, v.to_owned()));
    Labels::from_pairs(pairs.chain(beside))
}

/// Whether a series is one of an exemplar.
pub(crate) fn is_exemplar(labels: &Labels) -> bool {
    labels.get(EXEMPLAR).is_some()
}

/// Whether a series is the one with some labels, or beside it.
pub(crate) fn is_about(found: &Labels, labels: &Labels) -> bool {
    labels.iter().all(|(name, value)| found.get(name) == Some(value))
}

/// Start timestamps as points.
pub(crate) fn of_starts(starts: &[(i64, i64)]) -> Vec<Point> {
    let point = |(t, start): &(i64, i64)| float(*t, f64::from_bits(start.cast_unsigned()));
    starts.iter().map(point).collect()
}

/// Puts exemplars of a series among what was found, or is sent, each once.
pub(crate) fn put_exemplars<'a>(
    all: &mut Found,
    labels: &Labels,
    exemplars: impl IntoIterator<Item = &'a Exemplar>,
) {
    for e in exemplars {
        let points = all.entry(exemplar_of(labels, e)).or_default();
        if let Err(at) = points.binary_search_by_key(&e.t, |p| p.t) {
            points.insert(at, float(e.t, 0.0));
        }
    }
}

/// The samples of a series, put together.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) floats: Vec<Sample>,
    pub(crate) histograms: Vec<(i64, Arc<Histogram>)>,
    pub(crate) starts: Vec<(i64, i64)>,
}

impl Collected {
    /// Adds what a run has. Says so if it goes back in time.
    pub(crate) fn add(&mut self, run: &Run) -> Result<(), &'static str> {
        let (mut ts, mut vs, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        run.decode_range(TimeRange::ALL, &mut ts, &mut vs).unwrap();
        run.decode_histograms(TimeRange::ALL, &mut histograms).unwrap();
        run.decode_starts(TimeRange::ALL, &mut self.starts).unwrap();
        let ascends = ts.is_sorted_by(|a, b| a < b) && histograms.is_sorted_by(|a, b| a.0 < b.0);
        let floats = ts.into_iter().zip(vs).map(|(t, v)| Sample { t, v });
        self.floats.extend(floats);
        self.histograms.extend(histograms);
        match ascends {
            true => Ok(()),
            false => Err("a run goes back in time"),
        }
    }

    /// Puts the winner of each time among what was found, and beside it the starts.
    pub(crate) fn put(mut self, all: &mut Found, labels: &Labels) {
        sort_and_dedup(&mut self.floats);
        sort_and_dedup_histograms(&mut self.histograms);
        sort_and_dedup_starts(&mut self.starts);
        settle_kinds(&mut self.floats, &mut self.histograms);
        let floats = self.floats.iter().map(|s| float(s.t, s.v));
        let histograms = self.histograms.into_iter().map(|(t, h)| Point {
            t,
            v: Value::Histogram(h),
        });
        let mut points: Vec<Point> = floats.chain(histograms).collect();
        points.sort_by_key(|p| p.t);
        if !points.is_empty() {
            all.insert(labels.clone(), points);
        }
        if !self.starts.is_empty() {
            all.insert(starts_of(labels), of_starts(&self.starts));
        }
    }
}

/// Adds points of a series, keeping the winner of each time.
pub(crate) fn merge_points(kept: &mut Vec<Point>, more: &[Point]) {
    kept.extend_from_slice(more);
    kept.sort_by_key(|p| p.t);
    kept.dedup_by(|later, kept| {
        let same = later.t == kept.t;
        if same && later.wins_over(kept) {
            std::mem::swap(later, kept);
        }
        same
    });
}
