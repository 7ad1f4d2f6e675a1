//! Blocks that come in files, by a protocol: begun, filled, finished, imported in the background.
//!
//! Everything about an upload is in the bucket (docs/formats/manifest.md), so that any process goes on with it after a crash.
//!
//! **Source**: Grafana Mimir's block upload, as mimirtool speaks it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use koios_block::BlockId;
use koios_bucket::{Bucket, Error as BucketError, Failures, FileUpload, Manifest};
use koios_model::TenantId;
use koios_runtime::{MemoryShort, with_sources};
use koios_tsdb::{META_BYTES_MAX, META_FILE, TsdbFiles, TsdbMeta};

use crate::left_over::{LeftOver, Removals};
use crate::upload_state::{STATE_FILE, Stored, UploadState};
use crate::{Came, ImportError, Imported, Importer, Outcome};

/// Largest file: what Prometheus' own segments may have, twice, and the index of some ten million series.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Most uploads of a tenant that are not done.
const UPLOADS_MAX: usize = 64;
/// Imports of an upload that may end with the process.
const ATTEMPTS_MAX: u32 = 5;
/// How often an import says that it goes on.
const HOLD_EVERY: Duration = Duration::from_secs(5);
/// What nobody finishes, and what failed, goes after this long.
const KEPT_MS: i64 = 24 * 3_600_000;
/// Why a request about a block is in conflict.
const IMPORTED: &str = "is imported already";
const IMPORTING: &str = "is uploaded and being imported";
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

/// Uploads of all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    importer: Importer,
    left_over: LeftOver,
}

impl Uploads {
    /// Uploads that `importer` imports.
    pub fn new(importer: Importer) -> Self {
        Self {
            importer,
            left_over: LeftOver::default(),
        }
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

    /// Begins an upload, or begins it again, with the `meta.json` of the block. What was imported already is refused, unless it is to be
    /// imported once more, `again`.
    ///
    /// # Errors
    /// [`UploadError`]: [`UploadError::Conflict`] when it is imported already.
    pub async fn start(
        &self,
        tenant: &TenantId,
        block: BlockId,
        meta: &Bytes,
        again: bool,
    ) -> Result<(), UploadError> {
        self.check_memory()?;
        let parsed = TsdbMeta::from_json(meta).map_err(|e| UploadError::Bad(e.to_string()))?;
        if BlockId::from(parsed.ulid) != block {
            return Err(UploadError::Bad(format!(
                "meta.json is of block {}, not of {block}",
                parsed.ulid
            )));
        }
        let stored = self.stored(tenant, block).await?;
        let manifest = self.bucket().latest(tenant).await?;
        if let Some(from) = self
            .importer
            .kept_from(&manifest)
            .filter(|from| parsed.range.max < *from)
        {
            let reason = format!(
                "block {block} ends at {}, older than the retention, which keeps from {from}",
                parsed.range.max
            );
            return Err(UploadError::Bad(reason));
        }
        let is_done = self.importer.is_done(&manifest, block, None);
        match stored.map(|s| s.state()) {
            _ if is_done && !again => return Err(UploadError::Conflict(block, IMPORTED)),
            Some(UploadState::Complete) if !again => return Err(UploadError::Conflict(block, IMPORTED)),
            Some(UploadState::Validating) => return Err(UploadError::Conflict(block, IMPORTING)),
            Some(UploadState::Uploading | UploadState::Failed(_) | UploadState::Complete) => {}
            None => {
                let others = self.not_done(tenant).await?;
                if others >= UPLOADS_MAX {
                    return Err(UploadError::TooMany(others, tenant.clone()));
                }
            }
        }
        // First, so that whoever finds its files knows how it stands.
        let begun = self.now(&UploadState::Uploading, Some(manifest.version));
        let imported = manifest.imported(block).map(|i| i.version);
        let begun = begun.again(imported.filter(|_| again));
        self.note(tenant, block, &begun).await?;
        Ok(self.bucket().put_file(tenant, block, META_FILE, meta).await?)
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
        let (manifest, stored) = self.uploading(tenant, block).await?;
        let ended = self.now(&UploadState::Validating, Some(manifest.version));
        let ended = ended.again(stored.again_after);
        self.note(tenant, block, &ended).await
    }

    /// How an upload stands.
    ///
    /// # Errors
    /// [`UploadError::NotStarted`], [`UploadError::Bucket`].
    pub async fn state(&self, tenant: &TenantId, block: BlockId) -> Result<UploadState, UploadError> {
        let (_, stored, is_done) = self.look(tenant, block).await?;
        // Of what is complete and has no name in the manifest nothing was kept.
        match (is_done, stored) {
            (true, _) => Ok(UploadState::Complete),
            (false, Some(stored)) => Ok(stored.state()),
            (false, None) => Err(UploadError::NotStarted(block)),
        }
    }

    /// The tenant's manifest, what is written of an upload, and whether it is imported.
    async fn look(
        &self,
        tenant: &TenantId,
        block: BlockId,
    ) -> Result<(Arc<Manifest>, Option<Stored>, bool), UploadError> {
        // First what is not imported: a block becomes imported before its files go.
        let stored = self.stored(tenant, block).await?;
        let manifest = self.bucket().latest(tenant).await?;
        let again_after = stored.as_ref().and_then(|s| s.again_after);
        let is_done = self.importer.is_done(&manifest, block, again_after);
        Ok((manifest, stored, is_done))
    }

    /// Imports what was uploaded of a tenant, and removes what nobody will finish. Gives how many were imported. An upload that the
    /// storage does not let at keeps no other waiting.
    ///
    /// # Errors
    /// [`UploadError::Bucket`], the first of those met; [`UploadError::Memory`]; the next call goes on.
    pub async fn work(&self, tenant: &TenantId) -> Result<usize, UploadError> {
        let (mut imported, mut failed) = (0, None);
        let mut failures = Failures::default();
        let mut removals = self.left_over.round(self.bucket(), self.importer.clock.elapsed());
        let mut uploads = self.bucket().uploads(tenant).await?;
        removals.put_last_what_failed(tenant, &mut uploads);
        for block in uploads {
            if failures.are_enough() {
                break;
            }
            let done = match self.work_on(tenant, block, &mut removals).await {
                Ok(is_imported) => {
                    imported += usize::from(is_imported);
                    Ok(())
                }
                Err(UploadError::Bucket(error)) => Err(error),
                Err(error) => return Err(error),
            };
            failures.note(&done);
            if done.is_err() {
                removals.note_failed(tenant, block);
            }
            failed = failed.or_else(|| done.err());
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(imported),
        }
    }

    /// Goes on with one upload; whether it is listed by that.
    async fn work_on(
        &self,
        tenant: &TenantId,
        block: BlockId,
        removals: &mut Removals<'_>,
    ) -> Result<bool, UploadError> {
        let Some(stored) = self.stored(tenant, block).await? else {
            // What is left of one that was removed, or was begun by a version that wrote this last.
            let why = "it was begun and nothing came: begin it again".to_owned();
            let failed = self.now(&UploadState::Failed(why), None).to_json();
            self.bucket()
                .create_file(tenant, block, STATE_FILE, &failed)
                .await?;
            return Ok(false);
        };
        let now_ms = self.importer.clock.now_ms();
        if stored.state() != UploadState::Validating {
            if now_ms.saturating_sub(stored.at_ms) >= KEPT_MS {
                removals.remove(tenant, block, None).await;
            }
            return Ok(false);
        }
        if stored.is_held_by_another(self.holder(), now_ms) {
            return Ok(false);
        }
        self.check_memory()?;
        if stored.attempts >= ATTEMPTS_MAX {
            let why =
                format!("it was not imported in {ATTEMPTS_MAX} attempts, each of which ended the process");
            let failed = self.now(&UploadState::Failed(why), None);
            let failed = failed.again(stored.again_after);
            self.end(tenant, block, &failed, removals).await?;
            return Ok(false);
        }
        let mut held = stored.held(self.holder(), now_ms);
        held.attempts += 1;
        self.note(tenant, block, &held).await?;
        Box::pin(self.import(tenant, block, &held, removals)).await
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
            let is_done = |s: Stored| matches!(s.state(), UploadState::Complete | UploadState::Failed(_));
            count += usize::from(!stored.is_some_and(is_done));
            if count == UPLOADS_MAX {
                break;
            }
        }
        Ok(count)
    }

    /// Imports an upload that is `held` here; whether it is listed by that.
    async fn import(
        &self,
        tenant: &TenantId,
        block: BlockId,
        held: &Stored,
        removals: &mut Removals<'_>,
    ) -> Result<bool, UploadError> {
        let files = UploadedFiles {
            bucket: self.bucket().clone(),
            tenant: tenant.clone(),
            block,
        };
        let came = Came {
            version: held.version,
            again_after: held.again_after,
        };
        let importing = self.importer.import_as_of(tenant, Arc::new(files), came, &|_| {});
        let done = match select(Box::pin(importing), pin!(self.hold(tenant, block))).await {
            Either::Left((done, _)) => done,
            Either::Right(((), _)) => {
                tracing::info!(%tenant, source = %block, "uploaded block was removed, or another process imports it: given up here");
                return Ok(false);
            }
        };
        self.note_done(tenant, block, held, &done, removals).await?;
        Ok(done.is_ok_and(|done| done.outcome == Outcome::Imported))
    }

    async fn note_done(
        &self,
        tenant: &TenantId,
        block: BlockId,
        held: &Stored,
        done: &Result<Imported, ImportError>,
        removals: &mut Removals<'_>,
    ) -> Result<(), UploadError> {
        let state = match done {
            Ok(done) => {
                tracing::info!(%tenant, source = %block, outcome = ?done.outcome, samples = done.samples, blocks = done.blocks, too_old = done.too_old, "uploaded block imported");
                if done.outcome == Outcome::Imported {
                    // The manifest has its name. Of files that stay the next call says that it is complete.
                    removals.remove(tenant, block, None).await;
                    return Ok(());
                }
                UploadState::Complete
            }
            Err(e) if e.is_transient() => {
                tracing::warn!(%tenant, source = %block, error = with_sources(e), "uploaded block not imported yet, trying again");
                if self.is_held(tenant, block).await? {
                    let waits = self.now(&UploadState::Validating, held.version);
                    self.note(tenant, block, &waits.again(held.again_after)).await?;
                }
                return Ok(());
            }
            Err(e) => {
                tracing::warn!(%tenant, source = %block, error = with_sources(e), "uploaded block cannot be imported");
                UploadState::Failed(told(e))
            }
        };
        if self.is_held(tenant, block).await? {
            let ended = self.now(&state, None).again(held.again_after);
            self.end(tenant, block, &ended, removals).await?;
        }
        Ok(())
    }

    /// Says now and then that an import goes on; ends when it should not.
    async fn hold(&self, tenant: &TenantId, block: BlockId) {
        loop {
            self.importer.clock.sleep(HOLD_EVERY).await;
            let held = match self.stored(tenant, block).await {
                Ok(Some(stored)) if stored.is_held_by(self.holder()) => {
                    stored.held(self.holder(), self.importer.clock.now_ms())
                }
                Ok(_) => return,
                // The import itself tells whether the bucket is gone.
                Err(_) => continue,
            };
            if let Err(error) = self.note(tenant, block, &held).await {
                tracing::debug!(%tenant, source = %block, %error, "not said that an import goes on");
            }
        }
    }

    /// Whether an upload is there still, and nobody else imports it.
    async fn is_held(&self, tenant: &TenantId, block: BlockId) -> Result<bool, UploadError> {
        let stored = self.stored(tenant, block).await?;
        Ok(stored.is_some_and(|s| s.is_held_by(self.holder())))
    }

    /// Who holds what is imported here.
    fn holder(&self) -> &str {
        &self.importer.writer
    }

    /// Notes how an upload ended of which nothing is listed, and removes its files.
    async fn end(
        &self,
        tenant: &TenantId,
        block: BlockId,
        ended: &Stored,
        removals: &mut Removals<'_>,
    ) -> Result<(), UploadError> {
        self.note(tenant, block, ended).await?;
        removals.remove(tenant, block, Some(STATE_FILE)).await;
        Ok(())
    }

    /// What is written of an upload that takes files, and the tenant's manifest.
    async fn uploading(
        &self,
        tenant: &TenantId,
        block: BlockId,
    ) -> Result<(Arc<Manifest>, Stored), UploadError> {
        let (manifest, stored, is_done) = self.look(tenant, block).await?;
        if is_done {
            return Err(UploadError::Conflict(block, IMPORTED));
        }
        let stored = stored.ok_or(UploadError::NotStarted(block))?;
        match stored.state() {
            UploadState::Uploading => Ok((manifest, stored)),
            UploadState::Validating => Err(UploadError::Conflict(block, IMPORTING)),
            UploadState::Complete => Err(UploadError::Conflict(block, IMPORTED)),
            UploadState::Failed(_) => Err(UploadError::NotStarted(block)),
        }
    }

    async fn stored(&self, tenant: &TenantId, block: BlockId) -> Result<Option<Stored>, UploadError> {
        Ok(Stored::read(self.bucket(), tenant, block).await?)
    }

    fn now(&self, state: &UploadState, version: Option<u64>) -> Stored {
        Stored::new(state, version, self.importer.clock.now_ms())
    }

    async fn note(&self, tenant: &TenantId, block: BlockId, stored: &Stored) -> Result<(), UploadError> {
        let json = stored.to_json();
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
        ImportError::Source(_)
        | ImportError::Span { .. }
        | ImportError::Count { .. }
        | ImportError::Deleted => with_sources(e),
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
            BucketError::NotFound { .. } => koios_tsdb::Error::Missing {
                file: file.to_owned(),
            },
            e => failed(file, e),
        })
    }

    fn read_at_least(&self) -> u64 {
        READ_BYTES
    }
}
