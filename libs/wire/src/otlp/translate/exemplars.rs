//! Exemplars of a data point.
//!
//! **Source**: Prometheus `prometheusremotewrite/helper.go` `getPromExemplars`.

use std::cmp::Ordering;
use std::ops::Range;

use super::super::OtlpError;
use super::super::point::millis;
use super::super::value::{self, Attribute};
use crate::protobuf::{BYTES, FIXED64, Reader};
use crate::remote_write::{RawExemplar, RawLabel};
use crate::strings::Strings;

/// Most characters of an exemplar's labels; with more, only trace and span are kept.
const RUNES_MAX: usize = 128;
const TRACE_ID: &[u8] = b"trace_id";
const SPAN_ID: &[u8] = b"span_id";

#[derive(Debug, Default)]
pub(super) struct Exemplars<'a> {
    all: Vec<RawExemplar>,
    labels: Vec<RawLabel<'a>>,
    attributes: Vec<Attribute<'a>>,
}

impl<'a> Exemplars<'a> {
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.labels.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn labels(&self) -> &[RawLabel<'a>] {
        &self.labels
    }

    pub(super) fn get(&self, range: Range<usize>) -> &[RawExemplar] {
        self.all.get(range).unwrap_or_default()
    }

    /// The end of those from `first` on that a bucket with this bound holds: senders order them as buckets.
    pub(super) fn up_to(&self, bound: f64, first: usize) -> usize {
        // What is no number exceeds no bound.
        let exceeds = |v: f64| v.partial_cmp(&bound) == Some(Ordering::Greater);
        let held = self.all.iter().skip(first).take_while(|e| !exceeds(e.v));
        first + held.count()
    }

    /// Reads exemplars; those without a time are of `t`, those without a value are passed over.
    pub(super) fn read(
        &mut self,
        sent: &[Reader<'a>],
        t: i64,
        strings: &'a Strings,
    ) -> Result<(), OtlpError> {
        for exemplar in sent {
            self.read_one(*exemplar, t, strings)?;
        }
        Ok(())
    }

    fn read_one(&mut self, mut m: Reader<'a>, t: i64, strings: &'a Strings) -> Result<(), OtlpError> {
        self.attributes.clear();
        let (mut time, mut v): (u64, Option<f64>) = (0, None);
        let (mut span, mut trace): (&[u8], &[u8]) = (&[], &[]);
        while !m.done() {
            let tag = m.tag()?;
            match tag.field {
                2 | 3 | 6 => tag.expect(FIXED64)?,
                4 | 5 | 7 => tag.expect(BYTES)?,
                _ => {}
            }
            match tag.field {
                2 => time = m.fixed64()?,
                3 => v = Some(m.double()?),
                6 => v = Some(m.fixed64()?.cast_signed() as f64),
                4 => span = m.bytes()?,
                5 => trace = m.bytes()?,
                7 => value::collect(m.message()?, &mut self.attributes)?,
                _ => m.skip(tag)?,
            }
        }
        let Some(v) = v else { return Ok(()) };
        let first = self.labels.len();
        for (name, id) in [(SPAN_ID, span), (TRACE_ID, trace)] {
            if id.iter().any(|b| *b != 0) {
                self.labels.push((name, strings.add(hex(id).as_bytes())?));
            }
        }
        let ids = self.labels.len();
        // A label has one value: an id stays before an attribute of its name, of several attributes the first.
        self.attributes.sort_by_key(|(key, _)| *key);
        self.attributes.dedup_by_key(|(key, _)| *key);
        for &(key, value) in &self.attributes {
            let own_ids = self.labels.get(first..ids).unwrap_or_default();
            if own_ids.iter().all(|(name, _)| *name != key) {
                self.labels.push((key, value::text(value, strings)?));
            }
        }
        let own = self.labels.get(first..).unwrap_or_default();
        let runes: usize = own.iter().map(|(name, value)| runes(name) + runes(value)).sum();
        if runes > RUNES_MAX {
            self.labels.truncate(ids);
        }
        if let Some(own) = self.labels.get_mut(first..) {
            own.sort_by_key(|(name, _)| *name);
        }
        let own = millis(time);
        let t = if own == 0 { t } else { own };
        let labels = first..self.labels.len();
        self.all.push(RawExemplar { t, v, labels });
        Ok(())
    }
}

fn runes(text: &[u8]) -> usize {
    // Every byte that does not continue a character begins one.
    text.iter().filter(|b| **b & 0xc0 != 0x80).count()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}
