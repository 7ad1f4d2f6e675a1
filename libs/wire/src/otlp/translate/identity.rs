//! Which stream a data point belongs to.
//!
//! **Source**: OpenTelemetry's data model, "Timeseries Model": a stream is known by its resource, scope, metric and
//! attributes. Not all of these become labels.

use koios_model::{SeriesHash, TenantSeed};

use super::head::MetricHead;
use crate::otlp::value::Attribute;
use crate::protobuf::Reader;

/// What the streams of a resource, a scope or a metric have in common, as a hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity(SeriesHash);

/// The scope of metrics as sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentScope<'a> {
    pub(super) scope: Option<Reader<'a>>,
    pub(super) schema_url: &'a [u8],
}

impl Identity {
    /// Of a resource with these attributes.
    pub(super) fn of_resource(resource: &[Attribute<'_>], seed: TenantSeed) -> Self {
        let mut parts = Parts::default();
        parts.attributes(resource);
        Self(parts.hash(seed))
    }

    /// Of a scope of the resource.
    pub(super) fn with_scope(self, of: SentScope<'_>, seed: TenantSeed) -> Self {
        let mut parts = Parts::default();
        parts.part(&self.0.0.to_le_bytes());
        // A scope is described once, and is described alike whenever it sends.
        parts.part(of.scope.map_or(&[][..], |reader| reader.encoded().bytes));
        parts.part(of.schema_url);
        Self(parts.hash(seed))
    }

    /// Of a metric of the scope.
    pub(super) fn with_metric(self, head: &MetricHead<'_>, seed: TenantSeed) -> Self {
        let mut parts = Parts::default();
        parts.part(&self.0.0.to_le_bytes());
        parts.part(head.name);
        parts.part(head.unit);
        parts.part(&[
            head.shape().map_or(0, |shape| shape as u8),
            u8::from(head.monotonic),
        ]);
        Self(parts.hash(seed))
    }

    /// Of the stream with these attributes.
    pub(super) fn with_attributes(self, attributes: &[Attribute<'_>], seed: TenantSeed) -> SeriesHash {
        let mut parts = Parts::default();
        parts.part(&self.0.0.to_le_bytes());
        parts.attributes(attributes);
        parts.hash(seed)
    }
}

/// Parts one after the other, each after its length.
#[derive(Default)]
struct Parts(Vec<u8>);

impl Parts {
    fn part(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.0.extend_from_slice(part);
    }

    /// Attributes in whatever order.
    fn attributes<'a>(&mut self, attributes: &[Attribute<'a>]) {
        let value = |value: Option<Reader<'a>>| value.map_or(&[][..], |reader| reader.encoded().bytes);
        let mut sorted: Vec<_> = attributes.iter().map(|(key, v)| (*key, value(*v))).collect();
        sorted.sort_unstable();
        self.part(&(sorted.len() as u64).to_le_bytes());
        for (key, value) in sorted {
            self.part(key);
            self.part(value);
        }
    }

    fn hash(&self, seed: TenantSeed) -> SeriesHash {
        SeriesHash::of_encoded(seed, &self.0)
    }
}
