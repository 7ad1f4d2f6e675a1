//! Influx' line protocol, read in place.
//!
//! Each field of a line becomes a series named `<measurement>_<field>`, a field called `value` like any other, as in
//! `VictoriaMetrics`; tags become its labels. Booleans are 1 and 0. Strings are no samples and are passed over, unless
//! they hold a number. A line that cannot be read is left out and told of, as by `InfluxDB`. **Source**: `InfluxDB`'s line protocol reference; `VictoriaMetrics` `lib/protoparser/influx`.

use std::collections::HashMap;

use koios_model::Sample;

use crate::remote_write::{DecodeLimits, RawLabel, RawSeries, Sink};
use crate::strings::{Full, Strings};

const NAME: &[u8] = b"__name__";

/// The unit of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Nanoseconds.
    #[default]
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Minutes.
    Minutes,
    /// Hours.
    Hours,
}

impl Precision {
    /// From the parameter `precision`.
    pub fn from_parameter(text: &str) -> Option<Self> {
        match text {
            "" | "n" | "ns" => Some(Self::Nanoseconds),
            "u" | "us" | "µ" => Some(Self::Microseconds),
            "ms" => Some(Self::Milliseconds),
            "s" => Some(Self::Seconds),
            "m" => Some(Self::Minutes),
            "h" => Some(Self::Hours),
            _ => None,
        }
    }

    fn millis(self, t: i64) -> i64 {
        match self {
            Self::Nanoseconds => t.div_euclid(1_000_000),
            Self::Microseconds => t.div_euclid(1_000),
            Self::Milliseconds => t,
            Self::Seconds => t.saturating_mul(1_000),
            Self::Minutes => t.saturating_mul(60_000),
            Self::Hours => t.saturating_mul(3_600_000),
        }
    }
}

/// A line that is no line protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid line protocol at line {line}: {reason}")]
pub struct LineFault {
    /// Its number, from 1.
    pub line: usize,
    /// What was expected.
    pub reason: String,
}

/// What of a text could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many lines.
    pub lines: u64,
    /// The first of them.
    pub first: Option<LineFault>,
}

/// Why a text is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InfluxError {
    /// More samples than allowed.
    #[error(
        "too many samples in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-samples-per-request"
    )]
    TooManySamples {
        /// The limit.
        limit: usize,
    },
    /// Names and values take more than they may when written out.
    #[error(
        "names and tag values of the request take more than {limit} bytes when written out: send smaller batches or raise \
         limits.max-request-bytes"
    )]
    Strings {
        /// The limit.
        limit: usize,
    },
}

/// What to know of a text beside what it says.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Takes what is not in the text as it is meant.
    pub strings: &'a Strings,
    /// The unit of times.
    pub precision: Precision,
    /// The time of lines without one, milliseconds.
    pub now_ms: i64,
    /// Bounds of the text.
    pub limits: DecodeLimits,
}

/// Reads a text: all lines but those that cannot be read.
///
/// # Errors
/// [`InfluxError`] when the text exceeds the limits. The sink may have been handed series before that; its owner must throw
/// them away.
pub fn decode<'a>(
    text: &'a [u8],
    context: Context<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<Report, InfluxError> {
    let mut decoder = Decoder::new(context);
    let mut report = Report::default();
    let mut opened = OpenedQuotes::default();
    let mut cursor = Cursor(text);
    while !cursor.0.is_empty() {
        let line = Cursor(cursor.0);
        match decoder.line(&mut cursor, sink) {
            Ok(()) => {}
            Err(Stop::Reason(reason)) => {
                report.lines += 1;
                report.first.get_or_insert_with(|| {
                    let read = text.len() - cursor.0.len();
                    let before = text.get(..read).unwrap_or_default();
                    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
                    LineFault { line, reason }
                });
                cursor.skip_line();
                if let Some(rest) = line.after_line(&mut opened) {
                    cursor.0 = rest
                        .get(rest.len().saturating_sub(cursor.0.len())..)
                        .unwrap_or(rest);
                }
            }
            Err(Stop::Full(limit)) => return Err(InfluxError::Strings { limit }),
            Err(Stop::TooMany) => {
                let limit = decoder.context.limits.samples;
                return Err(InfluxError::TooManySamples { limit });
            }
        }
    }
    Ok(report)
}

enum Stop {
    Reason(String),
    TooMany,
    /// With how many bytes there was room for.
    Full(usize),
}

impl From<Full> for Stop {
    fn from(full: Full) -> Self {
        Self::Full(full.limit)
    }
}

fn expected(wanted: &str, got: &[u8]) -> Stop {
    const SHOWN_CHARS: usize = 40;
    let begin = got.get(..SHOWN_CHARS * 4).unwrap_or(got);
    let begin: String = String::from_utf8_lossy(begin).chars().take(SHOWN_CHARS).collect();
    Stop::Reason(match begin.as_str() {
        "" => format!("expected {wanted}, got the end of the line"),
        begin => format!("expected {wanted}, got {begin:?}"),
    })
}

struct Decoder<'a> {
    context: Context<'a>,
    /// Numbers of the measurements, which a line has once and which may be long.
    measurements: HashMap<&'a [u8], usize>,
    /// Metric names by measurement and field, as written.
    names: HashMap<(usize, &'a [u8]), &'a [u8]>,
    /// Label names by tag keys that are none.
    label_names: HashMap<&'a [u8], &'a [u8]>,
    /// Labels of the line; the first is the metric's name.
    tags: Vec<RawLabel<'a>>,
    tag_count: usize,
    /// Fields of the line with a number.
    fields: Vec<(&'a [u8], f64)>,
    samples: usize,
}

impl<'a> Decoder<'a> {
    fn new(context: Context<'a>) -> Self {
        Self {
            context,
            measurements: HashMap::new(),
            names: HashMap::new(),
            label_names: HashMap::new(),
            tags: vec![(NAME, &[])],
            tag_count: 1,
            fields: Vec::new(),
            samples: 0,
        }
    }

    /// One line, with its end. Strings may hold line breaks.
    fn line(&mut self, cursor: &mut Cursor<'a>, sink: &mut impl Sink<'a>) -> Result<(), Stop> {
        cursor.skip_blanks();
        if cursor.end_of_line() {
            return Ok(());
        }
        if cursor.peek() == Some(b'#') {
            cursor.skip_line();
            return Ok(());
        }
        let measurement = cursor.until(b", ");
        if measurement.is_empty() {
            return Err(expected("a measurement", cursor.shown()));
        }
        self.tags.truncate(1);
        self.tag_count = 1;
        while cursor.accept(b',') {
            self.tag(cursor)?;
        }
        if !cursor.accept(b' ') {
            return Err(expected("a space and fields", cursor.shown()));
        }
        cursor.skip_blanks();
        self.fields.clear();
        loop {
            self.field(cursor)?;
            if !cursor.accept(b',') {
                break;
            }
        }
        let t = self.time(cursor)?;
        self.emit(measurement, t, sink)
    }

    fn tag(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Stop> {
        let key = cursor.until(b"=, ");
        if !cursor.accept(b'=') {
            return Err(expected("\"=\" after a tag's key", cursor.shown()));
        }
        let value = cursor.until(b", ");
        if key.is_empty() || value.is_empty() {
            return Ok(());
        }
        self.tag_count += 1;
        if self.tags.len() <= self.context.limits.labels_per_series {
            let name = self.label_name(key)?;
            let value = unescaped(value, self.context.strings)?;
            self.tags.push((name, value));
        }
        Ok(())
    }

    fn field(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Stop> {
        let key = cursor.until(b"=, ");
        if key.is_empty() {
            return Err(expected("a field's key", cursor.shown()));
        }
        if !cursor.accept(b'=') {
            return Err(expected("\"=\" after a field's key", cursor.shown()));
        }
        let v = if cursor.peek() == Some(b'"') {
            let text = cursor
                .quoted()
                .ok_or_else(|| expected("a string that ends with a quote", cursor.shown()))?;
            number(text)
        } else {
            let text = cursor.until(b", ");
            Some(value(text).ok_or_else(|| expected("a number, true, false or a string", text))?)
        };
        if let Some(v) = v {
            self.samples += 1;
            if self.samples > self.context.limits.samples {
                return Err(Stop::TooMany);
            }
            self.fields.push((key, v));
        }
        Ok(())
    }

    /// The time of the line, and its end.
    fn time(&self, cursor: &mut Cursor<'a>) -> Result<i64, Stop> {
        cursor.skip_blanks();
        if cursor.end_of_line() {
            return Ok(self.context.now_ms);
        }
        let text = cursor.until(b" ");
        let t = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let t = t.ok_or_else(|| expected("a time or the end of the line", text))?;
        cursor.skip_blanks();
        if !cursor.end_of_line() {
            return Err(expected("the end of the line", cursor.shown()));
        }
        Ok(self.context.precision.millis(t))
    }

    fn emit(&mut self, measurement: &'a [u8], t: i64, sink: &mut impl Sink<'a>) -> Result<(), Stop> {
        // Nothing is kept of a line without samples, on which there is no limit.
        if self.fields.is_empty() {
            return Ok(());
        }
        let number = self.measurements.len();
        let number = *self.measurements.entry(measurement).or_insert(number);
        for i in 0..self.fields.len() {
            let Some(&(field, v)) = self.fields.get(i).filter(|_| !sink.is_over()) else {
                break;
            };
            let name = self.metric_name((measurement, number), field)?;
            if let Some(first) = self.tags.first_mut() {
                first.1 = name;
            }
            sink.series(RawSeries {
                labels: &self.tags,
                label_count: self.tag_count,
                samples: &[Sample { t, v }],
                ..RawSeries::default()
            });
        }
        Ok(())
    }

    fn metric_name(
        &mut self,
        (measurement, number): (&'a [u8], usize),
        field: &'a [u8],
    ) -> Result<&'a [u8], Stop> {
        if let Some(known) = self.names.get(&(number, field)) {
            return Ok(known);
        }
        let strings = self.context.strings;
        let (of, part) = (unescaped(measurement, strings)?, unescaped(field, strings)?);
        let name = strings.add(&sanitized(&[of, part].join(&b'_'), true))?;
        self.names.insert((number, field), name);
        Ok(name)
    }

    fn label_name(&mut self, key: &'a [u8]) -> Result<&'a [u8], Stop> {
        let plain = key.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        if plain && !key.first().is_some_and(u8::is_ascii_digit) {
            return Ok(key);
        }
        if let Some(known) = self.label_names.get(key) {
            return Ok(known);
        }
        let strings = self.context.strings;
        let name = strings.add(&sanitized(unescaped(key, strings)?, false))?;
        self.label_names.insert(key, name);
        Ok(name)
    }
}

/// A name that needs no quotes: whatever else becomes `_`.
fn sanitized(name: &[u8], colons: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 1);
    if name.first().is_some_and(u8::is_ascii_digit) {
        out.push(b'_');
    }
    out.extend(
        String::from_utf8_lossy(name)
            .chars()
            .map(|c| match u8::try_from(c) {
                Ok(b) if b.is_ascii_alphanumeric() || colons && b == b':' => b,
                _ => b'_',
            }),
    );
    out
}

/// What a name or a tag's value means: a backslash before what separates is not part of it.
fn unescaped<'a>(raw: &'a [u8], strings: &'a Strings) -> Result<&'a [u8], Full> {
    if !raw.contains(&b'\\') {
        return Ok(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        match bytes.next() {
            Some(escaped @ (b' ' | b',' | b'=' | b'\\')) => out.push(*escaped),
            Some(&other) => out.extend_from_slice(&[b'\\', other]),
            None => out.push(b'\\'),
        }
    }
    strings.add(&out)
}

fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn value(text: &[u8]) -> Option<f64> {
    match text {
        b"t" | b"T" | b"true" | b"True" | b"TRUE" => return Some(1.0),
        b"f" | b"F" | b"false" | b"False" | b"FALSE" => return Some(0.0),
        _ => {}
    }
    match text.split_last() {
        Some((b'i', digits)) => {
            let n: i64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
            Some(n as f64)
        }
        Some((b'u', digits)) => {
            let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
            Some(n as f64)
        }
        _ => number(text),
    }
}

/// Quotes of a text by their distance from its end, a bit for each.
#[derive(Default)]
struct OpenedQuotes(Vec<u64>);

impl OpenedQuotes {
    /// Tells whether it is new.
    fn insert(&mut self, distance: usize) -> bool {
        let (at, bit) = (distance / 64, 1 << (distance % 64));
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        let Some(word) = self.0.get_mut(at) else {
            return true;
        };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

/// What is left of the text.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn skip(&mut self, bytes: usize) {
        self.0 = self.0.get(bytes..).unwrap_or_default();
    }

    fn accept(&mut self, wanted: u8) -> bool {
        let next = self.peek() == Some(wanted);
        if next {
            self.skip(1);
        }
        next
    }

    fn skip_blanks(&mut self) {
        while matches!(self.0, [b' ' | b'\t', ..]) {
            self.skip(1);
        }
    }

    fn skip_line(&mut self) {
        let end = self.0.iter().position(|b| *b == b'\n');
        self.skip(end.map_or(self.0.len(), |end| end + 1));
    }

    /// What comes after the line and the strings of its fields, which may hold line breaks; none when a string does not end.
    ///
    /// `opened` are the quotes that opened strings of bad lines before. Reading goes on after what a line turned out to be,
    /// so that those which are met again led to a string without an end, and do so again: however many lines are bad, the
    /// text is gone through a few times at most.
    fn after_line(&self, opened: &mut OpenedQuotes) -> Option<&'a [u8]> {
        let (mut in_fields, mut in_string, mut before) = (false, false, b' ');
        let mut bytes = self.0.iter().enumerate();
        while let Some((at, &b)) = bytes.next() {
            match b {
                b'\n' if !in_string => return self.0.get(at + 1..),
                b'\\' if in_string || self.0.get(at + 1) != Some(&b'\n') => drop(bytes.next()),
                b'"' if in_string => in_string = false,
                b'"' if in_fields && before == b'=' => {
                    if !opened.insert(self.0.len() - at) {
                        return None;
                    }
                    in_string = true;
                }
                b' ' => in_fields = true,
                _ => {}
            }
            before = b;
        }
        (!in_string).then_some(&[])
    }

    /// Takes the end of the line, if it is next.
    fn end_of_line(&mut self) -> bool {
        let taken = match self.0 {
            [] => 0,
            [b'\n', ..] | [b'\r'] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => return false,
        };
        self.skip(taken);
        true
    }

    /// What is left of the line, for messages.
    fn shown(&self) -> &'a [u8] {
        let line = self.0.split(|b| *b == b'\n').next().unwrap_or_default();
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// Takes what comes before one of `stops`, or before the end of the line. A backslash hides what follows it.
    fn until(&mut self, stops: &[u8]) -> &'a [u8] {
        let mut hidden = false;
        let end = self.0.iter().position(|b| {
            if *b == b'\n' {
                return true;
            }
            let was_hidden = std::mem::take(&mut hidden);
            hidden = *b == b'\\' && !was_hidden;
            !was_hidden && stops.contains(b)
        });
        let end = end.unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        let ended = matches!(rest, [] | [b'\n', ..]);
        let taken = match taken.strip_suffix(b"\r") {
            Some(without) if ended => without,
            _ => taken,
        };
        self.skip(taken.len());
        taken
    }

    /// Takes a string with its quotes and gives what is between them; nothing is taken if it does not end.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        let text = self.0.strip_prefix(b"\"")?;
        let mut hidden = false;
        let len = text.iter().position(|b| {
            let was_hidden = std::mem::take(&mut hidden);
            hidden = *b == b'\\' && !was_hidden;
            *b == b'"' && !was_hidden
        })?;
        let (string, _) = text.split_at(len);
        self.skip(len + 2);
        Some(string)
    }
}

#[cfg(test)]
#[path = "influx_test.rs"]
mod tests;
