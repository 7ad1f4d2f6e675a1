//! A disk in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{Disk, DiskError, DiskFile, DiskSpace, OpenMode};
use parking_lot::Mutex;

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct MemoryState {
    pub(super) files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    pub(super) synced_names: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    pub(super) fail_sync: bool,
    pub(super) full: bool,
    /// Bytes of all files that there is room for.
    pub(super) room: Option<u64>,
    /// No room is left for this file, or for the names in this folder.
    pub(super) full_at: Option<PathBuf>,
}

/// Files in memory; a crash keeps what was synced under names that were synced.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDisk(pub(super) Arc<Mutex<MemoryState>>);

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    content: Arc<Mutex<Content>>,
}

impl MemoryDisk {
    /// What a power loss leaves; of unsynced bytes a prefix of `torn` bytes beyond the synced content survives.
    pub(super) fn crash(&self, torn: usize) -> Self {
        let state = self.0.lock();
        let mut files = BTreeMap::new();
        for (path, content) in &state.synced_names {
            let content = content.lock();
            let mut kept = content.synced.clone();
            if let Some(first) = (0..content.now.len()).find(|&i| content.now.get(i) != kept.get(i)) {
                kept.resize(content.now.len(), 0);
                let end = (first + torn).min(content.now.len());
                kept[first..end].copy_from_slice(&content.now[first..end]);
            }
            let content = Content {
                now: kept.clone(),
                synced: kept,
            };
            files.insert(path.clone(), Arc::new(Mutex::new(content)));
        }
        Self(Arc::new(Mutex::new(MemoryState {
            synced_names: files.clone(),
            files,
            ..MemoryState::default()
        })))
    }

    /// Bytes that there is room for still.
    pub(super) fn free(&self) -> u64 {
        let state = self.0.lock();
        let used: usize = state.files.values().map(|f| f.lock().now.len()).sum();
        state.room.unwrap_or(1 << 40).saturating_sub(used as u64)
    }

    pub(super) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = Arc::clone(&self.0.lock().files[path]);
        let mut content = file.lock();
        change(&mut content.now);
        content.synced = content.now.clone();
    }
}

impl MemoryState {
    fn check_room(&self, path: &Path) -> Result<(), DiskError> {
        match self.full_at.as_deref() == Some(path) {
            true => Err(DiskError::io("grow", path, io::ErrorKind::StorageFull.into())),
            false => Ok(()),
        }
    }
}

fn not_found(path: &Path) -> DiskError {
    DiskError::io("open", path, io::ErrorKind::NotFound.into())
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut state = self.0.lock();
        state.check_room(path)?;
        let known = state.files.get(path).cloned();
        let content = match (known, mode) {
            (Some(content), OpenMode::Read | OpenMode::ReadWrite | OpenMode::Create) => content,
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                let content = Arc::<Mutex<Content>>::default();
                state.files.insert(path.to_owned(), Arc::clone(&content));
                content
            }
            _ => return Err(not_found(path)),
        };
        Ok(Arc::new(MemoryFile {
            disk: self.clone(),
            content,
        }))
    }
    fn create_dir_all(&self, _: &Path) -> Result<(), DiskError> {
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut state = self.0.lock();
        let content = state.files.remove(from).ok_or_else(|| not_found(from))?;
        state.files.insert(to.to_owned(), content);
        Ok(())
    }
    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut state = self.0.lock();
        let content = state.files.get(from).cloned().ok_or_else(|| not_found(from))?;
        state.files.insert(to.to_owned(), content);
        Ok(())
    }
    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        self.0
            .lock()
            .files
            .remove(path)
            .map(|_| ())
            .ok_or_else(|| not_found(path))
    }
    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        let state = self.0.lock();
        let in_dir = state.files.keys().filter(|p| p.parent() == Some(path));
        Ok(in_dir
            .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }
    fn is_dir(&self, _: &Path) -> bool {
        true
    }
    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.0.lock();
        state.check_room(path)?;
        let here: BTreeMap<_, _> = state
            .files
            .iter()
            .filter(|(p, _)| p.parent() == Some(path))
            .map(|(p, c)| (p.clone(), Arc::clone(c)))
            .collect();
        state.synced_names.retain(|p, _| p.parent() != Some(path));
        state.synced_names.extend(here);
        Ok(())
    }
    fn free_bytes(&self, _: &Path) -> Result<u64, DiskError> {
        Ok(if self.0.lock().full { 0 } else { self.free() })
    }
    fn space(&self, _: &Path) -> Result<DiskSpace, DiskError> {
        Ok(DiskSpace {
            device: 1,
            total: 1 << 40,
        })
    }
    fn lock(&self, _: &Path) -> Result<Box<dyn Send + Sync>, DiskError> {
        Ok(Box::new(()))
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let content = self.content.lock();
        let rest = content.now.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content.lock();
        let end = offset as usize + data.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset as usize..end].copy_from_slice(data);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.disk.0.lock().fail_sync {
            return Err(io::Error::other("injected"));
        }
        let mut content = self.content.lock();
        content.synced = content.now.clone();
        Ok(())
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.disk.0.lock().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let grows = len.saturating_sub(self.len()?);
        if grows > self.disk.free() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = self.content.lock();
        let len = content.now.len().max(len as usize);
        content.now.resize(len, 0);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.content.lock().now.resize(len as usize, 0);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().now.len() as u64)
    }
}
