//! A disk that remembers what was made stable, forgets the rest when the power fails, and fails as it is told.
//!
//! Model: a file's bytes are stable after `sync_data`; a folder's names, those of its folders too, after `sync_dir`. When
//! the power fails each write since the last sync survives whole, in some of its sectors, or not at all, in any order and
//! by the seed; of a folder's unsynced names a prefix of the changes survives, or any of them. A sync that fails may have
//! stored anything, and what it has not stored is gone from then on, whatever later syncs say. Handles opened before a
//! power loss, and mounts made before it, fail afterwards.
//!
//! A [`SimDisk::mount`] is what one run of a process sees: its operations are counted, and a [`FaultPlan`] strikes them.
//! An unmounted disk is the tester's hand.

mod faults;
mod file;
mod platter;
#[cfg(test)]
mod sim_disk_test;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{Disk, DiskError, DiskFile, DiskSpace, OpenMode, RngHandle};
use parking_lot::Mutex;

pub use faults::{Fault, FaultPlan};

use faults::{Operation, Verdict};
use file::{SimFile, SimLock};
use platter::{NameChange, Platter};

/// A simulated disk; clones share it. It outlives the crashes of the host that uses it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    platter: Arc<Mutex<Platter>>,
    /// The run of the host that this handle belongs to; unset in the tester's hand.
    boot: Option<u64>,
}

/// What every handle says once its run of the host has ended.
fn gone() -> io::Error {
    io::Error::other("the simulated machine crashed")
}

impl SimDisk {
    /// An empty disk whose fate is decided by `rng`.
    pub fn new(rng: RngHandle) -> Self {
        Self {
            platter: Arc::new(Mutex::new(Platter::new(rng))),
            boot: None,
        }
    }

    /// The disk as one run of the host sees it: until the next crash or kill, and under the fault plan.
    #[must_use]
    pub fn mount(&self) -> Self {
        let boot = self.platter.lock().boots();
        Self {
            platter: Arc::clone(&self.platter),
            boot: Some(boot),
        }
    }

    /// Power loss: what was not stable survives by chance.
    pub fn crash(&self) {
        self.platter.lock().crash();
    }

    /// The process died, the machine did not: every write survives.
    pub fn kill(&self) {
        self.platter.lock().kill();
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        self.platter.lock().wipe();
    }

    /// Strikes the operations of mounts from now on, instead of the plan before.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.platter.lock().faults.replace(plan);
    }

    /// What was struck since the last call, in words.
    pub fn take_struck(&self) -> Vec<String> {
        self.platter.lock().faults.take_struck()
    }

    /// Operations of mounts so far.
    pub fn operations(&self) -> u64 {
        self.platter.lock().faults.operations()
    }

    /// A number that depends on every operation of mounts so far: equal runs have equal ones.
    pub fn digest(&self) -> u64 {
        self.platter.lock().faults.digest()
    }

    /// How many times the power failed or the process died.
    pub fn boots(&self) -> u64 {
        self.platter.lock().boots()
    }

    /// The files whose syncs failed, in order, as they were called then.
    pub fn failed_syncs(&self) -> Vec<PathBuf> {
        self.platter.lock().faults.failed_syncs()
    }

    /// Writes beyond this many bytes fail as on a full disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.platter.lock().capacity = bytes;
    }

    /// Makes every sync fail, or work again.
    pub fn set_fail_syncs(&self, fail: bool) {
        self.platter.lock().fail_syncs = fail;
    }

    /// Flips one bit of a stored file, as a failing disk would; false when there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) -> bool {
        self.platter.lock().flip_bit(path, offset, bit)
    }

    /// The files under a folder, at any depth, with their lengths.
    pub fn files_under(&self, dir: &Path) -> Vec<(PathBuf, usize)> {
        self.platter.lock().files_under(dir)
    }

    /// Runs one operation, or what a fault makes of it.
    fn operate<T>(
        &self,
        operation: Operation,
        path: &Path,
        act: impl FnOnce(&mut Platter) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut platter = self.platter.lock();
        match platter.admit(self.boot, operation, path)? {
            Verdict::Go => act(&mut platter),
            Verdict::Fail(kind) => Err(kind.into()),
            Verdict::PowerLoss { done } => {
                if done {
                    // Whatever it says, nobody is there to hear it.
                    let _ = act(&mut platter);
                }
                platter.crash();
                Err(gone())
            }
            Verdict::Kill { done } => {
                if done {
                    // As above.
                    let _ = act(&mut platter);
                }
                platter.kill();
                Err(gone())
            }
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let operation = match mode {
            OpenMode::Read => Operation::Read,
            OpenMode::ReadWrite => Operation::Look,
            OpenMode::CreateNew | OpenMode::Create => Operation::Change,
        };
        let opened = self.operate(operation, path, |platter| {
            Ok((platter.open(path, mode)?, platter.boots()))
        });
        let (inode, boot) = opened.map_err(|e| DiskError::io("open", path, e))?;
        Ok(Arc::new(SimFile {
            platter: Arc::clone(&self.platter),
            path: path.to_owned(),
            inode,
            boot,
            mounted: self.boot.is_some(),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        let create = |platter: &mut Platter| {
            platter.create_dirs(path);
            Ok(())
        };
        self.operate(Operation::Change, path, create)
            .map_err(|e| DiskError::io("create folder", path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let rename = |platter: &mut Platter| {
            let inode = platter.find(from)?;
            // One change: a crash shows the old names or the new ones.
            platter.change(to, NameChange::Rename(from.to_owned(), to.to_owned(), inode));
            Ok(())
        };
        self.operate(Operation::Change, from, rename)
            .map_err(|e| DiskError::io("rename", from, e))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let link = |platter: &mut Platter| {
            let inode = platter.find(from)?;
            if platter.find(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            platter.change(to, NameChange::Set(to.to_owned(), inode));
            Ok(())
        };
        self.operate(Operation::Change, to, link)
            .map_err(|e| DiskError::io("link", to, e))
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        let remove = |platter: &mut Platter| {
            platter.find(path)?;
            platter.change(path, NameChange::Remove(path.to_owned()));
            Ok(())
        };
        self.operate(Operation::Remove, path, remove)
            .map_err(|e| DiskError::io("remove", path, e))
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, DiskError> {
        self.operate(Operation::Read, path, |platter| platter.list(path))
            .map_err(|e| DiskError::io("list", path, e))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.platter.lock().is_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let sync = |platter: &mut Platter| platter.sync_dir(path);
        self.operate(Operation::SyncDir, path, sync)
            .map_err(|e| DiskError::io("sync folder", path, e))
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, DiskError> {
        self.operate(Operation::Look, path, |platter| Ok(platter.free_bytes()))
            .map_err(|e| DiskError::io("stat file system of", path, e))
    }

    fn space(&self, path: &Path) -> Result<DiskSpace, DiskError> {
        let space = |platter: &mut Platter| {
            Ok(DiskSpace {
                device: 1,
                total: platter.total_bytes(),
            })
        };
        self.operate(Operation::Look, path, space)
            .map_err(|e| DiskError::io("stat file system of", path, e))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, DiskError> {
        let lock = |platter: &mut Platter| {
            platter.lock(path)?;
            Ok(platter.boots())
        };
        let boot = self
            .operate(Operation::Look, path, lock)
            .map_err(|e| DiskError::io("lock", path, e))?;
        Ok(Box::new(SimLock {
            platter: Arc::clone(&self.platter),
            path: path.to_owned(),
            boot,
        }))
    }
}
