//! The snapshot on disk: one sealed, compressed file, replaced whole.

use std::path::{Path, PathBuf};

use koios_runtime::DiskHandle;
use serde::{Deserialize, Serialize};

use super::types::SnapshotMeta;
use crate::sealed::{seal, unseal};
use crate::{ClusterState, Error};

const FILE: &str = "snapshot";
const KIND: &str = "koios-control-snapshot";
/// A state's JSON is far below this; a file that claims more is damaged.
const STATE_BYTES_MAX: usize = 256 << 20;
const ZSTD_LEVEL: i32 = 3;

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: ClusterState,
}

/// Where the snapshot lies.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    disk: DiskHandle,
    path: PathBuf,
}

impl SnapshotFile {
    pub(crate) fn new(disk: DiskHandle, dir: &Path) -> Self {
        Self {
            disk,
            path: dir.join(FILE),
        }
    }

    pub(crate) async fn read(&self) -> Result<Option<StoredSnapshot>, Error> {
        let path = self.path.clone();
        self.disk
            .run(move |disk| match disk.read(&path) {
                Ok(sealed) => decode(&path, &sealed).map(Some),
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(Error::Disk(e)),
            })
            .await
    }

    pub(crate) async fn write(&self, snapshot: StoredSnapshot) -> Result<(), Error> {
        let path = self.path.clone();
        self.disk
            .run(move |disk| {
                let sealed = encode(&snapshot)?;
                disk.replace(&path, &sealed).map_err(Error::Disk)
            })
            .await
    }
}

fn encode(snapshot: &StoredSnapshot) -> Result<Vec<u8>, Error> {
    let storage = |e: String| Error::Storage(format!("snapshot: {e}"));
    let json = serde_json::to_vec(snapshot).map_err(|e| storage(e.to_string()))?;
    let packed = zstd::bulk::compress(&json, ZSTD_LEVEL).map_err(|e| storage(e.to_string()))?;
    seal(KIND, &packed).map_err(|e| storage(e.to_string()))
}

fn decode(path: &Path, sealed: &[u8]) -> Result<StoredSnapshot, Error> {
    let corrupt = |detail: String| Error::Corrupt {
        path: path.to_owned(),
        detail,
    };
    let packed = unseal(KIND, path, sealed)?;
    let json = zstd::bulk::decompress(packed, STATE_BYTES_MAX).map_err(|e| corrupt(e.to_string()))?;
    serde_json::from_slice(&json).map_err(|e| corrupt(e.to_string()))
}
