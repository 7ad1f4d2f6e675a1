//! Open files and held locks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use koios_runtime::DiskFile;
use parking_lot::Mutex;

use super::faults::{Operation, Verdict};
use super::gone;
use super::platter::{Platter, Write};

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) platter: Arc<Mutex<Platter>>,
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) boot: u64,
    pub(super) mounted: bool,
}

impl SimFile {
    /// Runs one operation; `part` is what is done of one that fails.
    fn operate<T>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut Platter) -> io::Result<T>,
        part: impl FnOnce(&mut Platter),
    ) -> io::Result<T> {
        let mut platter = self.platter.lock();
        if platter.boots() != self.boot {
            return Err(gone());
        }
        let boot = self.mounted.then_some(self.boot);
        match platter.admit(boot, operation, &self.path)? {
            Verdict::Go => act(&mut platter),
            Verdict::Fail(kind) => {
                part(&mut platter);
                Err(kind.into())
            }
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

    fn resize(&self, len: u64) -> io::Result<()> {
        let grow = |platter: &mut Platter| platter.write(self.inode, Write::Len(len as usize));
        self.operate(Operation::Write, grow, |_| {})
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = |platter: &mut Platter| {
            let bytes = platter.bytes(self.inode)?;
            let start = (offset as usize).min(bytes.len());
            let n = buf.len().min(bytes.len() - start);
            buf[..n].copy_from_slice(&bytes[start..start + n]);
            Ok(n)
        };
        self.operate(Operation::Read, read, |_| {})
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let write = |platter: &mut Platter| {
            if self.mounted {
                platter.faults.wrote(offset, data);
            }
            platter.write_at(self.inode, offset, data)
        };
        let part = |platter: &mut Platter| platter.write_part(self.inode, offset, data);
        self.operate(Operation::Write, write, part)
    }

    fn sync_data(&self) -> io::Result<()> {
        let sync = |platter: &mut Platter| {
            if platter.fail_syncs {
                platter.fail_sync(self.inode);
                return Err(io::Error::other("injected"));
            }
            platter.sync(self.inode)
        };
        let fail = |platter: &mut Platter| {
            let name = platter.name_of(self.inode);
            platter.faults.sync_failed(name.as_deref().unwrap_or(&self.path));
            platter.fail_sync(self.inode);
        };
        self.operate(Operation::Sync, sync, fail)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len > self.len()? {
            self.resize(len)
        } else {
            Ok(())
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(len)
    }

    fn len(&self) -> io::Result<u64> {
        let len = |platter: &mut Platter| Ok(platter.bytes(self.inode)?.len() as u64);
        self.operate(Operation::Look, len, |_| {})
    }
}

pub(super) struct SimLock {
    pub(super) platter: Arc<Mutex<Platter>>,
    pub(super) path: PathBuf,
    pub(super) boot: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.platter.lock().unlock(&self.path, self.boot);
    }
}
