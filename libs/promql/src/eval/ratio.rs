//! The place of a series in [0, 1], by which `limit_ratio` chooses.
//!
//! **Source:** Prometheus `HashRatioSampler`: xxHash64 of the label set in the byte form of its `stringlabels`.

use koios_model::Labels;

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// Where a series lies; the same for equal label sets, spread evenly over all.
pub(super) fn sample_offset(labels: &Labels) -> f64 {
    let mut bytes = Vec::with_capacity(labels.packed().len() + 8);
    for (name, value) in labels.iter() {
        write_string(&mut bytes, name);
        write_string(&mut bytes, value);
    }
    xxh64(&bytes) as f64 / u64::MAX as f64
}

/// Length in one byte, or 255 and three bytes; then the text.
fn write_string(out: &mut Vec<u8>, s: &str) {
    match u8::try_from(s.len()) {
        Ok(len) if len < 255 => out.push(len),
        _ => {
            out.push(255);
            out.extend(s.len().to_le_bytes().into_iter().take(3));
        }
    }
    out.extend_from_slice(s.as_bytes());
}

fn round(acc: u64, lane: u64) -> u64 {
    acc.wrapping_add(lane.wrapping_mul(P2))
        .rotate_left(31)
        .wrapping_mul(P1)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |acc, &b| acc << 8 | u64::from(b))
}

/// xxHash64 with seed 0.
fn xxh64(bytes: &[u8]) -> u64 {
    let mut blocks = bytes.chunks_exact(32);
    let mut acc = if bytes.len() >= 32 {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        for block in &mut blocks {
            for (lane, part) in lanes.iter_mut().zip(block.chunks_exact(8)) {
                *lane = round(*lane, word(part));
            }
        }
        let mixed = lanes
            .iter()
            .zip([1, 7, 12, 18])
            .fold(0u64, |acc, (lane, by)| acc.wrapping_add(lane.rotate_left(by)));
        lanes.iter().fold(mixed, |acc, &lane| {
            (acc ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4)
        })
    } else {
        P5
    };
    acc = acc.wrapping_add(bytes.len() as u64);
    let mut words = blocks.remainder().chunks_exact(8);
    for part in &mut words {
        acc = (acc ^ round(0, word(part)))
            .rotate_left(27)
            .wrapping_mul(P1)
            .wrapping_add(P4);
    }
    let mut halves = words.remainder().chunks_exact(4);
    for part in &mut halves {
        acc = (acc ^ word(part).wrapping_mul(P1))
            .rotate_left(23)
            .wrapping_mul(P2)
            .wrapping_add(P3);
    }
    for &b in halves.remainder() {
        acc = (acc ^ u64::from(b).wrapping_mul(P5))
            .rotate_left(11)
            .wrapping_mul(P1);
    }
    acc = (acc ^ (acc >> 33)).wrapping_mul(P2);
    acc = (acc ^ (acc >> 29)).wrapping_mul(P3);
    acc ^ (acc >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_agree_with_the_published_values() {
        assert_eq!(xxh64(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(
            xxh64(b"Call me Ishmael. Some years ago--never mind how long precisely-"),
            0x02A2_E854_70D6_FD96
        );
    }

    #[test]
    fn offsets_lie_between_0_and_1() {
        let long = "x".repeat(300);
        let o = sample_offset(&Labels::from_pairs([("a", long.as_str())]));
        assert!((0.0..=1.0).contains(&o));
    }
}
