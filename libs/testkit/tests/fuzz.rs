//! A short run of every fuzz target: the seeds, and the same mutations of them each time.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::path::Path;

use koios_testkit::fuzz::{
    Evaluated, Mutator, decompress, exposition, influx, otlp_json, otlp_protobuf, promql_eval, promql_parse,
    remote_write, wal_read,
};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target);
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
    run("otlp_protobuf", 5_000, otlp_protobuf);
    run("otlp_json", 5_000, otlp_json);
    run("influx", 5_000, influx);
    run("decompress", 2_000, decompress);
}
