//! From attributes to labels.
//!
//! **Source**: Prometheus `storage/remote/otlptranslator/prometheusremotewrite/helper.go` `createAttributes`,
//! `metrics_to_prw.go` `setResourceContext`, `setScopeContext`.

use std::collections::HashMap;

use super::names;
use super::settings::Settings;
use super::value::{self, Attribute};
use super::{OtlpError, PointFault};
use crate::protobuf::{BYTES, Reader};
use crate::remote_write::RawLabel;
use crate::strings::Strings;

/// Room for labels beyond those that a series may have, so that replaced ones need not be told from further ones.
const LABELS_SPARE: usize = 16;

pub(super) const SERVICE_NAMESPACE: &[u8] = b"service.namespace";
pub(super) const SERVICE_NAME: &[u8] = b"service.name";
pub(super) const SERVICE_INSTANCE: &[u8] = b"service.instance.id";

/// Ends the work on a request, or only on a data point.
#[derive(Debug)]
pub(super) enum Stop {
    Request(OtlpError),
    Point(PointFault),
}

impl<E: Into<OtlpError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Request(error.into())
    }
}

impl From<PointFault> for Stop {
    fn from(fault: PointFault) -> Self {
        Self::Point(fault)
    }
}

/// Labels by name; an empty value takes a label away.
#[derive(Clone, Debug)]
pub(super) struct LabelSet<'a> {
    labels: Vec<RawLabel<'a>>,
    max: usize,
    /// Labels that were left out for their number.
    left_out: usize,
}

impl<'a> LabelSet<'a> {
    pub(super) fn new(labels_per_series: usize) -> Self {
        Self {
            labels: Vec::new(),
            max: labels_per_series.saturating_add(LABELS_SPARE),
            left_out: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.labels.clear();
        self.left_out = 0;
    }

    pub(super) fn copy_from(&mut self, other: &Self) {
        self.labels.clone_from(&other.labels);
        self.left_out = other.left_out;
    }

    pub(super) fn labels(&self) -> &[RawLabel<'a>] {
        &self.labels
    }

    pub(super) fn count(&self) -> usize {
        self.labels.len() + self.left_out
    }

    pub(super) fn get(&self, name: &[u8]) -> &'a [u8] {
        let found = self.labels.iter().find(|(known, _)| *known == name);
        found.map_or(&[][..], |(_, value)| *value)
    }

    pub(super) fn set(&mut self, name: &'a [u8], value: &'a [u8]) {
        match self.labels.iter().position(|(known, _)| *known == name) {
            Some(at) if value.is_empty() => drop(self.labels.remove(at)),
            Some(at) => {
                if let Some(label) = self.labels.get_mut(at) {
                    label.1 = value;
                }
            }
            None if !value.is_empty() => self.push(name, value),
            None => {}
        }
    }

    /// Adds a label, whatever others there are.
    fn push(&mut self, name: &'a [u8], value: &'a [u8]) {
        if self.labels.len() < self.max {
            self.labels.push((name, value));
        } else {
            self.left_out += 1;
        }
    }
}

/// Label names that were made already, and numbers in label values.
#[derive(Debug)]
pub(super) struct Namer<'a> {
    pub(super) settings: &'a Settings,
    pub(super) strings: &'a Strings,
    labels: HashMap<&'a [u8], &'a [u8]>,
    numbers: HashMap<u64, &'a [u8]>,
}

impl<'a> Namer<'a> {
    pub(super) fn new(settings: &'a Settings, strings: &'a Strings) -> Self {
        Self {
            settings,
            strings,
            labels: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// The name of the label for an attribute.
    pub(super) fn label(&mut self, name: &'a [u8]) -> Result<&'a [u8], Stop> {
        if names::is_label(name, self.settings) {
            return Ok(name);
        }
        if let Some(known) = self.labels.get(name) {
            return Ok(known);
        }
        let made = self.strings.add(&names::label(name, self.settings)?)?;
        self.labels.insert(name, made);
        Ok(made)
    }

    /// A bound or a quantile as a label's value.
    pub(super) fn number(&mut self, v: f64) -> Result<&'a [u8], OtlpError> {
        if let Some(known) = self.numbers.get(&v.to_bits()) {
            return Ok(known);
        }
        let text = match v {
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            v => v.to_string(),
        };
        let made = self.strings.add(text.as_bytes())?;
        self.numbers.insert(v.to_bits(), made);
        Ok(made)
    }

    /// Labels of attributes, in the order of their names. Those that get the same name share it: their values are joined.
    pub(super) fn attributes(
        &mut self,
        attributes: &mut [Attribute<'a>],
        ignored: &[&[u8]],
        out: &mut LabelSet<'a>,
    ) -> Result<(), Stop> {
        attributes.sort_by_key(|(key, _)| *key);
        for &(key, value) in attributes.iter() {
            if ignored.contains(&key) {
                continue;
            }
            let value = value::text(value, self.strings)?;
            if !self.settings.translation_strategy.escapes() {
                out.push(key, value);
                continue;
            }
            let name = self.label(key)?;
            let joined = match out.get(name) {
                b"" => value,
                before => self.strings.add(&[before, value].join(&b';'))?,
            };
            out.set(name, joined);
        }
        Ok(())
    }
}

/// What a resource adds to all its series.
#[derive(Debug)]
pub(super) struct ResourceLabels<'a> {
    pub(super) attributes: Vec<Attribute<'a>>,
    job: &'a [u8],
    instance: &'a [u8],
    promoted: LabelSet<'a>,
}

impl<'a> ResourceLabels<'a> {
    pub(super) fn new(
        attributes: Vec<Attribute<'a>>,
        namer: &mut Namer<'a>,
        labels_per_series: usize,
    ) -> Result<Self, Stop> {
        let strings = namer.strings;
        let get = |wanted: &[u8]| {
            let found = attributes.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, value)| value::text(*value, strings)).transpose()
        };
        let (namespace, name) = (get(SERVICE_NAMESPACE)?, get(SERVICE_NAME)?);
        let job = match (namespace, name) {
            (Some(namespace), Some(name)) => strings.add(&[namespace, name].join(&b'/'))?,
            (None, Some(name)) => name,
            (_, None) => &[],
        };
        let instance = get(SERVICE_INSTANCE)?.unwrap_or_default();
        let mut promoted = LabelSet::new(labels_per_series);
        for &(key, value) in &attributes {
            if namer.settings.promotes(key) {
                let value = value::text(value, strings)?;
                promoted.set(namer.label(key)?, value);
            }
        }
        Ok(Self {
            attributes,
            job,
            instance,
            promoted,
        })
    }

    pub(super) fn has(&self, attribute: &[u8]) -> bool {
        self.attributes.iter().any(|(key, _)| *key == attribute)
    }

    /// Adds those that a series does not have already.
    pub(super) fn add_promoted(&self, out: &mut LabelSet<'a>) {
        for &(name, value) in self.promoted.labels() {
            if out.get(name).is_empty() {
                out.set(name, value);
            }
        }
        out.left_out += self.promoted.left_out;
    }

    /// Sets `job` and `instance`, as far as the resource says.
    pub(super) fn set_target(&self, out: &mut LabelSet<'a>) {
        for (name, value) in [(&b"job"[..], self.job), (b"instance", self.instance)] {
            if !value.is_empty() {
                out.set(name, value);
            }
        }
    }
}

/// What a scope adds to all its series, where it is promoted.
#[derive(Debug)]
pub(super) struct ScopeLabels<'a> {
    attributes: LabelSet<'a>,
    name: &'a [u8],
    version: &'a [u8],
    schema_url: &'a [u8],
}

impl<'a> ScopeLabels<'a> {
    /// Nothing for a scope without a name.
    pub(super) fn read(
        scope: Option<Reader<'a>>,
        schema_url: &'a [u8],
        namer: &mut Namer<'a>,
        labels_per_series: usize,
    ) -> Result<Option<Self>, Stop> {
        let (mut name, mut version): (&[u8], &[u8]) = (&[], &[]);
        let mut attributes = Vec::new();
        let Some(mut scope) = scope else {
            return Ok(None);
        };
        while !scope.done() {
            let tag = scope.tag()?;
            match tag.field {
                1 | 2 => {
                    tag.expect(BYTES)?;
                    let text = scope.bytes()?;
                    *(if tag.field == 1 { &mut name } else { &mut version }) = text;
                }
                3 => {
                    tag.expect(BYTES)?;
                    value::collect(scope.message()?, &mut attributes)?;
                }
                _ => scope.skip(tag)?,
            }
        }
        if name.is_empty() || !namer.settings.promote_scope_metadata {
            return Ok(None);
        }
        let mut labels = LabelSet::new(labels_per_series);
        for (key, value) in attributes {
            let prefixed = namer.strings.add(&[b"otel_scope_", key].concat())?;
            let value = value::text(value, namer.strings)?;
            labels.set(namer.label(prefixed)?, value);
        }
        Ok(Some(Self {
            attributes: labels,
            name,
            version,
            schema_url,
        }))
    }

    pub(super) fn set(&self, out: &mut LabelSet<'a>) {
        for &(name, value) in self.attributes.labels() {
            out.set(name, value);
        }
        out.left_out += self.attributes.left_out;
        out.set(b"otel_scope_name", self.name);
        out.set(b"otel_scope_version", self.version);
        out.set(b"otel_scope_schema_url", self.schema_url);
    }
}
