//! `target_info`: what a resource says of itself beside job and instance.
//!
//! **Source**: Prometheus `prometheusremotewrite/helper.go` `addResourceTargetInfo`.

use koios_model::Sample;

use super::super::OtlpError;
use super::super::labels::{ResourceLabels, SERVICE_INSTANCE, SERVICE_NAME, SERVICE_NAMESPACE, Stop};
use super::super::point::millis;
use super::{NAME, Translator};
use crate::remote_write::{DecodeError, RawMetadata, RawSeries, Sink};

const TARGET_INFO: &[u8] = b"target_info";
/// Shortest distance of its samples, milliseconds.
const INTERVAL_MIN_MS: i64 = 1000;

impl<'a, S: Sink<'a>> Translator<'a, '_, S> {
    /// Adds the series of a resource, from the earliest to the latest of its data points and twice per lookback between.
    pub(super) fn target_info(
        &mut self,
        resource: &mut ResourceLabels<'a>,
        times: (u64, u64),
    ) -> Result<(), OtlpError> {
        let identifying = [SERVICE_NAMESPACE, SERVICE_NAME, SERVICE_INSTANCE];
        let known = identifying.iter().filter(|name| resource.has(name)).count();
        if resource.attributes.len() <= known {
            return Ok(());
        }
        let ignored = match self.context.settings.keep_identifying_resource_attributes {
            true => &[][..],
            false => &identifying,
        };
        let labels = &mut self.labels;
        labels.clear();
        match self.namer.attributes(&mut resource.attributes, ignored, labels) {
            Ok(()) => {}
            Err(Stop::Request(error)) => return Err(error),
            // An attribute without a usable name is no fault of the data points.
            Err(Stop::Point(_)) => return Ok(()),
        }
        resource.set_target(labels);
        labels.set(NAME, TARGET_INFO);
        if labels.get(b"job").is_empty() && labels.get(b"instance").is_empty() {
            return Ok(());
        }
        let samples = self.info_samples(times)?;
        if samples.is_empty() {
            return Ok(());
        }
        self.out.series(RawSeries {
            labels: self.labels.labels(),
            label_count: self.labels.count(),
            samples: &samples,
            ..RawSeries::default()
        })?;
        self.out.metadata(RawMetadata {
            metric: TARGET_INFO,
            kind: "gauge",
            help: b"Target metadata",
            unit: b"",
        })?;
        Ok(())
    }

    /// Those of its samples that can be accepted: the others are as far away as the data points they are for.
    fn info_samples(&self, (earliest, latest): (u64, u64)) -> Result<Vec<Sample>, DecodeError> {
        let interval = (self.context.lookback_ms / 2).max(INTERVAL_MIN_MS);
        let (earliest, latest) = (millis(earliest), millis(latest));
        let accepted = &self.context.accepted_ms;
        let skipped = accepted.start().saturating_sub(earliest).max(0);
        let first = earliest.saturating_add(skipped.div_euclid(interval).saturating_mul(interval));
        let last = latest.min(*accepted.end());
        let limit = self.context.limits.samples;
        let mut samples = Vec::new();
        let mut t = first;
        while t < last {
            if samples.len() >= limit {
                return Err(DecodeError::TooManySamples { limit });
            }
            if accepted.contains(&t) {
                samples.push(Sample { t, v: 1.0 });
            }
            t = t.saturating_add(interval);
        }
        if accepted.contains(&latest) {
            samples.push(Sample { t: latest, v: 1.0 });
        }
        Ok(samples)
    }
}
