//! Reads parts of segments whose records are known, so that not all of a segment need be in memory.

use std::path::PathBuf;

use bytes::Bytes;
use koios_runtime::{DiskError, DiskHandle, OpenMode};

use crate::format::{
    GROUP_CODE, GROUP_PAYLOAD_BYTES, GroupHead, Keys, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES,
};
use crate::scan::scan;
use crate::segment::path_of;
use crate::{Error, Identity, Lsn, Record, RecordKind, Result};

/// Where an intact record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAt {
    /// Its place.
    pub lsn: Lsn,
    /// Bytes of its payload.
    pub len: u32,
}

impl Record {
    /// Where it stands.
    pub fn at(&self) -> RecordAt {
        RecordAt {
            lsn: self.lsn,
            len: self.payload.len() as u32,
        }
    }
}

/// Reads records again. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartReader {
    pub(crate) disk: DiskHandle,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
}

impl PartReader {
    /// Reads records of one segment that follow each other.
    ///
    /// # Errors
    /// [`Error::Disk`]; [`Error::Changed`] when one is no longer intact.
    pub async fn read(&self, records: &[RecordAt]) -> Result<Vec<Record>> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ok(Vec::new());
        };
        let (from, number) = (first.lsn.offset(), first.lsn.segment());
        let end = last.lsn.offset() as usize + RECORD_HEADER_BYTES + last.len as usize;
        let len = end.saturating_sub(from as usize);
        let (path, keys) = (path_of(&self.dir, number), Keys::new(self.identity));
        let records = records.to_vec();
        self.disk
            .run(move |d| {
                let file = d.open(&path, OpenMode::Read)?;
                let mut bytes = vec![0; len];
                let got = file.read_at(u64::from(from), &mut bytes);
                bytes.truncate(got.map_err(|e| DiskError::io("read", &path, e))?);
                let bytes = Bytes::from(bytes);
                let read = records.iter().map(|at| {
                    let here = (at.lsn.offset() as usize).saturating_sub(from as usize);
                    let found = keys.read_record(bytes.get(here..).unwrap_or_default(), at.lsn);
                    let (code, len) = found.ok_or_else(|| Error::Changed {
                        path: path.clone(),
                        lsn: at.lsn,
                    })?;
                    let body = here + RECORD_HEADER_BYTES;
                    Ok(Record {
                        lsn: at.lsn,
                        kind: RecordKind::from_code(code),
                        payload: bytes.slice(body..body + len),
                    })
                });
                read.collect()
            })
            .await
    }

    /// Reads the first group of a segment alone: its checkpoint. `None` when it is not intact.
    ///
    /// # Errors
    /// [`Error::Disk`] when it cannot be read.
    pub async fn checkpoint(&self, number: u32) -> Result<Option<Record>> {
        let (path, keys) = (path_of(&self.dir, number), Keys::new(self.identity));
        let group = Lsn::new(number, SEGMENT_HEADER_BYTES as u32);
        self.disk
            .run(move |d| {
                let file = d.open(&path, OpenMode::Read)?;
                let read = |len: usize| -> Result<Bytes> {
                    let mut bytes = vec![0; len];
                    let got = file.read_at(0, &mut bytes);
                    bytes.truncate(got.map_err(|e| DiskError::io("read", &path, e))?);
                    Ok(Bytes::from(bytes))
                };
                // A length is believed only with its checksum.
                let start = read(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + GROUP_PAYLOAD_BYTES)?;
                let head = keys.read_record(start.get(SEGMENT_HEADER_BYTES..).unwrap_or_default(), group);
                let head = head.filter(|(code, _)| *code == GROUP_CODE);
                let payload = start.get(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES..);
                let head = head.and(payload).and_then(GroupHead::from_bytes);
                let bytes = match head {
                    Some(head) => read(start.len().saturating_add(head.body_bytes as usize))?,
                    None => Bytes::from(d.read(&path)?),
                };
                let found = scan(&keys, number, &bytes).records.into_iter().next();
                Ok(found.filter(|r| r.kind == RecordKind::Checkpoint))
            })
            .await
    }
}
