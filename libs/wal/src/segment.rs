//! The segment being written. Everything here blocks and runs in disk submissions.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use koios_runtime::{Disk, DiskError, DiskFile, OpenMode};

use crate::format::{
    GROUP_CODE, GROUP_PAYLOAD_BYTES, GroupHead, Keys, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use crate::mark::Mark;
use crate::{Error, Identity, Lsn, RecordKind, Result, mark};

const SUFFIX: &str = ".wal";
const UNFINISHED_SUFFIX: &str = ".tmp";

/// A segment is not made larger than this for what [`crate::Apply::segment_bytes`] asks: it is read into memory whole.
const ASKED_BYTES_MAX: u64 = 1 << 30;

/// Room beside the checkpoint of a segment that takes the system's records only, at least: some hundred of them.
const SYSTEM_BYTES: u64 = 64 << 10;

/// Bytes that a group adds before its records.
const GROUP_HEAD_BYTES: usize = RECORD_HEADER_BYTES + GROUP_PAYLOAD_BYTES;

pub(crate) fn path_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}{SUFFIX}"))
}

/// The segment numbers in a folder, ascending. Leftovers of segments that never got their name are removed: nothing in
/// them was answered.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>, DiskError> {
    let mut numbers = Vec::new();
    for name in disk.list(dir)? {
        if name.ends_with(UNFINISHED_SUFFIX) {
            disk.remove_file(&dir.join(name))?;
        } else if let Some(number) = name.strip_suffix(SUFFIX).and_then(|n| n.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A group of records as it will stand in a segment.
#[derive(Debug, Default)]
pub(crate) struct GroupBuffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) lsns: Vec<Lsn>,
}

impl GroupBuffer {
    /// Bytes of a group with these payloads.
    pub(crate) fn size(payload_lens: impl Iterator<Item = usize>) -> usize {
        payload_lens.fold(GROUP_HEAD_BYTES, |n, len| {
            n.saturating_add(len).saturating_add(RECORD_HEADER_BYTES)
        })
    }

    /// Lays out records, each in two parts, at `at`, before which everything is synced.
    pub(crate) fn build<'a>(
        keys: &Keys,
        at: Lsn,
        records: impl ExactSizeIterator<Item = (RecordKind, [&'a [u8]; 2])> + Clone,
    ) -> Self {
        let size = Self::size(records.clone().map(|(_, p)| p[0].len() + p[1].len()));
        let mut out = Self {
            bytes: Vec::with_capacity(size),
            lsns: Vec::with_capacity(records.len()),
        };
        let head = GroupHead {
            synced: at,
            body_bytes: (size - GROUP_HEAD_BYTES) as u32,
            records: records.len() as u32,
        };
        keys.write_record(&mut out.bytes, at, GROUP_CODE, [&head.to_bytes(), &[]]);
        for (kind, payload) in records {
            let lsn = Lsn::new(at.segment(), at.offset() + out.bytes.len() as u32);
            keys.write_record(&mut out.bytes, lsn, kind.code(), payload);
            out.lsns.push(lsn);
        }
        out
    }
}

/// The segment that takes appends.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    number: u32,
    at: u32,
    capacity: u64,
    takes_all: bool,
    /// Whether there may be something of a group behind the position that found no room.
    has_leftover: Arc<AtomicBool>,
}

/// Bytes of a new segment: what must stand in it, its beginning and the group that comes next, and room for as much as a
/// segment is to take beside its beginning, lest a large one is written again for every few groups. `None` when what must
/// stand in it does not fit.
fn capacity_of(beginning: u64, group: u64, segment: u64) -> Option<u64> {
    // Offsets are 32 bits wide.
    let most = u64::from(u32::MAX);
    let needed = beginning.saturating_add(group);
    let wanted = beginning.saturating_add(segment.max(group)).min(most);
    (needed <= most).then_some(wanted)
}

/// What a new segment is made from.
#[derive(Clone, Debug)]
pub(crate) struct NewSegment {
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) number: u32,
    pub(crate) previous_end: u32,
    pub(crate) checkpoint: Vec<u8>,
    /// Bytes of the group that comes next and must fit.
    pub(crate) group_bytes: u64,
    /// Bytes beside the checkpoint, as the settings say.
    pub(crate) segment_bytes: u64,
    /// The same as whoever applies the log asks, within bounds.
    pub(crate) asked_bytes: u64,
    /// Bytes that must stay free afterwards.
    pub(crate) reserve_bytes: u64,
    /// Whether what does not use the reserve goes there, too.
    pub(crate) takes_all: bool,
}

impl NewSegment {
    /// Creates the segment: reserved, with header and checkpoint synced before it gets its name, and marked as the newest
    /// before anything relies on it.
    pub(crate) fn create(&self, disk: &dyn Disk) -> Result<Active> {
        let keys = Keys::new(self.identity);
        let header = SegmentHeader {
            identity: self.identity,
            number: self.number,
            previous_end: self.previous_end,
        };
        let start = Lsn::new(self.number, SEGMENT_HEADER_BYTES as u32);
        let beginning = GroupBuffer::size([self.checkpoint.len()].into_iter());
        let beginning = (SEGMENT_HEADER_BYTES as u64).saturating_add(beginning as u64);
        let segment_bytes = self.segment_bytes.max(self.asked_bytes.min(ASKED_BYTES_MAX));
        let Some(capacity) = capacity_of(beginning, self.group_bytes, segment_bytes) else {
            return Err(Error::CheckpointTooLarge {
                dir: self.dir.clone(),
                bytes: beginning,
            });
        };
        let checkpoint = [(RecordKind::Checkpoint, [self.checkpoint.as_slice(), &[]])];
        let group = GroupBuffer::build(&keys, start, checkpoint.into_iter());
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(&group.bytes);
        self.check_reserve(disk, capacity)?;
        let temporary = self.dir.join(format!("{:010}{UNFINISHED_SUFFIX}", self.number));
        let file = match self.write(disk, &temporary, capacity, &bytes) {
            Ok(file) => file,
            Err(e) => {
                // The leftover holds nothing anybody relies on; the next start removes it if this does not.
                let _ = disk.remove_file(&temporary);
                return Err(self.classify(disk, e, capacity));
            }
        };
        let path = path_of(&self.dir, self.number);
        if let Err(e) = disk.rename(&temporary, &path) {
            // As above.
            let _ = disk.remove_file(&temporary);
            return Err(self.classify(disk, e, capacity));
        }
        disk.sync_dir(&self.dir)?;
        match mark::write(disk, &self.dir, header) {
            Ok(()) => {}
            Err(e) if e.is_full() && !self.may_be_marked(disk) => {
                // The segment before goes on. This one must not stay, for its checkpoint says less from then on.
                disk.remove_file(&path)?;
                disk.sync_dir(&self.dir)?;
                return Err(self.classify(disk, e, capacity));
            }
            // It stays, for the mark may name it by now: without it the next start would report it missing. The
            // process ends.
            Err(e) => return Err(e.into()),
        }
        Ok(Active {
            file,
            path,
            number: self.number,
            at: bytes.len() as u32,
            capacity,
            takes_all: self.takes_all,
            has_leftover: Arc::default(),
        })
    }

    /// Creates it for a group of the system's records, which may use the reserve up to what is given: small, lest it uses up what it should help to
    /// free, but as large again as what it begins with, which would be written too often otherwise. Where that finds no room, for
    /// this group only.
    pub(crate) fn create_for_system(
        &self,
        disk: &dyn Disk,
        group_bytes: u64,
        reserve_bytes: u64,
    ) -> Result<Active> {
        let wanted = SYSTEM_BYTES.max(self.checkpoint.len() as u64);
        let small = Self {
            group_bytes,
            segment_bytes: self.segment_bytes.min(wanted),
            asked_bytes: 0,
            reserve_bytes,
            takes_all: false,
            ..self.clone()
        };
        match small.create(disk) {
            Err(Error::Full { .. }) => Self {
                segment_bytes: 0,
                ..small
            }
            .create(disk),
            other => other,
        }
    }

    /// Whether the mark may name this segment although writing it failed: the last step, which makes the new name
    /// durable, can fail too. A mark that cannot be read may.
    fn may_be_marked(&self, disk: &dyn Disk) -> bool {
        match mark::read(disk, &self.dir, self.identity) {
            Ok(Mark::Segment(newest)) => newest >= self.number,
            // As it was before: a new mark is whole before it gets its name.
            Ok(Mark::Absent | Mark::Damaged) => false,
            Err(_) => true,
        }
    }

    fn check_reserve(&self, disk: &dyn Disk, capacity: u64) -> Result<()> {
        let free = disk.free_bytes(&self.dir)?;
        if free < capacity.saturating_add(self.reserve_bytes) {
            return Err(self.full(free, capacity));
        }
        Ok(())
    }

    fn write(
        &self,
        disk: &dyn Disk,
        path: &Path,
        capacity: u64,
        bytes: &[u8],
    ) -> Result<Arc<dyn DiskFile>, DiskError> {
        match disk.remove_file(path) {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
        let file = disk.open(path, OpenMode::CreateNew)?;
        file.allocate(capacity)
            .map_err(|e| DiskError::io("reserve", path, e))?;
        file.write_at(0, bytes)
            .map_err(|e| DiskError::io("write", path, e))?;
        file.sync_data().map_err(|e| DiskError::io("sync", path, e))?;
        Ok(file)
    }

    pub(crate) fn classify(&self, disk: &dyn Disk, error: DiskError, capacity: u64) -> Error {
        if error.is_full() {
            return self.full(disk.free_bytes(&self.dir).unwrap_or(0), capacity);
        }
        Error::Disk(error)
    }

    fn full(&self, free: u64, needed: u64) -> Error {
        Error::Full {
            dir: self.dir.clone(),
            free,
            needed,
            reserve: self.reserve_bytes,
        }
    }
}

impl Active {
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Where the next group goes; everything before is synced.
    pub(crate) fn position(&self) -> Lsn {
        Lsn::new(self.number, self.at)
    }

    /// Whether what does not use the reserve goes there.
    pub(crate) fn takes_all(&self) -> bool {
        self.takes_all
    }

    pub(crate) fn fits(&self, bytes: usize) -> bool {
        u64::from(self.at).saturating_add(bytes as u64) <= self.capacity
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Writes a group at the position and syncs it. False when there was no room for it: nothing before the position is
    /// touched then. A sync that fails for lack of room is an error like any other.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<bool, DiskError> {
        match self.clear().and_then(|()| self.write_at_end(bytes)) {
            Err(e) if e.is_full() => return Ok(false),
            other => other?,
        }
        self.file
            .sync_data()
            .map_err(|e| DiskError::io("sync", &self.path, e))?;
        Ok(true)
    }

    fn write_at_end(&self, bytes: &[u8]) -> Result<(), DiskError> {
        let written = self.file.write_at(u64::from(self.at), bytes);
        if written
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::StorageFull)
        {
            self.has_leftover.store(true, Ordering::Relaxed);
            self.clear()?;
        }
        written.map_err(|e| DiskError::io("write", &self.path, e))
    }

    /// Takes away what is there of a group that found no room: behind a shorter group it would be read back, as damage with
    /// records after it. To be tried again before anything else is written or the segment is left, if there is no room for
    /// that either.
    pub(crate) fn clear(&self) -> Result<(), DiskError> {
        if !self.has_leftover.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.seal()?;
        self.has_leftover.store(false, Ordering::Relaxed);
        // Where nothing can be reserved, a group that finds no room says so.
        let _ = self.file.allocate(self.capacity);
        Ok(())
    }

    /// Gives the unused reserved space back; the segment takes no more appends.
    pub(crate) fn seal(&self) -> Result<(), DiskError> {
        self.file
            .set_len(u64::from(self.at))
            .map_err(|e| DiskError::io("trim", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_its_room_beside_its_beginning_and_never_more_than_offsets_reach() {
        const MIB: u64 = 1 << 20;
        let most = u64::from(u32::MAX);
        // Beginning, group, segment.
        let cases = [
            ((MIB, MIB, 32 * MIB), Some(33 * MIB)),
            ((100 * MIB, MIB, 32 * MIB), Some(132 * MIB)),
            ((MIB, 40 * MIB, 32 * MIB), Some(41 * MIB)),
            ((MIB, MIB, 0), Some(2 * MIB)),
            ((MIB, MIB, u64::MAX), Some(most)),
            ((most - MIB, MIB, 32 * MIB), Some(most)),
            ((most, 1, 32 * MIB), None),
            ((u64::MAX, u64::MAX, u64::MAX), None),
        ];
        for ((beginning, group, segment), expected) in cases {
            let found = capacity_of(beginning, group, segment);
            assert_eq!(found, expected, "{beginning} {group} {segment}");
        }
    }
}
