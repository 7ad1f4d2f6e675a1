//! Reads a log back, from start-up on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use koios_runtime::{ClockHandle, Cpu, Disk, DiskError, DiskHandle, OpenMode};

use crate::format::{HeaderRead, Keys, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::mark::{self, Mark};
use crate::scan::{Scan, scan};
use crate::segment::{Active, NewSegment, list, path_of};
use crate::{
    Apply, Committer, Damage, DamageKind, Error, Identity, Lsn, PartReader, Record, Result, Wal, WalSettings,
};

/// Folder, beside the segments, of copies of damaged bytes.
const QUARANTINE: &str = "quarantine";

/// What a segment holds.
#[derive(Clone, Debug)]
pub struct SegmentContent {
    /// Its number.
    pub number: u32,
    /// Its intact records in order; the first is its checkpoint.
    pub records: Vec<Record>,
    /// What is damaged, in order.
    pub damage: Vec<Damage>,
    /// Where the last record ends.
    pub end: Lsn,
}

/// A log that was found on disk and takes no appends yet.
#[derive(Debug)]
pub struct Replay {
    settings: WalSettings,
    identity: Identity,
    disk: DiskHandle,
    segments: Vec<u32>,
    /// Per segment: up to where the one after it says that it was synced.
    synced: Vec<u32>,
    mark: Mark,
    last: LastSegment,
}

/// What was found of the last segment.
#[derive(Clone, Debug, Default)]
struct LastSegment {
    /// Up to where it is known to have been synced: damage at its end may never have been.
    synced: u32,
    /// Where its unused space begins; unset when that is not sure.
    unused_from: Option<u32>,
    /// Its last intact bytes, from where on nothing proves that they were synced.
    unproven: Bytes,
}

impl Replay {
    /// Opens the folder of a log, creating it when missing.
    ///
    /// # Errors
    /// [`Error::Foreign`] when a segment is of another cluster, data directory or a newer version; [`Error::Disk`].
    pub async fn open(disk: DiskHandle, settings: WalSettings, identity: Identity) -> Result<Self> {
        let dir = settings.dir.clone();
        let (segments, synced, mark) = disk
            .run(move |d| -> Result<_> {
                // Before the mark beside it, which would tell of a folder that a power loss took.
                d.create_dir_durably(&dir)?;
                let segments = list(d, &dir)?;
                let synced = check_headers(d, &dir, &segments, identity)?;
                Ok((segments, synced, mark::read(d, &dir, identity)?))
            })
            .await?;
        Ok(Self {
            settings,
            identity,
            disk,
            segments,
            synced,
            mark,
            last: LastSegment::default(),
        })
    }

    /// The numbers of the segments, ascending.
    pub fn segments(&self) -> &[u32] {
        &self.segments
    }

    /// Reads records again that [`Self::read`] found.
    pub fn parts(&self) -> PartReader {
        PartReader {
            disk: self.disk.clone(),
            dir: self.settings.dir.clone(),
            identity: self.identity,
        }
    }

    /// What the mark beside the folder says is missing after the last segment, or, in an empty folder, at all.
    pub fn missing_end(&self) -> Option<Damage> {
        let last = self.last_number();
        let kind = match self.mark {
            Mark::Absent => return None,
            Mark::Segment(newest) if newest <= last => return None,
            Mark::Segment(_) => DamageKind::Missing,
            Mark::Damaged if last == 0 => DamageKind::Missing,
            // Whether later segments existed cannot be told.
            Mark::Damaged => DamageKind::Tail,
        };
        Some(Damage {
            lsn: Lsn::new(last.saturating_add(1), 0),
            bytes: 0,
            kind,
        })
    }

    /// Reads one segment; called for each of [`Self::segments`] in order. Damaged bytes are copied aside.
    ///
    /// # Errors
    /// [`Error::Disk`] when it cannot be read.
    pub async fn read(&mut self, number: u32) -> Result<SegmentContent> {
        let path = path_of(&self.settings.dir, number);
        let (bytes, found) = read_and_scan(&self.disk, path, self.identity, number, None).await?;
        let Scan {
            records,
            mut damage,
            end,
            synced: proven,
        } = found;
        let at = self.segments.iter().position(|&n| n == number);
        let synced = at.and_then(|i| self.synced.get(i).copied()).unwrap_or(0);
        for d in &mut damage {
            if d.lsn.offset() < synced {
                d.kind = DamageKind::Middle;
            }
        }
        if end < synced {
            cut_short(&mut damage, number, end, synced);
        }
        self.quarantine(&damage, &bytes).await?;
        if let Some(before) = at
            .and_then(|i| i.checked_sub(1))
            .and_then(|i| self.segments.get(i))
        {
            damage.splice(0..0, missing(*before, number));
        }
        if Some(&number) == self.segments.last() {
            let tail = damage.iter().find(|d| d.kind == DamageKind::Tail);
            let intact = tail.map_or(end, |d| d.lsn.offset());
            let unproven = bytes.get(proven.min(intact) as usize..intact as usize);
            self.last = LastSegment {
                synced: intact,
                unused_from: damage.is_empty().then_some(end),
                // A copy, so that it does not keep the whole segment in memory.
                unproven: Bytes::copy_from_slice(unproven.unwrap_or_default()),
            };
        }
        Ok(SegmentContent {
            number,
            records,
            damage,
            end: Lsn::new(number, end),
        })
    }

    async fn quarantine(&self, damage: &[Damage], bytes: &Bytes) -> Result<()> {
        for d in damage {
            let from = d.lsn.offset() as usize;
            let to = from.saturating_add(d.bytes as usize).min(bytes.len());
            let Some(part) = bytes.get(from..to).map(<[u8]>::to_vec) else {
                continue;
            };
            let dir = self.settings.dir.join(QUARANTINE);
            let name = format!("{:010}-{:010}.bin", d.lsn.segment(), d.lsn.offset());
            tracing::error!(lsn = %d.lsn, bytes = d.bytes, kind = ?d.kind, kept = %name, "write-ahead log is damaged");
            let kept = self
                .disk
                .run(move |disk| {
                    disk.create_dir_all(&dir)?;
                    disk.replace(&dir.join(name), &part)
                })
                .await;
            // The segment itself keeps the bytes too; a full disk must not prevent the start.
            if let Err(error) = kept {
                tracing::warn!(%error, "damaged bytes could not be copied aside");
            }
        }
        Ok(())
    }

    /// Starts a new segment after the last one there is or was and gives the log's two halves. What was replayed is synced first, so
    /// that everything applied is durable.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Disk`].
    pub async fn start<A: Apply>(
        self,
        apply: Arc<A>,
        cpu: Cpu,
        clock: ClockHandle,
    ) -> Result<(Wal<A>, Committer<A>)> {
        // No number comes twice, so that what was lost keeps its place.
        let last = match self.mark {
            Mark::Segment(newest) => newest.max(self.last_number()),
            Mark::Absent | Mark::Damaged => self.last_number(),
        };
        let number = last.checked_add(1).ok_or_else(|| Error::Exhausted {
            dir: self.settings.dir.clone(),
            what: "segment number",
        })?;
        let checkpoint = apply.checkpoint(Lsn::new(number, SEGMENT_HEADER_BYTES as u32));
        let begun = self.begin(number, checkpoint).await?;
        let reader = Reader {
            disk: self.disk.clone(),
            dir: self.settings.dir.clone(),
            identity: self.identity,
        };
        Ok(crate::committer::start(
            self.settings,
            reader,
            self.segments,
            begun,
            apply,
            cpu,
            clock,
        ))
    }
}

impl Replay {
    fn last_number(&self) -> u32 {
        self.segments.last().copied().unwrap_or(0)
    }

    /// Settles the last segment and creates the next one.
    async fn begin(&self, number: u32, checkpoint: Vec<u8>) -> Result<(Active, bool)> {
        // A start must be possible on a full disk, so that the backlog can drain: with a segment for the system's records.
        let mut new = NewSegment {
            dir: self.settings.dir.clone(),
            identity: self.identity,
            number,
            previous_end: self.last.synced,
            checkpoint,
            group_bytes: 0,
            segment_bytes: self.settings.segment_bytes,
            asked_bytes: 0,
            reserve_bytes: self.settings.reserve_bytes,
            takes_all: true,
        };
        let last = self.segments.last().map(|&n| path_of(&self.settings.dir, n));
        let settling = self.last.clone();
        let begin = move |d: &dyn Disk| {
            if let Some(path) = last {
                new.previous_end = settle(d, &path, &settling)?;
            }
            let settled = new.previous_end == settling.synced;
            let active = match new.create(d) {
                // Enough to start, answer reads and upload; appends wait for space.
                Err(Error::Full { .. }) => new.create_for_system(d, 0, 0),
                other => other,
            };
            Ok((active?, settled))
        };
        self.disk.run(begin).await
    }
}

/// Syncs a replayed segment, gives its unused space back, and says up to where it is synced.
///
/// Its last group is written again first: if the process ended because its sync failed, the bytes that were just replayed
/// are in memory only, and no later sync would store them, for the system takes them for stored.
fn settle(disk: &dyn Disk, path: &Path, last: &LastSegment) -> Result<u32, DiskError> {
    let file = disk.open(path, OpenMode::ReadWrite)?;
    let from = last.synced.saturating_sub(last.unproven.len() as u32);
    let synced = match file.write_at(u64::from(from), &last.unproven) {
        Ok(()) => last.synced,
        // A file system that writes nothing in place. A start must be possible on a full disk, so that the backlog can
        // drain; what was answered is on disk, and the rest is not said to be.
        Err(e) if e.kind() == io::ErrorKind::StorageFull => from,
        Err(e) => return Err(DiskError::io("write", path, e)),
    };
    if let Some(end) = last.unused_from {
        file.set_len(u64::from(end))
            .map_err(|e| DiskError::io("trim", path, e))?;
    }
    file.sync_data().map_err(|e| DiskError::io("sync", path, e))?;
    Ok(synced)
}

/// Reports that a segment ends before the place up to which it is known to have been synced.
fn cut_short(damage: &mut Vec<Damage>, number: u32, end: u32, synced: u32) {
    let lost = u64::from(synced - end);
    match damage.last_mut() {
        Some(d) if u64::from(d.lsn.offset()) + d.bytes == u64::from(end) => d.bytes += lost,
        _ => damage.push(Damage {
            lsn: Lsn::new(number, end),
            bytes: lost,
            kind: DamageKind::Middle,
        }),
    }
}

fn missing(before: u32, number: u32) -> impl Iterator<Item = Damage> {
    // One report per gap, however wide: numbers come from file names.
    (before.saturating_add(1) < number)
        .then(|| Damage {
            lsn: Lsn::new(before + 1, 0),
            bytes: 0,
            kind: DamageKind::Missing,
        })
        .into_iter()
}

fn check_headers(disk: &dyn Disk, dir: &Path, segments: &[u32], identity: Identity) -> Result<Vec<u32>> {
    let mut synced = vec![0; segments.len()];
    for (i, &number) in segments.iter().enumerate() {
        let path = path_of(dir, number);
        let file = disk.open(&path, OpenMode::Read)?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        file.read_at(0, &mut bytes)
            .map_err(|e| DiskError::io("read", &path, e))?;
        let header = match SegmentHeader::read(&bytes) {
            HeaderRead::Ok(header) => header,
            // Reported by the scan.
            HeaderRead::Damaged => continue,
            HeaderRead::Version(version) => return Err(Error::newer(path, version)),
        };
        check_identity(path, header, number, identity)?;
        let follows = i
            .checked_sub(1)
            .and_then(|p| Some((p, segments.get(p)?.checked_add(1)?)));
        if let Some((before, next)) = follows
            && next == number
            && let Some(synced) = synced.get_mut(before)
        {
            *synced = header.previous_end;
        }
    }
    Ok(synced)
}

fn check_identity(path: PathBuf, header: SegmentHeader, number: u32, identity: Identity) -> Result<()> {
    let found = header.identity;
    let reason = if found.cluster != identity.cluster {
        format!(
            "is of cluster {:032x}, this is {:032x}: check the data directory",
            found.cluster, identity.cluster
        )
    } else if found.incarnation != identity.incarnation {
        format!(
            "is of data directory incarnation {:032x}, this is {:032x}: restore the directory as a whole",
            found.incarnation, identity.incarnation
        )
    } else if header.number != number {
        format!("has number {} inside: it was renamed", header.number)
    } else {
        return Ok(());
    };
    Err(Error::Foreign { path, reason })
}

/// Reads a segment, up to an offset if one is given, and scans it where blocking is allowed: it is a large computation.
async fn read_and_scan(
    disk: &DiskHandle,
    path: PathBuf,
    identity: Identity,
    number: u32,
    up_to: Option<u32>,
) -> Result<(Bytes, Scan)> {
    disk.run(move |d| {
        let mut bytes = Bytes::from(d.read(&path)?);
        if let Some(end) = up_to {
            bytes.truncate(end as usize);
        }
        let found = scan(&Keys::new(identity), number, &bytes);
        Ok((bytes, found))
    })
    .await
}

/// Reads segments of a running log.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) disk: DiskHandle,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
}

impl Reader {
    /// Reads a segment up to `synced`; `None` when it is gone.
    pub(crate) async fn read(&self, number: u32, synced: Lsn) -> Result<Option<SegmentContent>> {
        let up_to = (synced.segment() == number).then(|| synced.offset());
        let path = path_of(&self.dir, number);
        let scan = match read_and_scan(&self.disk, path, self.identity, number, up_to).await {
            Err(Error::Disk(e)) if e.is_not_found() => return Ok(None),
            other => other?.1,
        };
        Ok(Some(SegmentContent {
            number,
            records: scan.records,
            damage: scan.damage,
            end: Lsn::new(number, scan.end),
        }))
    }
}
