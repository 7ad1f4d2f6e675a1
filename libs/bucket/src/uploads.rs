//! Files of another system's blocks, kept until they are imported: `<tenant>/uploads/<ULID>/<file>`.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use koios_block::BlockId;
use koios_model::TenantId;
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload};

use crate::bucket::{Bucket, Created};
use crate::retry::{Retry, unavailable};
use crate::{Error, Result, pieces};

/// A file is sent in pieces of this size: at least 5 MiB, as S3 wants it.
const PIECE_BYTES: usize = 8 << 20;

/// A file on its way. It is there once it is finished, and not before.
#[derive(Debug)]
pub struct FileUpload {
    path: Path,
    upload: Box<dyn MultipartUpload>,
    piece: BytesMut,
    bytes: u64,
    retry: Retry,
}

impl FileUpload {
    /// Takes more bytes.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the file is to be sent again then.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.piece.extend_from_slice(bytes);
        while self.piece.len() >= PIECE_BYTES {
            let piece = self.piece.split_to(PIECE_BYTES).freeze();
            self.send(piece).await?;
        }
        Ok(())
    }

    /// How many bytes were taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the file is to be sent again then.
    pub async fn finish(mut self) -> Result<()> {
        let done = self.complete().await;
        if done.is_err() {
            self.abort().await;
        }
        done
    }

    async fn complete(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.piece).freeze();
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        let (clock, limit) = (&self.retry.clock, self.retry.policy.deadline);
        match clock.timeout(limit, self.upload.complete()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(unavailable(&self.path, 1, Some(e))),
            Err(_) => Err(unavailable(&self.path, 1, None)),
        }
    }

    /// Gives it up: storage keeps the pieces of a broken upload, and bills them, until told otherwise.
    pub async fn abort(mut self) {
        let (clock, limit) = (Arc::clone(&self.retry.clock), self.retry.policy.attempt_timeout);
        match clock.timeout(limit, self.upload.abort()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                let error = unavailable(&self.path, 1, Some(e));
                tracing::warn!(object = %self.path, %error, "upload not aborted");
            }
            Err(error) => tracing::warn!(object = %self.path, %error, "upload not aborted"),
        }
    }

    async fn send(&mut self, piece: Bytes) -> Result<()> {
        let (clock, limit) = (&self.retry.clock, self.retry.policy.deadline);
        let sent = self.upload.put_part(PutPayload::from_bytes(piece));
        match clock.timeout(limit, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(unavailable(&self.path, 1, Some(e))),
            Err(_) => Err(unavailable(&self.path, 1, None)),
        }
    }
}

impl Bucket {
    /// Begins a file of an upload; one of the same name is replaced when it is finished.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn begin_file(&self, tenant: &TenantId, upload: BlockId, file: &str) -> Result<FileUpload> {
        let path = self.layout().upload(tenant, upload).join_all(file);
        let store = self.store();
        let retry = self.retry_for(PIECE_BYTES as u64);
        let begin = || pieces::begin(store.as_ref(), &path, retry.clone());
        let begun = retry.run(&path, begin).await?;
        Ok(FileUpload {
            path,
            upload: begun,
            piece: BytesMut::new(),
            bytes: 0,
            retry,
        })
    }

    /// Writes a small file of an upload.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn put_file(
        &self,
        tenant: &TenantId,
        upload: BlockId,
        file: &str,
        bytes: &Bytes,
    ) -> Result<()> {
        self.put(&self.layout().upload(tenant, upload).join_all(file), bytes)
            .await
    }

    /// Writes a small file of an upload unless there is one; whether it did.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn create_file(
        &self,
        tenant: &TenantId,
        upload: BlockId,
        file: &str,
        bytes: &Bytes,
    ) -> Result<bool> {
        let path = self.layout().upload(tenant, upload).join_all(file);
        Ok(self.create(&path, bytes).await? == Created::Yes)
    }

    /// A small file of an upload, if it is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn file(&self, tenant: &TenantId, upload: BlockId, file: &str) -> Result<Option<Bytes>> {
        self.get(&self.layout().upload(tenant, upload).join_all(file))
            .await
    }

    /// The size of a file of an upload, if it is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn file_size(&self, tenant: &TenantId, upload: BlockId, file: &str) -> Result<Option<u64>> {
        self.size(&self.layout().upload(tenant, upload).join_all(file))
            .await
    }

    /// A range of a file of an upload.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`], or [`Error::Corrupt`] when the file is shorter.
    pub async fn file_range(
        &self,
        tenant: &TenantId,
        upload: BlockId,
        file: &str,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let path = self.layout().upload(tenant, upload).join_all(file);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let mut read = self.ranges(&path, std::slice::from_ref(&range)).await?;
        match read.pop() {
            Some(bytes) => Ok(bytes),
            None => Err(Error::corrupt(path, "nothing came for a range")),
        }
    }

    /// The uploads that have any file. Lists.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn uploads(&self, tenant: &TenantId) -> Result<Vec<BlockId>> {
        let folder = self.layout().uploads(tenant);
        let depth = folder.parts().count();
        let mut found = Vec::new();
        for path in self.list(&folder).await? {
            let name = path.parts().nth(depth);
            let Some(upload) = name.and_then(|n| n.as_ref().parse::<BlockId>().ok()) else {
                continue;
            };
            if found.last() != Some(&upload) {
                found.push(upload);
            }
        }
        Ok(found)
    }

    /// Deletes all files of an upload but `kept`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn remove_upload(&self, tenant: &TenantId, upload: BlockId, kept: Option<&str>) -> Result<()> {
        for path in self.list(&self.layout().upload(tenant, upload)).await? {
            if path.filename() != kept {
                self.delete(&path).await?;
            }
        }
        Ok(())
    }
}

/// Names of files may be below a folder.
trait JoinAll {
    fn join_all(self, file: &str) -> Path;
}

impl JoinAll for Path {
    fn join_all(self, file: &str) -> Path {
        file.split('/').fold(self, |path, part| path.join(part))
    }
}
