//! From a request's data points to series.
//!
//! **Source**: Prometheus `storage/remote/otlptranslator/prometheusremotewrite`: `metrics_to_prw.go` `FromMetrics`,
//! `helper.go`, `histograms.go`, `number_data_points.go`.

mod accumulate;
mod exemplars;
mod head;
mod identity;
mod target_info;

use std::ops::RangeInclusive;

use koios_model::{Histogram, Sample, TenantSeed, stale_nan};

use self::accumulate::DeltaMetric;
use self::exemplars::Exemplars;
use self::head::{CUMULATIVE, DELTA, GAUGE, MetricHead};
use self::identity::{Identity, SentScope};
use super::delta::TenantDeltas;
use super::labels::{LabelSet, Namer, ResourceLabels, ScopeLabels, Stop};
use super::names;
use super::point::{Explicit, Point, Shape};
use super::settings::Settings;
use super::value;
use super::{OtlpError, PointFault, native};
use crate::protobuf::{BYTES, Reader};
use crate::remote_write::{
    DecodeError, DecodeLimits, RawExemplar, RawHistogram, RawMetadata, RawSeries, Sink,
};
use crate::strings::Strings;

const NAME: &[u8] = b"__name__";

/// What to know of a request beside what it says.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The tenant's choices.
    pub settings: &'a Settings,
    /// Takes what is not in the request as it is meant.
    pub strings: &'a Strings,
    /// Bounds of the request.
    pub limits: DecodeLimits,
    /// Bytes beyond which the sink refuses a series for its labels.
    pub label_bytes: usize,
    /// Times that will be accepted, milliseconds: `target_info` gets no others.
    pub accepted_ms: RangeInclusive<i64>,
    /// How far back queries look for a sample, milliseconds: `target_info` comes twice as often.
    pub lookback_ms: i64,
    /// The tenant's totals of what comes as deltas, and what keys their series; without, deltas are refused.
    pub deltas: Option<(&'a TenantDeltas, TenantSeed)>,
}

/// What a request came to, as far as it is not the sink's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Data points of the request.
    pub points: u64,
    /// Data points that were not taken, or not whole, by the sink or for a fault.
    pub rejected: u64,
    /// Data points with a fault, which the sink never saw.
    pub faults: u64,
    /// The first fault, and the metric's name as sent.
    pub first: Option<(PointFault, String)>,
}

/// Decodes a decompressed `ExportMetricsServiceRequest`.
///
/// # Errors
/// [`OtlpError`] when the bytes are no such message or exceed the limits. The sink may have been handed series before
/// that; its owner must throw them away.
pub fn decode<'a>(
    bytes: &'a [u8],
    context: &Context<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<Report, OtlpError> {
    let mut translator = Translator {
        context: context.clone(),
        namer: Namer::new(context.settings, context.strings),
        out: Output {
            sink,
            limits: context.limits,
            samples_seen: 0,
            exemplars_seen: 0,
            metrics_seen: 0,
        },
        report: Report::default(),
        point: Point::new(),
        base: LabelSet::new(context.limits.labels_per_series),
        labels: LabelSet::new(context.limits.labels_per_series),
        exemplars: Exemplars::default(),
        packed: Vec::new(),
        sent_scope: SentScope::default(),
        resource_identity: None,
        scope_identity: None,
        hashed_bytes: 0,
        times: None,
    };
    let mut request = Reader::new(bytes);
    while !request.done() {
        let tag = request.tag()?;
        if tag.field == 1 {
            tag.expect(BYTES)?;
            translator.resource(request.message()?)?;
        } else {
            request.skip(tag)?;
        }
    }
    Ok(translator.report)
}

/// Where series go, counted.
struct Output<'s, S> {
    sink: &'s mut S,
    limits: DecodeLimits,
    samples_seen: usize,
    exemplars_seen: usize,
    metrics_seen: usize,
}

impl<'a, S: Sink<'a>> Output<'_, S> {
    fn series(&mut self, series: RawSeries<'a, '_>) -> Result<(), DecodeError> {
        self.samples_seen += series.samples.len() + series.histograms.len();
        self.exemplars_seen += series.exemplars.len();
        let limit = self.limits.samples;
        if self.samples_seen > limit {
            return Err(DecodeError::TooManySamples { limit });
        }
        if self.exemplars_seen > limit {
            return Err(DecodeError::TooManyExemplars { limit });
        }
        self.sink.series(series);
        Ok(())
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) -> Result<(), DecodeError> {
        self.metrics_seen += 1;
        let limit = self.limits.series;
        if self.metrics_seen > limit {
            return Err(DecodeError::TooManyMetrics { limit });
        }
        self.sink.metadata(metadata);
        Ok(())
    }
}

struct Translator<'a, 's, S> {
    context: Context<'a>,
    namer: Namer<'a>,
    out: Output<'s, S>,
    report: Report,
    point: Point<'a>,
    /// Labels of the data point without the metric's name.
    base: LabelSet<'a>,
    /// Labels of the series that is being made.
    labels: LabelSet<'a>,
    exemplars: Exemplars<'a>,
    packed: Vec<u8>,
    /// The scope of what is read.
    sent_scope: SentScope<'a>,
    /// What the streams of the resource and of its scope have in common, once it was asked for: both may be long.
    resource_identity: Option<Identity>,
    scope_identity: Option<Identity>,
    /// Labels that were hashed for deltas, in bytes.
    hashed_bytes: usize,
    /// Earliest and latest time of the resource's data points, nanoseconds.
    times: Option<(u64, u64)>,
}

/// What all data points of a metric share.
struct Metric<'a, 'r> {
    resource: &'r ResourceLabels<'a>,
    scope: Option<&'r ScopeLabels<'a>>,
    shape: Shape,
    /// The translated name, and with `_sum`, `_count` and `_bucket`.
    family: &'a [u8],
    parts: [&'a [u8]; 3],
    takes_exemplars: bool,
    /// Where its data points are deltas.
    delta: Option<DeltaMetric>,
}

/// A family's name, and with `_sum`, `_count` and `_bucket`.
type Names<'a> = (&'a [u8], [&'a [u8]; 3]);

/// Labels of a resource or scope, or why it cannot have any.
type Faulty<T> = Result<T, PointFault>;

fn faulty<T>(outcome: Result<T, Stop>) -> Result<Faulty<T>, OtlpError> {
    match outcome {
        Ok(labels) => Ok(Ok(labels)),
        Err(Stop::Point(fault)) => Ok(Err(fault)),
        Err(Stop::Request(error)) => Err(error),
    }
}

impl<'a, S: Sink<'a>> Translator<'a, '_, S> {
    /// A `ResourceMetrics`. Fields may come in any order, so the resource is read first.
    fn resource(&mut self, message: Reader<'a>) -> Result<(), OtlpError> {
        let mut attributes = Vec::new();
        let mut fields = message;
        while !fields.done() {
            let tag = fields.tag()?;
            match tag.field {
                1 => {
                    tag.expect(BYTES)?;
                    let mut resource = fields.message()?;
                    while !resource.done() {
                        let tag = resource.tag()?;
                        if tag.field == 1 {
                            tag.expect(BYTES)?;
                            value::collect(resource.message()?, &mut attributes)?;
                        } else {
                            resource.skip(tag)?;
                        }
                    }
                }
                2 => {
                    tag.expect(BYTES)?;
                    fields.bytes()?;
                }
                _ => fields.skip(tag)?,
            }
        }
        let most = self.context.limits.labels_per_series;
        let resource = faulty(ResourceLabels::new(attributes, &mut self.namer, most))?;
        self.times = None;
        self.resource_identity = None;
        let mut fields = message;
        while !fields.done() {
            let tag = fields.tag()?;
            match tag.field {
                2 => self.scope(fields.message()?, &resource)?,
                1 => drop(fields.bytes()?),
                _ => fields.skip(tag)?,
            }
        }
        match (resource, self.times) {
            (Ok(mut resource), Some(times)) => self.target_info(&mut resource, times),
            _ => Ok(()),
        }
    }

    /// A `ScopeMetrics`.
    fn scope(&mut self, message: Reader<'a>, resource: &Faulty<ResourceLabels<'a>>) -> Result<(), OtlpError> {
        let (mut scope, mut schema_url): (Option<Reader<'a>>, &[u8]) = (None, &[]);
        let mut fields = message;
        while !fields.done() {
            let tag = fields.tag()?;
            if let 1..=3 = tag.field {
                tag.expect(BYTES)?;
            }
            match tag.field {
                1 => scope = Some(fields.message()?),
                2 => drop(fields.bytes()?),
                3 => schema_url = fields.bytes()?,
                _ => fields.skip(tag)?,
            }
        }
        self.sent_scope = SentScope { scope, schema_url };
        self.scope_identity = None;
        let most = self.context.limits.labels_per_series;
        let scope = faulty(ScopeLabels::read(scope, schema_url, &mut self.namer, most))?;
        let mut fields = message;
        while !fields.done() {
            let tag = fields.tag()?;
            match tag.field {
                2 => self.metric(fields.message()?, resource, &scope)?,
                1 | 3 => drop(fields.bytes()?),
                _ => fields.skip(tag)?,
            }
        }
        Ok(())
    }

    fn metric(
        &mut self,
        message: Reader<'a>,
        resource: &Faulty<ResourceLabels<'a>>,
        scope: &Faulty<Option<ScopeLabels<'a>>>,
    ) -> Result<(), OtlpError> {
        let head = MetricHead::read(message)?;
        let (Some(data), Some(shape)) = (head.data, head.shape()) else {
            return Ok(());
        };
        if head.points == 0 {
            return Ok(());
        }
        let metric = match (resource, scope, self.named(&head, shape)?) {
            (Err(fault), _, _) | (_, Err(fault), _) => Err(fault.clone()),
            (_, _, Err(fault)) => Err(fault),
            (Ok(resource), Ok(scope), Ok((family, parts))) => {
                self.out.metadata(RawMetadata {
                    metric: family,
                    kind: head.kind_word(),
                    help: head.description,
                    unit: self.context.strings.add(&names::unit(head.unit))?,
                })?;
                Ok(Metric {
                    resource,
                    scope: scope.as_ref(),
                    shape,
                    family,
                    parts,
                    takes_exemplars: head.kind != GAUGE,
                    delta: self.delta_metric(resource, &head),
                })
            }
        };
        let mut fields = data;
        while !fields.done() {
            let tag = fields.tag()?;
            match tag.field {
                1 if self.out.sink.is_over() => return Ok(()),
                1 => {
                    self.point.decode(shape, fields.message()?)?;
                    self.one_point(&metric, head.name)?;
                }
                _ => fields.skip(tag)?,
            }
        }
        Ok(())
    }

    fn delta_metric(&mut self, resource: &ResourceLabels<'a>, head: &MetricHead<'a>) -> Option<DeltaMetric> {
        let (_, seed) = self
            .context
            .deltas
            .filter(|_| head.has_temporality() && head.temporality == DELTA)?;
        let of_resource = *self
            .resource_identity
            .get_or_insert_with(|| Identity::of_resource(&resource.attributes, seed));
        let of_scope = *self
            .scope_identity
            .get_or_insert_with(|| of_resource.with_scope(self.sent_scope, seed));
        Some(DeltaMetric {
            identity: of_scope.with_metric(head, seed),
            monotonic: head.only_grows(),
        })
    }

    /// The names of a metric's series, if it can have any.
    fn named(&self, head: &MetricHead<'a>, shape: Shape) -> Result<Faulty<Names<'a>>, OtlpError> {
        let accepted = match head.temporality {
            CUMULATIVE => true,
            DELTA => self.context.deltas.is_some(),
            _ => false,
        };
        if head.has_temporality() && !accepted {
            return Ok(Err(PointFault::Temporality));
        }
        let strategy = self.context.settings.translation_strategy;
        let family = match names::metric(head.name, head.unit, head.suffix(), strategy) {
            Ok(name) if name == head.name => head.name,
            Ok(name) => self.context.strings.add(&name)?,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut parts = [family; 3];
        if matches!(shape, Shape::Explicit | Shape::Summary) {
            for (part, suffix) in parts.iter_mut().zip([&b"_sum"[..], b"_count", b"_bucket"]) {
                *part = self.context.strings.add(&[family, suffix].concat())?;
            }
        }
        Ok(Ok((family, parts)))
    }

    /// The data point that was just decoded.
    fn one_point(&mut self, metric: &Faulty<Metric<'a, '_>>, name: &[u8]) -> Result<(), OtlpError> {
        let time = self.point.time;
        let (earliest, latest) = self.times.unwrap_or((time, time));
        self.times = Some((earliest.min(time), latest.max(time)));
        let refused = self.out.sink.refused();
        self.out.sink.point(Some(self.point_number()));
        let outcome = match metric {
            Ok(_) if self.point.too_many => Err(Stop::Point(PointFault::TooMany)),
            Ok(metric) => self.translate(metric),
            Err(fault) => Err(Stop::Point(fault.clone())),
        };
        self.report.points += 1;
        self.out.sink.point(None);
        match outcome {
            Ok(()) => self.report.rejected += u64::from(self.out.sink.refused() > refused),
            Err(Stop::Request(error)) => return Err(error),
            Err(Stop::Point(fault)) => {
                self.report.rejected += 1;
                self.report.faults += 1;
                let shown = || String::from_utf8_lossy(name).chars().take(200).collect();
                self.report.first.get_or_insert_with(|| (fault, shown()));
            }
        }
        Ok(())
    }

    /// Which of the request's data points the current one is.
    fn point_number(&self) -> u32 {
        u32::try_from(self.report.points).unwrap_or(u32::MAX)
    }

    fn translate(&mut self, metric: &Metric<'a, '_>) -> Result<(), Stop> {
        self.base_labels(metric)?;
        if let Some(delta) = metric.delta
            && !self.accumulate(metric, delta)?
        {
            return Ok(());
        }
        self.exemplars.clear();
        if metric.takes_exemplars {
            let (sent, t) = (&self.point.exemplars, self.point.time_ms());
            self.exemplars.read(sent, t, self.context.strings)?;
        }
        self.hand_on(metric)
    }

    /// The series of the data point.
    fn hand_on(&mut self, metric: &Metric<'a, '_>) -> Result<(), Stop> {
        match metric.shape {
            Shape::Number => {
                let v = self.or_stale(self.point.number.value());
                self.all_exemplars(metric.family, None, Emitted::Float(v))
            }
            Shape::Exponential => {
                let histogram = match self.point.is_stale() {
                    true => Ok(Histogram::stale()),
                    false => native::exponential(&self.point.exponential)?,
                };
                self.all_exemplars(metric.family, None, Emitted::Native(histogram))
            }
            Shape::Explicit if self.context.settings.convert_histograms_to_nhcb => {
                let histogram = match self.point.is_stale() {
                    true => Ok(Histogram::stale()),
                    false => native::custom(&self.point.explicit),
                };
                self.all_exemplars(metric.family, None, Emitted::Native(histogram))
            }
            Shape::Explicit => {
                // Its series are made while its exemplars are handed out.
                let explicit = std::mem::take(&mut self.point.explicit);
                let outcome = self.classic(metric, &explicit);
                self.point.explicit = explicit;
                outcome
            }
            Shape::Summary => self.summary(metric),
        }
    }

    fn or_stale(&self, v: f64) -> f64 {
        if self.point.is_stale() { stale_nan() } else { v }
    }

    /// The labels of the point's attributes, its resource and scope.
    fn base_labels(&mut self, metric: &Metric<'a, '_>) -> Result<(), Stop> {
        let base = &mut self.base;
        base.clear();
        self.namer.attributes(&mut self.point.attributes, &[NAME], base)?;
        metric.resource.add_promoted(base);
        metric.resource.set_target(base);
        if let Some(scope) = metric.scope {
            scope.set(base);
        }
        Ok(())
    }

    /// A classic histogram.
    fn classic(&mut self, metric: &Metric<'a, '_>, from: &Explicit) -> Result<(), Stop> {
        let [sum, count, bucket] = metric.parts;
        if let Some(v) = from.sum {
            self.float(sum, None, self.or_stale(v))?;
        }
        self.float(count, None, self.or_stale(from.count as f64))?;
        let (mut below, mut exemplar) = (0u64, 0);
        for (bound, in_bucket) in from.bounds.iter().zip(&from.counts) {
            below = below.wrapping_add(*in_bucket);
            let first = exemplar;
            exemplar = self.exemplars.up_to(*bound, first);
            let le = (&b"le"[..], self.namer.number(*bound)?);
            let v = Emitted::Float(self.or_stale(below as f64));
            self.emit(bucket, Some(le), v, first..exemplar)?;
        }
        let le = (&b"le"[..], &b"+Inf"[..]);
        let v = Emitted::Float(self.or_stale(from.count as f64));
        self.emit(bucket, Some(le), v, exemplar..self.exemplars.len())
    }

    fn summary(&mut self, metric: &Metric<'a, '_>) -> Result<(), Stop> {
        let [sum, count, _] = metric.parts;
        let (observations, total) = self.point.summary;
        self.float(sum, None, self.or_stale(total))?;
        self.float(count, None, self.or_stale(observations as f64))?;
        let quantiles = std::mem::take(&mut self.point.quantiles);
        for (quantile, v) in &quantiles {
            let label = (&b"quantile"[..], self.namer.number(*quantile)?);
            self.float(metric.family, Some(label), self.or_stale(*v))?;
        }
        self.point.quantiles = quantiles;
        Ok(())
    }

    fn float(&mut self, name: &'a [u8], extra: Option<(&'a [u8], &'a [u8])>, v: f64) -> Result<(), Stop> {
        self.emit(name, extra, Emitted::Float(v), 0..0)
    }

    fn all_exemplars(
        &mut self,
        name: &'a [u8],
        extra: Option<(&'a [u8], &'a [u8])>,
        value: Emitted,
    ) -> Result<(), Stop> {
        self.emit(name, extra, value, 0..self.exemplars.len())
    }

    /// Hands on a series with the point's labels, a name, and perhaps one label more.
    fn emit(
        &mut self,
        name: &'a [u8],
        extra: Option<(&'a [u8], &'a [u8])>,
        value: Emitted,
        exemplars: std::ops::Range<usize>,
    ) -> Result<(), Stop> {
        self.labels.copy_from(&self.base);
        if let Some((name, value)) = extra {
            self.labels.set(name, value);
        }
        self.labels.set(NAME, name);
        let (t, start) = (self.point.time_ms(), self.point.start_ms());
        let starts = [start];
        let starts: &[i64] = if start == 0 { &[] } else { &starts };
        let (samples, histograms);
        let (samples, histograms): (&[Sample], &[RawHistogram]) = match value {
            Emitted::Float(v) => {
                samples = [Sample { t, v }];
                (&samples, &[])
            }
            Emitted::Native(histogram) => {
                histograms = [RawHistogram { t, start, histogram }];
                (&[], &histograms)
            }
        };
        let exemplars: &[RawExemplar] = self.exemplars.get(exemplars);
        self.out.series(RawSeries {
            labels: self.labels.labels(),
            label_count: self.labels.count(),
            samples,
            starts,
            histograms,
            exemplars,
            exemplar_labels: self.exemplars.labels(),
            ..RawSeries::default()
        })?;
        Ok(())
    }
}

/// A sample of either kind.
enum Emitted {
    Float(f64),
    Native(Result<Histogram, crate::remote_write::HistogramFault>),
}
