//! Injected disks: a synchronous [`Disk`] and a [`DiskHandle`] that submits work to it.
//!
//! The real disk runs submissions on its own threads; the simulated one runs them inline, decides what was stable at
//! a crash, and injects faults. There is no mmap: every byte read passes through here.
#![expect(clippy::disallowed_methods, reason = "this module is where files are opened")]
#![expect(
    clippy::missing_errors_doc,
    reason = "each method fails with the operating system's error and nothing else"
)]

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cpu::{CpuPanicked, Threads, Workers};
use crate::needs::DiskNeeds;
use crate::pace::PaceHandle;

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The submitted work panicked: a bug.
    #[error("disk work: {0}")]
    Panicked(#[from] CpuPanicked),
}

impl DiskError {
    /// Wraps an [`io::Error`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the file or folder does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether it exists already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Read,
    /// It must exist.
    ReadWrite,
    /// It must not exist.
    CreateNew,
    /// Created when missing, kept when there.
    Create,
}

/// The file system that a path lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Which one it is: paths with the same number share its free bytes.
    pub device: u64,
    /// Bytes of it, used and free.
    pub total: u64,
}

/// An open file. Positions are explicit; concurrent use is allowed.
pub trait DiskFile: Send + Sync + Debug + 'static {
    /// Fills `buf` from `offset`; fewer bytes than asked for only at the end of the file. Returns how many.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, growing the file when needed. Not stable before [`Self::sync_data`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes what was written stable (fdatasync). After an error nothing is known about the file's content.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves space so that later writes up to `len` cannot run out of it; new bytes read as zero.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or grows the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A disk. Every call blocks; use it through [`DiskHandle`].
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError>;

    /// Creates a folder and its parents.
    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError>;

    /// Creates a folder and its parents so that they outlast a power loss, those too that a run before made and was killed
    /// before it synced them.
    fn create_dir_durably(&self, path: &Path) -> Result<(), DiskError> {
        let made = path.ancestors().take_while(|dir| !self.is_dir(dir)).count();
        self.create_dir_all(path)?;
        for (i, dir) in path.ancestors().enumerate() {
            let Some(parent) = dir.parent() else { break };
            match self.sync_dir(parent) {
                // What a process may not sync it did not make either.
                Err(_) if i >= made.max(1) => break,
                synced => synced?,
            }
        }
        Ok(())
    }

    /// Renames a file, replacing the target. Stable after [`Self::sync_dir`] of the folder.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// Gives a file a second name; fails when the target exists. This is the atomic create-if-absent.
    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<(), DiskError>;

    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError>;

    /// Whether a path is a folder; false when it does not exist.
    fn is_dir(&self, path: &Path) -> bool;

    /// Makes creations, renames and removals in a folder stable.
    fn sync_dir(&self, path: &Path) -> Result<(), DiskError>;

    /// Bytes that can still be written where `path` lies.
    fn free_bytes(&self, path: &Path) -> Result<u64, DiskError>;

    /// Which file system `path` lies in, and how large that is.
    fn space(&self, path: &Path) -> Result<DiskSpace, DiskError>;

    /// Locks a file against other processes until the returned guard is dropped.
    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, DiskError>;

    /// Reads a whole file.
    fn read(&self, path: &Path) -> Result<Vec<u8>, DiskError> {
        let file = self.open(path, OpenMode::Read)?;
        let fail = |e| DiskError::io("read", path, e);
        let len = usize::try_from(file.len().map_err(fail)?)
            .map_err(|_| fail(io::ErrorKind::FileTooLarge.into()))?;
        let mut buf = vec![0; len];
        let got = file.read_at(0, &mut buf).map_err(fail)?;
        buf.truncate(got);
        Ok(buf)
    }

    /// Replaces a file's content so that after a crash it is the old or the new one: temporary file, sync, rename,
    /// sync of the folder.
    fn replace(&self, path: &Path, data: &[u8]) -> Result<(), DiskError> {
        let temporary = path.with_extension("tmp");
        match self.remove_file(&temporary) {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
        let file = self.open(&temporary, OpenMode::CreateNew)?;
        file.write_at(0, data)
            .map_err(|e| DiskError::io("write", &temporary, e))?;
        file.sync_data()
            .map_err(|e| DiskError::io("sync", &temporary, e))?;
        self.rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))
    }
}

/// Submits work to a disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskHandle {
    disk: Arc<dyn Disk>,
    workers: Workers,
    needs: DiskNeeds,
}

impl DiskHandle {
    /// Work runs on `threads` threads of its own.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn threaded(disk: Arc<dyn Disk>, threads: usize) -> io::Result<Self> {
        Ok(Self {
            disk,
            workers: Workers::Threads(Threads::start("koios-disk", threads)?),
            needs: DiskNeeds::default(),
        })
    }

    /// Work runs inline: for simulation, and for start-up code that may block.
    pub fn inline(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            workers: Workers::Inline,
            needs: DiskNeeds::default(),
        }
    }

    /// Work runs on the calling thread, when and as late as `pace` says: for simulation.
    pub fn paced(disk: Arc<dyn Disk>, pace: PaceHandle) -> Self {
        Self {
            disk,
            workers: Workers::Paced(pace),
            needs: DiskNeeds::default(),
        }
    }

    /// The disk itself, for code that runs where blocking is allowed.
    pub fn blocking(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// What those who write through this handle, or a clone of it, will need free.
    pub fn needs(&self) -> &DiskNeeds {
        &self.needs
    }

    /// Runs `work` with the disk. The work runs to its end even when the future is dropped.
    ///
    /// # Errors
    /// Those of the work, or [`DiskError::Panicked`].
    pub async fn run<T, E>(
        &self,
        work: impl FnOnce(&dyn Disk) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DiskError> + Send + 'static,
    {
        let disk = Arc::clone(&self.disk);
        match self.workers.run(move || work(disk.as_ref())).await {
            Ok(result) => result,
            Err(panicked) => Err(E::from(DiskError::Panicked(panicked))),
        }
    }
}

/// The machine's file system.
#[derive(Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut options = fs::OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::CreateNew => options.read(true).write(true).create_new(true),
            OpenMode::Create => options.read(true).write(true).create(true).truncate(false),
        };
        Ok(Arc::new(
            options.open(path).map_err(|e| DiskError::io("open", path, e))?,
        ))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        fs::create_dir_all(path).map_err(|e| DiskError::io("create folder", path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        fs::rename(from, to).map_err(|e| DiskError::io("rename", from, e))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        fs::hard_link(from, to).map_err(|e| DiskError::io("link", to, e))
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        fs::remove_file(path).map_err(|e| DiskError::io("remove", path, e))
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        let fail = |e| DiskError::io("list", path, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(fail)? {
            names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        fs::File::open(path)
            .and_then(|d| d.sync_all())
            .map_err(|e| DiskError::io("sync folder", path, e))
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, DiskError> {
        let stat =
            rustix::fs::statvfs(path).map_err(|e| DiskError::io("stat file system of", path, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn space(&self, path: &Path) -> Result<DiskSpace, DiskError> {
        let fail = |e| DiskError::io("stat file system of", path, e);
        let stat = rustix::fs::statvfs(path).map_err(|e| fail(e.into()))?;
        Ok(DiskSpace {
            device: fs::metadata(path).map_err(fail)?.dev(),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, DiskError> {
        let fail = |e| DiskError::io("lock", path, e);
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        file.try_lock().map_err(|e| fail(e.into()))?;
        Ok(Box::new(file))
    }
}

impl DiskFile for fs::File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without reservation grows the file instead.
            Err(rustix::io::Errno::OPNOTSUPP) => Self::set_len(self, len.max(self.metadata()?.len())),
            Err(e) => Err(e.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaces_files_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let handle = DiskHandle::threaded(Arc::new(RealDisk), 1).unwrap();
        for text in ["first", "2"] {
            let path = path.clone();
            handle
                .run(move |d| d.replace(&path, text.as_bytes()))
                .await
                .unwrap();
        }
        assert_eq!(handle.blocking().read(&path).unwrap(), b"2");
        assert_eq!(handle.blocking().list(dir.path()).unwrap(), ["state.json"]);
    }

    #[test]
    fn a_locked_file_cannot_be_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let guard = RealDisk.lock(&path).unwrap();
        assert!(RealDisk.lock(&path).is_err());
        drop(guard);
        assert!(RealDisk.lock(&path).is_ok());
    }

    #[test]
    fn folders_of_one_file_system_share_its_space() {
        let dir = tempfile::tempdir().unwrap();
        RealDisk.create_dir_all(&dir.path().join("a/b")).unwrap();
        let space = RealDisk.space(dir.path()).unwrap();
        assert_eq!(RealDisk.space(&dir.path().join("a/b")).unwrap(), space);
        assert!(space.total >= RealDisk.free_bytes(dir.path()).unwrap());
        assert!(RealDisk.space(&dir.path().join("c")).unwrap_err().is_not_found());
    }

    #[test]
    fn reserved_space_reads_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk
            .open(&dir.path().join("seg"), OpenMode::CreateNew)
            .unwrap();
        file.allocate(4096).unwrap();
        file.write_at(10, b"x").unwrap();
        let mut buf = [9; 12];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 12);
        assert_eq!(&buf[9..], [0, b'x', 0]);
    }
}
