//! How uploads stand: what `state.json` says of each.

use bytes::Bytes;
use koios_block::BlockId;
use koios_bucket::{Bucket, Result};
use koios_model::TenantId;

/// Where an upload says how it stands.
pub(crate) const STATE_FILE: &str = "state.json";
/// An import of which nothing was heard for so long is taken over. Clocks that differ by more cost a second import at the same time,
/// one of which is thrown away.
const HELD_FOR_MS: i64 = 60_000;

/// How an upload stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// Files are coming.
    Uploading,
    /// It waits to be imported, or is.
    Validating,
    /// It is imported.
    Complete,
    /// It cannot be imported.
    Failed(String),
}

impl UploadState {
    /// The word that clients know it by.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Uploading => "uploading",
            Self::Validating => "validating",
            Self::Complete => "complete",
            Self::Failed(_) => "failed",
        }
    }
}

/// What is written of an upload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stored {
    state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
    /// Imports that were begun and of which nothing was heard since.
    #[serde(default)]
    pub(crate) attempts: u32,
    /// When it came to be so, by the clock of who wrote it.
    pub(crate) at_ms: i64,
    /// The newest version of the tenant's manifest when the upload was begun, or ended: deletions made later are about it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
    /// It is imported though it was before: what was imported up to this version of the manifest does not count. Older versions of the
    /// program forget it, and do nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) again_after: Option<u64>,
    /// Who imports it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    holder: String,
    /// When that was last said, by the holder's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_ms: Option<i64>,
}

impl Stored {
    pub(crate) fn new(state: &UploadState, version: Option<u64>, now_ms: i64) -> Self {
        Self {
            state: state.as_str().to_owned(),
            error: match state {
                UploadState::Failed(why) => why.clone(),
                UploadState::Uploading | UploadState::Validating | UploadState::Complete => String::new(),
            },
            attempts: 0,
            at_ms: now_ms,
            version,
            again_after: None,
            holder: String::new(),
            held_ms: None,
        }
    }

    /// The same, imported once more, after a version of the manifest.
    #[must_use]
    pub(crate) fn again(self, again_after: Option<u64>) -> Self {
        Self { again_after, ..self }
    }

    pub(crate) fn state(&self) -> UploadState {
        match self.state.as_str() {
            "uploading" => UploadState::Uploading,
            "validating" => UploadState::Validating,
            "complete" => UploadState::Complete,
            _ => UploadState::Failed(self.error.clone()),
        }
    }

    /// The same, held by somebody from now on.
    #[must_use]
    pub(crate) fn held(self, holder: &str, now_ms: i64) -> Self {
        Self {
            holder: holder.to_owned(),
            held_ms: Some(now_ms),
            ..self
        }
    }

    /// Whether somebody is at it.
    pub(crate) fn is_held_by(&self, holder: &str) -> bool {
        self.state() == UploadState::Validating && self.holder == holder
    }

    /// Whether somebody else has been at it just now.
    pub(crate) fn is_held_by_another(&self, holder: &str, now_ms: i64) -> bool {
        let is_fresh = self
            .held_ms
            .is_some_and(|at| at.abs_diff(now_ms) < HELD_FOR_MS.unsigned_abs());
        is_fresh && self.holder != holder
    }

    pub(crate) fn to_json(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }

    /// What is written of an upload, if there is anything that can be read: one that cannot be is begun again.
    pub(crate) async fn read(bucket: &Bucket, tenant: &TenantId, upload: BlockId) -> Result<Option<Self>> {
        let bytes = bucket.file(tenant, upload, STATE_FILE).await?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }
}

/// Removes uploads of a tenant that came before a version of its manifest, as one that deletes all that the tenant has. Gives how many.
///
/// # Errors
/// [`koios_bucket::Error::Unavailable`]; repeating it goes on.
pub async fn remove_uploads(bucket: &Bucket, tenant: &TenantId, version: u64) -> Result<usize> {
    let mut removed = 0;
    for upload in bucket.uploads(tenant).await? {
        let stored = Stored::read(bucket, tenant, upload).await?;
        let came = stored.and_then(|s| s.version);
        if came.is_none_or(|came| came < version) {
            bucket.remove_upload(tenant, upload, None).await?;
            removed += 1;
        }
    }
    Ok(removed)
}
