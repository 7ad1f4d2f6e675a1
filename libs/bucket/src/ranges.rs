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
        let (store, retry) = (self.store(), self.retry_for(total));
        let read = if self.is_remote() {
            // Each is asked again by itself: of hundreds of requests some fail where a few of a hundred do.
            let (retry, started) = (&retry, retry.clock.elapsed());
            let one = |range: Range<u64>| async move {
                let attempt = || fetch(store.as_ref(), path, range.clone());
                retry.since(started).run(path, attempt).await
            };
            let all = stream::iter(ranges.iter().cloned()).map(one);
            all.buffered(RANGES_AT_ONCE).try_collect().await?
        } else {
            retry.run(path, || store.get_ranges(path, ranges)).await?
        };
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use koios_runtime::{ClockHandle, RngHandle, TokioClock};
    use koios_testkit::distant::Distant;
    use object_store::ObjectStoreExt as _;

    use super::*;
    use crate::retry::Retry;
    use crate::store::Opened;

    #[tokio::test(start_paused = true)]
    async fn a_range_that_fails_is_asked_again_alone() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let store = Arc::new(Distant::new(clock.clone(), Duration::from_millis(10)));
        let path = Path::from("object");
        store.put(&path, vec![7; 1_000].into()).await.unwrap();
        let opened = Opened {
            store: store.clone(),
            pages: None,
            prefix: Path::default(),
            remote: true,
        };
        let bucket = Bucket::assemble(
            opened,
            Retry::new("bucket".into(), clock, RngHandle::from_seed(1)),
        );
        let ranges: Vec<_> = (0..200).map(|i| i * 5..i * 5 + 5).collect();
        store.falter_every(10);
        let read = bucket.ranges(&path, &ranges).await.unwrap();
        assert!(read.len() == 200 && read.iter().all(|bytes| bytes.as_ref() == [7; 5]));
        let (requests, _) = store.take();
        assert!((201..=230).contains(&requests), "{requests}");
    }
}
