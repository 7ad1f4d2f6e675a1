//! Prometheus' text format and `OpenMetrics`, line by line, borrowed from the request like remote write.
//!
//! Strings with escapes are the only ones that are not in the request as they are meant: they are written out first
//! ([`Unescaped`]), one after the other, and taken in the same order while lines are read. Bounds of histograms and
//! quantiles of summaries are labels that clients write in several ways (`1`, `1.0`): they are kept in one, as a scrape
//! does.
//! **Source**: Prometheus `model/textparse/promparse.l`, `openmetricsparse.l`; the `OpenMetrics` specification.

use std::collections::HashMap;

use koios_model::Sample;

use crate::numbers::number_text;
use crate::remote_write::{DecodeLimits, RawExemplar, RawLabel, RawMetadata, RawSeries, Sink};
use crate::strings::Strings;

/// The name of the label that holds a metric's name.
const NAME: &[u8] = b"__name__";

/// Which text a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Times are milliseconds.
    Prometheus,
    /// Times are seconds; samples may have exemplars; it ends with `# EOF`.
    OpenMetrics,
}

/// Why text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A line that cannot be read.
    #[error("invalid exposition text at line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What was expected.
        reason: String,
    },
    /// It ends before it says so.
    #[error("invalid exposition text: it ends without # EOF")]
    Cut,
    /// More samples than allowed.
    #[error(
        "too many samples in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-samples-per-request"
    )]
    TooManySamples {
        /// The limit.
        limit: usize,
    },
    /// More metrics that something is said of than allowed.
    #[error(
        "too many metrics with metadata in request (limit: {limit}), which has more than {limit}: send smaller batches or \
         raise limits.max-series-per-request"
    )]
    TooManyMetrics {
        /// The limit.
        limit: usize,
    },
}

/// What the strings with escapes of a text mean.
#[derive(Debug, Default)]
pub struct Unescaped {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Unescaped {
    /// The most that those of a text may occupy: nothing without escapes; else as much as the text, and an end for each
    /// string with an escape.
    pub fn bytes_max(text: &[u8]) -> usize {
        match ends_max(text) {
            0 => 0,
            ends => text.len().saturating_add(ends.saturating_mul(size_of::<u32>())),
        }
    }

    /// Writes out the strings of a text that have escapes.
    pub fn of(text: &[u8], dialect: Dialect) -> Self {
        let mut all = Self::default();
        let ends_max = ends_max(text);
        if ends_max == 0 {
            return all;
        }
        let quotes_in_help = dialect == Dialect::OpenMetrics;
        all.bytes.reserve_exact(text.len());
        all.ends.reserve_exact(ends_max);
        for line in lines(text) {
            let mut line = Line::new(line);
            if line.accept(b'#') {
                if line.word() == b"HELP" {
                    line.skip_blanks();
                    // The name may be quoted; then the rest is text.
                    if let Some(quoted) = line.quoted() {
                        all.add(quoted, true);
                    } else {
                        line.word();
                    }
                    line.skip_blanks();
                    all.add(line.rest(), quotes_in_help);
                } else {
                    line.skip_blanks();
                    if let Some(quoted) = line.quoted() {
                        all.add(quoted, true);
                    }
                }
                continue;
            }
            while let Some(at) = line.rest().iter().position(|b| *b == b'"') {
                line.skip(at);
                match line.quoted() {
                    Some(quoted) => all.add(quoted, true),
                    None => break,
                }
            }
        }
        all
    }

    /// What it occupies.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val(self.ends.as_slice())
    }

    /// Writes out a string, if it has escapes. Quotes are escaped only between quotes; what is no escape stays.
    fn add(&mut self, raw: &[u8], quotes: bool) {
        if !raw.contains(&b'\\') {
            return;
        }
        let mut bytes = raw.iter();
        while let Some(&b) = bytes.next() {
            if b != b'\\' {
                self.bytes.push(b);
                continue;
            }
            match bytes.next() {
                Some(b'n') => self.bytes.push(b'\n'),
                Some(b'\\') => self.bytes.push(b'\\'),
                Some(b'"') if quotes => self.bytes.push(b'"'),
                Some(&other) => self.bytes.extend_from_slice(&[b'\\', other]),
                None => self.bytes.push(b'\\'),
            }
        }
        // Requests are far smaller than 4 GiB; what would be beyond reads as nothing.
        self.ends
            .push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }
}

/// Most strings with escapes that a text can have: each has a backslash, and four bytes at least with its quotes.
fn ends_max(text: &[u8]) -> usize {
    let backslashes = text.iter().filter(|b| **b == b'\\').count();
    backslashes.min(text.len().div_ceil(4))
}

/// Takes what was written out, in order.
struct Taken<'a> {
    from: &'a Unescaped,
    next: usize,
}

impl<'a> Taken<'a> {
    /// What a string means.
    fn meaning(&mut self, raw: &'a [u8]) -> &'a [u8] {
        if !raw.contains(&b'\\') {
            return raw;
        }
        let end = |i: usize| self.from.ends.get(i).map(|end| *end as usize);
        let start = self.next.checked_sub(1).map_or(Some(0), end);
        let meaning = start
            .zip(end(self.next))
            .and_then(|(start, end)| self.from.bytes.get(start..end));
        self.next += 1;
        meaning.unwrap_or(raw)
    }
}

/// What to know of a text beside what it says.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Its strings with escapes, written out.
    pub unescaped: &'a Unescaped,
    /// Takes what else is not in the text as it is meant.
    pub strings: &'a Strings,
    /// How it is written.
    pub dialect: Dialect,
    /// The time of samples without one, milliseconds.
    pub now_ms: i64,
    /// Bounds of the text.
    pub limits: DecodeLimits,
}

/// Reads a text.
///
/// # Errors
/// [`TextError`] names the first line that cannot be read. The sink may have been handed series before that; its owner
/// must throw them away.
pub fn decode<'a>(text: &'a [u8], context: Context<'a>, sink: &mut impl Sink<'a>) -> Result<(), TextError> {
    let Context { dialect, limits, .. } = context;
    let mut decoder = Decoder {
        dialect,
        now_ms: context.now_ms,
        limits,
        strings: Taken {
            from: context.unescaped,
            next: 0,
        },
        bounds: Bounds {
            strings: context.strings,
            known: HashMap::new(),
        },
        labels: Vec::new(),
        label_count: 0,
        exemplar_labels: Vec::new(),
        samples: 0,
        metrics: 0,
        family: RawMetadata::default(),
    };
    let mut ended = false;
    for (number, line) in lines(text).enumerate() {
        let read = match ended && !line.is_empty() {
            true => Err("there is text after # EOF".to_owned()),
            false => decoder.line(line, sink),
        };
        match read {
            Ok(Read::Line) => {}
            Ok(Read::End) => ended = true,
            Ok(Read::TooManySamples) => {
                return Err(TextError::TooManySamples {
                    limit: limits.samples,
                });
            }
            Ok(Read::TooManyMetrics) => return Err(TextError::TooManyMetrics { limit: limits.series }),
            Err(reason) => {
                let line = number + 1;
                return Err(TextError::Line { line, reason });
            }
        }
    }
    if dialect == Dialect::OpenMetrics && !ended {
        return Err(TextError::Cut);
    }
    decoder.end_family(sink);
    Ok(())
}

/// Whether a label of a family is a bound or a quantile, which scrapes write in one way.
fn is_number(kind: &str, label: &[u8]) -> bool {
    kind == "histogram" && label == b"le" || kind == "summary" && label == b"quantile"
}

/// Bounds and quantiles, by how they stand in the text.
struct Bounds<'a> {
    strings: &'a Strings,
    known: HashMap<&'a [u8], &'a [u8]>,
}

impl<'a> Bounds<'a> {
    /// A number as a scrape writes it; whatever is none, or finds no room any more, as it is.
    fn as_scraped(&mut self, raw: &'a [u8]) -> &'a [u8] {
        let strings = self.strings;
        self.known.entry(raw).or_insert_with(|| {
            let number = std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok());
            let written = number.map(number_text).filter(|text| text.as_bytes() != raw);
            let kept = written.and_then(|text| strings.add(text.as_bytes()).ok());
            kept.unwrap_or(raw)
        })
    }
}

/// What a line was.
enum Read {
    Line,
    End,
    TooManySamples,
    TooManyMetrics,
}

type Result<T, E = String> = std::result::Result<T, E>;

struct Decoder<'a> {
    dialect: Dialect,
    now_ms: i64,
    limits: DecodeLimits,
    strings: Taken<'a>,
    bounds: Bounds<'a>,
    labels: Vec<RawLabel<'a>>,
    label_count: usize,
    exemplar_labels: Vec<RawLabel<'a>>,
    samples: usize,
    metrics: usize,
    /// What was said of the current metric.
    family: RawMetadata<'a>,
}

impl<'a> Decoder<'a> {
    fn line(&mut self, text: &'a [u8], sink: &mut impl Sink<'a>) -> Result<Read> {
        let mut line = Line::new(text);
        if line.is_empty() {
            return Ok(Read::Line);
        }
        if line.accept(b'#') {
            return self.comment(line, sink);
        }
        self.samples += 1;
        if self.samples > self.limits.samples {
            return Ok(Read::TooManySamples);
        }
        self.labels.clear();
        self.label_count = 0;
        self.series(&mut line)?;
        let v = value(line.word())?;
        let t = match line.peek() {
            None => self.now_ms,
            Some(b'#') if self.dialect == Dialect::OpenMetrics => self.now_ms,
            Some(_) => self.time(line.word())?,
        };
        let mut exemplar = None;
        if self.dialect == Dialect::OpenMetrics && line.accept(b'#') {
            exemplar = Some(self.exemplar(&mut line, t)?);
        }
        if !line.is_empty() {
            return Err(format!(
                "expected the end of the line, got {}",
                shown(line.rest())
            ));
        }
        sink.series(RawSeries {
            labels: &self.labels,
            label_count: self.label_count,
            samples: &[Sample { t, v }],
            exemplars: exemplar.as_slice(),
            exemplar_labels: &self.exemplar_labels,
            ..RawSeries::default()
        });
        Ok(Read::Line)
    }

    /// A name, labels, or both.
    fn series(&mut self, line: &mut Line<'a>) -> Result<()> {
        let name = line.name(true);
        if !name.is_empty() {
            self.push((NAME, name));
        }
        if line.accept(b'{') {
            self.labels_of(line)?;
        } else if name.is_empty() {
            return Err(format!("expected a metric name, got {}", shown(line.rest())));
        }
        Ok(())
    }

    /// Labels up to the closing brace; a string without a value is the metric's name.
    fn labels_of(&mut self, line: &mut Line<'a>) -> Result<()> {
        while !line.accept(b'}') {
            let quoted = line.quoted();
            let name = match quoted {
                Some(raw) => self.strings.meaning(raw),
                None => line.name(false),
            };
            if name.is_empty() && quoted.is_none() {
                return Err(format!(
                    "expected a label name or \"}}\", got {}",
                    shown(line.rest())
                ));
            }
            if line.accept(b'=') {
                let raw = line.quoted().ok_or_else(|| {
                    format!(
                        "expected a quoted value of label {}, got {}",
                        shown(name),
                        shown(line.rest())
                    )
                })?;
                let mut value = self.strings.meaning(raw);
                if is_number(self.family.kind, name) {
                    value = self.bounds.as_scraped(value);
                }
                self.push((name, value));
            } else if quoted.is_some() {
                self.push((NAME, name));
            } else {
                return Err(format!(
                    "expected \"=\" after label {}, got {}",
                    shown(name),
                    shown(line.rest())
                ));
            }
            if !line.accept(b',') && line.peek() != Some(b'}') {
                return Err(format!("expected \",\" or \"}}\", got {}", shown(line.rest())));
            }
        }
        Ok(())
    }

    fn push(&mut self, label: RawLabel<'a>) {
        self.label_count += 1;
        if self.labels.len() < self.limits.labels_per_series {
            self.labels.push(label);
        }
    }

    fn time(&self, word: &[u8]) -> Result<i64> {
        let text = std::str::from_utf8(word).unwrap_or_default();
        let bad = || format!("expected a timestamp, got {}", shown(word));
        match self.dialect {
            Dialect::Prometheus => text.parse().map_err(|_| bad()),
            Dialect::OpenMetrics => {
                let seconds: f64 = text.parse().map_err(|_| bad())?;
                let ms = (seconds * 1000.0).round();
                let fits = ms.is_finite() && ms.abs() < i64::MAX as f64;
                fits.then_some(ms as i64).ok_or_else(bad)
            }
        }
    }

    /// Labels, a value and perhaps a time; without one it is that of its sample.
    fn exemplar(&mut self, line: &mut Line<'a>, sampled_at: i64) -> Result<RawExemplar> {
        if !line.accept(b'{') {
            return Err(format!(
                "expected the labels of an exemplar, got {}",
                shown(line.rest())
            ));
        }
        let (labels, count) = (std::mem::take(&mut self.labels), self.label_count);
        let read = self.labels_of(line);
        self.exemplar_labels = std::mem::replace(&mut self.labels, labels);
        self.label_count = count;
        read?;
        let v = value(line.word())?;
        let t = if line.is_empty() {
            sampled_at
        } else {
            self.time(line.word())?
        };
        let labels = 0..self.exemplar_labels.len();
        Ok(RawExemplar { t, v, labels })
    }

    /// `# HELP`, `# TYPE`, `# UNIT`, `# EOF`, or anything.
    fn comment(&mut self, mut line: Line<'a>, sink: &mut impl Sink<'a>) -> Result<Read> {
        let keyword = line.word();
        if self.dialect == Dialect::OpenMetrics && keyword == b"EOF" {
            return Ok(Read::End);
        }
        if !matches!(keyword, b"HELP" | b"TYPE" | b"UNIT") {
            // Only what looks like a string was written out.
            line.skip_blanks();
            if let Some(raw) = line.quoted() {
                self.strings.meaning(raw);
            }
            return Ok(Read::Line);
        }
        line.skip_blanks();
        let metric = match line.quoted() {
            Some(raw) => self.strings.meaning(raw),
            None => line.word(),
        };
        if metric != self.family.metric {
            self.end_family(sink);
            self.family.metric = metric;
            self.metrics += 1;
            if self.metrics > self.limits.series {
                return Ok(Read::TooManyMetrics);
            }
        }
        line.skip_blanks();
        let rest = line.rest();
        match keyword {
            b"HELP" => self.family.help = self.strings.meaning(rest),
            b"UNIT" => self.family.unit = rest.trim_ascii_end(),
            _ => self.family.kind = kind(rest.trim_ascii_end())?,
        }
        Ok(Read::Line)
    }

    fn end_family(&mut self, sink: &mut impl Sink<'a>) {
        let family = std::mem::take(&mut self.family);
        if !family.metric.is_empty() {
            let kind = if family.kind.is_empty() {
                "unknown"
            } else {
                family.kind
            };
            sink.metadata(RawMetadata { kind, ..family });
        }
    }
}

fn kind(word: &[u8]) -> Result<&'static str> {
    const KINDS: [&str; 8] = [
        "counter",
        "gauge",
        "histogram",
        "gaugehistogram",
        "summary",
        "info",
        "stateset",
        "unknown",
    ];
    if word == b"untyped" {
        return Ok("unknown");
    }
    let kind = KINDS.into_iter().find(|kind| kind.as_bytes() == word);
    kind.ok_or_else(|| {
        format!(
            "{} is no metric type: use one of untyped, {}",
            shown(word),
            KINDS.join(", ")
        )
    })
}

fn value(word: &[u8]) -> Result<f64> {
    let text = std::str::from_utf8(word).unwrap_or_default();
    let value: f64 = text.parse().map_err(|_| match word {
        b"" => "expected a value, got the end of the line".to_owned(),
        _ => format!("expected a value, got {}", shown(word)),
    })?;
    // A number that is too large would be infinite, which none that was counted or measured is.
    if value.is_infinite() && word.iter().any(u8::is_ascii_digit) {
        return Err(format!(
            "expected a value that a float can hold, got {}",
            shown(word)
        ));
    }
    Ok(value)
}

/// The beginning of some text, for messages.
fn shown(text: &[u8]) -> String {
    const SHOWN_CHARS: usize = 40;
    if text.is_empty() {
        return "the end of the line".to_owned();
    }
    // A character has four bytes at most; lines may have megabytes.
    let begin = text.get(..SHOWN_CHARS * 4).unwrap_or(text);
    let begin: String = String::from_utf8_lossy(begin).chars().take(SHOWN_CHARS).collect();
    let more = if begin.len() < text.len() { "…" } else { "" };
    format!("{begin:?}{more}")
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// What is left of a line.
struct Line<'a>(&'a [u8]);

impl<'a> Line<'a> {
    fn new(text: &'a [u8]) -> Self {
        let mut line = Self(text);
        line.skip_blanks();
        line
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn skip(&mut self, bytes: usize) {
        self.0 = self.0.get(bytes..).unwrap_or_default();
    }

    fn skip_blanks(&mut self) {
        let blanks = self.0.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        self.skip(blanks);
    }

    /// Takes a byte and the blanks behind it, if it is next.
    fn accept(&mut self, wanted: u8) -> bool {
        if self.peek() != Some(wanted) {
            return false;
        }
        self.skip(1);
        self.skip_blanks();
        true
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, _) = self.0.split_at(len.min(self.0.len()));
        self.skip(len);
        self.skip_blanks();
        taken
    }

    /// What comes before the next blank.
    fn word(&mut self) -> &'a [u8] {
        let len = self.0.iter().take_while(|b| !matches!(b, b' ' | b'\t')).count();
        self.take(len)
    }

    /// A name without quotes; of a metric it may have colons.
    fn name(&mut self, colons: bool) -> &'a [u8] {
        let begins = |b: &u8| b.is_ascii_alphabetic() || *b == b'_' || colons && *b == b':';
        if !self.0.first().is_some_and(begins) {
            return &[];
        }
        let len = self
            .0
            .iter()
            .take_while(|b| begins(b) || b.is_ascii_digit())
            .count();
        self.take(len)
    }

    /// What stands between quotes, as it is written; nothing is taken if none do.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        let text = self.0.strip_prefix(b"\"")?;
        let mut escaped = false;
        let len = text.iter().position(|b| match (escaped, b) {
            (true, _) => {
                escaped = false;
                false
            }
            (false, b'\\') => {
                escaped = true;
                false
            }
            (false, b) => *b == b'"',
        })?;
        let (string, _) = text.split_at(len);
        self.skip(len + 2);
        self.skip_blanks();
        Some(string)
    }
}

#[cfg(test)]
#[path = "exposition_test.rs"]
mod tests;
