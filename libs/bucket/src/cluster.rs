//! Backups of the control state: what rebuilds a cluster together with the blocks (I10).

use bytes::{Buf, Bytes, BytesMut};
use object_store::path::Path;

use crate::bucket::{Bucket, Created};
use crate::{Error, Result};

const FOLDER: &str = "control";
const MAGIC: &[u8; 8] = b"KOIOSCB1";
/// Backups kept beside the newest.
const KEPT: usize = 3;

fn envelope(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 12);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out.extend_from_slice(payload);
    out.freeze()
}

fn open(mut bytes: Bytes) -> Option<Bytes> {
    if bytes.len() < 12 || !bytes.starts_with(MAGIC) {
        return None;
    }
    bytes.advance(MAGIC.len());
    let crc = bytes.get_u32_le();
    (crc32c::crc32c(&bytes) == crc).then_some(bytes)
}

impl Bucket {
    fn backup(&self, version: u64) -> Path {
        self.layout().cluster(FOLDER).join(format!("{version:020}.bin"))
    }

    /// Stores the control state as of `version` (its log index) and deletes backups beyond the newest few. A version
    /// that is there already stays as it is.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn put_control_backup(&self, version: u64, state: &[u8]) -> Result<()> {
        match self.create(&self.backup(version), &envelope(state)).await? {
            Created::Yes | Created::Exists => {}
        }
        let all = self.list(&self.layout().cluster(FOLDER)).await?;
        for old in all.iter().rev().skip(KEPT + 1) {
            self.delete(old).await?;
        }
        Ok(())
    }

    /// The newest backup that is whole, with its version; `None` when there is none at all.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there are backups and none is whole; [`Error::Unavailable`].
    pub async fn control_backup(&self) -> Result<Option<(u64, Bytes)>> {
        let all = self.list(&self.layout().cluster(FOLDER)).await?;
        for path in all.iter().rev() {
            let version = path
                .filename()
                .and_then(|f| f.strip_suffix(".bin"))
                .and_then(|v| v.parse().ok());
            let Some(version) = version else { continue };
            match self.get(path).await?.and_then(open) {
                Some(state) => return Ok(Some((version, state))),
                None => tracing::warn!(object = %path, "control backup is damaged, trying the one before"),
            }
        }
        match all.last() {
            Some(path) => Err(Error::corrupt(path, "no control backup is whole")),
            None => Ok(None),
        }
    }
}
