//! Makes the checksums of a block's files right, as far as their form can be made out.
//!
//! **Source**: Prometheus `tsdb/docs/format`.

use std::collections::BTreeMap;

/// Six offsets before the checksum of an index's table of contents.
const TOC_BYTES: usize = 6 * 8;
const CRC_BYTES: usize = 4;

/// Makes all of them right.
pub(super) fn seal(files: &mut BTreeMap<String, Vec<u8>>) {
    for (name, file) in files {
        match name.as_str() {
            "index" => seal_index(file),
            "tombstones" => seal_end(file, 5),
            name if name.starts_with("chunks/") => seal_chunks(file),
            _ => {}
        }
    }
}

/// The checksum at `at` of what lies before it from `from` on, if there is room for it.
fn seal_at(file: &mut [u8], from: usize, at: usize) {
    let Some(sum) = file.get(from..at).map(crc32c::crc32c) else {
        return;
    };
    if let Some(place) = file.get_mut(at..at.saturating_add(CRC_BYTES)) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// A checksum at the end of a file.
fn seal_end(file: &mut [u8], from: usize) {
    if let Some(at) = file.len().checked_sub(CRC_BYTES) {
        seal_at(file, from, at);
    }
}

fn seal_chunks(file: &mut [u8]) {
    let mut at = 8;
    while let Some((from, len)) = length_at(file, at) {
        // An encoding and the samples.
        let end = from.saturating_add(1).saturating_add(len);
        seal_at(file, from, end);
        at = end.saturating_add(CRC_BYTES);
    }
}

fn seal_index(file: &mut [u8]) {
    let Some(toc) = file.len().checked_sub(TOC_BYTES + CRC_BYTES) else {
        return;
    };
    seal_end(file, toc);
    let offset = |place: usize| {
        let from = toc + place * 8;
        let bytes = file.get(from..from + 8)?.try_into().ok()?;
        usize::try_from(u64::from_be_bytes(bytes)).ok()
    };
    let (Some(symbols), Some(mut at)) = (offset(0), offset(1)) else {
        return;
    };
    let aligned = file.get(4) == Some(&2);
    let head = file.get(symbols..symbols.saturating_add(4));
    if let Some(len) = head.and_then(|h| h.try_into().ok()).map(u32::from_be_bytes) {
        let from = symbols + 4;
        seal_at(file, from, from.saturating_add(len as usize));
    }
    loop {
        if aligned {
            at = at.checked_next_multiple_of(16).unwrap_or(usize::MAX);
        }
        let Some((from, len)) = length_at(file, at).filter(|(_, len)| *len > 0 && at < toc) else {
            return;
        };
        let end = from.saturating_add(len);
        seal_at(file, from, end);
        at = end.saturating_add(CRC_BYTES);
    }
}

/// A length in LEB128, and where what it is the length of begins.
fn length_at(file: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut len = 0usize;
    for (i, byte) in file.get(at..)?.iter().take(5).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * i);
        if *byte < 0x80 {
            return Some((at + i + 1, len));
        }
    }
    None
}
