//! The one who writes segments and removes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use koios_block::CellKey;
use koios_runtime::{Disk, DiskError, DiskFile, OpenMode};
use tokio::sync::mpsc;

use super::Shared;
use super::index::Index;
use super::queue::Waiting;
use super::record::{HEADER_BYTES, Header, TRAILER_BYTES};
use super::rest::REST;
use super::room::left_free;
use super::segment::{Generation, ending, find_all, path};

/// Cells that are written together.
const TOGETHER: usize = 64;
/// How often it is looked whether others need the disk.
const LOOK: Duration = Duration::from_secs(5);
/// The file that keeps other processes out.
const LOCK: &str = "LOCK";

/// Writes what readers hand over.
pub struct DiskCacheWriter {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<Waiting>,
    /// Keeps other processes out of the folder.
    lock: Option<Box<dyn Send + Sync>>,
    /// The last segment of each generation.
    last: BTreeMap<Generation, u64>,
    open: BTreeMap<Generation, Open>,
}

impl std::fmt::Debug for DiskCacheWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskCacheWriter")
            .field("folder", &self.shared.settings.folder)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// A segment that is written to.
#[derive(Debug)]
struct Open {
    number: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    at: u64,
    records: Vec<(u64, Header)>,
}

impl Open {
    /// What the file will take once it is ended.
    fn bytes_ended(&self) -> u64 {
        self.at + (self.records.len() * HEADER_BYTES + TRAILER_BYTES) as u64
    }
}

/// What a start finds.
struct Start {
    lock: Box<dyn Send + Sync>,
    index: Index,
    /// The last segment of each generation.
    last: BTreeMap<Generation, u64>,
}

impl DiskCacheWriter {
    pub(super) fn new(shared: Arc<Shared>, waiting: mpsc::Receiver<Waiting>) -> Self {
        Self {
            shared,
            waiting,
            lock: None,
            last: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// Writes until no reader is left. What fails is tried again after a while.
    pub async fn run(mut self) {
        while self.lock.is_none() {
            if let Err(e) = self.start().await {
                self.shared.rest_writing(&e);
                self.shared.counters.write_failures.add(1);
                self.shared.clock.sleep(REST).await;
            }
        }
        let clock = Arc::clone(&self.shared.clock);
        let (mut cells, mut looked) = (Vec::new(), clock.elapsed());
        loop {
            let more = self.waiting.recv_many(&mut cells, TOGETHER);
            let received = clock.timeout(LOOK, more).await;
            match received {
                Ok(0) => return,
                Ok(_) => {
                    let place = |cell: &Waiting| (cell.key, cell.generation, cell.bytes.len() as u64);
                    let places: Vec<_> = cells.iter().map(place).collect();
                    if let Err(e) = self.keep(std::mem::take(&mut cells)).await {
                        self.failed(&e).await;
                    }
                    let queued = &self.shared.queued;
                    places.into_iter().for_each(|place| queued.leave(place));
                }
                Err(_) => {}
            }
            if clock.elapsed().saturating_sub(looked) >= LOOK {
                looked = clock.elapsed();
                if let Err(e) = self.leave_free(0).await {
                    self.failed(&e).await;
                }
            }
        }
    }

    /// Looks at what is there.
    async fn start(&mut self) -> Result<(), DiskError> {
        let settings = &self.shared.settings;
        let (folder, bytes_max) = (settings.folder.clone(), settings.bytes_max);
        let began = self.shared.clock.elapsed();
        let found = self
            .on_disk(move |disk| start(disk, &folder, Index::new(bytes_max)))
            .await?;
        self.lock = Some(found.lock);
        self.last = found.last;
        *self.shared.index.lock() = found.index;
        self.make_room(Generation::Once, 0).await?;
        let (bytes, cells) = {
            let index = self.shared.index.lock();
            (index.bytes(), index.cells())
        };
        let took = self.shared.clock.elapsed().saturating_sub(began);
        tracing::info!(bytes, cells, ?took, "disk cache opened");
        Ok(())
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        self.shared.disk.run(work).await
    }

    async fn keep(&mut self, cells: Vec<Waiting>) -> Result<(), DiskError> {
        let is_once = |cell: &Waiting| cell.generation == Generation::Once;
        let (once, again): (Vec<_>, Vec<_>) = cells.into_iter().partition(is_once);
        self.keep_in(Generation::Once, once).await?;
        self.keep_in(Generation::Again, again).await?;
        self.remove_empty().await
    }

    /// Writes cells to the segments of one generation.
    async fn keep_in(&mut self, generation: Generation, cells: Vec<Waiting>) -> Result<(), DiskError> {
        let segment_bytes = self.shared.settings.segment_bytes();
        let mut cells = cells.into_iter().peekable();
        while cells.peek().is_some() {
            let mut open = match self.open.remove(&generation) {
                Some(open) => open,
                None => self.begin(generation).await?,
            };
            let (mut out, mut records, mut is_full) = (Vec::new(), Vec::new(), false);
            while let Some(Waiting { key, bytes, .. }) = cells.peek() {
                // Two readers may have fetched, or read, the same cell at once.
                let known = self.is_kept(key, generation)
                    || records.iter().any(|(_, h): &(u64, Header)| h.key == *key);
                let header =
                    Header::of(*key, bytes).filter(|h| !known && h.record_bytes() <= segment_bytes / 2);
                if let Some(header) = header {
                    let written = out.len() as u64;
                    let more = written + header.record_bytes() + ((records.len() + 1) * HEADER_BYTES) as u64;
                    if open.bytes_ended() + more > segment_bytes {
                        is_full = true;
                        break;
                    }
                    records.push((open.at + written, header));
                    header.write(&mut out);
                    out.extend_from_slice(bytes);
                }
                cells.next();
            }
            if generation == Generation::Again {
                self.shared.counters.kept_again.add(records.len() as u64);
            }
            if !out.is_empty() {
                open = self.append(open, out, records).await?;
            }
            if is_full {
                self.end(open).await?;
            } else {
                self.open.insert(generation, open);
            }
        }
        Ok(())
    }

    /// Whether a cell needs not be written.
    fn is_kept(&self, key: &CellKey, generation: Generation) -> bool {
        let place = self.shared.index.lock().place(key);
        place.is_some_and(|place| generation == Generation::Once || !place.is_due)
    }

    async fn append(
        &self,
        mut open: Open,
        out: Vec<u8>,
        records: Vec<(u64, Header)>,
    ) -> Result<Open, DiskError> {
        let (file, at, name, bytes) = (
            Arc::clone(&open.file),
            open.at,
            open.path.clone(),
            out.len() as u64,
        );
        self.count_bytes(&open, at + bytes);
        self.on_disk(move |_| {
            file.write_at(at, &out)
                .map_err(|e| DiskError::io("write", &name, e))
        })
        .await?;
        open.at += bytes;
        self.shared.counters.written_bytes.add(bytes);
        self.shared.index.lock().add_records(open.number, &records);
        open.records.extend(records);
        Ok(open)
    }

    /// Begins a segment, where there is room for one.
    async fn begin(&mut self, generation: Generation) -> Result<Open, DiskError> {
        let settings = &self.shared.settings;
        let (segment_bytes, folder) = (settings.segment_bytes(), settings.folder.clone());
        // The other open one grows, too.
        let growing = self
            .open
            .values()
            .map(|open| segment_bytes.saturating_sub(open.at));
        let bytes = growing.sum::<u64>().saturating_add(segment_bytes);
        self.make_room(generation, bytes).await?;
        let free_after = self.leave_free(segment_bytes).await?;
        let number = match self.last.get(&generation) {
            Some(last) => last.saturating_add(1),
            None => *generation.numbers().start(),
        };
        self.last.insert(generation, number);
        let path = path(&folder, number);
        let created = path.clone();
        let file = self
            .on_disk(move |disk| {
                if disk.free_bytes(&folder)? < free_after {
                    let full = std::io::ErrorKind::StorageFull.into();
                    return Err(DiskError::io("leave enough free beside", &folder, full));
                }
                disk.open(&created, OpenMode::CreateNew)
            })
            .await?;
        self.shared.index.lock().add_segment(number, &file, 0);
        Ok(Open {
            number,
            path,
            file,
            at: 0,
            records: Vec::new(),
        })
    }

    /// Ends a segment with the list of what it holds.
    async fn end(&self, open: Open) -> Result<(), DiskError> {
        let (bytes, list) = (open.bytes_ended(), ending(open.at, &open.records));
        self.count_bytes(&open, bytes);
        let (file, at, name) = (open.file, open.at, open.path);
        self.on_disk(move |_| {
            file.write_at(at, &list)
                .map_err(|e| DiskError::io("write", &name, e))
        })
        .await
    }

    /// Counts what a file will have, before it is written: a write that fails may have written some of it.
    fn count_bytes(&self, open: &Open, bytes: u64) {
        let mut index = self.shared.index.lock();
        index.add_segment(open.number, &open.file, bytes);
    }

    /// Removes segments until `bytes` more of a generation may be written.
    async fn make_room(&mut self, generation: Generation, bytes: u64) -> Result<(), DiskError> {
        loop {
            let leaving = {
                let index = self.shared.index.lock();
                let is_over = index.bytes().saturating_add(bytes) > self.shared.settings.bytes_max;
                index.leaving(generation, bytes).filter(|_| is_over)
            };
            let Some((number, _)) = leaving else {
                return Ok(());
            };
            self.evict(number).await?;
        }
    }

    /// Removes segments so that the disk has what is to stay free for others, and `bytes` beside; tells how much that is.
    /// Where it cannot be had for `bytes` nothing is given up for them.
    async fn leave_free(&mut self, bytes: u64) -> Result<u64, DiskError> {
        let shared = Arc::clone(&self.shared);
        let (for_others, free) = self
            .on_disk(move |disk| {
                let for_others = left_free(disk, &shared.settings)?;
                Ok((for_others, disk.free_bytes(&shared.settings.folder)?))
            })
            .await?;
        let wanted = for_others.saturating_add(bytes);
        let kept = self.shared.index.lock().bytes();
        if bytes == 0 || free.saturating_add(kept) >= wanted {
            self.give_back(wanted.saturating_sub(free)).await?;
        }
        Ok(wanted)
    }

    /// Removes segments of so many bytes, as far as there are any. What was removed is counted by its length, for a file
    /// system may take a while to free it.
    async fn give_back(&mut self, missing: u64) -> Result<(), DiskError> {
        let mut removed = 0u64;
        while removed < missing {
            let leaving = self.shared.index.lock().leaving(Generation::Once, 0);
            let Some((number, bytes)) = leaving else {
                return Ok(());
            };
            self.evict(number).await?;
            removed = removed.saturating_add(bytes);
        }
        Ok(())
    }

    /// Removes a segment for the sake of others, also the one that is written to.
    async fn evict(&mut self, number: u64) -> Result<(), DiskError> {
        self.open.retain(|_, open| open.number != number);
        let cells = self.remove(number).await?;
        self.shared.counters.evicted.add(cells as u64);
        Ok(())
    }

    /// Removes segments of which nothing is needed any more: their blocks are dead.
    async fn remove_empty(&self) -> Result<(), DiskError> {
        let empty = self.shared.index.lock().empty_segments();
        let open: Vec<u64> = self.open.values().map(|open| open.number).collect();
        for number in empty.into_iter().filter(|number| !open.contains(number)) {
            self.remove(number).await?;
        }
        Ok(())
    }

    /// Removes a segment, and tells how many cells it had. One that stays on the disk still counts.
    async fn remove(&self, number: u64) -> Result<usize, DiskError> {
        let path = path(&self.shared.settings.folder, number);
        self.on_disk(move |disk| match disk.remove_file(&path) {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        })
        .await?;
        Ok(self.shared.index.lock().drop_segment(number))
    }

    /// After a failure nothing is known of the segment that was written to: what was added before can be read, no more is
    /// added.
    async fn failed(&mut self, e: &DiskError) {
        self.open.clear();
        self.shared.counters.write_failures.add(1);
        self.shared.rest_writing(e);
        if let Err(error) = self.remove_empty().await {
            tracing::debug!(%error, "a file of the disk cache stays");
        }
    }
}

/// All that takes long is done here, on a thread of the disk.
fn start(disk: &dyn Disk, folder: &Path, mut index: Index) -> Result<Start, DiskError> {
    disk.create_dir_all(folder)?;
    let lock = disk.lock(&folder.join(LOCK))?;
    let mut last = BTreeMap::new();
    for segment in find_all(disk, folder)? {
        last.insert(Generation::of(segment.number), segment.number);
        index.add_segment(segment.number, &segment.file, segment.bytes);
        index.add_records(segment.number, &segment.records);
    }
    Ok(Start { lock, index, last })
}
