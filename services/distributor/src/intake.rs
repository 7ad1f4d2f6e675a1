//! From decoded series to each partition's columns: validation, packing, hashing, routing.
//!
//! **Source**: Prometheus `storage/remote/write_handler.go`; limits of our own.

use std::collections::{BTreeMap, HashSet};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koios_model::{
    BatchColumns, BatchExemplar, BatchHistogram, Exemplar, LabelsRef, METRIC_NAME, Metadata, Sample,
    SeriesHash, TenantSeed, describe_labels, write_packed_bytes, write_packed_pair,
};
use koios_tenancy::Limits;
use koios_wire::batch::encode_content;
use koios_wire::remote_write::{
    EncodedLabels, RawHistogram, RawLabel, RawMetadata, RawSeries, Sink, decode_labels,
};

use crate::admission::HeldBytes;
use crate::checks::{check_label_size, check_label_text, check_time, exemplar_labels, keeps_exemplars};
use crate::known_series::{Cursor, Known, NOT_ENCODED, NewSeries};
use crate::left_out;
use crate::points::Points;
use crate::rejection::{Rejection, RejectionReport};
use crate::routes::RouteTable;
use crate::series_limit::Reserved;
use crate::taken::{Exceeded, Taken};

/// Samples from which a part's content is encoded where it was decoded.
const ENCODED_SAMPLES_MIN: usize = 64;
/// How many bytes a request may take before they are asked for.
const ASKED_EVERY: u64 = 64 << 10;
/// Longest help text and unit; longer ones are dropped, as metadata is a courtesy.
const METADATA_BYTES_MAX: usize = 16 << 10;

/// Under which rules a request is taken in.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) limits: Arc<Limits>,
    pub(crate) table: Arc<RouteTable>,
    pub(crate) seed: TenantSeed,
    /// When the request was admitted.
    pub(crate) admission_ms: i64,
}

impl Rules {
    /// Times that are neither too old nor too far ahead.
    pub(crate) fn accepted_ms(&self) -> RangeInclusive<i64> {
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let oldest = self
            .admission_ms
            .saturating_sub(millis(self.limits.out_of_order_time_window));
        let newest = self
            .admission_ms
            .saturating_add(millis(self.limits.too_far_in_future));
        oldest..=newest
    }
}

/// A partition's part of a request.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) columns: BatchColumns,
    /// Their content, encoded, where there is much of it.
    pub(crate) content: Option<Bytes>,
    /// Where labels that were left out stand in the message, by series; empty for one whose labels are here, and for all
    /// after the last that has not.
    pub(crate) left_out: Vec<Range<u32>>,
    /// The data points that series are of.
    pub(crate) points: Points,
    /// Series to learn once they are acknowledged.
    pub(crate) new: Vec<NewSeries>,
    /// Series with samples that are not known, each once; where the tenant has a limit on series.
    pub(crate) unknown: Vec<SeriesHash>,
    /// The room that new series take.
    pub(crate) reserved: Option<Reserved>,
}

/// What is known of a series' labels.
enum LabelsAre {
    /// Nothing; they are packed, and this recognises them when they come again.
    New(SeriesHash),
    /// They are known, and packed.
    Known,
    /// The same, and in an encoding that this recognises from now on.
    NewlyEncoded(SeriesHash),
    /// They are known and were not decoded; they stand there in the message. With what is to be learnt anew.
    LeftOut(Range<u32>, Option<NewSeries>),
}

/// Where a request's memory is asked for.
#[derive(Debug)]
struct Budget<'a> {
    held: &'a mut HeldBytes,
    /// What is held for the message itself.
    message_bytes: u64,
}

/// Takes series in, one after the other.
#[derive(Debug)]
pub(crate) struct Intake<'a> {
    rules: &'a Rules,
    /// Times that are taken.
    accepted_ms: RangeInclusive<i64>,
    known: &'a Known<'a>,
    cursor: Cursor,
    /// The last series that was recognised, if it is to be learnt anew.
    ages: Option<NewSeries>,
    taken: Taken,
    budget: Option<Budget<'a>>,
    /// What histograms and exemplars occupy: those taken, and those of the series that is being decoded.
    taken_bytes: u64,
    decoded_bytes: u64,
    label_bytes: u64,
    /// The data point that series are of.
    point: Option<u32>,
    /// How often a series came, the same again included.
    entries: usize,
    /// Which series there are, once more came than there may be of them.
    distinct: HashSet<u64>,
    metadata: BTreeMap<&'a str, RawMetadata<'a>>,
    /// The current series' labels, sorted.
    labels: Vec<RawLabel<'a>>,
    packed: Vec<u8>,
}

impl<'a> Intake<'a> {
    /// `known` series were checked under the same rules.
    pub(crate) fn new(rules: &'a Rules, known: &'a Known<'a>) -> Self {
        Self {
            rules,
            accepted_ms: rules.accepted_ms(),
            known,
            cursor: Cursor::default(),
            ages: None,
            taken: Taken::default(),
            budget: None,
            taken_bytes: 0,
            decoded_bytes: 0,
            label_bytes: 0,
            point: None,
            entries: 0,
            distinct: HashSet::new(),
            metadata: BTreeMap::new(),
            labels: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Asks for memory as it is needed, beyond the message's own.
    pub(crate) fn within(mut self, held: &'a mut HeldBytes, message: &[u8]) -> Self {
        self.budget = Some(Budget {
            held,
            message_bytes: message.len() as u64,
        });
        self
    }

    /// Asks for so many bytes in all.
    fn ask(&mut self, bytes: u64) {
        let Some(budget) = &mut self.budget else {
            return;
        };
        let bytes = bytes.saturating_sub(budget.message_bytes);
        let asked = &mut self.taken.asked_bytes;
        if bytes <= *asked + ASKED_EVERY {
            return;
        }
        match budget.held.grow(bytes - *asked) {
            Ok(()) => *asked = bytes,
            Err(error) => self.taken.exceeded = Some(Exceeded::Held(error)),
        }
    }

    /// What came together. Metadata goes where a series with nothing but the metric's name would go.
    pub(crate) fn finish(mut self) -> Taken {
        for (metric, raw) in std::mem::take(&mut self.metadata) {
            let metadata = Metadata {
                kind: raw.kind.to_owned(),
                help: text(raw.help),
                unit: text(raw.unit),
            };
            self.packed.clear();
            write_packed_pair(&mut self.packed, METRIC_NAME, metric);
            let hash = SeriesHash::new(self.rules.seed, LabelsRef::from_trusted(&self.packed));
            if let Some(partition) = self.rules.table.ring.route(hash) {
                let part = self.taken.parts.entry(partition).or_default();
                part.columns.metadata.push((metric.to_owned(), metadata));
            }
        }
        self.taken.parts.retain(|_, part| !part.columns.is_empty());
        self.taken
    }

    /// Takes a series whose labels are known to be good, as the process' own are.
    pub(crate) fn trusted(&mut self, labels: LabelsRef<'_>, samples: &[Sample]) {
        self.packed.clear();
        self.packed.extend_from_slice(labels.packed());
        let series = RawSeries {
            samples,
            ..RawSeries::default()
        };
        let hash = self.hash();
        let labels = match self.known.find(hash, &mut self.cursor) {
            Some(found) if found.ages => LabelsAre::NewlyEncoded(found.series.encoded),
            Some(_) => LabelsAre::Known,
            None => LabelsAre::New(NOT_ENCODED),
        };
        self.append(&series, hash, labels);
    }

    /// The reference of the packed labels.
    fn hash(&self) -> SeriesHash {
        SeriesHash::new(self.rules.seed, LabelsRef::from_trusted(&self.packed))
    }

    /// The reference of a series that is known as it came: labels that pack to the same bytes were found good and in order
    /// before.
    fn find_known(&mut self, series: &RawSeries<'a, '_>) -> Option<(SeriesHash, LabelsAre)> {
        self.packed.clear();
        let all = series.label_count == series.labels.len();
        // What is refused for its size must not be read for it: a table's symbols are named as often as one likes.
        if series.fault.is_some() || !all || size(series.labels) > self.rules.limits.max_label_set_bytes {
            return None;
        }
        for (name, value) in series.labels {
            write_packed_bytes(&mut self.packed, name, value);
        }
        self.find_packed(series)
    }

    /// The reference of a series whose labels are packed, if it is known.
    fn find_packed(&mut self, series: &RawSeries<'a, '_>) -> Option<(SeriesHash, LabelsAre)> {
        let hash = self.hash();
        let known = self.known.find(hash, &mut self.cursor)?;
        let encoded = self.hash_of_encoded(series.encoded_labels.bytes);
        let labels = match known.series.encoded {
            NOT_ENCODED if encoded != NOT_ENCODED => LabelsAre::NewlyEncoded(encoded),
            first if known.ages => LabelsAre::NewlyEncoded(first),
            _ => LabelsAre::Known,
        };
        Some((hash, labels))
    }

    /// What is known of a series whose labels were checked, sorted and packed: many senders put a label behind the others.
    fn find_sorted(&mut self, series: &RawSeries<'a, '_>) -> (SeriesHash, LabelsAre) {
        let found = self.find_packed(series);
        found.unwrap_or_else(|| {
            let encoded = self.hash_of_encoded(series.encoded_labels.bytes);
            (self.hash(), LabelsAre::New(encoded))
        })
    }

    /// What recognises labels that are encoded so.
    fn hash_of_encoded(&self, labels: &[u8]) -> SeriesHash {
        match labels {
            [] => NOT_ENCODED,
            labels => SeriesHash::of_encoded(self.rules.seed, labels),
        }
    }

    /// Checks, sorts and packs labels; empty values are dropped.
    fn pack(&mut self, series: &RawSeries<'a, '_>) -> Result<(), Rejection> {
        let limits = &self.rules.limits;
        if let Some(fault) = series.fault {
            return Err(Rejection::Symbols(fault.clone()));
        }
        if series.label_count > limits.max_labels_per_series {
            return Err(Rejection::TooManyLabels {
                actual: series.label_count,
                limit: limits.max_labels_per_series,
            });
        }
        for &label in series.labels {
            check_label_size(label, limits)?;
        }
        let bytes = size(series.labels);
        if bytes > limits.max_label_set_bytes {
            return Err(Rejection::LabelSetTooLarge {
                actual: bytes,
                limit: limits.max_label_set_bytes,
            });
        }
        self.labels.clear();
        for &label in series.labels {
            check_label_text(label)?;
            let (name, value) = label;
            if !value.is_empty() {
                self.labels.push((name, value));
            }
        }
        if !self.labels.is_sorted_by(|a, b| a.0 < b.0) {
            self.labels.sort_by_key(|(name, _)| *name);
            let twice = self
                .labels
                .iter()
                .zip(self.labels.iter().skip(1))
                .find(|(a, b)| a.0 == b.0);
            if let Some(((name, _), _)) = twice {
                return Err(Rejection::DuplicateName { name: text(name) });
            }
        }
        if !self.labels.iter().any(|(name, _)| is_metric_name(name)) {
            return Err(Rejection::MissingMetricName);
        }
        self.packed.clear();
        for (name, value) in &self.labels {
            write_packed_bytes(&mut self.packed, name, value);
        }
        Ok(())
    }

    /// Adds a series with those of its samples that are good. Gives how many were not.
    fn append(&mut self, series: &RawSeries<'_, '_>, hash: SeriesHash, labels: LabelsAre) -> u64 {
        if series.known.is_none() {
            self.count_packed();
        }
        self.count_series(hash);
        let packed = LabelsRef::from_trusted(&self.packed);
        let Some(partition) = self.rules.table.ring.route(hash) else {
            return 0;
        };
        let part = self.taken.parts.entry(partition).or_default();
        let before = part.columns.series_count();
        let mut adding = Adding {
            part,
            report: &mut self.taken.report,
            series: (hash, packed),
            labels: Some(labels),
            is_limited: self.rules.limits.max_series > 0 || self.rules.limits.max_series_per_metric > 0,
        };
        let (accepted, rules) = (&self.accepted_ms, self.rules);
        // Nearly all are: why one is not takes longer to tell.
        let check_time = |t: i64| match accepted.contains(&t) {
            true => Ok(()),
            false => check_time(t, rules),
        };
        let mut rejected = 0;
        for (at, sample) in series.samples.iter().enumerate() {
            match check_time(sample.t) {
                Ok(()) => {
                    let batch = adding.started();
                    batch.push_sample(sample.t, sample.v);
                    if let Some(start) = series.starts.get(at) {
                        batch.set_last_start(*start);
                    }
                }
                Err(rejection) => rejected += adding.reject(rejection, series),
            }
        }
        for RawHistogram { t, start, histogram } in series.histograms {
            let histogram = histogram
                .as_ref()
                .map_err(|fault| Rejection::Histogram(fault.clone()));
            match histogram.and_then(|h| check_time(*t).map(|()| h)) {
                Ok(histogram) => {
                    let bytes = size_of::<BatchHistogram>() + histogram.heap_bytes();
                    self.taken_bytes += bytes as u64;
                    adding
                        .started()
                        .push_started_histogram(*t, *start, histogram.clone());
                }
                Err(rejection) => rejected += adding.reject(rejection, series),
            }
        }
        let keeps_exemplars = !series.exemplars.is_empty()
            && self.rules.limits.max_exemplars > 0
            && keeps_exemplars(series, packed);
        for raw in series.exemplars {
            let labels = series.exemplar_labels.get(raw.labels.clone());
            let labels = labels.and_then(exemplar_labels);
            match labels.filter(|_| keeps_exemplars && check_time(raw.t).is_ok()) {
                Some(labels) => {
                    let bytes = size_of::<BatchExemplar>() + labels.packed().len();
                    self.taken_bytes += bytes as u64;
                    adding.started_without_samples(series).push_exemplar(Exemplar {
                        t: raw.t,
                        v: raw.v,
                        labels,
                    });
                }
                None => self.taken.exemplars_dropped += 1,
            }
        }
        if let Some(point) = self.point {
            let part = &mut adding.part;
            part.points.note(before, part.columns.series_count(), point);
        }
        self.note_rejected(rejected);
        if !series.histograms.is_empty() || !series.exemplars.is_empty() {
            self.ask(self.taken_bytes + self.decoded_bytes);
        }
        rejected
    }

    /// Notes that samples of the current series were rejected.
    fn note_rejected(&mut self, samples: u64) {
        let point = self.point.filter(|_| samples > 0);
        self.taken.points.refused.extend(point);
    }

    /// Notes a series that is not taken at all.
    fn reject(&mut self, series: &RawSeries<'_, '_>, rejection: Rejection) {
        let samples = (series.samples.len() + series.histograms.len()) as u64;
        self.taken.exemplars_dropped += series.exemplars.len() as u64;
        self.taken.report.series += 1;
        self.taken.points.refused.extend(self.point);
        self.count_packed();
        self.taken.report.add(rejection, samples, || {
            describe_labels(series.labels.iter().copied())
        });
    }

    /// Counts the current series' labels, whether it is taken or not: packing them was work.
    fn count_packed(&mut self) {
        self.label_bytes += self.packed.len() as u64;
        self.check_label_bytes();
    }

    fn check_label_bytes(&mut self) {
        if self.label_bytes > label_bytes_max(&self.rules.limits) {
            self.taken.exceeded = Some(Exceeded::LabelBytes(self.label_bytes));
        }
    }

    /// Counts a series. Text and data points name one again for each of its samples: series are told apart, by their
    /// hashes, from when more came than there may be.
    fn count_series(&mut self, hash: SeriesHash) {
        self.entries += 1;
        let most = self.rules.limits.max_series_per_request;
        if self.entries <= most {
            return;
        }
        if self.distinct.is_empty() {
            let parts = self.taken.parts.values();
            self.distinct = parts
                .flat_map(|part| part.columns.series().map(|s| s.hash.0 as u64))
                .collect();
        }
        self.distinct.insert(hash.0 as u64);
        if self.distinct.len() > most {
            self.taken.exceeded = Some(Exceeded::Series);
        }
    }
}

/// A series on its way into a batch, which it gets into with its first good sample.
struct Adding<'a> {
    part: &'a mut Part,
    report: &'a mut RejectionReport,
    series: (SeriesHash, LabelsRef<'a>),
    /// None once it is in the batch.
    labels: Option<LabelsAre>,
    /// Whether the tenant, or one of its metrics, may have so many series only.
    is_limited: bool,
}

impl Adding<'_> {
    fn started(&mut self) -> &mut BatchColumns {
        if let Some(labels) = self.labels.take() {
            let (hash, packed) = self.series;
            if self.is_limited && matches!(labels, LabelsAre::New(_)) {
                self.part.unknown.push(hash);
            }
            self.part.push(hash, packed, labels);
        }
        &mut self.part.columns
    }

    /// The same for a series that has brought no sample. Members keep no such series, so that it always comes with labels.
    fn started_without_samples(&mut self, series: &RawSeries<'_, '_>) -> &mut BatchColumns {
        let (hash, packed) = self.series;
        let columns = &mut self.part.columns;
        match self.labels.take() {
            None => {}
            Some(LabelsAre::LeftOut(..)) => {
                let mut own = Vec::new();
                left_out::pack(series.encoded_labels.bytes, &mut own);
                columns.push_series(hash, LabelsRef::from_trusted(&own));
            }
            Some(_) => columns.push_series(hash, packed),
        }
        columns
    }

    /// Gives how many samples that are.
    fn reject(&mut self, rejection: Rejection, series: &RawSeries<'_, '_>) -> u64 {
        self.report.add(rejection, 1, || describe_series(series));
        1
    }
}

impl Part {
    /// Ends the taking in: encodes the content while the columns are in the caches of this thread.
    pub(crate) fn finish(&mut self) {
        self.unknown.sort_unstable();
        self.unknown.dedup();
        self.encode();
    }

    /// Encodes the content of what is not small.
    pub(crate) fn encode(&mut self) {
        if self.columns.sample_count() >= ENCODED_SAMPLES_MIN {
            self.content = Some(encode_content(&self.columns));
        }
    }

    fn push(&mut self, hash: SeriesHash, packed: LabelsRef<'_>, labels: LabelsAre) {
        let columns = &mut self.columns;
        match labels {
            LabelsAre::New(_) => columns.push_series(hash, packed),
            LabelsAre::Known | LabelsAre::NewlyEncoded(_) => columns.push_known_series(hash, packed),
            LabelsAre::LeftOut(range, ages) => {
                self.new.extend(ages);
                self.left_out.resize(columns.series_count(), 0..0);
                self.left_out.push(range);
                columns.push_reference(hash);
                return;
            }
        }
        if let LabelsAre::New(encoded) | LabelsAre::NewlyEncoded(encoded) = labels {
            self.new.push(NewSeries { hash, encoded });
        }
    }
}

/// A series in words, whose labels may have been left out.
fn describe_series(series: &RawSeries<'_, '_>) -> String {
    match series.known {
        Some(_) => describe_labels(decode_labels(series.encoded_labels.bytes).unwrap_or_default()),
        None => describe_labels(series.labels.iter().copied()),
    }
}

/// Most bytes that the labels and metadata of one request may take when written out: what a request without a symbol
/// table could hold.
pub(crate) fn label_bytes_max(limits: &Limits) -> u64 {
    limits.max_request_bytes
}

impl<'a> Sink<'a> for Intake<'a> {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        if self.taken.exceeded.is_some() {
            return;
        }
        if let Some(hash) = series.known {
            let ages = self.ages.take().filter(|ages| ages.hash == hash);
            let labels = LabelsAre::LeftOut(series.encoded_labels.range(), ages);
            let rejected = self.append(&series, hash, labels);
            self.taken.report.series += u64::from(rejected > 0);
            return;
        }
        let found = match self.find_known(&series) {
            Some(known) => Ok(known),
            None => self.pack(&series).map(|()| self.find_sorted(&series)),
        };
        let (hash, labels) = match found {
            Ok(found) => found,
            Err(rejection) => return self.reject(&series, rejection),
        };
        let rejected = self.append(&series, hash, labels);
        self.taken.report.series += u64::from(rejected > 0);
        if let Some(metadata) = series.metadata {
            let metric = series.labels.iter().find(|(name, _)| is_metric_name(name));
            let metric = metric.map_or(&[][..], |(_, name)| match series.histograms {
                [] => family_of(name, metadata.kind),
                _ => name,
            });
            self.metadata(RawMetadata { metric, ..metadata });
        }
    }

    fn known(&mut self, encoded_labels: EncodedLabels<'a>) -> Option<SeriesHash> {
        if encoded_labels.bytes.is_empty() {
            return None;
        }
        let encoded = self.hash_of_encoded(encoded_labels.bytes);
        let found = self.known.recognise(encoded, &mut self.cursor)?;
        self.ages = found.ages.then_some(found.series);
        Some(found.series.hash)
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) {
        let short = |text: &[u8]| text.len() <= METADATA_BYTES_MAX;
        let fits = metadata.metric.len() <= self.rules.limits.max_label_value_bytes;
        if metadata.metric.is_empty() || !fits || !short(metadata.help) || !short(metadata.unit) {
            return;
        }
        let Ok(metric) = std::str::from_utf8(metadata.metric) else {
            return;
        };
        if self.metadata.insert(metric, metadata) != Some(metadata) {
            self.label_bytes += (metric.len() + metadata.help.len() + metadata.unit.len()) as u64;
            self.check_label_bytes();
        }
    }

    fn refused(&self) -> u64 {
        self.taken.report.series
    }

    fn hold(&mut self, bytes: usize) {
        self.decoded_bytes = bytes as u64;
        // Once it is taken, it is there twice for a while.
        self.ask(self.taken_bytes + 2 * self.decoded_bytes);
    }

    fn is_over(&self) -> bool {
        self.taken.exceeded.is_some()
    }

    fn point(&mut self, number: Option<u32>) {
        self.point = number;
    }
}

/// The metric family that a series of a classic histogram or a summary is a part of: metadata is of families, and remote
/// write 2.0 says it with every series.
fn family_of<'a>(series: &'a [u8], kind: &str) -> &'a [u8] {
    let parts: &[&[u8]] = match kind {
        "histogram" => &[b"_bucket", b"_count", b"_sum"],
        "gaugehistogram" => &[b"_bucket", b"_gcount", b"_gsum"],
        "summary" => &[b"_count", b"_sum"],
        _ => &[],
    };
    let family = parts.iter().find_map(|part| series.strip_suffix(*part));
    family.filter(|family| !family.is_empty()).unwrap_or(series)
}

/// Bytes of all names and values.
fn size(labels: &[RawLabel<'_>]) -> usize {
    labels.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn is_metric_name(name: &[u8]) -> bool {
    name == METRIC_NAME.as_bytes()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
