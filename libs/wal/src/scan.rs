//! Reads a segment's bytes: its records, and what is damaged. Pure.

use bytes::Bytes;

use crate::format::{
    GROUP_CODE, GroupHead, HeaderRead, Keys, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::{Lsn, RecordKind};

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub lsn: Lsn,
    /// What it holds.
    pub kind: RecordKind,
    /// Its content, verified.
    pub payload: Bytes,
}

/// What is known of damaged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// They were the last ones written. A crash during the write, before anybody was answered, leaves the same traces
    /// as a later damage of answered records: which one it was cannot be told.
    Tail,
    /// They had been synced: answered records are lost here.
    Middle,
    /// Whole segments are missing.
    Missing,
}

/// Bytes of a segment that are no intact records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub lsn: Lsn,
    /// How many bytes; 0 for a missing segment.
    pub bytes: u64,
    /// What is known of it.
    pub kind: DamageKind,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) records: Vec<Record>,
    /// In order; [`DamageKind::Tail`] where nothing in the segment itself proves otherwise.
    pub(crate) damage: Vec<Damage>,
    /// Where the last record or damage ends.
    pub(crate) end: u32,
    /// Up to where the segment itself proves that it was synced.
    pub(crate) synced: u32,
}

struct Scanner<'a> {
    keys: &'a Keys,
    number: u32,
    bytes: &'a Bytes,
    /// Where the trailing zeros of the reserved space begin.
    written: usize,
    at: usize,
    group_end: usize,
    /// The largest position a group says was synced before it.
    synced: Lsn,
    out: Scan,
}

/// Scans segment `number`. Positions fit 32 bits because longer files are never written; the rest of one is ignored.
pub(crate) fn scan(keys: &Keys, number: u32, bytes: &Bytes) -> Scan {
    let mut s = Scanner {
        keys,
        number,
        bytes,
        written: end_of_written(bytes),
        at: SEGMENT_HEADER_BYTES.min(bytes.len()),
        group_end: 0,
        synced: Lsn::default(),
        out: Scan::default(),
    };
    // Header and checkpoint, the first group, are synced before the segment gets its name.
    s.synced = s.lsn(s.at + 1);
    if !matches!(SegmentHeader::read(bytes), HeaderRead::Ok(_)) {
        s.damaged(0, s.at);
    }
    while s.step() {}
    s.finish()
}

/// Where the trailing zeros begin. Most of a young segment is zeros: they are compared many at once.
fn end_of_written(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    for chunk in bytes.rchunks(ZEROS.len()) {
        if !ZEROS.starts_with(chunk) {
            let last = chunk.iter().rposition(|&b| b != 0);
            return end - chunk.len() + last.map_or(0, |i| i + 1);
        }
        end -= chunk.len();
    }
    0
}

impl Scanner<'_> {
    fn lsn(&self, at: usize) -> Lsn {
        Lsn::new(self.number, u32::try_from(at).unwrap_or(u32::MAX))
    }

    fn rest(&self, at: usize) -> &[u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    fn record_at(&self, at: usize) -> Option<(u8, usize)> {
        self.keys.read_record(self.rest(at), self.lsn(at))
    }

    /// Takes one record or one stretch of damage; false at the end.
    fn step(&mut self) -> bool {
        if let Some((code, len)) = self.record_at(self.at) {
            self.take(code, len);
            return true;
        }
        let written = self.written.max(self.at);
        if self.at >= written && self.at >= self.group_end {
            return false;
        }
        let from = self.at;
        match self.resync() {
            Some(next) => {
                self.damaged(from, next);
                self.at = next;
                true
            }
            None => {
                let end = written.max(self.group_end.min(self.bytes.len())).max(from + 1);
                self.damaged(from, end);
                self.at = end;
                false
            }
        }
    }

    fn take(&mut self, code: u8, len: usize) {
        let body = self.at + RECORD_HEADER_BYTES;
        let end = body + len;
        let payload = self.bytes.slice(body..end);
        if code == GROUP_CODE {
            if let Some(head) = GroupHead::from_bytes(&payload) {
                self.synced = self.synced.max(head.synced);
                self.group_end = end.saturating_add(head.body_bytes as usize);
                if self.at == SEGMENT_HEADER_BYTES {
                    self.synced = self.synced.max(self.lsn(self.group_end));
                }
            }
        } else {
            self.out.records.push(Record {
                lsn: self.lsn(self.at),
                kind: RecordKind::from_code(code),
                payload,
            });
        }
        self.at = end;
    }

    /// The next place after the current one where an intact record stands.
    fn resync(&self) -> Option<usize> {
        let from = self.at + 1;
        let marker_bytes = self.keys.marker.len();
        // A record begins with something else than zeros.
        let end = self.bytes.len().min(self.written + marker_bytes);
        let rest = self.bytes.get(from..end).unwrap_or_default();
        rest.windows(marker_bytes)
            .enumerate()
            .filter(|(_, w)| *w == self.keys.marker)
            .map(|(i, _)| from + i)
            .find(|&at| self.record_at(at).is_some())
    }

    fn damaged(&mut self, from: usize, to: usize) {
        self.out.damage.push(Damage {
            lsn: self.lsn(from),
            bytes: (to - from) as u64,
            kind: DamageKind::Tail,
        });
    }

    fn finish(mut self) -> Scan {
        if self.out.records.is_empty() && self.out.damage.is_empty() {
            // Not even the checkpoint is left.
            self.damaged(self.at, self.at);
        }
        for d in &mut self.out.damage {
            if self.synced > d.lsn {
                d.kind = DamageKind::Middle;
            }
        }
        self.out.end = u32::try_from(self.at).unwrap_or(u32::MAX);
        self.out.synced = match self.synced.segment() == self.number {
            true => self.synced.offset().min(self.out.end),
            false => self.out.end,
        };
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_zeros_are_found_wherever_they_begin() {
        for len in [0, 1, 4095, 4096, 4097, 10_000] {
            let mut bytes = vec![0; len];
            assert_eq!(end_of_written(&bytes), 0, "{len} zeros");
            for last in (0..len).step_by(97).chain(len.checked_sub(1)) {
                bytes[last] = 1;
                assert_eq!(end_of_written(&bytes), last + 1, "of {len}");
            }
        }
    }
}
