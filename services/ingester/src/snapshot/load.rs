//! Loading a snapshot at start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::join;
use koios_head::{Head, OpenedStrip, SnapshotError};
use koios_runtime::{DiskError, DiskFile, OpenMode};

use super::file::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_BYTES, PEEKED_BYTES, is_header, peek_strip, unpack,
};
use super::{Kept, ReplicaAccounts, SUFFIX, SegmentTimes, dir};
use crate::ingester::Inner;
use crate::segments::ReplicaKey;
use crate::{Error, Result};

/// The heads of a snapshot.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Everything before it is in them.
    pub(crate) segment: u32,
    bytes: u64,
    replicas: BTreeMap<ReplicaKey, (Head, ReplicaAccounts)>,
    times: SegmentTimes,
}

/// A snapshot being read.
struct Reading {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    at: u64,
    /// Series of the strips that come next, up to the end of their replica.
    series: usize,
}

/// What stands in a snapshot.
enum Frame {
    Strip(OpenedStrip),
    Accounts(Vec<u8>),
    Segments(Vec<u8>),
    End,
}

impl Inner {
    /// The snapshots of segments that the log has, after the first that a replay would load; ascending.
    pub(crate) async fn find_snapshots(&self, segments: &[u32], load_from: u32) -> Vec<u32> {
        let dir = dir(&self.settings);
        let names = self.deps.runtime.disk.run(move |d| match d.list(&dir) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            names => names,
        });
        let names: Vec<String> = match names.await {
            Ok(names) => names,
            Err(error) => {
                let error: DiskError = error;
                tracing::warn!(%error, "snapshots cannot be looked for: the whole log is replayed");
                Vec::new()
            }
        };
        let numbers = names.iter().filter_map(|n| n.strip_suffix(SUFFIX)?.parse().ok());
        let mut numbers: Vec<u32> = numbers.collect();
        self.remove_stale(&mut numbers, segments).await;
        numbers.retain(|n| *n > load_from && segments.contains(n));
        numbers.sort_unstable();
        numbers
    }

    /// Loads the newest of some snapshots that is whole.
    pub(crate) async fn load_snapshot(&self, mut numbers: Vec<u32>) -> Option<Loaded> {
        while let Some(segment) = numbers.pop() {
            match self.load_file(segment).await {
                Ok(loaded) => return Some(loaded),
                // Whatever is wrong with it: the log is enough.
                Err(e) => {
                    self.store.metrics.snapshot_failures.inc();
                    let error = koios_runtime::with_sources(&e);
                    tracing::warn!(
                        segment,
                        error,
                        "a snapshot is not used: more of the log is replayed"
                    );
                }
            }
        }
        None
    }

    /// Removes snapshots of segments that the log has not begun: when it begins them they are others.
    async fn remove_stale(&self, numbers: &mut Vec<u32>, segments: &[u32]) {
        let last = segments.last().copied().unwrap_or(0);
        for stale in numbers.extract_if(.., |n| *n > last) {
            let path = dir(&self.settings).join(super::name_of(stale));
            let removed = self.deps.runtime.disk.run(move |d| d.remove_file(&path)).await;
            tracing::warn!(
                segment = stale,
                removed = removed.is_ok(),
                "a snapshot is of a log that is not here"
            );
        }
    }

    async fn load_file(&self, segment: u32) -> Result<Loaded> {
        let path = dir(&self.settings).join(super::name_of(segment));
        let identity = self.deps.identity;
        let opened = self.deps.runtime.disk.run(move |d| {
            let file = d.open(&path, OpenMode::Read)?;
            let mut start = [0; HEADER_BYTES];
            let got = file
                .read_at(0, &mut start)
                .map_err(|e| DiskError::io("read", &path, e))?;
            let mut reading = Reading {
                file,
                path,
                at: HEADER_BYTES as u64,
                series: 0,
            };
            reading.count_series();
            Ok::<_, DiskError>((
                got == start.len() && is_header(&start, identity, segment),
                reading,
            ))
        });
        let (ours, mut reading) = opened.await.map_err(Error::Disk)?;
        if !ours {
            return Err(reading.damaged("is of another data directory or version"));
        }
        let mut loaded = Loaded {
            segment,
            bytes: 0,
            replicas: BTreeMap::new(),
            times: SegmentTimes::default(),
        };
        let options = self.store.head_options;
        let new_head = |reading: &Reading| {
            let mut head = Head::new(options);
            head.reserve(reading.series);
            head
        };
        let mut head = new_head(&reading);
        let mut frame;
        (reading, frame) = self.read_frame(reading).await?;
        loop {
            match frame {
                Frame::Strip(strip) => {
                    // The next one is read while this one is loaded.
                    let (next, with) = join(self.read_frame(reading), self.load_strip(head, strip)).await;
                    (reading, frame) = next?;
                    head = with?.map_err(|_| reading.damaged("has a malformed strip"))?;
                    continue;
                }
                Frame::Accounts(payload) => {
                    let accounts = finish(&mut head, &payload);
                    let accounts = accounts.ok_or_else(|| reading.damaged("has malformed accounts"))?;
                    let c = &accounts.checkpoint;
                    let key = (c.partition, c.tenant.clone());
                    // Before the log brings more of them.
                    head.bound_exemplars(self.store.limits.of(&key.1).max_exemplars);
                    let whole = std::mem::replace(&mut head, new_head(&reading));
                    loaded.replicas.insert(key, (whole, accounts));
                }
                Frame::Segments(payload) => {
                    let times = serde_json::from_slice(&payload);
                    loaded.times = times.map_err(|_| reading.damaged("has malformed segments"))?;
                }
                Frame::End => {
                    loaded.bytes = reading.at;
                    return Ok(loaded);
                }
            }
            (reading, frame) = self.read_frame(reading).await?;
        }
    }

    /// Loads who the series of a strip are and what they hold at the same time.
    async fn load_strip(&self, mut head: Head, strip: OpenedStrip) -> Result<Result<Head, SnapshotError>> {
        let (strip, mut holdings) = (Arc::new(strip), head.lend_holdings());
        let (of_series, of_holdings) = (Arc::clone(&strip), Arc::clone(&strip));
        let series = self.pools.apply.run(move || {
            let places = head.load_series(&of_series);
            places.map(|places| (head, places))
        });
        let beside = self.deps.runtime.cpu.run(move || {
            let loaded = holdings.load(&of_holdings);
            loaded.map(|()| holdings)
        });
        let (series, beside) = join(series, beside).await;
        let (Ok((mut head, places)), Ok(holdings)) = (series?, beside?) else {
            return Ok(Err(SnapshotError));
        };
        let whole = move || head.take_back(&strip, &places, holdings).map(|()| head);
        Ok(self.pools.apply.run(whole).await?)
    }

    /// Reads the next frame; of a strip all that needs no head.
    async fn read_frame(&self, mut reading: Reading) -> Result<(Reading, Frame)> {
        let identity = self.deps.identity;
        let read = self.deps.runtime.disk.run(move |_| {
            let failed = |e| Error::Disk(DiskError::io("read", &reading.path, e));
            let mut start = [0; FRAME_HEADER_BYTES];
            let got = reading.file.read_at(reading.at, &mut start).map_err(failed)?;
            let head = FrameHeader::read(&start[..got]);
            // Before as much memory is taken as a damaged length says.
            let end = reading.file.len().map_err(failed)?;
            let payload_at = reading.at + FRAME_HEADER_BYTES as u64;
            let head = head.filter(|h| payload_at.saturating_add(h.len as u64) <= end);
            let head = head.ok_or_else(|| reading.damaged("ends early"))?;
            let mut payload = vec![0; head.len];
            let failed = |e| Error::Disk(DiskError::io("read", &reading.path, e));
            reading.file.read_at(payload_at, &mut payload).map_err(failed)?;
            let kind = head.check(identity, reading.at, &payload);
            let kind = kind.ok_or_else(|| reading.damaged("has a damaged frame"))?;
            reading.at = payload_at + head.len as u64;
            if kind == FrameKind::Accounts {
                reading.count_series();
            }
            Ok::<_, Error>((reading, kind, payload))
        });
        let (reading, kind, payload) = read.await?;
        let frame = match kind {
            FrameKind::Strip => {
                let open = move || unpack(payload).and_then(|strip| strip.open().ok());
                let strip = self.deps.runtime.cpu.run(open).await?;
                Frame::Strip(strip.ok_or_else(|| reading.damaged("has a malformed strip"))?)
            }
            FrameKind::Accounts => Frame::Accounts(payload),
            FrameKind::Segments => Frame::Segments(payload),
            FrameKind::End => Frame::End,
        };
        Ok((reading, frame))
    }

    /// Takes a snapshot's heads as the state.
    pub(crate) fn install(&self, loaded: Loaded, segments: &[u32]) {
        let Loaded {
            segment,
            bytes,
            replicas,
            times,
        } = loaded;
        for (key, (head, accounts)) in replicas {
            let replica = self.store.replica_or_new(&key);
            replica.state.write().install(head, accounts);
        }
        let mut index = self.store.segments.lock();
        let times = times.segments.into_iter().filter(|(n, ..)| segments.contains(n));
        for (number, partition, tenant, newest_ms) in times {
            index.note_newest(number, &(partition, tenant), newest_ms);
        }
        drop(index);
        *self.kept_snapshot.lock() = Kept { segment, bytes };
    }
}

impl Reading {
    /// Counts the series of the strips that come next. What cannot be read, reading the frames tells.
    fn count_series(&mut self) {
        let (mut at, end) = (self.at, self.file.len().unwrap_or(0));
        let mut start = [0; PEEKED_BYTES];
        self.series = 0;
        while let Ok(got) = self.file.read_at(at, &mut start)
            && let Some((len, series)) = peek_strip(&start[..got])
        {
            at += FRAME_HEADER_BYTES as u64 + len;
            if at > end {
                return;
            }
            self.series += series;
        }
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Snapshot {
            path: self.path.clone(),
            what,
        }
    }
}

/// Reads the accounts of a replica into its head; none when they are malformed.
fn finish(head: &mut Head, payload: &[u8]) -> Option<ReplicaAccounts> {
    let (len, rest) = payload.split_first_chunk()?;
    let (accounts, of_head) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    head.load_accounts(of_head).ok()?;
    serde_json::from_slice(accounts).ok()
}
