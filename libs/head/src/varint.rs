//! LEB128: small numbers in few bytes.

/// Appends a number.
pub(crate) fn push(out: &mut Vec<u8>, mut v: u32) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Takes a number off the front; none when there is no whole one.
#[inline]
pub(crate) fn take(bytes: &mut &[u8]) -> Option<u32> {
    let (mut v, mut shift) = (0u32, 0);
    while shift < u32::BITS {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u32::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Some(v);
        }
        shift += 7;
    }
    None
}

/// Bytes that a number takes.
pub(crate) fn len(v: u32) -> usize {
    (u32::BITS - (v | 1).leading_zeros()).div_ceil(7) as usize
}
