//! Which data points of OTLP a request's series are of: each is refused once, however many series it makes.

use std::collections::{BTreeSet, HashSet};

use crate::intake::Part;
use crate::replicate::Acknowledged;
use crate::taken::Taken;

/// Stands for none: what is of a resource as a whole.
const NONE: u32 = u32::MAX;

/// The data points that a part's series are of, in the order of its columns. Empty where none are of any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Points(Vec<u32>);

impl Points {
    /// Notes that the series from place `from` up to `to` are of a data point; those before that were not noted are of none.
    pub(crate) fn note(&mut self, from: usize, to: usize, point: u32) {
        self.0.resize(from, NONE);
        self.0.resize(to, point);
    }

    /// That of the series at a place.
    pub(crate) fn at(&self, place: usize) -> Option<u32> {
        self.0.get(place).copied().filter(|point| *point != NONE)
    }

    /// Without the series at some places.
    pub(crate) fn without(&self, is_out: impl Fn(usize) -> bool) -> Self {
        let places = self.0.iter().enumerate();
        let stay = places.filter(|(place, _)| !is_out(*place));
        Self(stay.map(|(_, point)| *point).collect())
    }

    /// Those of which a series is there.
    fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied().filter(|point| *point != NONE)
    }
}

/// How many data points a request has, and which of them were not taken, or not whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PointCounts {
    pub(crate) all: u64,
    /// Those that made no series.
    pub(crate) faulty: u64,
    /// Those of which a series was refused.
    pub(crate) refused: BTreeSet<u32>,
    /// Those that were sent and of which nothing was written, as members had forgotten all of their series.
    pub(crate) lost: BTreeSet<u32>,
}

impl PointCounts {
    pub(crate) fn rejected(&self) -> u64 {
        self.faulty.saturating_add(self.refused.len() as u64)
    }

    /// Notes what was acknowledged of all parts.
    pub(crate) fn note_lost<'a>(&mut self, parts: impl Iterator<Item = &'a Acknowledged> + Clone) {
        let refused = parts.clone().flat_map(|part| &part.taken_out.points);
        self.lost.extend(refused);
        if !self.lost.is_empty() {
            let written: HashSet<u32> = parts.flat_map(|part| part.points.all()).collect();
            self.lost.retain(|point| !written.contains(point));
        }
    }
}

impl Taken {
    /// Takes back what data points added to totals that were refused and of which no series was taken. What is dropped because
    /// another replica of its HA pair is elected stays in the total, which goes on from there when this one is elected; and so
    /// does the end of a stream that made no sample, as others feed its series.
    pub(crate) fn take_back_lost(&mut self) {
        let Some(deltas) = self.deltas.as_mut().filter(|deltas| !deltas.is_empty()) else {
            return;
        };
        let refused = &self.points.refused;
        if refused.is_empty() {
            return;
        }
        let parts = self.parts.values();
        let left: HashSet<u32> = parts.flat_map(|part: &Part| part.points.all()).collect();
        deltas.take_back(|point| refused.contains(&point) && !left.contains(&point));
    }
}
