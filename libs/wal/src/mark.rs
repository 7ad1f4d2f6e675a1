//! The mark: a copy of the newest segment's header, kept beside the log's folder and not in it. A folder that is lost
//! with everything in it, or put back from an older copy, is told by it from one that never held more.

use std::path::{Path, PathBuf};

use koios_runtime::{Disk, DiskError};

use crate::format::{HeaderRead, SegmentHeader};
use crate::{Error, Identity, Result};

const SUFFIX: &str = ".end";

/// What the mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// No segment was begun, or only by versions that left no mark.
    Absent,
    /// The newest segment that was begun.
    Segment(u32),
    /// Segments were begun; how many is not known.
    Damaged,
}

pub(crate) fn path_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(SUFFIX);
    dir.with_file_name(name)
}

/// Makes a segment the newest, durably; the folder's own name becomes durable with it.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, header: SegmentHeader) -> Result<(), DiskError> {
    disk.replace(&path_of(dir), &header.to_bytes())
}

pub(crate) fn read(disk: &dyn Disk, dir: &Path, identity: Identity) -> Result<Mark> {
    let path = path_of(dir);
    let bytes = match disk.read(&path) {
        Err(e) if e.is_not_found() => return Ok(Mark::Absent),
        other => other?,
    };
    match SegmentHeader::read(&bytes) {
        HeaderRead::Ok(header) if header.identity == identity => Ok(Mark::Segment(header.number)),
        // Of a data directory that was here before. Its segments would be refused; without them nothing is missing,
        // for a new incarnation does not count before it has copied everything.
        HeaderRead::Ok(_) => Ok(Mark::Absent),
        HeaderRead::Damaged => Ok(Mark::Damaged),
        HeaderRead::Version(version) => Err(Error::newer(path, version)),
    }
}
