//! What a query answers.

use std::sync::Arc;

use koios_model::{Histogram, Labels};

use crate::annotations::{AnnotationTexts, Annotations};
use crate::ast::ValueType;
use crate::context::QueryStats;
use crate::queryable::Completeness;
use crate::steps::Steps;

/// A float or a histogram.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleValue {
    /// A float.
    Float(f64),
    /// A native histogram.
    Histogram(Arc<Histogram>),
}

/// One series at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSample {
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: SampleValue,
}

/// One series over time: at each of the query's steps, or with the samples' own times.
#[derive(Clone, Debug)]
pub struct MatrixSeries {
    /// Its labels.
    pub labels: Labels,
    pub(crate) points: Points,
}

#[derive(Clone, Debug)]
pub(crate) enum Points {
    /// One value per step, absent ones marked; histograms are empty or one slot per step.
    Steps {
        steps: Steps,
        values: Vec<f64>,
        histograms: Vec<Option<Arc<Histogram>>>,
    },
    /// Samples with their own times.
    Samples {
        timestamps: Vec<i64>,
        values: Vec<f64>,
        histogram_timestamps: Vec<i64>,
        histograms: Vec<Arc<Histogram>>,
    },
}

impl MatrixSeries {
    /// The float samples, ascending in time (milliseconds).
    pub fn floats(&self) -> impl Iterator<Item = (i64, f64)> + '_ {
        (0..self.float_slots()).filter_map(|slot| self.float_at(slot))
    }

    /// The histogram samples, ascending in time (milliseconds).
    pub fn histograms(&self) -> impl Iterator<Item = (i64, &Arc<Histogram>)> + '_ {
        (0..self.histogram_slots()).filter_map(|slot| self.histogram_at(slot))
    }

    /// How many slots for floats there are; some may be empty.
    pub fn float_slots(&self) -> usize {
        match &self.points {
            Points::Steps { values, .. } | Points::Samples { values, .. } => values.len(),
        }
    }

    /// The float in a slot; slots ascend in time (milliseconds).
    pub fn float_at(&self, slot: usize) -> Option<(i64, f64)> {
        match &self.points {
            Points::Steps { steps, values, .. } => {
                let v = *values.get(slot)?;
                (!crate::eval::is_absent(v)).then(|| (steps.at(slot), v))
            }
            Points::Samples {
                timestamps, values, ..
            } => timestamps.get(slot).copied().zip(values.get(slot).copied()),
        }
    }

    /// How many slots for histograms there are; some may be empty.
    pub fn histogram_slots(&self) -> usize {
        match &self.points {
            Points::Steps { histograms, .. } => histograms.len(),
            Points::Samples { histograms, .. } => histograms.len(),
        }
    }

    /// The histogram in a slot; slots ascend in time (milliseconds).
    pub fn histogram_at(&self, slot: usize) -> Option<(i64, &Arc<Histogram>)> {
        match &self.points {
            Points::Steps {
                steps, histograms, ..
            } => Some((steps.at(slot), histograms.get(slot)?.as_ref()?)),
            Points::Samples {
                histogram_timestamps,
                histograms,
                ..
            } => histogram_timestamps.get(slot).copied().zip(histograms.get(slot)),
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.floats().count() + self.histograms().count()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.floats().next().is_none() && self.histograms().next().is_none()
    }
}

/// The result of a query.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number at a time (milliseconds).
    Scalar(i64, f64),
    /// A string at a time (milliseconds).
    String(i64, String),
    /// Series at the evaluation time; order means something only after `sort` and the like.
    Vector(i64, Vec<VectorSample>),
    /// Series over time, in label order.
    Matrix(Vec<MatrixSeries>),
}

impl Value {
    /// What kind of value it is.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Scalar(..) => ValueType::Scalar,
            Self::String(..) => ValueType::String,
            Self::Vector(..) => ValueType::Vector,
            Self::Matrix(_) => ValueType::Matrix,
        }
    }
}

/// A result with what goes with it.
#[derive(Clone, Debug)]
pub struct QueryOutput {
    /// The result.
    pub value: Value,
    /// Whether it rests on all data there is.
    pub completeness: Completeness,
    /// What was noticed on the way.
    pub annotations: Annotations,
    /// What it cost.
    pub stats: QueryStats,
    pub(crate) query: Arc<str>,
}

impl QueryOutput {
    /// Warnings and infos as text, with positions; a partial result comes with a warning.
    pub fn annotation_texts(&self) -> AnnotationTexts {
        let mut texts = self.annotations.render(&self.query);
        texts.warnings.splice(..0, self.completeness.warning());
        texts
    }
}
