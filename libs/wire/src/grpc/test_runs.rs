//! Samples of a wanted size, for tests.

use koios_chunk::{Chunk, Run};

/// Chunks of random floats that take `bytes` or a little more.
pub(super) fn runs_of(bytes: usize) -> Vec<Run> {
    let mut bits = 1u64;
    let mut value = || {
        bits = bits
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from_bits(bits)
    };
    let mut runs = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let count = (left / 8 + 1).min(1 << 15);
        let times: Vec<i64> = (0..count as i64).collect();
        let values: Vec<f64> = times.iter().map(|_| value()).collect();
        let chunk = koios_chunk::encode(&times, &values).unwrap();
        left = left.saturating_sub(chunk.len());
        runs.push(Run::Chunk(Chunk::parse(chunk.into()).unwrap()));
    }
    runs
}
