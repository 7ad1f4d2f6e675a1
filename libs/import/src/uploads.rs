//! Blocks that come in files, by a protocol: begun, filled, finished, imported in the background.
//!
//! Everything about an upload is in the bucket (docs/formats/manifest.md), so that any process goes on with it after a crash.
//!
//! **Source**: Grafana Mimir's block upload, as mimirtool speaks it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use koios_block::BlockId;
use koios_bucket::{Bucket, Error as BucketError, FileUpload};
use koios_model::TenantId;
use koios_runtime::{MemoryShort, with_sources};
use koios_tsdb::{META_BYTES_MAX, META_FILE, TsdbFiles, TsdbMeta};

use crate::{ImportError, Importer, Outcome};

/// Where an upload says how it stands.
const STATE_FILE: &str = "state.json";
/// Largest file: what Prometheus' own segments may have, twice, and the index of some ten million series.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Most uploads of a tenant that are not done.
const UPLOADS_MAX: usize = 64;
/// Imports of an upload that may end with the process.
const ATTEMPTS_MAX: u32 = 5;
/// What nobody finishes, and what failed, goes after this long.
const KEPT_MS: i64 = 24 * 3_600_000;
/// The fewest bytes that are worth a request to the bucket.
const READ_BYTES: u64 = 4 << 20;

/// Why a request about an upload is refused.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no such upload: 404.
    #[error("upload of block {0} has not been started")]
    NotStarted(BlockId),
    /// It is imported, or about to be: 409.
    #[error("block {0} {1}")]
    Conflict(BlockId, &'static str),
    /// The request is wrong: 400.
    #[error("{0}")]
    Bad(String),
    /// More bytes than are taken: 413.
    #[error("{what} has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large it is.
        found: u64,
        /// How large it may be.
        limit: u64,
    },
    /// Too much at once: 429.
    #[error("{0} uploads of tenant {1} are not done: finish these first")]
    TooMany(usize, TenantId),
    /// The process has no memory for it: 503.
    #[error(transparent)]
    Memory(#[from] MemoryShort),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

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

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Stored {
    state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
    /// Imports that were begun and of which nothing was heard since.
    #[serde(default)]
    attempts: u32,
    /// When it came to be so, by the clock of who wrote it.
    at_ms: i64,
}

/// Uploads of all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    importer: Importer,
}

impl Uploads {
    /// Uploads that `importer` imports.
    pub fn new(importer: Importer) -> Self {
        Self { importer }
    }

    fn bucket(&self) -> &Bucket {
        &self.importer.bucket
    }

    /// Whether there is memory to take files and to import them.
    ///
    /// # Errors
    /// [`UploadError::Memory`] when there is not.
    pub fn check_memory(&self) -> Result<(), UploadError> {
        let Importer { memory, clock, .. } = &self.importer;
        Ok(memory.check(clock.elapsed())?)
    }

    /// The tenants that may have uploads: all. Lists.
    ///
    /// # Errors
    /// [`UploadError::Bucket`].
    pub async fn tenants(&self) -> Result<Vec<TenantId>, UploadError> {
        Ok(self.bucket().tenants().await?)
    }

    /// Begins an upload, or begins it again, with the `meta.json` of the block.
    ///
    /// # Errors
    /// [`UploadError`]: [`UploadError::Conflict`] when it is imported already.
    pub async fn start(&self, tenant: &TenantId, block: BlockId, meta: &Bytes) -> Result<(), UploadError> {
        self.check_memory()?;
        let parsed = TsdbMeta::from_json(meta).map_err(|e| UploadError::Bad(e.to_string()))?;
        if BlockId::from(parsed.ulid) != block {
            return Err(UploadError::Bad(format!(
                "meta.json is of block {}, not of {block}",
                parsed.ulid
            )));
        }
        if let Some(from) = self
            .importer
            .kept_from(tenant)
            .filter(|from| parsed.range.max < *from)
        {
            let reason = format!(
                "block {block} ends at {}, older than the retention, which keeps from {from}",
                parsed.range.max
            );
            return Err(UploadError::Bad(reason));
        }
        match self.state(tenant, block).await {
            Ok(UploadState::Complete) => return Err(UploadError::Conflict(block, "is imported already")),
            Ok(UploadState::Validating) => {
                return Err(UploadError::Conflict(block, "is uploaded and being imported"));
            }
            Ok(UploadState::Uploading | UploadState::Failed(_)) => {}
            Err(UploadError::NotStarted(_)) => {
                let others = self.not_done(tenant).await?;
                if others >= UPLOADS_MAX {
                    return Err(UploadError::TooMany(others, tenant.clone()));
                }
            }
            Err(e) => return Err(e),
        }
        self.bucket().put_file(tenant, block, META_FILE, meta).await?;
        self.note(tenant, block, &UploadState::Uploading).await
    }

    /// Begins a file of an upload. Only an index and numbered chunks are taken; tombstones nobody uploads.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn begin_file(
        &self,
        tenant: &TenantId,
        block: BlockId,
        file: &str,
        length: Option<u64>,
    ) -> Result<FileUpload, UploadError> {
        let number = file.strip_prefix("chunks/").unwrap_or_default();
        let chunks = number.len() == 6 && number.bytes().all(|b| b.is_ascii_digit());
        if file != "index" && !chunks {
            return Err(UploadError::Bad(format!(
                "path {file:?} is neither index nor chunks/ and six digits"
            )));
        }
        if length == Some(0) {
            return Err(UploadError::Bad(format!("{file} is empty")));
        }
        check_size(file, length.unwrap_or(0))?;
        self.check_memory()?;
        self.uploading(tenant, block).await?;
        Ok(self.bucket().begin_file(tenant, block, file).await?)
    }

    /// Ends an upload: it is imported from now on.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn finish(&self, tenant: &TenantId, block: BlockId) -> Result<(), UploadError> {
        self.uploading(tenant, block).await?;
        self.note(tenant, block, &UploadState::Validating).await
    }

    /// How an upload stands.
    ///
    /// # Errors
    /// [`UploadError::NotStarted`], [`UploadError::Bucket`].
    pub async fn state(&self, tenant: &TenantId, block: BlockId) -> Result<UploadState, UploadError> {
        // First what is not imported: a block becomes imported before its files go.
        let stored = self.stored(tenant, block).await?;
        if self.bucket().latest(tenant).await?.is_imported(block) {
            return Ok(UploadState::Complete);
        }
        let stored = stored.ok_or(UploadError::NotStarted(block))?;
        Ok(match stored.state.as_str() {
            "uploading" => UploadState::Uploading,
            "validating" => UploadState::Validating,
            // Nothing of it was kept, and so no name of it either.
            "complete" => UploadState::Complete,
            _ => UploadState::Failed(stored.error),
        })
    }

    /// Imports what was uploaded of a tenant, and removes what nobody will finish. Gives how many were imported.
    ///
    /// # Errors
    /// [`UploadError::Bucket`], [`UploadError::Memory`]; the next call goes on.
    pub async fn work(&self, tenant: &TenantId) -> Result<usize, UploadError> {
        let mut imported = 0;
        for block in self.bucket().uploads(tenant).await? {
            let Some(stored) = self.stored(tenant, block).await? else {
                // Whoever began it got no further, or is about to write how it stands.
                let why = "it was begun and nothing came: begin it again".to_owned();
                self.note(tenant, block, &UploadState::Failed(why)).await?;
                continue;
            };
            if stored.state == "validating" {
                self.check_memory()?;
                if stored.attempts >= ATTEMPTS_MAX {
                    let why = format!(
                        "it was not imported in {ATTEMPTS_MAX} attempts, each of which ended the process"
                    );
                    self.note(tenant, block, &UploadState::Failed(why)).await?;
                    self.bucket()
                        .remove_upload(tenant, block, Some(STATE_FILE))
                        .await?;
                    continue;
                }
                self.note_attempts(tenant, block, &UploadState::Validating, stored.attempts + 1)
                    .await?;
                imported += usize::from(self.import(tenant, block).await?);
            } else if self.importer.clock.now_ms().saturating_sub(stored.at_ms) >= KEPT_MS {
                self.bucket().remove_upload(tenant, block, None).await?;
            }
        }
        Ok(imported)
    }

    /// How many uploads of a tenant are begun and neither imported nor failed, or as many as there may be.
    async fn not_done(&self, tenant: &TenantId) -> Result<usize, UploadError> {
        let all = self.bucket().uploads(tenant).await?;
        if all.len() < UPLOADS_MAX {
            return Ok(all.len());
        }
        let mut count = 0;
        for block in all {
            let stored = self.stored(tenant, block).await?;
            count +=
                usize::from(stored.is_none_or(|s| matches!(s.state.as_str(), "uploading" | "validating")));
            if count == UPLOADS_MAX {
                break;
            }
        }
        Ok(count)
    }

    async fn import(&self, tenant: &TenantId, block: BlockId) -> Result<bool, UploadError> {
        let files = UploadedFiles {
            bucket: self.bucket().clone(),
            tenant: tenant.clone(),
            block,
        };
        let done = Box::pin(self.importer.import(tenant, Arc::new(files), &|_| {})).await;
        let state = match &done {
            Ok(done) => {
                tracing::info!(%tenant, source = %block, outcome = ?done.outcome, samples = done.samples, blocks = done.blocks, too_old = done.too_old, "uploaded block imported");
                UploadState::Complete
            }
            Err(e) if e.is_transient() => {
                tracing::warn!(%tenant, source = %block, error = with_sources(e), "uploaded block not imported yet, trying again");
                self.note(tenant, block, &UploadState::Validating).await?;
                return Ok(false);
            }
            Err(e) => {
                tracing::warn!(%tenant, source = %block, error = with_sources(e), "uploaded block cannot be imported");
                UploadState::Failed(told(e))
            }
        };
        if done.as_ref().is_ok_and(|done| done.outcome == Outcome::Imported) {
            // The manifest has its name.
            self.bucket().remove_upload(tenant, block, None).await?;
            return Ok(true);
        }
        self.note(tenant, block, &state).await?;
        self.bucket()
            .remove_upload(tenant, block, Some(STATE_FILE))
            .await?;
        Ok(false)
    }

    async fn uploading(&self, tenant: &TenantId, block: BlockId) -> Result<(), UploadError> {
        match self.state(tenant, block).await? {
            UploadState::Uploading => Ok(()),
            UploadState::Validating => Err(UploadError::Conflict(block, "is uploaded and being imported")),
            UploadState::Complete => Err(UploadError::Conflict(block, "is imported already")),
            UploadState::Failed(_) => Err(UploadError::NotStarted(block)),
        }
    }

    async fn stored(&self, tenant: &TenantId, block: BlockId) -> Result<Option<Stored>, UploadError> {
        let Some(bytes) = self.bucket().file(tenant, block, STATE_FILE).await? else {
            return Ok(None);
        };
        // One that cannot be read is begun again.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    async fn note(&self, tenant: &TenantId, block: BlockId, state: &UploadState) -> Result<(), UploadError> {
        self.note_attempts(tenant, block, state, 0).await
    }

    async fn note_attempts(
        &self,
        tenant: &TenantId,
        block: BlockId,
        state: &UploadState,
        attempts: u32,
    ) -> Result<(), UploadError> {
        let stored = Stored {
            attempts,
            state: state.as_str().to_owned(),
            error: match state {
                UploadState::Failed(why) => why.clone(),
                _ => String::new(),
            },
            at_ms: self.importer.clock.now_ms(),
        };
        let json = Bytes::from(serde_json::to_vec(&stored).unwrap_or_default());
        Ok(self.bucket().put_file(tenant, block, STATE_FILE, &json).await?)
    }
}

/// Refuses what is larger than a file may be.
///
/// # Errors
/// [`UploadError::TooLarge`].
pub fn check_size(file: &str, bytes: u64) -> Result<(), UploadError> {
    let limit = if file == META_FILE {
        META_BYTES_MAX
    } else {
        FILE_BYTES_MAX
    };
    if bytes <= limit {
        return Ok(());
    }
    Err(UploadError::TooLarge {
        what: file.to_owned(),
        found: bytes,
        limit,
    })
}

/// What a tenant may know of a failure.
fn told(e: &ImportError) -> String {
    match e {
        ImportError::Source(_) | ImportError::Span { .. } | ImportError::Count { .. } => with_sources(e),
        _ => "the server could not store it: its log says why".to_owned(),
    }
}

/// A block in the bucket, as it was uploaded.
#[derive(Clone, Debug)]
struct UploadedFiles {
    bucket: Bucket,
    tenant: TenantId,
    block: BlockId,
}

fn failed(file: &str, e: BucketError) -> koios_tsdb::Error {
    koios_tsdb::Error::Read {
        file: file.to_owned(),
        source: Box::new(e),
    }
}

#[async_trait]
impl TsdbFiles for UploadedFiles {
    async fn size(&self, file: &str) -> koios_tsdb::Result<Option<u64>> {
        let size = self.bucket.file_size(&self.tenant, self.block, file).await;
        size.map_err(|e| failed(file, e))
    }

    async fn read(&self, file: &str, range: std::ops::Range<u64>) -> koios_tsdb::Result<Bytes> {
        let end = range.end;
        let bytes = self
            .bucket
            .file_range(&self.tenant, self.block, file, range)
            .await;
        bytes.map_err(|e| match e {
            // Waiting does not make it longer.
            BucketError::Corrupt { reason, .. } => koios_tsdb::Error::Corrupt {
                file: file.to_owned(),
                offset: end,
                reason,
            },
            e => failed(file, e),
        })
    }

    fn read_at_least(&self) -> u64 {
        READ_BYTES
    }
}
