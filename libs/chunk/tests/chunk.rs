//! Chunks give back what was put in, and nothing that was not a chunk is believed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use koios_chunk::{Chunk, Encoder, Error, OpenHistograms, SAMPLES_MAX, Starts, encode};
use koios_model::{Histogram, STALE_NAN_BITS, TimeRange};
use proptest::prelude::*;

fn decode(bytes: Vec<u8>, range: TimeRange) -> Result<Vec<(i64, u64)>, Error> {
    let (mut ts, mut vs) = (Vec::new(), Vec::new());
    Chunk::parse(Bytes::from(bytes))?.decode_range(range, &mut ts, &mut vs)?;
    assert_eq!(ts.len(), vs.len());
    Ok(ts.into_iter().zip(vs.into_iter().map(f64::to_bits)).collect())
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (-1000i64..1000).prop_map(|m| m as f64 / 10.0),
        4 => any::<u64>().prop_map(f64::from_bits),
        2 => any::<i32>().prop_map(f64::from),
        1 => Just(f64::from_bits(STALE_NAN_BITS)),
        1 => Just(-0.0),
        1 => Just(f64::INFINITY),
        1 => Just(9_007_199_254_740_993.0),
    ]
}

fn any_run() -> impl Strategy<Value = (Vec<i64>, Vec<f64>)> {
    let times = prop_oneof![
        proptest::collection::btree_set(any::<i64>(), 1..150),
        proptest::collection::btree_set(-100i64..100, 1..150),
        (any::<i32>(), 1i64..60_000, 1usize..300)
            .prop_map(|(start, step, n)| { (0..n as i64).map(|i| i64::from(start) + i * step).collect() }),
    ];
    times.prop_flat_map(|ts| {
        let n = ts.len();
        let values = prop_oneof![
            proptest::collection::vec(any_value(), n),
            any_value().prop_map(move |v| vec![v; n]),
        ];
        (Just(ts.into_iter().collect()), values)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn i2_every_bit_survives((ts, vs) in any_run()) {
        let bytes = encode(&ts, &vs).unwrap();
        let chunk = Chunk::parse(Bytes::from(bytes.clone())).unwrap();
        prop_assert_eq!(chunk.count(), ts.len());
        prop_assert_eq!(chunk.time_range(), TimeRange::new(ts[0], ts[ts.len() - 1]));
        let expected: Vec<_> = ts.iter().copied().zip(vs.iter().map(|v| v.to_bits())).collect();
        prop_assert_eq!(decode(bytes, TimeRange::ALL).unwrap(), expected);
    }

    #[test]
    fn a_range_gives_the_samples_inside_it((ts, vs) in any_run(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let range = TimeRange::new(*a.get(&ts), b.get(&ts).saturating_add(1));
        let expected: Vec<_> = ts.iter().copied().zip(vs.iter().map(|v| v.to_bits()))
            .filter(|(t, _)| range.contains(*t)).collect();
        prop_assert_eq!(decode(encode(&ts, &vs).unwrap(), range).unwrap(), expected);
    }

    #[test]
    fn i12_random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        // With a valid checksum and version the decoder has to look at the rest.
        if let Some(b) = bytes.first_mut() { *b = 1; }
        let sum = koios_sum(&bytes);
        bytes.extend_from_slice(&sum);
        let _ = decode(bytes, TimeRange::ALL);
    }

    #[test]
    fn i12_mangled_columns_never_panic((ts, vs) in any_run(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in 0usize..20) {
        let mut bytes = encode(&ts, &vs).unwrap();
        bytes.truncate(bytes.len() - 4);
        let i = at.index(bytes.len());
        bytes[i] = to;
        bytes.truncate(bytes.len().saturating_sub(cut).max(1));
        let sum = koios_sum(&bytes);
        bytes.extend_from_slice(&sum);
        if let Ok(samples) = decode(bytes, TimeRange::ALL) {
            prop_assert!(samples.len() <= SAMPLES_MAX && samples.windows(2).all(|w| w[0].0 < w[1].0));
        }
    }

    #[test]
    fn i11_any_changed_byte_is_noticed((ts, vs) in any_run(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = encode(&ts, &vs).unwrap();
        let i = at.index(bytes.len());
        bytes[i] ^= flip;
        let noticed = matches!(decode(bytes, TimeRange::ALL), Err(Error::Checksum { .. }));
        prop_assert!(noticed);
    }
}

fn koios_sum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).to_le_bytes()
}

#[test]
fn refuses_what_is_no_run() {
    assert_eq!(encode(&[], &[]), Err(Error::Count { count: 0 }));
    assert_eq!(
        encode(&[1], &[]),
        Err(Error::Lengths {
            timestamps: 1,
            values: 0
        })
    );
    assert_eq!(encode(&[1, 1], &[0.0, 0.0]), Err(Error::NotAscending { at: 1 }));
    let ts: Vec<i64> = (0..=SAMPLES_MAX as i64).collect();
    assert!(matches!(
        encode(&ts, &vec![0.0; ts.len()]),
        Err(Error::Count { .. })
    ));
}

#[test]
fn i12_a_few_bytes_cannot_claim_more_samples_than_the_limit() {
    // version, exponent, count 2^35, first 0, span 1
    let mut bytes = vec![1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 1];
    let sum = koios_sum(&bytes);
    bytes.extend_from_slice(&sum);
    assert_eq!(
        decode(bytes, TimeRange::ALL),
        Err(Error::Count { count: 1 << 35 })
    );
}

#[test]
fn a_later_version_is_named() {
    let mut bytes = vec![7, 0, 1, 0, 0];
    let sum = koios_sum(&bytes);
    bytes.extend_from_slice(&sum);
    let e = decode(bytes, TimeRange::ALL).unwrap_err();
    assert_eq!(
        e.to_string(),
        "chunk has format version 7, this program reads versions 1 to 6: upgrade it"
    );
}

/// The runs behind the fixture, one per mode and escape form. They never change: a change of bytes is a new version.
fn fixture_runs() -> Vec<(Vec<i64>, Vec<f64>)> {
    let regular = |n: i64| (0..n).map(|i| 1_700_000_000_000 + i * 15_000).collect::<Vec<_>>();
    let jittered = |n: i64| {
        (0..n)
            .map(|i| 1_700_000_000_000 + i * 15_000 + i * 7 % 5)
            .collect::<Vec<_>>()
    };
    let values = |n: i64, f: &dyn Fn(i64) -> f64| (0..n).map(f).collect::<Vec<_>>();
    let stale = f64::from_bits(STALE_NAN_BITS);
    vec![
        (vec![-5], vec![-0.0]),
        (regular(120), vec![1.0; 120]),
        (jittered(120), values(120, &|i| (i * 1000 + i * i % 17) as f64)),
        (
            jittered(70),
            values(70, &|i| (2000 + i * 37 % 100) as f64 / 100.0),
        ),
        (
            regular(65),
            values(65, &|i| if i == 30 { stale } else { (i * i * 5) as f64 }),
        ),
        (regular(20), values(20, &|i| (i as f64 + 1.0) / 3.0)),
        (
            vec![i64::MIN, 0, i64::MAX],
            vec![f64::INFINITY, f64::MAX, f64::from_bits(u64::MAX)],
        ),
        (
            regular(130),
            values(130, &|i| if i < 65 { i as f64 } else { (i - 65) as f64 }),
        ),
    ]
}

proptest! {
    /// What is kept of the chunk before, whose times may or may not be the same, changes nothing.
    #[test]
    fn chunks_decode_alike_whatever_was_decoded_before(
        jitters in proptest::collection::vec(proptest::collection::vec(0i64..5, 40), 1..4),
        order in proptest::collection::vec((any::<prop::sample::Index>(), 0i64..45, 0i64..45, any::<bool>()), 1..30),
    ) {
        // All begin and end at the same times.
        let times = |jitter: &Vec<i64>| -> Vec<i64> {
            let inner = jitter.iter().enumerate().map(|(i, j)| 10 * (i as i64 + 1) + j);
            std::iter::once(0).chain(inner).chain([1_000]).collect()
        };
        let all: Vec<Vec<i64>> = jitters.iter().map(times).collect();
        for (which, from, to, cut) in order {
            let times = which.get(&all);
            let values: Vec<f64> = (0..times.len()).map(|i| i as f64 / 4.0).collect();
            let mut bytes = encode(times, &values).unwrap();
            let range = TimeRange::new(from * 25, to * 25);
            if cut {
                // The last column ends early, behind times that are good.
                bytes.truncate(bytes.len() - 6);
                let sum = crc32c::crc32c(&bytes);
                bytes.extend_from_slice(&sum.to_le_bytes());
                prop_assert!(decode(bytes, TimeRange::ALL).is_err());
                continue;
            }
            let samples = times.iter().zip(&values).filter(|(t, _)| range.contains(**t));
            let expected: Vec<_> = samples.map(|(&t, v)| (t, v.to_bits())).collect();
            prop_assert_eq!(decode(bytes, range).unwrap(), expected);
        }
    }

    #[test]
    fn integers_of_any_size_survive(
        ms in proptest::collection::vec(prop_oneof![
            -5i64..5,
            (1i64 << 51) - 3..(1i64 << 51) + 3,
            -(1i64 << 51) - 3..-(1i64 << 51) + 3,
            -(1i64 << 53)..(1i64 << 53),
        ], 1..200),
        exponent in 0u8..3,
    ) {
        let times: Vec<i64> = (0..ms.len() as i64).collect();
        let power = [1.0, 10.0, 100.0][usize::from(exponent)];
        let values: Vec<f64> = ms.iter().map(|&m| m as f64 / power).collect();
        let expected: Vec<_> = times.iter().copied().zip(values.iter().map(|v| v.to_bits())).collect();
        prop_assert_eq!(decode(encode(&times, &values).unwrap(), TimeRange::ALL).unwrap(), expected);
    }
}

const FIXTURE: &str = include_str!("fixtures/v1.hex");

#[test]
fn version_1_stays_readable_and_is_written_byte_for_byte() {
    let lines: Vec<&str> = FIXTURE.lines().collect();
    let runs = fixture_runs();
    let mut encoder = Encoder::default();
    let written: Vec<String> = runs
        .iter()
        .map(|(ts, vs)| {
            encoder
                .encode(ts, vs)
                .unwrap()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect()
        })
        .collect();
    assert_eq!(
        written,
        lines,
        "fixtures/v1.hex should hold:\n{}",
        written.join("\n")
    );
    for (line, (ts, vs)) in lines.iter().zip(runs) {
        let bytes = (0..line.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap())
            .collect();
        let expected: Vec<_> = ts.into_iter().zip(vs.into_iter().map(f64::to_bits)).collect();
        assert_eq!(decode(bytes, TimeRange::ALL).unwrap(), expected);
    }
}

/// A counter that begins anew once, one that says when only now and then, and histograms.
fn started_fixture_chunks() -> Vec<Chunk> {
    let first = 1_700_000_000_000;
    let times: Vec<i64> = (0..40).map(|i| first + i * 15_000).collect();
    let values: Vec<f64> = (0..40).map(|i| f64::from(i % 25)).collect();
    let floats = |start_of: &dyn Fn(i64) -> i64| {
        let mut starts = Starts::default();
        times
            .iter()
            .zip(0..)
            .for_each(|(&t, i)| starts.push(t, start_of(i)));
        let chunk = Chunk::parse(encode(&times, &values).unwrap().into()).unwrap();
        chunk.with_starts(&starts).unwrap()
    };
    let histogram = |count| Histogram {
        count,
        sum: 0.5,
        ..Histogram::default()
    };
    let mut open = OpenHistograms::first(first, histogram(1.0));
    open.set_last_start(0);
    for i in 1..5i64 {
        open.append(first + i * 15_000, histogram(i as f64));
        open.set_last_start(first + i / 3 * 15_000);
    }
    vec![
        floats(&|i| first + if i < 25 { -86_400_000 } else { 375_000 }),
        floats(&|i| if i % 7 < 2 { 0 } else { first + i * 15_000 - 1 }),
        Chunk::parse(open.chunk()).unwrap(),
    ]
}

const STARTED_FIXTURE: &str = include_str!("fixtures/v3-v4.hex");

#[test]
fn versions_3_and_4_stay_readable_and_are_written_byte_for_byte() {
    let chunks = started_fixture_chunks();
    let hex = |chunk: &Chunk| -> String { chunk.bytes().iter().map(|b| format!("{b:02x}")).collect() };
    let written: Vec<String> = chunks.iter().map(hex).collect();
    let lines: Vec<&str> = STARTED_FIXTURE.lines().collect();
    assert_eq!(
        written,
        lines,
        "fixtures/v3-v4.hex should hold:\n{}",
        written.join("\n")
    );
    let starts: Vec<Vec<(i64, i64)>> = chunks.iter().map(starts_of).collect();
    let first = 1_700_000_000_000;
    assert_eq!(starts[0].len(), 40);
    assert_eq!(starts[0][24], (first + 24 * 15_000, first - 86_400_000));
    assert_eq!(starts[0][25], (first + 25 * 15_000, first + 375_000));
    assert_eq!(starts[1].len(), 28);
    assert_eq!(starts[2].len(), 4);
    assert_eq!(starts[2][2], (first + 45_000, first + 15_000));
}

fn starts_of(chunk: &Chunk) -> Vec<(i64, i64)> {
    let mut starts = Vec::new();
    chunk.decode_starts(TimeRange::ALL, &mut starts).unwrap();
    starts
}

proptest! {
    #[test]
    fn starts_come_back_and_change_nothing_else(
        samples in proptest::collection::btree_map(-50i64..50, (any::<u64>(), prop_oneof![Just(0), Just(7), any::<i64>()]), 1..60),
        min in -60i64..60, len in 0i64..120,
    ) {
        let times: Vec<i64> = samples.keys().copied().collect();
        let values: Vec<f64> = samples.values().map(|s| f64::from_bits(s.0)).collect();
        let all: Vec<(i64, i64)> = samples.iter().map(|(&t, s)| (t, s.1)).filter(|s| s.1 != 0).collect();
        let bare = Chunk::parse(encode(&times, &values).unwrap().into()).unwrap();
        let chunk = bare.clone().with_starts(&Starts::of(&times, &all)).unwrap();
        prop_assert_eq!(chunk.has_starts(), !all.is_empty());
        prop_assert_eq!((chunk.count(), chunk.time_range()), (bare.count(), bare.time_range()));
        let range = TimeRange::new(min, min + len);
        let mut starts = Vec::new();
        chunk.decode_starts(range, &mut starts).unwrap();
        let wanted: Vec<_> = all.iter().copied().filter(|s| range.contains(s.0)).collect();
        prop_assert_eq!(starts, wanted);
        let decoded = |chunk: &Chunk| decode(chunk.bytes().to_vec(), range).unwrap();
        prop_assert_eq!(decoded(&chunk), decoded(&bare));
        let kept = chunk.clone().with_starts(&Starts::of(&times, &[(times[0], 99)])).unwrap();
        prop_assert_eq!(kept.bytes(), if all.is_empty() { kept.bytes() } else { chunk.bytes() });
    }

    #[test]
    fn i11_i12_damaged_starts_are_an_error_or_starts(
        bytes in proptest::collection::vec(any::<u8>(), 0..30), at in 5usize..12,
    ) {
        let mut all = started_fixture_chunks()[0].bytes().to_vec();
        all.truncate(all.len() - 4);
        let from = at.min(all.len());
        let to = (from + bytes.len()).min(all.len());
        all.splice(from..to, bytes);
        let sum = crc32c::crc32c(&all);
        all.extend_from_slice(&sum.to_le_bytes());
        if let Ok(chunk) = Chunk::parse(all.into()) {
            let mut starts = Vec::new();
            let decoded = chunk.decode_starts(TimeRange::ALL, &mut starts);
            prop_assert!(decoded.is_ok() || starts.is_empty());
            prop_assert!(starts.len() <= chunk.count());
        }
    }
}
