//! A short run of every fuzz target: the seeds, and the same mutations of them each time.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod requests;

use std::path::{Path, PathBuf};

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, Labels, STALE_NAN_BITS, Span};
use koios_testkit::fuzz::{
    Evaluated, Mutator, decompress, exposition, families, influx, otlp_json, otlp_protobuf, promql_eval,
    promql_parse, remote_write, tsdb_input, tsdb_read, wal_read,
};
use koios_testkit::random::Random;
use koios_testkit::tsdb::{ChunkKind, TsdbChunk, TsdbContent, TsdbSample, Value};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = folder(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn run(target: &str, mutations: usize, mut body: impl FnMut(&[u8])) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{target} has seeds");
    for seed in &seeds {
        body(seed);
    }
    let mut mutator = Mutator::new(1);
    for _ in 0..mutations {
        body(&mutator.mutated(&seeds));
    }
}

#[test]
fn i12_parser_and_printers_hold_for_mutated_queries() {
    run("promql_parse", 20_000, promql_parse);
}

#[test]
fn i11_i12_the_logs_reader_holds_for_any_bytes_and_recovers_what_is_intact() {
    let (mut records, mut damage) = (0, 0);
    run("wal_read", 4_000, |input| {
        let read = wal_read(input);
        records += read.records;
        damage += read.damage;
    });
    assert!(
        records > 4_000 && damage > 1_000,
        "{records} records, {damage} damaged places"
    );
}

#[test]
fn i12_the_engine_holds_for_mutated_queries() {
    let (mut inputs, mut with_samples) = (0, 0);
    run("promql_eval", 4_000, |input| {
        inputs += 1;
        with_samples += usize::from(promql_eval(input) == Evaluated::Samples);
    });
    assert!(with_samples * 15 > inputs, "{with_samples} of {inputs}");
}

#[test]
fn i12_the_engine_holds_for_queries_made_of_random_decisions() {
    let mut mutator = Mutator::new(2);
    let mut input = |_| mutator.mutated(&[vec![0, 2, 7, 5, 0], vec![1, 80, 40, 3, 0, 9, 9, 9, 9, 9, 9]]);
    let (mut inputs, mut with_samples) = (0, 0);
    for mut bytes in (0..200).map(&mut input) {
        for round in 0..20u8 {
            bytes.extend([round.wrapping_mul(97), round.wrapping_mul(31) ^ 5, round]);
            inputs += 1;
            with_samples += usize::from(promql_eval(&bytes) == Evaluated::Samples);
        }
    }
    assert!(with_samples * 5 > inputs, "{with_samples} of {inputs}");
}

#[test]
fn i12_decoders_hold_for_mutated_requests() {
    run("remote_write", 5_000, remote_write);
    run("exposition", 5_000, exposition);
    run("families", 5_000, families);
    run("otlp_protobuf", 5_000, otlp_protobuf);
    run("otlp_json", 5_000, otlp_json);
    run("influx", 5_000, influx);
    run("decompress", 2_000, decompress);
}

/// What moves bytes mostly leaves no block: here some of them change where they are.
#[test]
fn i11_i12_any_files_of_a_block_are_refused_or_read_as_sound_series() {
    let (mut series, mut refused) = (0, 0);
    let mut read = |input: &[u8]| {
        let read = tsdb_read(input);
        series += read.series;
        refused += usize::from(read.refused);
    };
    run("tsdb_read", 1_000, &mut read);
    let (seeds, mut random) = (seeds("tsdb_read"), Random::new(1));
    for _ in 0..5_000 {
        let mut input = seeds[random.index(seeds.len())].clone();
        for _ in 0..=random.below(3) {
            let at = random.index(input.len());
            input[at] = random.bits() as u8;
        }
        read(&input);
    }
    assert!(
        series > 1_000 && refused > 1_000,
        "{series} series, {refused} refused"
    );
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_pairs(pairs.iter().copied())
}

fn chunk(kind: ChunkKind, samples: impl Iterator<Item = (i64, i64, Value)>) -> TsdbChunk {
    TsdbChunk {
        kind,
        samples: samples
            .map(|(t, start, value)| TsdbSample { t, start, value })
            .collect(),
    }
}

/// Blocks of every encoding.
fn blocks() -> Vec<(&'static str, TsdbContent)> {
    let histogram = |i: i64, scale: f64| {
        let n = i as f64 * scale;
        Value::Histogram(Histogram {
            schema: 2,
            zero_threshold: 0.001,
            zero_count: n,
            count: 10.0 * n,
            sum: 1.5 * n,
            positive_spans: vec![
                Span {
                    offset: -2,
                    length: 2,
                },
                Span { offset: 3, length: 1 },
            ],
            positive_buckets: vec![n, 2.0 * n, 3.0 * n],
            negative_spans: vec![Span { offset: 0, length: 2 }],
            negative_buckets: vec![n, 2.0 * n],
            ..Histogram::default()
        })
    };
    let custom = |i: i64| {
        let n = i as f64;
        Value::Histogram(Histogram {
            schema: CUSTOM_BOUNDS_SCHEMA,
            count: 3.0 * n,
            sum: n,
            positive_spans: vec![Span { offset: 0, length: 3 }],
            positive_buckets: vec![n, n, n],
            custom_bounds: vec![0.5, 7.25],
            ..Histogram::default()
        })
    };
    let float = |i: i64| match i % 7 {
        3 => Value::Float(f64::from_bits(STALE_NAN_BITS)),
        5 => Value::Float(i as f64 / 3.0),
        _ => Value::Float((i * i) as f64),
    };
    let at = |i: i64| 15_000 * i + i % 3;
    let floats: Vec<(i64, f64)> = (0..40).map(|i| (at(i), (i * 7 % 11) as f64)).collect();
    let plain = TsdbContent::default()
        .with_floats(labels(&[("__name__", "up"), ("job", "a")]), &floats, 8)
        .with_floats(
            labels(&[("__name__", "up"), ("job", "a"), ("path", "/")]),
            &floats[5..30],
            25,
        )
        .with_floats(labels(&[("__name__", "up"), ("job", "b")]), &floats[..9], 9);
    let mut first = plain.clone();
    first.version = 1;
    let mut deleted = plain.clone();
    deleted.tombstones = vec![(0, 20_000, 100_000), (0, 90_000, 120_000), (2, 0, 15_001)];
    let mut external = plain.clone();
    external.more_meta = r#""thanos":{"labels":{"cluster":"x","replica":"0","__org":"y"}}"#.to_owned();
    let of = |chunks: Vec<TsdbChunk>| {
        let mut content = TsdbContent::default();
        content.series.insert(labels(&[("__name__", "h")]), chunks);
        content
    };
    let start = |i: i64| if i < 4 { 0 } else { 1 + i / 6 };
    let with_starts = of(vec![
        chunk(ChunkKind::Xor2, (0..20).map(|i| (at(i), start(i), float(i)))),
        chunk(
            ChunkKind::Histogram(true),
            (20..28).map(|i| (at(i), start(i), histogram(i, 1.0))),
        ),
        chunk(
            ChunkKind::FloatHistogram(true),
            (28..33).map(|i| (at(i), start(i), histogram(i, 0.3))),
        ),
    ]);
    let histograms = of(vec![
        chunk(
            ChunkKind::Histogram(false),
            (0..8).map(|i| (at(i), 0, histogram(i, 1.0))),
        ),
        chunk(
            ChunkKind::FloatHistogram(false),
            (8..13).map(|i| (at(i), 0, histogram(i, 0.3))),
        ),
        chunk(
            ChunkKind::Histogram(false),
            (13..18).map(|i| (at(i), 0, custom(i))),
        ),
    ]);
    let overlapping = of(vec![
        chunk(ChunkKind::Xor, (0..20).map(|i| (at(i), 0, float(i)))),
        chunk(ChunkKind::Xor, (10..30).map(|i| (at(i), 0, float(i + 1)))),
        chunk(
            ChunkKind::Histogram(false),
            (18..24).map(|i| (at(i), 0, histogram(i, 1.0))),
        ),
    ]);
    vec![
        ("deleted", deleted),
        ("external-labels", external),
        ("floats", plain),
        ("floats-of-version-1", first),
        ("histograms", histograms),
        ("overlapping", overlapping),
        ("starts", with_starts),
    ]
}

/// That a seed is what is made for it; `KOIOS_WRITE_SEEDS=1` writes it first.
fn assert_seed(target: &str, name: &str, input: &[u8]) {
    let file = folder(target).join(name);
    if std::env::var_os("KOIOS_WRITE_SEEDS").is_some() {
        std::fs::create_dir_all(folder(target)).unwrap();
        std::fs::write(&file, input).unwrap();
    }
    assert!(
        std::fs::read(&file).unwrap() == input,
        "{target}/{name} is not what is made for it"
    );
}

#[test]
fn seeds_of_blocks_are_blocks_of_every_encoding() {
    for (name, content) in blocks() {
        let input = tsdb_input([1, 100], &content.files());
        let read = tsdb_read(&input);
        assert_eq!(
            (read.series, read.refused),
            (content.series.len(), false),
            "{name}"
        );
        // What was written needs no checksum made right.
        assert_eq!(tsdb_read(&tsdb_input([0, 100], &content.files())), read, "{name}");
        assert_seed("tsdb_read", name, &input);
    }
}
