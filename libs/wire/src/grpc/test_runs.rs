//! Samples of a wanted size, for tests.

use std::sync::LazyLock;

use koios_chunk::{Chunk, Run};

/// Values of the largest chunk made here, eight bytes each.
const VALUES: usize = 1 << 13;

/// A chunk of as many floats as no format can make smaller.
fn chunk_of(count: usize) -> Chunk {
    let mut bits = 1u64;
    let mut value = || {
        bits = bits
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from_bits(bits)
    };
    let times: Vec<i64> = (0..count as i64).collect();
    let values: Vec<f64> = times.iter().map(|_| value()).collect();
    let chunk = koios_chunk::encode(&times, &values).unwrap();
    Chunk::parse(chunk.into()).unwrap()
}

/// Chunks that take `bytes` or a little more.
pub(super) fn runs_of(bytes: usize) -> Vec<Run> {
    static LARGE: LazyLock<Chunk> = LazyLock::new(|| chunk_of(VALUES));
    let mut runs = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let chunk = if left >= LARGE.bytes().len() {
            LARGE.clone()
        } else {
            chunk_of(left / 8 + 1)
        };
        left = left.saturating_sub(chunk.bytes().len());
        runs.push(Run::Chunk(chunk));
    }
    runs
}
