//! Segment files: appended to, ended with the list of what they hold, read at a start.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use koios_runtime::{Disk, DiskError, DiskFile, OpenMode};

use super::index::Place;
use super::record::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};

/// Ends the names of segments.
const SUFFIX: &str = ".cells";

/// Numbers from here on are of segments with cells that were read again after they had been kept.
const AGAIN: u64 = 1 << 63;

/// Why the cells of a segment are kept. What is read once, as by a query over all of a tenant's data, makes no room by
/// pushing out what is read again and again: segments of each generation make room for their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Generation {
    /// They were fetched.
    Once,
    /// They were read since.
    Again,
}

impl Generation {
    /// That of a segment.
    pub(super) fn of(number: u64) -> Self {
        if number < AGAIN { Self::Once } else { Self::Again }
    }

    /// The numbers of its segments.
    pub(super) fn numbers(self) -> RangeInclusive<u64> {
        match self {
            Self::Once => 0..=AGAIN - 1,
            Self::Again => AGAIN..=u64::MAX,
        }
    }
}

/// A segment's file.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}{SUFFIX}"))
}

/// The number that a file's name says.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A segment as it is found at a start.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    /// Where each record is.
    pub(super) records: Vec<(u64, Header)>,
}

/// The segments of a folder, ascending. Files that cannot be read are removed; one that cannot be opened may be whole, for
/// the process may have too many files open, and fails the call.
pub(super) fn find_all(disk: &dyn Disk, folder: &Path) -> Result<Vec<Found>, DiskError> {
    let names = disk.list(folder)?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    let mut all = Vec::with_capacity(numbers.len());
    for number in numbers {
        let path = path(folder, number);
        let file = disk.open(&path, OpenMode::Read)?;
        match find(file, &path, number) {
            Ok(found) => all.push(found),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file of the disk cache cannot be read and is removed");
                disk.remove_file(&path)?;
            }
        }
    }
    Ok(all)
}

fn find(file: Arc<dyn DiskFile>, path: &Path, number: u64) -> Result<Found, DiskError> {
    let fail = |e| DiskError::io("read", path, e);
    let bytes = file.len().map_err(fail)?;
    let records = match listed(file.as_ref(), bytes).map_err(fail)? {
        Some(records) => records,
        None => scanned(file.as_ref(), bytes).map_err(fail)?,
    };
    Ok(Found {
        number,
        file,
        bytes,
        records,
    })
}

/// The list at the end, if it is there and whole.
fn listed(file: &dyn DiskFile, bytes: u64) -> io::Result<Option<Vec<(u64, Header)>>> {
    let Some(trailer_at) = bytes.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(None);
    };
    let Some(trailer) = Trailer::read(&read(file, trailer_at, TRAILER_BYTES)?) else {
        return Ok(None);
    };
    let list_bytes = u64::from(trailer.records).saturating_mul(HEADER_BYTES as u64);
    if trailer.list_at.checked_add(list_bytes) != Some(trailer_at) {
        return Ok(None);
    }
    let list = read(
        file,
        trailer.list_at,
        usize::try_from(list_bytes).unwrap_or(usize::MAX),
    )?;
    if crc32c::crc32c(&list) != trailer.crc32c {
        return Ok(None);
    }
    let (mut at, mut records) = (0u64, Vec::with_capacity(trailer.records as usize));
    for header in list.chunks(HEADER_BYTES) {
        let Some(header) = Header::read(header) else {
            return Ok(None);
        };
        records.push((at, header));
        at = at.saturating_add(header.record_bytes());
    }
    Ok(Some(records))
}

/// Of a segment that was not ended: header by header, as far as they are whole.
fn scanned(file: &dyn DiskFile, bytes: u64) -> io::Result<Vec<(u64, Header)>> {
    let (mut at, mut records) = (0u64, Vec::new());
    while let Some(header) = Header::read(&read(file, at, HEADER_BYTES)?) {
        let end = at.saturating_add(header.record_bytes());
        if end > bytes {
            break;
        }
        records.push((at, header));
        at = end;
    }
    Ok(records)
}

/// Up to so many bytes.
fn read(file: &dyn DiskFile, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let got = file.read_at(at, &mut buffer)?;
    buffer.truncate(got);
    Ok(buffer)
}

/// A cell; `None` when it is damaged.
pub(super) fn read_record(place: &Place) -> io::Result<Option<Bytes>> {
    let cell = read(
        place.file.as_ref(),
        place.offset.saturating_add(HEADER_BYTES as u64),
        place.header.bytes as usize,
    )?;
    let is_whole = cell.len() == place.header.bytes as usize && crc32c::crc32c(&cell) == place.header.crc32c;
    Ok(is_whole.then(|| cell.into()))
}

/// The list and the trailer of a segment whose records end at `at`.
pub(super) fn ending(at: u64, records: &[(u64, Header)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(records.len() * HEADER_BYTES + TRAILER_BYTES);
    for (_, header) in records {
        header.write(&mut out);
    }
    let trailer = Trailer {
        list_at: at,
        records: u32::try_from(records.len()).unwrap_or(u32::MAX),
        crc32c: crc32c::crc32c(&out),
    };
    trailer.write(&mut out);
    out
}
