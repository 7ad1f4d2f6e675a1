//! What clients send: decoders of every format, and decompression.

use koios_model::{TenantId, TenantSeed};
use koios_wire::Strings;
use koios_wire::compression::Compression;
use koios_wire::exposition::{self, Dialect, Unescaped};
use koios_wire::families;
use koios_wire::influx::{self, Precision};
use koios_wire::otlp::{self, Deltas, OtlpError, Settings, TranslationStrategy};
use koios_wire::remote_write::{self, DecodeLimits, RawMetadata, RawSeries, Sink, Version};

/// Small, so that limits are reached.
const LIMITS: DecodeLimits = DecodeLimits {
    series: 200,
    samples: 300,
    labels_per_series: 8,
};
/// Room for what is written out.
const STRINGS_MAX: usize = 1 << 16;

/// Checks what every decoder promises of the series it hands on.
#[derive(Debug, Default)]
struct Checks {
    series: usize,
    samples: usize,
    /// All of it as text, where that is wanted.
    written: Option<Vec<String>>,
}

impl<'a> Sink<'a> for Checks {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        self.write(&series);
        self.series += 1;
        self.samples += series.samples.len() + series.histograms.len();
        assert!(self.series <= LIMITS.series, "more series than allowed");
        assert!(self.samples <= LIMITS.samples, "more samples than allowed");
        assert!(series.label_count >= series.labels.len(), "labels are counted");
        for exemplar in series.exemplars {
            let labels = series.exemplar_labels.get(exemplar.labels.clone());
            assert!(labels.is_some(), "labels of an exemplar are there");
        }
        for raw in series.histograms {
            if let Ok(histogram) = &raw.histogram {
                let mut canonical = histogram.clone();
                canonical.make_canonical();
                assert!(
                    canonical.bits_cmp(histogram).is_eq(),
                    "{histogram:?} is canonical"
                );
            }
        }
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) {
        self.write(&metadata);
        assert!(!metadata.kind.is_empty(), "metadata has a type");
    }
}

impl Checks {
    fn written() -> Self {
        Self {
            written: Some(Vec::new()),
            ..Self::default()
        }
    }

    fn write(&mut self, what: &dyn std::fmt::Debug) {
        if let Some(written) = &mut self.written {
            written.push(format!("{what:?}"));
        }
    }
}

/// Either version of remote write, by the first byte.
pub fn remote_write(bytes: &[u8]) {
    let Some((first, message)) = bytes.split_first() else {
        return;
    };
    let version = if first % 2 == 0 { Version::V1 } else { Version::V2 };
    let _ = remote_write::decode(version, message, LIMITS, &mut Checks::default());
}

/// Either text format, by the first byte.
pub fn exposition(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else {
        return;
    };
    let dialect = match first % 2 {
        0 => Dialect::Prometheus,
        _ => Dialect::OpenMetrics,
    };
    let unescaped = Unescaped::of(text, dialect);
    assert!(
        unescaped.bytes() <= Unescaped::bytes_max(text),
        "strings are bounded"
    );
    let context = exposition::Context {
        unescaped: &unescaped,
        strings: &Strings::new(STRINGS_MAX),
        dialect,
        now_ms: 1,
        limits: LIMITS,
    };
    let _ = exposition::decode(text, context, &mut Checks::default());
}

/// Metric families: what they are written as is bounded, and remote write.
pub fn families(bytes: &[u8]) {
    let limit = families::bytes_max(bytes);
    if let Ok(message) = families::to_remote_write(bytes, 1, limit) {
        assert!(message.len() <= limit, "the written form is bounded");
        let _ = remote_write::decode(Version::V1, &message, LIMITS, &mut Checks::default());
    }
}

/// OTLP in protobuf, translated as the first byte says; twice, as what comes again is the same again.
pub fn otlp_protobuf(bytes: &[u8]) {
    if let Some((first, message)) = bytes.split_first() {
        translate(*first, message);
    }
}

/// OTLP in JSON: its protobuf form is bounded, and is protobuf.
pub fn otlp_json(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else {
        return;
    };
    let outcome = otlp::json::to_protobuf(text, otlp::json::bytes_max(text));
    let too_large = matches!(outcome, Err(OtlpError::TooLarge { .. }));
    assert!(!too_large, "the protobuf form is bounded");
    if let Ok(message) = outcome {
        translate(*first, &message);
    }
}

fn translate(choices: u8, message: &[u8]) {
    let strategy = match choices % 4 {
        0 => TranslationStrategy::UnderscoreEscapingWithSuffixes,
        1 => TranslationStrategy::UnderscoreEscapingWithoutSuffixes,
        2 => TranslationStrategy::NoUtf8EscapingWithSuffixes,
        _ => TranslationStrategy::NoTranslation,
    };
    let settings = Settings {
        translation_strategy: strategy,
        promote_all_resource_attributes: choices & 4 != 0,
        convert_histograms_to_nhcb: choices & 8 != 0,
        promote_scope_metadata: choices & 16 != 0,
        keep_identifying_resource_attributes: choices & 32 != 0,
        label_name_preserve_multiple_underscores: choices & 64 != 0,
        label_name_underscore_sanitization: choices & 128 != 0,
        ..Settings::default()
    };
    let (deltas, seed) = (
        Deltas::default(),
        TenantSeed::new(b"fuzz", &TenantId::anonymous()),
    );
    let mut first = None;
    for _ in 0..2 {
        let deltas = deltas.of(&TenantId::anonymous(), std::time::Duration::ZERO);
        let strings = Strings::new(STRINGS_MAX);
        let context = otlp::Context {
            settings: &settings,
            strings: &strings,
            limits: LIMITS,
            label_bytes: 256 << 10,
            accepted_ms: 0..=i64::MAX,
            lookback_ms: 300_000,
            deltas: Some((&deltas, seed)),
        };
        let mut checks = Checks::written();
        let outcome = otlp::decode(message, &context, &mut checks);
        deltas.into_changes().sent();
        assert!(strings.bytes() <= STRINGS_MAX, "strings are bounded");
        if let Ok(report) = &outcome {
            assert!(
                report.faults <= report.rejected && report.rejected <= report.points,
                "{report:?}"
            );
            assert_eq!(report.faults > 0, report.first.is_some(), "{report:?}");
        }
        let made = (outcome, checks.written);
        let first = first.get_or_insert_with(|| made.clone());
        assert_eq!(*first, made, "what comes again is the same again");
    }
}

/// Influx' line protocol.
pub fn influx(text: &[u8]) {
    let strings = Strings::new(STRINGS_MAX);
    let context = influx::Context {
        strings: &strings,
        precision: Precision::default(),
        now_ms: 1,
        limits: LIMITS,
    };
    let _ = influx::decode(text, context, &mut Checks::default());
    assert!(strings.bytes() <= STRINGS_MAX, "strings are bounded");
}

/// Any compression, by the first byte: nothing grows beyond its limit, whether it can be decompressed or not.
pub fn decompress(bytes: &[u8]) {
    const LIMIT: usize = 1 << 16;
    /// Three bytes of snappy make 64.
    const SNAPPY_GROWTH_MAX: usize = 22;
    /// What is allocated first.
    const SMALLEST_ROOM: usize = 8;
    let Some((first, input)) = bytes.split_first() else {
        return;
    };
    let compression = match first % 4 {
        0 => Compression::Snappy,
        1 => Compression::Zstd,
        2 => Compression::Gzip,
        _ => Compression::Identity,
    };
    let mut out = Vec::new();
    let outcome = compression.decompress(input, LIMIT, &mut out);
    if outcome.is_ok() {
        assert!(out.len() <= LIMIT, "{} bytes", out.len());
    }
    // What says how much it holds gets no more, and less if it cannot hold that; what does not is read into room that doubles.
    let room = match compression {
        Compression::Snappy => LIMIT.min(input.len().saturating_mul(SNAPPY_GROWTH_MAX)),
        Compression::Identity => LIMIT.min(input.len()),
        Compression::Zstd | Compression::Gzip => 2 * (LIMIT + 1),
    };
    let allocated = out.capacity();
    assert!(
        allocated <= room.max(SMALLEST_ROOM),
        "{allocated} bytes of room where {room} do: {compression:?}, {outcome:?}"
    );
}
