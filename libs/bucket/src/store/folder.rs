//! A folder of this machine.

mod identity;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use koios_runtime::{Disk, RealDisk, RngHandle};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result as StoreResult, UploadPart,
};

use self::identity::Folder;
use super::{Opened, wrong};
use crate::Result;

/// A folder that is not there yet is made, or refused where `must_exist`.
pub(super) fn open(url: &str, path: &str, must_exist: bool, rng: &RngHandle) -> Result<Opened> {
    if !path.starts_with('/') {
        return Err(wrong(url, "the folder must be absolute: file:///absolute/folder"));
    }
    let path = std::path::Path::new(path);
    // The local backend works on real files only; simulation hands `Bucket::new` a store in memory.
    if !must_exist {
        RealDisk.create_dir_durably(path).map_err(|e| wrong(url, e))?;
    }
    let no_folder = |e: &dyn fmt::Display| match must_exist {
        true => wrong(url, format!("no such bucket folder ({e})")),
        false => wrong(url, e),
    };
    let files = LocalFileSystem::new_with_prefix(path).map_err(|e| no_folder(&e))?;
    let root = path.canonicalize().map_err(|e| no_folder(&e))?;
    // Who only looks leaves no trace in what may be no bucket at all.
    let folder = match must_exist {
        true => Folder::as_found(root),
        false => Folder::marked(root, rng),
    };
    Ok(Opened {
        store: Arc::new(FolderStore {
            // Off by default there: without it a power loss takes blocks that heads have already forgotten.
            files: files.with_fsync(true),
            folder: Arc::new(folder.map_err(|e| wrong(url, e))?),
        }),
        pages: None,
        prefix: Path::default(),
        remote: false,
    })
}

/// The files of a folder, as long as it is the one that was opened. The client makes all folders that a path lacks, the bucket's own too: while
/// that is moved away or unmounted, it would write to one that nobody looks into again, and find nothing where there is something.
#[derive(Clone, Debug)]
struct FolderStore {
    files: LocalFileSystem,
    folder: Arc<Folder>,
}

impl fmt::Display for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl FolderStore {
    /// Reads: that nothing is there, or anything else that went wrong, counts only where the folder is still there.
    async fn reading<T>(&self, read: impl Future<Output = StoreResult<T>> + Send) -> StoreResult<T> {
        self.folder.check().await?;
        let done = read.await;
        if done.is_err() {
            self.folder.check().await?;
        }
        done
    }

    /// Writes, or looks for all that there is: it counts only where the folder is still there, lest it went meanwhile.
    async fn whole<T>(&self, work: impl Future<Output = StoreResult<T>> + Send) -> StoreResult<T> {
        self.folder.check().await?;
        let done = work.await;
        self.folder.check().await?;
        done
    }

    /// A list that ends because the folder went is not taken for all there is.
    fn listing<T: Send + 'static>(
        &self,
        objects: BoxStream<'static, StoreResult<T>>,
    ) -> BoxStream<'static, StoreResult<T>> {
        let (before, after) = (Arc::clone(&self.folder), Arc::clone(&self.folder));
        let end = stream::once(async move { after.check().await });
        let end = end.filter_map(|checked| async { checked.err().map(Err) });
        let objects = async move { before.check().await.map(|()| objects) };
        objects.try_flatten_stream().chain(end).boxed()
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(&self, to: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.whole(self.files.put_opts(to, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let upload = self.whole(self.files.put_multipart_opts(to, options)).await?;
        Ok(Box::new(FolderUpload {
            upload,
            store: self.clone(),
        }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.reading(self.files.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.reading(self.files.get_ranges(path, ranges)).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        let (before, after) = (Arc::clone(&self.folder), Arc::clone(&self.folder));
        let paths = paths.and_then(move |path| {
            let folder = Arc::clone(&before);
            async move { folder.check().await.map(|()| path) }
        });
        let deleted = self.files.delete_stream(paths.boxed());
        let settled = deleted.then(move |deleted| {
            let folder = Arc::clone(&after);
            async move {
                match &deleted {
                    Ok(path) => folder.tidy_after(path).await,
                    Err(_) => folder.check().await?,
                }
                deleted
            }
        });
        settled.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.listing(self.files.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.listing(self.files.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.whole(self.files.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.whole(self.files.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> StoreResult<()> {
        self.whole(self.files.rename_opts(from, to, options)).await
    }
}

/// A file on its way in pieces.
#[derive(Debug)]
struct FolderUpload {
    upload: Box<dyn MultipartUpload>,
    store: FolderStore,
}

#[async_trait]
impl MultipartUpload for FolderUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        // To a file that is open: only its end gives it a place.
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        let upload = &mut self.upload;
        self.store.whole(upload.complete()).await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
#[path = "folder_test.rs"]
mod tests;
