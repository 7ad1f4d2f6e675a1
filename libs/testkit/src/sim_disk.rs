//! A disk that remembers what was made stable, and forgets the rest at a crash.
//!
//! Model: a file's bytes are stable after `sync_data`; a folder's names are stable after `sync_dir`. At a crash every
//! write since the last sync survives whole, torn at a sector, or not at all, independently and by the seed; of each
//! folder's unsynced name changes a random prefix survives. Handles opened before a crash fail afterwards.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{Disk, DiskError, DiskFile, OpenMode, RngHandle};
use parking_lot::Mutex;

const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
enum Write {
    Data { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    stable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Set(p, inode) => names.insert(p, inode),
            Self::Remove(p) => names.remove(&p),
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode)
            }
        };
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    stable_names: BTreeMap<PathBuf, u64>,
    names: BTreeMap<PathBuf, u64>,
    unsynced_names: BTreeMap<PathBuf, Vec<NameChange>>,
    dirs: BTreeMap<PathBuf, ()>,
    locks: BTreeMap<PathBuf, u64>,
    boots: u64,
    capacity: Option<u64>,
    fail_syncs: bool,
}

/// A simulated disk; clones share it. It outlives the crashes of the host that uses it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    rng: RngHandle,
}

fn dir_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn gone() -> io::Error {
    io::Error::other("the simulated machine crashed")
}

fn apply(bytes: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Len(len) => bytes.resize(*len, 0),
        Write::Data { offset, bytes: data } => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

impl State {
    fn change(&mut self, path: &Path, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.unsynced_names.entry(dir_of(path)).or_default().push(change);
    }

    fn persist(&mut self, changes: Vec<NameChange>) {
        for change in changes {
            change.apply(&mut self.stable_names);
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|i| self.inodes.get(i))
            .map(|i| i.current.len() as u64)
            .sum()
    }

    fn inode(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(gone)
    }
}

impl SimDisk {
    /// An empty disk whose crashes are decided by `rng`.
    pub fn new(rng: RngHandle) -> Self {
        Self {
            state: Arc::default(),
            rng,
        }
    }

    /// Power loss: what was not stable survives by chance.
    pub fn crash(&self) {
        let mut state = self.state.lock();
        state.boots += 1;
        state.locks.clear();
        let dirs: Vec<PathBuf> = state.unsynced_names.keys().cloned().collect();
        for dir in dirs {
            let mut changes = state.unsynced_names.remove(&dir).unwrap_or_default();
            changes.truncate(self.rng.below(changes.len() as u64 + 1) as usize);
            state.persist(changes);
        }
        state.names = state.stable_names.clone();
        for inode in state.inodes.values_mut() {
            for write in std::mem::take(&mut inode.unsynced) {
                if let Some(survivor) = self.survivor(write) {
                    apply(&mut inode.stable, &survivor);
                }
            }
            inode.current = inode.stable.clone();
        }
        let live: std::collections::BTreeSet<u64> = state.names.values().copied().collect();
        state.inodes.retain(|id, _| live.contains(id));
    }

    /// The process died, the machine did not: every write survives.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.boots += 1;
        state.locks.clear();
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        let mut state = self.state.lock();
        let boots = state.boots + 1;
        *state = State {
            boots,
            ..State::default()
        };
    }

    /// Writes beyond this many bytes fail as on a full disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Makes every sync fail, or work again.
    pub fn set_fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }

    /// Flips one bit of a stored file, as a failing disk would; false when there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) -> bool {
        let mut state = self.state.lock();
        let Some(&id) = state.names.get(path) else {
            return false;
        };
        let Some(inode) = state.inodes.get_mut(&id) else {
            return false;
        };
        if offset >= inode.current.len() {
            return false;
        }
        inode.current[offset] ^= 1 << (bit % 8);
        if let Some(b) = inode.stable.get_mut(offset) {
            *b ^= 1 << (bit % 8);
        }
        true
    }

    fn survivor(&self, write: Write) -> Option<Write> {
        match (self.rng.below(3), write) {
            (0, _) => None,
            (1, Write::Data { offset, mut bytes }) => {
                // Torn: only the sectors before a random boundary reached the platter.
                let first = SECTOR_BYTES - offset % SECTOR_BYTES;
                let sectors = bytes.len().saturating_sub(first) / SECTOR_BYTES + 1;
                let kept = first + self.rng.below(sectors as u64) as usize * SECTOR_BYTES;
                bytes.truncate(kept);
                Some(Write::Data { offset, bytes })
            }
            (_, write) => Some(write),
        }
    }

    fn file(&self, inode: u64, boot: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
            boot,
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut state = self.state.lock();
        let fail = |kind: io::ErrorKind| DiskError::io("open", path, kind.into());
        let found = state.names.get(path).copied();
        let inode = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(fail(io::ErrorKind::AlreadyExists)),
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(fail(io::ErrorKind::NotFound)),
            (Some(inode), _) => inode,
            (None, _) => {
                if !state.dirs.contains_key(&dir_of(path)) {
                    return Err(fail(io::ErrorKind::NotFound));
                }
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change(path, NameChange::Set(path.to_owned(), inode));
                inode
            }
        };
        Ok(self.file(inode, state.boots))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        for ancestor in path.ancestors() {
            state.dirs.insert(ancestor.to_owned(), ());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let Some(&inode) = state.names.get(from) else {
            return Err(DiskError::io("rename", from, io::ErrorKind::NotFound.into()));
        };
        // One change: a crash shows the old names or the new ones.
        state.change(to, NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let fail = |kind: io::ErrorKind| DiskError::io("link", to, kind.into());
        let inode = *state
            .names
            .get(from)
            .ok_or_else(|| fail(io::ErrorKind::NotFound))?;
        if state.names.contains_key(to) {
            return Err(fail(io::ErrorKind::AlreadyExists));
        }
        state.change(to, NameChange::Set(to.to_owned(), inode));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        if !state.names.contains_key(path) {
            return Err(DiskError::io("remove", path, io::ErrorKind::NotFound.into()));
        }
        state.change(path, NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        let state = self.state.lock();
        if !state.dirs.contains_key(path) {
            return Err(DiskError::io("list", path, io::ErrorKind::NotFound.into()));
        }
        let children = state
            .names
            .keys()
            .chain(state.dirs.keys())
            .filter(|p| p.parent() == Some(path));
        let mut names: Vec<String> = children
            .filter_map(|p| p.file_name())
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.state.lock().dirs.contains_key(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        if state.fail_syncs {
            return Err(DiskError::io("sync folder", path, io::Error::other("injected")));
        }
        let changes = state.unsynced_names.remove(path).unwrap_or_default();
        state.persist(changes);
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> Result<u64, DiskError> {
        let state = self.state.lock();
        Ok(state.capacity.unwrap_or(1 << 40).saturating_sub(state.used()))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, DiskError> {
        let mut state = self.state.lock();
        let boot = state.boots;
        if state.locks.contains_key(path) {
            return Err(DiskError::io("lock", path, io::ErrorKind::WouldBlock.into()));
        }
        state.locks.insert(path.to_owned(), boot);
        Ok(Box::new(SimLock {
            state: Arc::clone(&self.state),
            path: path.to_owned(),
            boot,
        }))
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    boot: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.boots == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    inode: u64,
    boot: u64,
}

impl SimFile {
    fn with<T>(&self, use_state: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.boots == self.boot {
            use_state(&mut state)
        } else {
            Err(gone())
        }
    }

    fn write(&self, end: u64, write: Write) -> io::Result<()> {
        self.with(|state| {
            let len = state.inode(self.inode)?.current.len() as u64;
            let grows = end.saturating_sub(len);
            if state.capacity.is_some_and(|c| state.used() + grows > c) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let inode = state.inode(self.inode)?;
            apply(&mut inode.current, &write);
            inode.unsynced.push(write);
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|state| {
            let bytes = &state.inode(self.inode)?.current;
            let start = (offset as usize).min(bytes.len());
            let n = buf.len().min(bytes.len() - start);
            buf[..n].copy_from_slice(&bytes[start..start + n]);
            Ok(n)
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.write(
            end,
            Write::Data {
                offset: offset as usize,
                bytes: data.to_vec(),
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            if state.fail_syncs {
                return Err(io::Error::other("injected"));
            }
            let inode = state.inode(self.inode)?;
            // Write by write: a log segment is large and its syncs are many.
            for write in std::mem::take(&mut inode.unsynced) {
                apply(&mut inode.stable, &write);
            }
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let current = self.len()?;
        if len > current {
            self.write(len, Write::Len(len as usize))
        } else {
            Ok(())
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(len, Write::Len(len as usize))
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.inode(self.inode)?.current.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> SimDisk {
        let disk = SimDisk::new(RngHandle::from_seed(seed));
        disk.create_dir_all(Path::new("d")).unwrap();
        disk
    }

    #[test]
    fn a_synced_file_survives_only_with_its_folder() {
        let mut lost = 0;
        for seed in 0..40 {
            let disk = disk(seed);
            let file = disk.open(Path::new("d/a"), OpenMode::CreateNew).unwrap();
            file.write_at(0, b"x").unwrap();
            file.sync_data().unwrap();
            disk.crash();
            assert!(file.len().is_err());
            lost += u32::from(disk.open(Path::new("d/a"), OpenMode::Read).is_err());
        }
        assert!((1..40).contains(&lost), "{lost}");
    }

    #[test]
    fn synced_bytes_survive_and_later_ones_may_not() {
        let mut shorter = 0;
        for seed in 0..40 {
            let disk = disk(seed);
            let file = disk.open(Path::new("d/a"), OpenMode::CreateNew).unwrap();
            file.write_at(0, &[1; 1000]).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            file.write_at(1000, &[2; 5000]).unwrap();
            disk.crash();
            let bytes = disk.read(Path::new("d/a")).unwrap();
            assert_eq!(&bytes[..1000], [1; 1000]);
            shorter += u32::from(bytes.len() < 6000);
        }
        assert!((1..40).contains(&shorter), "{shorter}");
    }

    #[test]
    fn replace_shows_the_old_or_the_new_content() {
        for seed in 0..40 {
            let disk = disk(seed);
            disk.replace(Path::new("d/a"), b"old").unwrap();
            disk.replace(Path::new("d/a"), b"new").unwrap();
            disk.crash();
            assert_eq!(disk.read(Path::new("d/a")).unwrap(), b"new");
        }
    }

    #[test]
    fn a_full_disk_refuses() {
        let disk = disk(1);
        disk.set_capacity(Some(10));
        let file = disk.open(Path::new("d/a"), OpenMode::CreateNew).unwrap();
        assert!(file.allocate(8).is_ok());
        assert_eq!(
            file.write_at(8, &[0; 8]).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
