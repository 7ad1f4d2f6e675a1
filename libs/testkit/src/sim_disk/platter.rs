//! What is stored, what is only in memory, and what a power loss leaves of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use koios_runtime::{OpenMode, RngHandle};

use super::faults::{Faults, Operation, Verdict};
use super::gone;

const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
pub(super) enum Write {
    Data { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

impl Write {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Len(len) => set_len(to, *len),
            Self::Data { offset, bytes } => {
                let end = offset + bytes.len();
                if to.len() < end {
                    set_len(to, end);
                }
                to[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

/// Cuts bytes or adds zeros, which come from the allocator: tests are built without optimisation, where [`Vec::resize`] writes
/// the megabytes that a log reserves one by one.
fn set_len(bytes: &mut Vec<u8>, len: usize) {
    match len.checked_sub(bytes.len()) {
        Some(more) => bytes.extend_from_slice(&vec![0; more]),
        None => bytes.truncate(len),
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    stable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
    Dir(PathBuf),
}

/// Names of files and folders.
#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, change: NameChange) {
        match change {
            NameChange::Set(p, inode) => {
                self.files.insert(p, inode);
            }
            NameChange::Remove(p) => {
                self.files.remove(&p);
            }
            NameChange::Rename(from, to, inode) => {
                self.files.remove(&from);
                self.files.insert(to, inode);
            }
            NameChange::Dir(p) => {
                self.dirs.insert(p);
            }
        }
    }

    fn has_dir(&self, path: &Path) -> bool {
        is_root(path) || self.dirs.contains(path)
    }

    /// Without what lies in folders that are not there.
    fn reachable(&self) -> Self {
        let there = |path: &Path| path.ancestors().skip(1).all(|a| self.has_dir(a));
        Self {
            files: self
                .files
                .iter()
                .filter(|(p, _)| there(p))
                .map(|(p, i)| (p.clone(), *i))
                .collect(),
            dirs: self.dirs.iter().filter(|p| there(p)).cloned().collect(),
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

fn dir_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Everything there is of a disk.
#[derive(Debug)]
pub(super) struct Platter {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    stable_names: Names,
    names: Names,
    unsynced_names: BTreeMap<PathBuf, Vec<NameChange>>,
    locks: BTreeSet<PathBuf>,
    boots: u64,
    pub(super) capacity: Option<u64>,
    pub(super) fail_syncs: bool,
    pub(super) faults: Faults,
    rng: RngHandle,
}

impl Platter {
    pub(super) fn new(rng: RngHandle) -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_inode: 0,
            stable_names: Names::default(),
            names: Names::default(),
            unsynced_names: BTreeMap::new(),
            locks: BTreeSet::new(),
            boots: 0,
            capacity: None,
            fail_syncs: false,
            faults: Faults::default(),
            rng,
        }
    }

    pub(super) fn boots(&self) -> u64 {
        self.boots
    }

    /// Whether an operation of a run of the host goes ahead.
    pub(super) fn admit(
        &mut self,
        boot: Option<u64>,
        operation: Operation,
        path: &Path,
    ) -> io::Result<Verdict> {
        match boot {
            None => Ok(Verdict::Go),
            Some(boot) if boot != self.boots => Err(gone()),
            Some(_) => Ok(self.faults.judge(operation, path, &self.rng)),
        }
    }

    pub(super) fn crash(&mut self) {
        self.end_boot();
        for (_, changes) in std::mem::take(&mut self.unsynced_names) {
            for change in self.surviving_names(changes) {
                self.stable_names.apply(change);
            }
        }
        self.stable_names = self.stable_names.reachable();
        self.names = self.stable_names.clone();
        let live: BTreeSet<u64> = self.names.files.values().copied().collect();
        self.inodes.retain(|id, _| live.contains(id));
        for inode in self.inodes.values_mut() {
            settle(inode, &self.rng);
            inode.current = inode.stable.clone();
        }
    }

    pub(super) fn kill(&mut self) {
        self.end_boot();
        let named = [&self.names, &self.stable_names];
        let live: BTreeSet<u64> = named
            .iter()
            .flat_map(|n| n.files.values().copied())
            .chain(self.unsynced_names.values().flatten().filter_map(|c| match c {
                NameChange::Set(_, i) | NameChange::Rename(_, _, i) => Some(*i),
                NameChange::Remove(_) | NameChange::Dir(_) => None,
            }))
            .collect();
        self.inodes.retain(|id, _| live.contains(id));
    }

    fn end_boot(&mut self) {
        self.boots += 1;
        self.locks.clear();
    }

    pub(super) fn wipe(&mut self) {
        let (boots, rng) = (self.boots + 1, self.rng.clone());
        let faults = std::mem::take(&mut self.faults);
        *self = Self {
            boots,
            faults,
            ..Self::new(rng)
        };
    }

    /// A journal keeps the order of changes; a disk without one keeps what it happens to have written.
    fn surviving_names(&self, mut changes: Vec<NameChange>) -> Vec<NameChange> {
        if self.rng.below(4) == 0 {
            changes.retain(|_| self.rng.below(2) == 0);
        } else {
            changes.truncate(self.rng.below(changes.len() as u64 + 1) as usize);
        }
        changes
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        let found = self.names.files.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.names.has_dir(path)
    }

    pub(super) fn change(&mut self, path: &Path, change: NameChange) {
        self.names.apply(change.clone());
        self.unsynced_names.entry(dir_of(path)).or_default().push(change);
    }

    pub(super) fn create_dirs(&mut self, path: &Path) {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|a| !self.is_dir(a))
            .map(Path::to_owned)
            .collect();
        for dir in missing.into_iter().rev() {
            self.change(&dir, NameChange::Dir(dir.clone()));
        }
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<u64> {
        match (self.find(path), mode) {
            (Ok(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(inode), _) => Ok(inode),
            (Err(e), OpenMode::Read | OpenMode::ReadWrite) => Err(e),
            (Err(e), _) if !self.is_dir(&dir_of(path)) => Err(e),
            (Err(_), _) => {
                let inode = self.next_inode;
                self.next_inode += 1;
                self.inodes.insert(inode, Inode::default());
                self.change(path, NameChange::Set(path.to_owned(), inode));
                Ok(inode)
            }
        }
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        if !self.is_dir(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let children = self.names.files.keys().chain(&self.names.dirs);
        let mut names: Vec<String> = children
            .filter(|p| p.parent() == Some(path))
            .filter_map(|p| p.file_name())
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.fail_syncs {
            return Err(io::Error::other("injected"));
        }
        for change in self.unsynced_names.remove(path).unwrap_or_default() {
            self.stable_names.apply(change);
        }
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<()> {
        match self.locks.insert(path.to_owned()) {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn unlock(&mut self, path: &Path, boot: u64) {
        if self.boots == boot {
            self.locks.remove(path);
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.total_bytes().saturating_sub(self.used())
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.capacity.unwrap_or(1 << 40)
    }

    /// What a file is called now.
    pub(super) fn name_of(&self, inode: u64) -> Option<PathBuf> {
        let named = self.names.files.iter().find(|(_, i)| **i == inode);
        named.map(|(path, _)| path.clone())
    }

    fn used(&self) -> u64 {
        let inodes = self.names.files.values().filter_map(|i| self.inodes.get(i));
        inodes.map(|i| i.current.len() as u64).sum()
    }

    pub(super) fn flip_bit(&mut self, path: &Path, offset: usize, bit: u8) -> bool {
        let Some(inode) = self.find(path).ok().and_then(|i| self.inodes.get_mut(&i)) else {
            return false;
        };
        let Some(byte) = inode.current.get_mut(offset) else {
            return false;
        };
        *byte ^= 1 << (bit % 8);
        if let Some(b) = inode.stable.get_mut(offset) {
            *b ^= 1 << (bit % 8);
        }
        true
    }

    pub(super) fn files_under(&self, dir: &Path) -> Vec<(PathBuf, usize)> {
        let files = self.names.files.iter().filter(|(p, _)| p.starts_with(dir));
        files
            .filter_map(|(p, i)| Some((p.clone(), self.inodes.get(i)?.current.len())))
            .collect()
    }
}

impl Platter {
    fn inode(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(gone)
    }

    pub(super) fn bytes(&mut self, id: u64) -> io::Result<&[u8]> {
        Ok(&self.inode(id)?.current)
    }

    pub(super) fn write(&mut self, id: u64, write: Write) -> io::Result<()> {
        let end = match &write {
            Write::Len(len) => *len,
            Write::Data { offset, bytes } => offset + bytes.len(),
        };
        let grows = end.saturating_sub(self.bytes(id)?.len()) as u64;
        if grows > 0 && self.capacity.is_some_and(|c| self.used() + grows > c) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = self.inode(id)?;
        write.apply(&mut inode.current);
        inode.unsynced.push(write);
        Ok(())
    }

    /// Writes as much as there is room for.
    pub(super) fn write_at(&mut self, id: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let data_of = |bytes: &[u8]| Write::Data {
            offset: offset as usize,
            bytes: bytes.to_vec(),
        };
        let written = self.write(id, data_of(data));
        if written.is_err() {
            let room = (self.bytes(id)?.len() as u64 + self.free_bytes()).saturating_sub(offset);
            let fits = data.get(..room as usize).unwrap_or_default();
            if !fits.is_empty() {
                self.write(id, data_of(fits))?;
            }
        }
        written
    }

    /// Does some of a write that fails.
    pub(super) fn write_part(&mut self, id: u64, offset: u64, data: &[u8]) {
        let done = self.rng.below(data.len() as u64 + 1) as usize;
        let part = data.get(..done).unwrap_or_default();
        if !part.is_empty() {
            // That it fails is said anyway.
            let _ = self.write_at(id, offset, part);
        }
    }

    pub(super) fn sync(&mut self, id: u64) -> io::Result<()> {
        let inode = self.inode(id)?;
        // Write by write: a log segment is large and its syncs are many.
        for write in std::mem::take(&mut inode.unsynced) {
            write.apply(&mut inode.stable);
        }
        Ok(())
    }

    /// A sync that fails: some is stored; the rest is either dropped from memory or stays there as if it were stored.
    pub(super) fn fail_sync(&mut self, id: u64) {
        let rng = self.rng.clone();
        let Some(inode) = self.inodes.get_mut(&id) else {
            return;
        };
        settle(inode, &rng);
        if rng.below(2) == 0 {
            inode.current = inode.stable.clone();
        }
    }
}

/// Stores what survives of the writes that were not synced.
fn settle(inode: &mut Inode, rng: &RngHandle) {
    for write in std::mem::take(&mut inode.unsynced) {
        match (rng.below(3), write) {
            (0, _) => {}
            (1, Write::Data { offset, bytes }) => tear(&mut inode.stable, offset, &bytes, rng),
            (_, write) => write.apply(&mut inode.stable),
        }
    }
}

/// Stores some sectors of a write: those before a boundary, or any; and of one of them, maybe, only the first bytes.
fn tear(stable: &mut Vec<u8>, offset: usize, bytes: &[u8], rng: &RngHandle) {
    let in_order = rng.below(2) == 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len());
        let stored = match rng.below(8) {
            0..4 => end - at,
            4 => rng.below((end - at) as u64) as usize,
            _ => 0,
        };
        if stored > 0 {
            let sector = Write::Data {
                offset: offset + at,
                bytes: bytes[at..at + stored].to_vec(),
            };
            sector.apply(stable);
        }
        if in_order && at + stored < end {
            return;
        }
        at = end;
    }
}
