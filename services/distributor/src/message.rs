//! From a request's body to what is taken of it, on a CPU thread.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use koios_model::{METRIC_NAME, Sample};
use koios_wire::Strings;
use koios_wire::compression::Compression;
use koios_wire::exposition::{self, Dialect, Unescaped};
use koios_wire::families;
use koios_wire::influx::{self, Precision};
use koios_wire::otlp::{self, TenantDeltas};
use koios_wire::remote_write::{DecodeLimits, RawSeries, Sink, Version, decode};

use crate::Error;
use crate::admission::HeldBytes;
use crate::extra_labels::{WithDefault, WithLabels};
use crate::intake::{Intake, Part, Rules, label_bytes_max};
use crate::known_series::TenantKnown;
use crate::left_out::SentMessage;
use crate::pairs::{Deduplicated, Gate};
use crate::taken::Taken;

/// Largest decompression buffer that a thread keeps for its next request.
const BUFFER_BYTES_MAX: usize = 4 << 20;

thread_local! {
    /// Decompressing into memory that is mapped already saves as much as decompressing costs.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a message is.
pub(crate) enum Format {
    RemoteWrite(Version),
    Exposition(Exposition),
    Otlp(otlp::Encoding),
    Influx(LineProtocol),
}

/// How metrics are exposed.
#[derive(Clone, Copy)]
pub(crate) enum Exposed {
    Text(Dialect),
    /// In protobuf, each family after its length.
    Families,
}

/// What to know of exposed metrics beside what they say.
pub(crate) struct Exposition {
    pub(crate) exposed: Exposed,
    /// The time of samples that come without one.
    pub(crate) now_ms: i64,
    /// What all series get, over labels of the same names.
    pub(crate) labels: Vec<(String, String)>,
    /// The name and value of a series to add.
    pub(crate) push_time: Option<(&'static str, f64)>,
}

/// What to know of line protocol beside what it says.
pub(crate) struct LineProtocol {
    pub(crate) precision: Precision,
    /// The time of lines that come without one.
    pub(crate) now_ms: i64,
    /// The label `db` of series that have no such tag.
    pub(crate) database: Option<String>,
}

/// A message before it is decoded.
pub(crate) struct Message {
    pub(crate) known: Arc<TenantKnown>,
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    /// The tenant's totals, for formats that may bring deltas.
    pub(crate) deltas: Option<TenantDeltas>,
    /// Decides between the replicas of HA pairs; none where the tenant wants all of them.
    pub(crate) pairs: Option<Gate>,
    pub(crate) body: Bytes,
    pub(crate) held: HeldBytes,
}

impl Message {
    /// Decompresses, decodes, validates and routes. Gives the message back, in which labels may have been left.
    pub(crate) fn take_in(mut self, rules: &Rules) -> Result<(Taken, SentMessage, HeldBytes), Error> {
        let mut message = BUFFER.take();
        let taken = self.decode_into(rules, &mut message);
        if message.capacity() <= BUFFER_BYTES_MAX {
            BUFFER.set(message);
        }
        let sent = SentMessage {
            body: self.body,
            compression: self.compression,
            bytes_max: bytes_max(rules),
            seed: rules.seed,
        };
        let mut taken = taken?;
        taken.parts.values_mut().for_each(Part::finish);
        Ok((taken, sent, self.held))
    }

    fn decode_into(&mut self, rules: &Rules, message: &mut Vec<u8>) -> Result<Taken, Error> {
        let limits = &rules.limits;
        let bytes_max = bytes_max(rules);
        self.compression.decompress(&self.body, bytes_max, message)?;
        self.held.grow(message.len() as u64)?;
        if !matches!(self.format, Format::RemoteWrite(_)) {
            // Labels are left in messages of remote write alone.
            let body = std::mem::take(&mut self.body);
            self.held.shrink(body.len() as u64);
        }
        let decode_limits = DecodeLimits {
            series: limits.max_series_per_request,
            samples: limits.max_samples_per_request,
            // One more comes, and is taken off, with series of HA pairs.
            labels_per_series: limits.max_labels_per_series + usize::from(self.pairs.is_some()),
        };
        let strings_max = usize::try_from(label_bytes_max(limits)).unwrap_or(usize::MAX);
        let pairs = self.pairs.as_ref();
        let known = self.known.read();
        // With what is held beside its columns.
        let (mut taken, kept_bytes) = match &self.format {
            Format::RemoteWrite(version) => {
                let mut intake = Intake::new(rules, &known).within(&mut self.held, message);
                let mut sink = Deduplicated::new(&mut intake, pairs);
                let decoded = decode(*version, message, decode_limits, &mut sink);
                let ((), pairs) = sink.finish_after(decoded)?;
                (intake.finish().with_pairs(pairs), 0)
            }
            Format::Exposition(metrics) => {
                let unescaped = match metrics.exposed {
                    Exposed::Text(dialect) => {
                        self.held.grow(Unescaped::bytes_max(message) as u64)?;
                        Unescaped::of(message, dialect)
                    }
                    Exposed::Families => {
                        let limit = families::bytes_max(message).min(bytes_max);
                        self.held.grow(limit as u64)?;
                        *message = families::to_remote_write(message, metrics.now_ms, limit)?;
                        Unescaped::default()
                    }
                };
                let mut intake = Intake::new(rules, &known).within(&mut self.held, message);
                let mut sink = Deduplicated::new(&mut intake, pairs);
                let strings = Strings::new(strings_max);
                let decoded = metrics.take_in(message, (&unescaped, &strings), decode_limits, &mut sink);
                let ((), pairs) = sink.finish_after(decoded)?;
                (intake.finish().with_pairs(pairs), strings.bytes())
            }
            Format::Otlp(encoding) => {
                if *encoding == otlp::Encoding::Json {
                    let limit = otlp::json::bytes_max(message).min(bytes_max);
                    self.held.grow(limit as u64)?;
                    *message = otlp::json::to_protobuf(message, limit)?;
                }
                let strings = Strings::new(strings_max);
                let context = otlp::Context {
                    settings: &limits.otlp,
                    strings: &strings,
                    limits: decode_limits,
                    label_bytes: limits.max_label_set_bytes
                        + pairs.map_or(0, |_| {
                            limits.ha_replica_label.len() + limits.max_label_value_bytes
                        }),
                    accepted_ms: rules.accepted_ms(),
                    lookback_ms: i64::try_from(limits.lookback_delta.as_millis()).unwrap_or(i64::MAX),
                    deltas: self.deltas.as_ref().map(|deltas| (deltas, rules.seed)),
                };
                let mut intake = Intake::new(rules, &known).within(&mut self.held, message);
                let mut sink = Deduplicated::new(&mut intake, pairs);
                let decoded = otlp::decode(message, &context, &mut sink);
                let (report, pairs) = sink.finish_after(decoded)?;
                let mut taken = intake.finish().with_pairs(pairs);
                taken.add_report(report);
                taken.deltas = self.deltas.take().map(TenantDeltas::into_changes);
                let undo_bytes = taken.deltas.as_ref().map_or(0, otlp::Changes::bytes);
                taken.take_back_lost();
                (taken, strings.bytes() + undo_bytes)
            }
            Format::Influx(text) => {
                let strings = Strings::new(strings_max);
                let context = influx::Context {
                    strings: &strings,
                    precision: text.precision,
                    now_ms: text.now_ms,
                    limits: decode_limits,
                };
                let database = text.database.as_ref().map(|db| (b"db".as_slice(), db.as_bytes()));
                let mut intake = Intake::new(rules, &known).within(&mut self.held, message);
                let mut sink = Deduplicated::new(&mut intake, pairs);
                let decoded = influx::decode(message, context, &mut WithDefault::new(&mut sink, database));
                let (report, pairs) = sink.finish_after(decoded)?;
                let mut taken = intake.finish().with_pairs(pairs);
                taken.add_lines(report);
                taken.report.sent_in(text.precision);
                (taken, strings.bytes())
            }
        };
        let outcome = match taken.exceeded.take() {
            Some(exceeded) => Err(exceeded.into_error(limits)),
            None => hold(&mut self.held, &taken, kept_bytes, message.len()),
        };
        match (outcome, pairs) {
            (Ok(()), _) => Ok(taken),
            (Err(error), Some(gate)) if error.status().is_client_error() => {
                gate.lose(&taken.pairs.brought);
                Err(error)
            }
            // What is sent again is not lost.
            (Err(error), _) => Err(error),
        }
    }
}

/// Asks for the memory of what was taken, beyond what was asked for already: of a message of so many bytes.
fn hold(held: &mut HeldBytes, taken: &Taken, kept_bytes: usize, message_bytes: usize) -> Result<(), Error> {
    held.grow(kept_bytes as u64)?;
    // Mostly columns are smaller than what they were decoded from, but labels may be added, or named many times.
    let more = taken.bytes().saturating_sub(message_bytes as u64);
    held.grow(more.saturating_sub(taken.asked_bytes))?;
    held.shrink(taken.asked_bytes.saturating_sub(more));
    Ok(())
}

/// Largest message, decompressed.
fn bytes_max(rules: &Rules) -> usize {
    usize::try_from(rules.limits.max_request_bytes).unwrap_or(usize::MAX)
}

impl Exposition {
    fn take_in<'a>(
        &'a self,
        message: &'a [u8],
        (unescaped, strings): (&'a Unescaped, &'a Strings),
        limits: DecodeLimits,
        sink: &mut impl Sink<'a>,
    ) -> Result<(), Error> {
        let mut sink = WithLabels::new(sink, &self.labels);
        match self.exposed {
            Exposed::Text(dialect) => {
                let context = exposition::Context {
                    unescaped,
                    strings,
                    dialect,
                    now_ms: self.now_ms,
                    limits,
                };
                exposition::decode(message, context, &mut sink)?;
            }
            Exposed::Families => decode(Version::V1, message, limits, &mut sink)?,
        }
        if let Some((name, v)) = self.push_time {
            let time = Sample { t: self.now_ms, v };
            sink.series(RawSeries {
                labels: &[(METRIC_NAME.as_bytes(), name.as_bytes())],
                label_count: 1,
                samples: &[time],
                ..RawSeries::default()
            });
        }
        Ok(())
    }
}
