//! Ranged reads whose answers are as long as they must be.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};

use crate::bucket::Bucket;
use crate::{Error, Result};

/// Ranges of an object that are fetched at the same time.
const RANGES_AT_ONCE: usize = 10;

impl Bucket {
    /// The bytes of each range of an object, in the order asked, each exactly as long as its range. Each is a request of its own: who
    /// asks has joined those that are better fetched together.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::Corrupt`] when the object ends before a range does;
    /// [`crate::Error::Unavailable`], also when answers keep being cut short; [`crate::Error::Rejected`].
    pub(crate) async fn ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let total = ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum();
        let store = self.store();
        let attempt = || async move {
            if !self.is_remote() {
                return store.get_ranges(path, ranges).await;
            }
            stream::iter(ranges.iter().cloned())
                .map(|range| fetch(store.as_ref(), path, range))
                .buffered(RANGES_AT_ONCE)
                .try_collect()
                .await
        };
        let read = self.retry_for(total).run(path, attempt).await?;
        let is_whole = |(bytes, range): (&Bytes, &Range<u64>)| {
            bytes.len() as u64 == range.end.saturating_sub(range.start)
        };
        if read.len() != ranges.len() || !read.iter().zip(ranges).all(is_whole) {
            return Err(Error::corrupt(
                path,
                "it ends before the bytes that it should have",
            ));
        }
        Ok(read)
    }
}

async fn fetch(store: &dyn ObjectStore, path: &Path, range: Range<u64>) -> object_store::Result<Bytes> {
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    let failed = |text: String| object_store::Error::Generic {
        store: "bucket",
        source: text.into(),
    };
    let options = GetOptions::new().with_range(Some(range.clone()));
    let answer = store.get_opts(path, options).await?;
    let size = answer.meta.size;
    if size < range.end {
        // In the words of the client, for a range that begins behind the end.
        return Err(failed(format!(
            "Wanted range starting at {} and ending at {}, but object was only {size} bytes long",
            range.start, range.end
        )));
    }
    let bytes = answer.bytes().await?;
    if bytes.len() as u64 != range.end - range.start {
        return Err(failed(format!("{} bytes came for range {range:?}", bytes.len())));
    }
    Ok(bytes)
}
