//! What is sent of a series at a time, and which of two wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::merge::{float_wins, histogram_winner, winner};
use koios_model::{Exemplar, Histogram, Labels};

/// What of a series at a time: each is chosen by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Aspect {
    /// A float or a histogram.
    Value,
    /// When the counter began.
    Start,
    /// One of several.
    Exemplar { labels: Labels, bits: u64 },
}

impl Aspect {
    pub(crate) fn is_exemplar(&self) -> bool {
        matches!(self, Self::Exemplar { .. })
    }
}

/// A place for one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) series: Labels,
    pub(crate) t: i64,
    pub(crate) aspect: Aspect,
}

impl Key {
    pub(crate) fn value(series: &Labels, t: i64) -> Self {
        Self::of(series, t, Aspect::Value)
    }

    fn of(series: &Labels, t: i64, aspect: Aspect) -> Self {
        let series = series.clone();
        Self { series, t, aspect }
    }
}

/// As it is compared: what a reader finds out about resets belongs to what it read before.
pub(crate) fn canonical(histogram: &Histogram) -> Held {
    let mut histogram = histogram.clone();
    histogram.make_canonical();
    Held::Histogram(Arc::new(histogram))
}

/// What is in a place.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Float(f64),
    Histogram(Arc<Histogram>),
    /// Milliseconds.
    Start(i64),
    /// An exemplar: its place says all of it.
    There,
}

impl Held {
    /// Bit by bit.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Histogram(a), Self::Histogram(b)) => a.bits_cmp(b).is_eq(),
            (Self::Start(a), Self::Start(b)) => a == b,
            (Self::There, Self::There) => true,
            _ => false,
        }
    }

    /// The winner of two in one place.
    pub(crate) fn or_better(&self, other: &Self) -> Self {
        let is_first = match (self, other) {
            (Self::Float(a), Self::Float(b)) => winner(*a, *b).to_bits() == a.to_bits(),
            (Self::Histogram(a), Self::Histogram(b)) => histogram_winner(a, b).bits_cmp(a).is_eq(),
            (Self::Float(a), Self::Histogram(b)) => float_wins(*a, b),
            (Self::Histogram(a), Self::Float(b)) => !float_wins(*b, a),
            (Self::Start(a), Self::Start(b)) => a >= b,
            _ => true,
        };
        if is_first { self.clone() } else { other.clone() }
    }
}

/// What was read, or is stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found(BTreeMap<Key, Held>);

impl Found {
    pub(crate) fn get(&self, key: &Key) -> Option<&Held> {
        self.0.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.0.iter()
    }

    pub(crate) fn add_value(&mut self, series: &Labels, t: i64, held: Held) {
        let twice = self.0.insert(Key::value(series, t), held);
        assert!(twice.is_none(), "{series} @{t} is returned twice (I2)");
    }

    /// 0 says that none is known.
    pub(crate) fn add_start(&mut self, series: &Labels, t: i64, start: i64) {
        if start != 0 {
            self.0
                .insert(Key::of(series, t, Aspect::Start), Held::Start(start));
        }
    }

    pub(crate) fn add_exemplar(&mut self, series: &Labels, exemplar: Exemplar) {
        let aspect = Aspect::Exemplar {
            labels: exemplar.labels,
            bits: exemplar.v.to_bits(),
        };
        let twice = self.0.insert(Key::of(series, exemplar.t, aspect), Held::There);
        assert!(twice.is_none(), "an exemplar of {series} is returned twice (I2)");
    }
}
