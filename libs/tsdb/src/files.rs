//! Where a block's bytes come from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use koios_runtime::{DiskError, DiskHandle, OpenMode};

use crate::{Error, Result};

/// The files of one block, read by range. Names are relative to its folder: `index`, `chunks/000001`.
#[async_trait]
pub trait TsdbFiles: Send + Sync + std::fmt::Debug {
    /// A file's size; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Read`].
    async fn size(&self, file: &str) -> Result<Option<u64>>;

    /// The bytes of a range that lies inside the file, all of them.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Corrupt`] when the file is shorter.
    async fn read(&self, file: &str, range: Range<u64>) -> Result<Bytes>;

    /// The fewest bytes that are worth a request: small on a disk, large where every request takes its time.
    fn read_at_least(&self) -> u64;
}

/// A block in a folder.
#[derive(Clone, Debug)]
pub struct DiskFiles {
    disk: DiskHandle,
    folder: PathBuf,
}

impl DiskFiles {
    /// The block in `folder`.
    pub fn new(disk: DiskHandle, folder: PathBuf) -> Self {
        Self { disk, folder }
    }
}

fn failed(file: &str, source: DiskError) -> Error {
    Error::Read {
        file: file.to_owned(),
        source: Box::new(source),
    }
}

#[async_trait]
impl TsdbFiles for DiskFiles {
    async fn size(&self, file: &str) -> Result<Option<u64>> {
        let path = self.folder.join(file);
        let size = self.disk.run(move |disk| {
            let open = disk.open(&path, OpenMode::Read)?;
            open.len().map_err(|e| DiskError::io("measure", &path, e))
        });
        match size.await {
            Ok(size) => Ok(Some(size)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(failed(file, e)),
        }
    }

    async fn read(&self, file: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.folder.join(file);
        let len = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| Error::corrupt(file, range.start, "it is larger than memory can be"))?;
        let start = range.start;
        let read = self.disk.run(move |disk| {
            let open = disk.open(&path, OpenMode::Read)?;
            let mut bytes = vec![0; len];
            let read = open.read_at(start, &mut bytes);
            let read = read.map_err(|e| DiskError::io("read", &path, e))?;
            bytes.truncate(read);
            Ok(bytes)
        });
        let bytes = read.await.map_err(|e| failed(file, e))?;
        if bytes.len() < len {
            let end = start.saturating_add(bytes.len() as u64);
            return Err(Error::corrupt(
                file,
                end,
                format!("it ends here, byte {} was expected", range.end),
            ));
        }
        Ok(bytes.into())
    }

    fn read_at_least(&self) -> u64 {
        128 << 10
    }
}

/// A block in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles(BTreeMap<String, Bytes>);

impl MemoryFiles {
    /// From named bytes.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(
            files
                .into_iter()
                .map(|(name, bytes)| (name, bytes.into()))
                .collect(),
        )
    }
}

#[async_trait]
impl TsdbFiles for MemoryFiles {
    async fn size(&self, file: &str) -> Result<Option<u64>> {
        Ok(self.0.get(file).map(|bytes| bytes.len() as u64))
    }

    async fn read(&self, file: &str, range: Range<u64>) -> Result<Bytes> {
        let ends = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok());
        let inside = |bytes: &Bytes| {
            let (from, to) = ends?;
            (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
        };
        let bytes = self.0.get(file).and_then(inside);
        bytes.ok_or_else(|| Error::corrupt(file, range.start, format!("it ends before byte {}", range.end)))
    }

    fn read_at_least(&self) -> u64 {
        64
    }
}

/// Bytes of one file that were read, from one offset on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ahead {
    start: u64,
    bytes: Bytes,
}

impl Ahead {
    /// The bytes from `at` on, if `len` of them are here.
    pub(crate) fn get(&self, at: u64, len: u64) -> Option<Bytes> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let rest = self.bytes.len().checked_sub(from)?;
        (rest as u64 >= len).then(|| self.bytes.slice(from..))
    }

    /// The bytes from `at` on: at least `len`, unless the part of the file that ends at `end` has fewer.
    pub(crate) async fn fill(
        &mut self,
        files: &dyn TsdbFiles,
        file: &str,
        at: u64,
        len: u64,
        end: u64,
    ) -> Result<Bytes> {
        let len = len.min(end.saturating_sub(at));
        if let Some(bytes) = self.get(at, len) {
            return Ok(bytes);
        }
        let until = at.saturating_add(len.max(files.read_at_least())).min(end);
        let bytes = if until > at {
            files.read(file, at..until).await?
        } else {
            Bytes::new()
        };
        *self = Self { start: at, bytes };
        Ok(self.bytes.clone())
    }
}
