//! The log database's file on the injected disk.

use std::io;
use std::path::Path;
use std::sync::Arc;

use koios_runtime::{Disk, DiskError, DiskFile, OpenMode};
use redb::StorageBackend;

/// One open file. The data directory's lock keeps other processes out.
#[derive(Debug)]
pub(crate) struct DiskBackend {
    file: Arc<dyn DiskFile>,
}

impl DiskBackend {
    pub(crate) fn open(disk: &dyn Disk, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        Ok(Self {
            file: disk.open(path, mode)?,
        })
    }
}

impl StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.file.read_at(offset, out)? {
            got if got == out.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }
}
