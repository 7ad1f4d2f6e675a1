//! Blocks in the bucket: upload, open, delete.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{
    BlockCache, BlockId, BlockMeta, BlockParts, BlockReader, CellKey, META_PART, PartMeta, PartSummary,
    RangeRead, SERIES_PART, Subject, Tail,
};
use koios_model::TenantId;
use koios_runtime::Cpu;
use moka::sync::Cache;
use object_store::PutPayload;
use object_store::path::Path;

use crate::bucket::Bucket;
use crate::manifest::ManifestBlock;
use crate::{Error, Result, pieces};

/// Larger parts are sent in pieces of this size, unless the bucket has another.
pub(crate) const PIECE_BYTES: usize = 16 << 20;
/// Pieces on their way at a time.
const PIECES_AT_A_TIME: usize = 4;
/// Bytes that are read back at a time.
const SECTION_BYTES: u64 = 4 << 20;

impl Bucket {
    /// Uploads a block's parts, `meta.json` last, and reads all of it back: whoever lets go of what the block was made of knows
    /// that the storage has it. The block is not live before a manifest lists it. Repeating it is harmless.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Altered`] when the storage shows something else than was sent.
    pub async fn upload_block(&self, tenant: &TenantId, block: &BlockParts) -> Result<()> {
        self.send_block(tenant, block).await?;
        self.read_back(tenant, &block.meta).await
    }

    /// Uploads a block's parts, and checks no more than their sizes: for those who let go of the parts, or of nothing, before
    /// they read the block back.
    ///
    /// # Errors
    /// Those of [`Self::upload_block`].
    pub async fn send_block(&self, tenant: &TenantId, block: &BlockParts) -> Result<()> {
        let id = block.meta.block;
        for (name, bytes) in &block.parts {
            self.send_part(tenant, id, name, bytes).await?;
        }
        self.send_part(tenant, id, META_PART, &block.meta.to_json()).await
    }

    async fn send_part(&self, tenant: &TenantId, block: BlockId, name: &str, bytes: &Bytes) -> Result<()> {
        let path = self.layout().part(tenant, block, name);
        if bytes.len() > self.piece_bytes() {
            self.put_in_pieces(&path, bytes).await?;
        } else {
            self.put(&path, bytes).await?;
        }
        match self.size(&path).await? {
            Some(size) if size == bytes.len() as u64 => Ok(()),
            found => {
                let reason = format!("{} bytes were sent, {found:?} are there", bytes.len());
                Err(Error::altered(tenant, block, name, reason))
            }
        }
    }

    /// Reads every byte of an uploaded block, past all caches and a little at a time, and compares it with the checksums of what
    /// was encoded.
    ///
    /// # Errors
    /// [`Error::Altered`], [`Error::Unavailable`].
    pub async fn read_back(&self, tenant: &TenantId, block: &BlockMeta) -> Result<()> {
        self.read_parts_back(tenant, block).await?;
        let json = block.to_json();
        let expected = (json.len() as u64, crc32c::crc32c(&json));
        self.read_part_back(tenant, block.block, META_PART, expected)
            .await
    }

    /// The same of all parts but `meta.json`, which other versions of the program write otherwise.
    pub(crate) async fn read_parts_back(&self, tenant: &TenantId, block: &BlockMeta) -> Result<()> {
        for part in &block.parts {
            let expected = (part.bytes, part.crc32c);
            self.read_part_back(tenant, block.block, &part.name, expected)
                .await?;
        }
        Ok(())
    }

    async fn read_part_back(
        &self,
        tenant: &TenantId,
        block: BlockId,
        name: &str,
        (bytes, crc32c): (u64, u32),
    ) -> Result<()> {
        let path = self.layout().part(tenant, block, name);
        let altered = |reason: &str| Error::altered(tenant, block, name, reason);
        let (mut at, mut found) = (0, 0);
        while at < bytes {
            let section = at..bytes.min(at + SECTION_BYTES);
            let read = self.ranges(&path, std::slice::from_ref(&section)).await;
            let read = read.map_err(|e| match e {
                Error::NotFound { .. } => altered("it is not there"),
                Error::Corrupt { reason, .. } => altered(&reason),
                other => other,
            })?;
            found = read
                .iter()
                .fold(found, |crc, bytes| crc32c::crc32c_append(crc, bytes));
            at = section.end;
        }
        match found == crc32c {
            true => Ok(()),
            false => Err(altered("its checksum is another")),
        }
    }

    async fn put_in_pieces(&self, path: &Path, bytes: &Bytes) -> Result<()> {
        let (store, piece_bytes) = (self.store(), self.piece_bytes());
        let retry = self.retry_for(piece_bytes as u64);
        let attempt = || async {
            let mut upload = pieces::begin(store.as_ref(), path, retry.clone()).await?;
            let mut pieces = Vec::new();
            for start in (0..bytes.len()).step_by(piece_bytes) {
                let piece = bytes.slice(start..bytes.len().min(start + piece_bytes));
                pieces.push(upload.put_part(PutPayload::from_bytes(piece)));
            }
            let sent = stream::iter(pieces)
                .buffer_unordered(PIECES_AT_A_TIME)
                .try_collect::<Vec<()>>()
                .await;
            match sent {
                Ok(_) => upload.complete().await.map(|_| ()),
                Err(e) => {
                    // Storage keeps the pieces of a broken upload, and bills them, until told otherwise.
                    if let Err(error) = upload.abort().await {
                        tracing::warn!(object = %path, %error, "upload not aborted");
                    }
                    Err(e)
                }
            }
        };
        self.retry_for(bytes.len() as u64).run(path, attempt).await
    }

    /// Deletes the named parts of a block that is dead; parts that are gone already are fine.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete_parts(&self, tenant: &TenantId, block: BlockId, parts: &[String]) -> Result<()> {
        for name in parts {
            self.delete(&self.layout().part(tenant, block, name)).await?;
        }
        Ok(())
    }

    /// The blocks that have any object, ascending, listed or not. Lists: for finding uploads that were never committed.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn uploaded_blocks(&self, tenant: &TenantId) -> Result<Vec<(BlockId, Vec<String>)>> {
        let folder = self.layout().blocks(tenant);
        let depth = folder.parts().count();
        let mut found: Vec<(BlockId, Vec<String>)> = Vec::new();
        for path in self.list(&folder).await? {
            let mut below = path.parts().skip(depth);
            let (Some(block), Some(part)) = (below.next(), below.next()) else {
                continue;
            };
            let Ok(block) = block.as_ref().parse::<BlockId>() else {
                continue;
            };
            match found.last_mut() {
                Some((last, parts)) if *last == block => parts.push(part.as_ref().to_owned()),
                _ => found.push((block, vec![part.as_ref().to_owned()])),
            }
        }
        Ok(found)
    }

    /// The metadata of a listed block, checked against the manifest.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone, [`Error::Corrupt`] when it is not what the manifest lists,
    /// [`Error::Unavailable`], [`Error::Block`].
    pub async fn block_meta(&self, tenant: &TenantId, block: &ManifestBlock) -> Result<BlockMeta> {
        let json = self.block_meta_json(tenant, block).await?;
        Ok(BlockMeta::from_json(block.block, &json)?)
    }

    /// The same as bytes.
    async fn block_meta_json(&self, tenant: &TenantId, block: &ManifestBlock) -> Result<Bytes> {
        let path = self.layout().part(tenant, block.block, META_PART);
        let Some(json) = self.get(&path).await? else {
            return Err(Error::NotFound {
                object: path.to_string(),
            });
        };
        if !block.lists_meta(&json) {
            return Err(Error::corrupt(&path, "it is not the one the manifest lists"));
        }
        Ok(json)
    }

    /// Ranged reads of one block.
    pub fn range_read(&self, tenant: &TenantId, block: BlockId) -> BucketRangeRead {
        BucketRangeRead {
            bucket: self.clone(),
            tenant: tenant.clone(),
            block,
        }
    }
}

/// Reads ranges of a block's parts from the bucket. Checking and caching is done by [`BlockReader`] above.
#[derive(Clone, Debug)]
pub struct BucketRangeRead {
    bucket: Bucket,
    tenant: TenantId,
    block: BlockId,
}

#[async_trait]
impl RangeRead for BucketRangeRead {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> koios_block::Result<Vec<Bytes>> {
        let path = self.bucket.layout().part(&self.tenant, self.block, part);
        self.bucket.ranges(&path, ranges).await.map_err(|e| match e {
            Error::Corrupt { reason, .. } => koios_block::Error::Corrupt {
                block: self.block,
                part: part.to_owned(),
                reason,
            },
            e => koios_block::Error::Read {
                block: self.block,
                part: part.to_owned(),
                source: Box::new(e),
            },
        })
    }
}

/// Opens blocks, keeping their metadata and, in a shared [`BlockCache`], their checked bytes. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    bucket: Bucket,
    cache: Arc<BlockCache>,
    metas: Cache<BlockId, Arc<BlockMeta>, BuildHasherDefault<DefaultHasher>>,
    cpu: Cpu,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks")
            .field("bucket", &self.bucket)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Blocks {
    /// With a budget in bytes for metadata beside the cache's own budgets.
    pub fn new(bucket: Bucket, cache: Arc<BlockCache>, meta_bytes_max: u64) -> Self {
        let weight = |meta: &Arc<BlockMeta>| {
            let cells_of =
                |p: &PartMeta| p.cells.len() + p.small_cells.as_ref().map_or(0, |s| s.crc32c.len());
            let end_of = |p: &PartMeta| p.end.as_ref().map_or(0, |end| end.zstd.len());
            let parts = meta.parts.iter().map(|p| cells_of(p) * 4 + end_of(p) + 100);
            u32::try_from(parts.sum::<usize>() + 300).unwrap_or(u32::MAX)
        };
        Self {
            bucket,
            cache,
            metas: Cache::builder()
                .max_capacity(meta_bytes_max)
                .weigher(move |_, meta| weight(meta))
                .build_with_hasher(BuildHasherDefault::default()),
            cpu: Cpu::inline(),
        }
    }

    /// Decodes on `cpu`'s threads instead of inline.
    #[must_use]
    pub fn with_cpu(mut self, cpu: Cpu) -> Self {
        self.cpu = cpu;
        self
    }

    /// The bucket below.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Bytes held in memory of blocks, by what they are. As [`BlockCache::bytes`], not for every read.
    pub fn bytes(&self) -> [(&'static str, u64); 5] {
        self.metas.run_pending_tasks();
        let cache = self.cache.bytes();
        [
            ("cells", cache.cells),
            ("indexes", cache.indexes),
            ("series", cache.tables),
            ("samples", cache.samples),
            ("metadata", self.metas.weighted_size()),
        ]
    }

    /// Opens a listed block to read samples, as [`Self::open_for`].
    ///
    /// # Errors
    /// Those of [`Bucket::block_meta`].
    pub async fn open(&self, tenant: &TenantId, block: &ManifestBlock) -> Result<BlockReader> {
        self.open_for(Subject::Samples, tenant, block).await
    }

    /// Opens a listed block; its metadata is fetched unless it is known, and with it, at once, the ends of the parts that reads of
    /// this subject begin with.
    ///
    /// # Errors
    /// Those of [`Bucket::block_meta`].
    pub async fn open_for(
        &self,
        subject: Subject,
        tenant: &TenantId,
        block: &ManifestBlock,
    ) -> Result<BlockReader> {
        let source = Arc::new(self.bucket.range_read(tenant, block.block));
        let known = self.metas.get(&block.block).filter(|m| m.tenant == *tenant);
        let (meta, tails) = match known {
            Some(meta) => (meta, Vec::new()),
            None => {
                let (meta, tails) = match self.kept_meta(block).await? {
                    Some(meta) => (meta, Vec::new()),
                    None => {
                        let meta = self.fetched_meta(tenant, block);
                        let (meta, tails) = future::join(meta, tails(&source, block, subject)).await;
                        (meta?, tails)
                    }
                };
                let meta = Arc::new(meta);
                if meta.tenant != *tenant {
                    let path = self.bucket.layout().part(tenant, block.block, META_PART);
                    return Err(Error::corrupt(path, format!("it is of tenant {}", meta.tenant)));
                }
                self.metas.insert(block.block, Arc::clone(&meta));
                (meta, tails)
            }
        };
        let reader = BlockReader::open(source, meta, Arc::clone(&self.cache))?;
        tails.iter().for_each(|tail| reader.keep(tail));
        let reader = reader.with_cpu(self.cpu.clone());
        Ok(match subject {
            Subject::Samples => reader.with_samples_to_follow(),
            Subject::Series | Subject::Exemplars => reader,
        })
    }

    /// The metadata of a listed block, when it is kept below memory. So are its footers then: nothing is fetched with it.
    async fn kept_meta(&self, block: &ManifestBlock) -> Result<Option<BlockMeta>> {
        let key = CellKey::meta(block.block);
        let Some(store) = self.cache.cell_store() else {
            return Ok(None);
        };
        let Some(json) = store.get(&[key]).await.pop().flatten() else {
            return Ok(None);
        };
        if !block.lists_meta(&json) {
            store.forget(key);
            return Ok(None);
        }
        Ok(Some(BlockMeta::from_json(block.block, &json)?))
    }

    /// The metadata of a listed block out of the bucket.
    async fn fetched_meta(&self, tenant: &TenantId, block: &ManifestBlock) -> Result<BlockMeta> {
        let json = self.bucket.block_meta_json(tenant, block).await?;
        let meta = BlockMeta::from_json(block.block, &json)?;
        if let Some(store) = self.cache.cell_store() {
            store.put(CellKey::meta(block.block), json);
        }
        Ok(meta)
    }
}

/// The ends of the parts that reads of this subject begin with, as far as they can be had: who reads the others is told why not.
async fn tails(source: &BucketRangeRead, block: &ManifestBlock, subject: Subject) -> Vec<Tail> {
    let rows_of = |part: &str| match part {
        SERIES_PART => block.series,
        _ => block.samples,
    };
    let is_whole = |p: &PartSummary| {
        let tail = Tail::of(&p.name, p.bytes, rows_of(&p.name), p.end_cell_bytes);
        tail.start == 0
    };
    let all_series_come = block.parts.iter().any(|p| p.name == SERIES_PART && is_whole(p));
    let first = block
        .parts
        .iter()
        .filter(|p| !p.end_in_meta && subject.begins_with(&p.name, all_series_come));
    let tails = first.map(|p| Tail::read(source, &p.name, p.bytes, rows_of(&p.name), p.end_cell_bytes));
    future::join_all(tails).await.into_iter().flatten().collect()
}
