//! The Raft log and vote: one small database file, every write durable before it is reported.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{Disk, DiskError, DiskHandle, OpenMode, RngHandle};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::DiskBackend;
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::Error;

/// Index -> checksum and JSON of the entry.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Name -> checksum and JSON of a value.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const NONCE: &str = "nonce";

const FILE: &str = "log.redb";
/// The log is small; the database need not keep more of it in memory.
const CACHE_BYTES: usize = 1 << 20;

/// What the log's storage can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Database(Box<redb::Error>),
    #[error("{what} is damaged: {detail}")]
    Damaged { what: String, detail: String },
    #[error("{what} does not serialise: {source}")]
    Serialise {
        what: &'static str,
        source: serde_json::Error,
    },
}

fn database_error<E: Into<redb::Error>>(error: E) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

/// The log of one voter. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogStore {
    database: Arc<Database>,
    disk: DiskHandle,
    nonce: u128,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogStore({:032x})", self.nonce)
    }
}

impl LogStore {
    /// Opens the log in `dir`, or creates an empty one with a new random number.
    ///
    /// # Errors
    /// [`Error::Storage`] or the disk's.
    pub(crate) async fn open(disk: &DiskHandle, dir: &Path, rng: &RngHandle) -> Result<Self, Error> {
        let (path, fresh) = (dir.join(FILE), rng.u128());
        let opened = disk
            .run(move |disk| -> Result<(Database, u128), StoreError> {
                let dir = path.parent().unwrap_or_else(|| Path::new("."));
                disk.create_dir_durably(dir)?;
                if exists(disk, &path)? {
                    // A run before may have been killed between giving it its name and making that stable.
                    disk.sync_dir(dir)?;
                } else {
                    create(disk, &path, fresh)?;
                }
                let database = open_database(disk, &path, OpenMode::ReadWrite)?;
                let nonce = read_meta::<String>(&database, NONCE)?;
                match nonce.and_then(|text| u128::from_str_radix(&text, 16).ok()) {
                    Some(nonce) => Ok((database, nonce)),
                    None => Err(StoreError::Damaged {
                        what: path.display().to_string(),
                        detail: "it has no random number".to_owned(),
                    }),
                }
            })
            .await;
        let (database, nonce) = opened.map_err(|e| Error::Storage(e.to_string()))?;
        Ok(Self {
            database: Arc::new(database),
            disk: disk.clone(),
            nonce,
        })
    }

    /// The random number that the log was created with.
    pub(crate) fn nonce(&self) -> u128 {
        self.nonce
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> io::Result<T> {
        let database = Arc::clone(&self.database);
        self.disk
            .run(move |_| work(&database))
            .await
            .map_err(io::Error::other)
    }

    async fn save_meta(&self, key: &'static str, value: &(impl Serialize + Sync)) -> io::Result<()> {
        let bytes = encode(key, value).map_err(io::Error::other)?;
        self.run(move |database| write_meta(database, key, &bytes)).await
    }
}

fn exists(disk: &dyn Disk, path: &Path) -> Result<bool, DiskError> {
    match disk.open(path, OpenMode::Read) {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Builds the file under another name, so that a crash leaves either no log or a whole one.
fn create(disk: &dyn Disk, path: &Path, nonce: u128) -> Result<(), StoreError> {
    let dir: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    let temporary = path.with_extension("new");
    match disk.remove_file(&temporary) {
        Err(e) if !e.is_not_found() => return Err(e.into()),
        _ => {}
    }
    let database = open_database(disk, &temporary, OpenMode::CreateNew)?;
    let transaction = database.begin_write().map_err(database_error)?;
    transaction.open_table(LOG).map_err(database_error)?;
    transaction.open_table(META).map_err(database_error)?;
    transaction.commit().map_err(database_error)?;
    write_meta(&database, NONCE, &encode(NONCE, &format!("{nonce:032x}"))?)?;
    drop(database);
    disk.rename(&temporary, path)?;
    Ok(disk.sync_dir(&dir)?)
}

fn open_database(disk: &dyn Disk, path: &Path, mode: OpenMode) -> Result<Database, StoreError> {
    let backend = DiskBackend::open(disk, path, mode)?;
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(database_error)
}

/// CRC-32C of the JSON, then the JSON: the database's own checksums are only looked at when it repairs itself.
fn encode(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let json = serde_json::to_vec(value).map_err(|source| StoreError::Serialise { what, source })?;
    let mut bytes = crc32c::crc32c(&json).to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(what: impl Fn() -> String, bytes: &[u8]) -> Result<T, StoreError> {
    let damaged = |detail: String| StoreError::Damaged { what: what(), detail };
    let (stored, json) = bytes
        .split_first_chunk::<4>()
        .ok_or_else(|| damaged("its checksum is missing".to_owned()))?;
    if crc32c::crc32c(json) != u32::from_le_bytes(*stored) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))
}

fn read_meta<T: DeserializeOwned>(database: &Database, key: &'static str) -> Result<Option<T>, StoreError> {
    let transaction = database.begin_read().map_err(database_error)?;
    let table = transaction.open_table(META).map_err(database_error)?;
    match table.get(key).map_err(database_error)? {
        Some(value) => decode(|| format!("the log's {key}"), value.value()).map(Some),
        None => Ok(None),
    }
}

fn write_meta(database: &Database, key: &'static str, bytes: &[u8]) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(database_error)?;
    {
        let mut table = transaction.open_table(META).map_err(database_error)?;
        table.insert(key, bytes).map_err(database_error)?;
    }
    transaction.commit().map_err(database_error)
}

fn read_entries(database: &Database, range: (Bound<u64>, Bound<u64>)) -> Result<Vec<Entry>, StoreError> {
    let transaction = database.begin_read().map_err(database_error)?;
    let table = transaction.open_table(LOG).map_err(database_error)?;
    let mut entries = Vec::new();
    for item in table.range::<u64>(range).map_err(database_error)? {
        let (index, value) = item.map_err(database_error)?;
        entries.push(decode(
            || format!("the log's entry {}", index.value()),
            value.value(),
        )?);
    }
    Ok(entries)
}

fn read_log_state(database: &Database) -> Result<LogState<TypeConfig>, StoreError> {
    let purged: Option<LogId> = read_meta(database, PURGED)?;
    let transaction = database.begin_read().map_err(database_error)?;
    let table = transaction.open_table(LOG).map_err(database_error)?;
    let last: Option<Entry> = match table.last().map_err(database_error)? {
        Some((index, value)) => Some(decode(
            || format!("the log's entry {}", index.value()),
            value.value(),
        )?),
        None => None,
    };
    Ok(LogState {
        last_log_id: last.map(|entry| entry.log_id).or(purged),
        last_purged_log_id: purged,
    })
}

fn insert_entries(database: &Database, entries: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(database_error)?;
    {
        let mut table = transaction.open_table(LOG).map_err(database_error)?;
        for (index, bytes) in entries {
            table.insert(index, bytes.as_slice()).map_err(database_error)?;
        }
    }
    transaction.commit().map_err(database_error)
}

/// Removes a range of entries, and notes in the same transaction up to where the log was purged, if it was.
fn remove_entries(
    database: &Database,
    range: (Bound<u64>, Bound<u64>),
    purged: Option<Vec<u8>>,
) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(database_error)?;
    {
        let mut table = transaction.open_table(LOG).map_err(database_error)?;
        table
            .retain_in::<u64, _>(range, |_, _| false)
            .map_err(database_error)?;
        if let Some(purged) = purged {
            let mut meta = transaction.open_table(META).map_err(database_error)?;
            meta.insert(PURGED, purged.as_slice()).map_err(database_error)?;
        }
    }
    transaction.commit().map_err(database_error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.run(move |database| read_entries(database, range)).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.run(|database| read_meta(database, VOTE)).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.run(read_log_state).await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.save_meta(VOTE, vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(committed) => self.save_meta(COMMITTED, &committed).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.run(|database| read_meta(database, COMMITTED)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: Result<Vec<_>, StoreError> = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, encode("entry", &entry)?)))
            .collect();
        let encoded = encoded.map_err(io::Error::other)?;
        self.run(move |database| insert_entries(database, &encoded))
            .await?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(Bound::Unbounded, |id| Bound::Excluded(id.index));
        self.run(move |database| remove_entries(database, (from, Bound::Unbounded), None))
            .await
    }

    async fn purge(&mut self, up_to: LogId) -> io::Result<()> {
        let purged = encode(PURGED, &up_to).map_err(io::Error::other)?;
        let range = (Bound::Unbounded, Bound::Included(up_to.index));
        self.run(move |database| remove_entries(database, range, Some(purged)))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use koios_runtime::RealDisk;

    #[tokio::test]
    async fn a_log_keeps_its_number_and_a_lost_one_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskHandle::inline(Arc::new(RealDisk));
        let rng = RngHandle::from_seed(1);
        let first = LogStore::open(&disk, dir.path(), &rng).await.unwrap().nonce();
        let again = LogStore::open(&disk, dir.path(), &rng).await.unwrap().nonce();
        assert_eq!(first, again);
        RealDisk.remove_file(&dir.path().join(FILE)).unwrap();
        let lost = LogStore::open(&disk, dir.path(), &rng).await.unwrap().nonce();
        assert_ne!(first, lost);
    }

    #[tokio::test]
    async fn a_log_that_was_opened_outlasts_a_power_loss_wherever_a_run_before_was_killed() {
        use koios_testkit::sim_disk::{Fault, FaultPlan, SimDisk};
        let open = async |disk: &SimDisk, seed: u64| {
            let disk = DiskHandle::inline(Arc::new(disk.mount()));
            let log = LogStore::open(&disk, Path::new("/data/control"), &RngHandle::from_seed(seed)).await;
            log.map(|log| log.nonce())
        };
        for n in 1..40 {
            for seed in 0..8 {
                let disk = SimDisk::new(RngHandle::from_seed(seed));
                disk.set_faults(FaultPlan::default().with(n, Fault::Kill));
                // Killed or not.
                let _ = open(&disk, 1).await;
                disk.set_faults(FaultPlan::default());
                let before = open(&disk, 2).await.unwrap();
                disk.crash();
                let after = open(&disk, 3).await.unwrap();
                assert_eq!(after, before, "killed at operation {n}, seed {seed}");
            }
        }
    }

    #[test]
    fn i11_a_changed_byte_in_a_stored_value_is_detected() {
        let bytes = encode("value", &"text").unwrap();
        assert_eq!(decode::<String>(|| "value".to_owned(), &bytes).unwrap(), "text");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode::<String>(|| "value".to_owned(), &damaged).is_err());
            assert!(decode::<String>(|| "value".to_owned(), &bytes[..at]).is_err());
        }
    }
}
